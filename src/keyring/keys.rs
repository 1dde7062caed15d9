//! The signing keys, as operators look at them.

use super::sign::Choice;
use super::snapshot::TenantView;
use super::{Error, Keyrings};
use crate::domain::{Algorithm, KeyState, Keyring, Kid, ObjectId, SigningKey, TenantId, Timestamp};

/// A key as operators see it: also one that is still being generated, or never came to be.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Whose key.
    pub tenant: TenantId,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// Where it stands.
    pub state: ListedState,
    /// CKA_ID of its objects.
    pub object: ObjectId,
    /// When its intent was recorded.
    pub create_time: Timestamp,
    /// Its public facts, once there are any.
    pub key: Option<SigningKey>,
    /// When it will be revoked by itself.
    pub revoke_scheduled_time: Option<Timestamp>,
}

/// Where a key stands, with the states that only operators see. The order is the order of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListedState {
    /// Being generated.
    Pending,
    /// The generation failed or was interrupted.
    Abandoned,
    /// Generated.
    Key(KeyState),
}

/// Which keys to list.
#[derive(Clone, Debug)]
pub struct ListKeys {
    /// Whose keys.
    pub tenant: TenantId,
    /// Only of this algorithm.
    pub algorithm: Option<Algorithm>,
    /// Only in one of these states; empty: in any.
    pub states: Vec<ListedState>,
    /// At most so many.
    pub page_size: usize,
    /// Only keys after this one.
    pub after: Option<(Algorithm, ObjectId)>,
}

/// Some of a tenant's keys.
#[derive(Debug)]
pub struct KeyPage {
    /// The keys, ordered by algorithm and then by create_time.
    pub keys: Vec<Listed>,
    /// Where the next page begins, if there is one.
    pub next: Option<(Algorithm, ObjectId)>,
}

impl Keyrings {
    /// The key that signs now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for the algorithm, [`Error::Unavailable`] while the first key is generated.
    pub fn current_key(&self, choice: &Choice) -> Result<Listed, Error> {
        let (view, signer) = self.choose(choice)?;
        find(&view, &signer.kid)
    }

    /// One key.
    ///
    /// # Errors
    /// [`Error::NotFound`] for tenant or key.
    pub fn key(&self, tenant: &TenantId, kid: &Kid) -> Result<Listed, Error> {
        find(self.snapshot().tenant(tenant).ok_or_else(|| self.absent(tenant))?, kid)
    }

    /// Some of a tenant's keys.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the tenant, [`Error::Invalid`] for a page token whose key is not there.
    pub fn list_keys(&self, list: &ListKeys) -> Result<KeyPage, Error> {
        let snapshot = self.snapshot();
        let view = snapshot.tenant(&list.tenant).ok_or_else(|| self.absent(&list.tenant))?;
        if let Some(algorithm) = list.algorithm {
            // A retired algorithm's keys are shown too.
            if view.record.keyrings.iter().all(|keyring| keyring.algorithm != algorithm) {
                return Err(Error::not_of_tenant(&view.record.tenant));
            }
        }
        let all: Vec<Listed> = view.record.keyrings.iter().flat_map(|keyring| listed(keyring, view)).collect();
        let start = match list.after {
            None => 0,
            Some(place) => {
                let found = all.iter().position(|listed| (listed.algorithm, listed.object) == place);
                found.ok_or_else(|| Error::invalid("page_token", "must be the next_page_token of the answer before"))?
                    + 1
            }
        };
        let wanted = |listed: &Listed| {
            list.algorithm.is_none_or(|algorithm| algorithm == listed.algorithm)
                && (list.states.is_empty() || list.states.contains(&listed.state))
        };
        let mut keys: Vec<Listed> = all.into_iter().skip(start).filter(wanted).take(list.page_size + 1).collect();
        let more = keys.len() > list.page_size;
        keys.truncate(list.page_size);
        let next = keys.last().filter(|_| more).map(|last| (last.algorithm, last.object));
        Ok(KeyPage { keys, next })
    }
}

pub(super) fn no_key() -> Error {
    Error::NotFound("the tenant has no key of this kid; ListSigningKeys shows those that it has".to_owned())
}

fn find(view: &TenantView, kid: &Kid) -> Result<Listed, Error> {
    let (keyring, key) = view.key(kid).ok_or_else(no_key)?;
    Ok(listed_key(keyring, key, view.record.tenant.policy.auto_revoke))
}

/// Every key of a keyring that operators see, oldest first.
fn listed<'a>(keyring: &'a Keyring, view: &'a TenantView) -> Vec<Listed> {
    let unborn = |object, create_time, state| Listed {
        tenant: keyring.tenant.clone(),
        algorithm: keyring.algorithm,
        state,
        object,
        create_time,
        key: None,
        revoke_scheduled_time: None,
    };
    let keys = keyring.keys.iter().map(|key| listed_key(keyring, key, view.record.tenant.policy.auto_revoke));
    let abandoned = keyring.abandoned.iter().map(|a| unborn(a.object, a.abandon_time, ListedState::Abandoned));
    let pending = keyring.pending.iter().map(|p| unborn(p.object, p.create_time, ListedState::Pending));
    let mut all: Vec<Listed> = keys.chain(abandoned).chain(pending).collect();
    all.sort_by_key(|listed| (listed.create_time, listed.object));
    all
}

pub(super) fn listed_key(keyring: &Keyring, key: &SigningKey, auto_revoke: bool) -> Listed {
    Listed {
        tenant: keyring.tenant.clone(),
        algorithm: keyring.algorithm,
        state: ListedState::Key(key.state),
        object: key.object,
        create_time: key.create_time,
        revoke_scheduled_time: key.retain_until.filter(|_| auto_revoke && key.state == KeyState::Previous),
        key: Some(key.clone()),
    }
}
