//! Keys with which the token made a signature that does not verify (R11): this process signs with them no more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use super::snapshot::{Signer, Snapshot};
use super::{Error, Keyrings};
use crate::domain::{Algorithm, Caller, Event, Kid, TenantId, Timestamp};
use crate::store::Change;

/// The keys, for as long as the process runs: some hundred octets for each key that ever failed.
#[derive(Debug, Default)]
pub(super) struct KeyQuarantine {
    keys: RwLock<BTreeMap<Kid, Entry>>,
    /// Whether there is one; beside the lock, because each signature asks.
    any: AtomicBool,
    /// A key has come.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Entry {
    tenant: TenantId,
    algorithm: Algorithm,
    since: Timestamp,
    /// Whether the administration log has it.
    recorded: bool,
}

/// A current key that does not sign, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedKey {
    /// Its name.
    pub kid: Kid,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// When its signature did not verify.
    pub since: Timestamp,
}

impl KeyQuarantine {
    /// Keeps the key from signing; whether it was not kept before.
    fn put(&self, kid: &Kid, entry: Entry) -> bool {
        let mut keys = self.write();
        let is_new = !keys.contains_key(kid);
        if is_new {
            keys.insert(kid.clone(), entry);
            self.any.store(true, Ordering::Release);
            self.changed.notify_one();
        }
        is_new
    }

    /// Whether the key is kept from signing.
    pub(super) fn holds(&self, kid: &Kid) -> bool {
        self.any.load(Ordering::Acquire) && self.read().contains_key(kid)
    }

    /// Those that would sign. One that was rotated away is of no concern any more.
    pub(super) fn list(&self, snapshot: &Snapshot) -> Vec<QuarantinedKey> {
        let keys = self.read();
        let would_sign = keys.iter().filter(|(kid, entry)| {
            let signer = snapshot.view(&entry.tenant).and_then(|view| view.signer(entry.algorithm));
            signer.is_some_and(|signer| signer.kid == **kid)
        });
        would_sign.map(|(kid, entry)| entry.shown(kid)).collect()
    }

    fn unrecorded(&self) -> Vec<QuarantinedKey> {
        let keys = self.read();
        keys.iter().filter(|(_, entry)| !entry.recorded).map(|(kid, entry)| entry.shown(kid)).collect()
    }

    fn recorded(&self, kid: &Kid) {
        if let Some(entry) = self.write().get_mut(kid) {
            entry.recorded = true;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Kid, Entry>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Kid, Entry>> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn shown(&self, kid: &Kid) -> QuarantinedKey {
        let Self { ref tenant, algorithm, since, .. } = *self;
        QuarantinedKey { kid: kid.clone(), tenant: tenant.clone(), algorithm, since }
    }
}

impl Keyrings {
    /// The token made a signature with this key that does not verify: it signs no more, whoever waits for another one.
    pub(super) fn quarantine_key(&self, signer: &Signer) {
        signer.token.suspect(format!("its signature with key {} does not verify", signer.kid));
        let Some(tenant) = signer.key.tenant.clone() else { return };
        let (algorithm, kid) = (signer.key.algorithm, &signer.kid);
        let entry = Entry { tenant: tenant.clone(), algorithm, since: self.clock.now(), recorded: false };
        if self.key_quarantine.put(kid, entry) {
            tracing::error!(
                %tenant, %algorithm, %kid,
                "a signature of the token does not verify and was not released: this key signs no more; have the token looked \
                 at, and rotate with force"
            );
        }
    }

    /// Whether the key may sign.
    pub(super) fn check_key(&self, kid: &Kid) -> Result<(), Error> {
        if !self.key_quarantine.holds(kid) {
            return Ok(());
        }
        Err(Error::Precondition {
            reason: "KEY_QUARANTINED",
            message: format!(
                "key {kid} signs no more: the token made a signature with it that does not verify, which was not released; \
                 have the token looked at, then rotate with force, and with revoke_replaced if signatures may have been \
                 released unverified; a restart lets the key sign again"
            ),
            retry_time: None,
        })
    }

    /// Puts keys that came into quarantine into the administration log. Signing does not wait for it.
    pub(super) async fn record_quarantined_keys(&self) -> Result<(), Error> {
        for key in self.key_quarantine.unrecorded() {
            let event = Event {
                tenant: Some(key.tenant),
                algorithm: Some(key.algorithm),
                kid: Some(key.kid.clone()),
                detail: "a signature of the token does not verify".to_owned(),
                ..Event::new(key.since, "quarantine_key", &Caller::timer())
            };
            self.commit(&Change { events: vec![event], ..Change::default() }).await?;
            self.key_quarantine.recorded(&key.kid);
        }
        Ok(())
    }
}
