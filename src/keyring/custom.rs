//! Custom keys: public keys that a tenant brought itself.

use std::sync::Arc;

use super::rotate::TRIES_MAX;
use super::tenants::tenant_event;
use super::{Error, Keyrings, Violation};
use crate::domain::{Caller, CustomKey, Digest, Event, Keyring, Octets, TenantId};
use crate::jose;
use crate::store::{Change, StoreError, TenantRecord};

/// Longest JWK Set taken: ten RSA keys of the greatest length with a chain each.
const JWKS_BYTES_MAX: usize = 128 * 1024;

/// Most violations that one refusal names.
const VIOLATIONS_MAX: usize = 8;

/// What is to take the place of a tenant's custom keys, and on whose wish.
struct Replacement {
    keys: Vec<CustomKey>,
    /// SHA-256 of the set as it came.
    input: Option<Octets>,
    caller: Caller,
}

impl Keyrings {
    /// The tenant's custom keys as a JWK Set.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the tenant.
    pub fn custom_keys(&self, tenant: &TenantId) -> Result<String, Error> {
        let snapshot = self.snapshot();
        let view = snapshot.tenant(tenant).ok_or_else(|| self.absent(tenant))?;
        Ok(jwks_json(&view.record.tenant.custom_keys))
    }

    /// Puts a set in place of the tenant's custom keys, whole or not at all. The set as it is published.
    ///
    /// # Errors
    /// [`Error::Invalid`] names each member that is wrong, [`Error::NotFound`] for the tenant, and those of the store.
    pub async fn put_custom_keys(
        self: &Arc<Self>,
        tenant: TenantId,
        jwks_json: &str,
        caller: &Caller,
    ) -> Result<String, Error> {
        if jwks_json.len() > JWKS_BYTES_MAX {
            return Err(Error::invalid("jwks_json", format!("must be at most {JWKS_BYTES_MAX} octets")));
        }
        let keys = jose::parse_custom_keys(jwks_json).map_err(|problems| {
            let violation = |problem: jose::JwkProblem| {
                let dot = if problem.member.is_empty() { "" } else { "." };
                Violation { field: format!("jwks_json{dot}{}", problem.member), problem: problem.problem }
            };
            Error::Invalid(shortened(problems.into_iter().map(violation).collect()))
        })?;
        let published = self::jwks_json(&keys);
        let input = Octets(jose::digest(Digest::Sha256, jwks_json.as_bytes()));
        self.replace_custom_keys(tenant, Replacement { keys, input: Some(input), caller: caller.clone() }).await?;
        Ok(published)
    }

    /// Removes the tenant's custom keys. That there are none is no error.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the tenant, and those of the store.
    pub async fn delete_custom_keys(self: &Arc<Self>, tenant: TenantId, caller: &Caller) -> Result<(), Error> {
        let nothing = Replacement { keys: Vec::new(), input: None, caller: caller.clone() };
        self.replace_custom_keys(tenant, nothing).await
    }

    async fn replace_custom_keys(self: &Arc<Self>, tenant: TenantId, new: Replacement) -> Result<(), Error> {
        let of = tenant.clone();
        self.in_turn(&of, |this| async move {
            for _ in 0..TRIES_MAX {
                match this.commit_custom_keys(&tenant, &new).await {
                    // Another replica changed the tenant: look at it again.
                    Err(Error::Aborted(_)) => {}
                    other => return other,
                }
            }
            Err(StoreError::Conflict.into())
        })
        .await
    }

    async fn commit_custom_keys(&self, id: &TenantId, new: &Replacement) -> Result<(), Error> {
        let Replacement { keys, input, caller } = new;
        let record = self.load(id).await?;
        none_is_own(&record.keyrings, keys)?;
        if record.tenant.custom_keys == *keys {
            return Ok(());
        }
        self.check_clock(&record.tenant)?;
        let mut tenant = record.tenant;
        tenant.custom_keys.clone_from(keys);
        tenant.revision = tenant.revision.next();
        let action = if keys.is_empty() { "delete_custom_keys" } else { "put_custom_keys" };
        let kids: Vec<&str> = keys.iter().map(|key| key.kid.as_str()).collect();
        let event = Event::new(self.clock.now(), action, caller);
        let event = Event { input_sha256: input.clone(), detail: kids.join(" "), ..tenant_event(&tenant, event) };
        let change = Change { tenant: Some(tenant.clone()), events: vec![event], ..Change::default() };
        self.commit(&change).await?;
        self.publish(&TenantRecord { tenant, keyrings: record.keyrings })?;
        Ok(())
    }
}

/// The first of many violations, and how many more there are: an answer travels in headers, and clients take some 8 KiB.
fn shortened(mut violations: Vec<Violation>) -> Vec<Violation> {
    let more = violations.len().saturating_sub(VIOLATIONS_MAX);
    if more > 0 {
        violations.truncate(VIOLATIONS_MAX);
        let problem = format!("has {more} more problem{}", if more == 1 { "" } else { "s" });
        violations.push(Violation { field: "jwks_json".to_owned(), problem });
    }
    violations
}

/// Custom keys are none of the tenant's own, under their name or another, those that were revoked included: a verifier must
/// not take one for the other, and revoked is final.
fn none_is_own(own: &[Keyring], custom: &[CustomKey]) -> Result<(), Error> {
    let is_own = |kid: &str| own.iter().flat_map(|keyring| &keyring.keys).any(|own| own.kid.as_str() == kid);
    let mut violations = Vec::new();
    for (index, key) in custom.iter().enumerate() {
        let mut violation = |member: &str, problem: &str| {
            violations
                .push(Violation { field: format!("jwks_json.keys[{index}]{member}"), problem: problem.to_owned() });
        };
        if is_own(key.kid.as_str()) {
            violation(".kid", "must not be the kid of one of the tenant's own keys");
        } else if is_own(jose::thumbprint(&key.public).as_str()) {
            violation("", "must not be one of the tenant's own keys under another kid");
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(Error::Invalid(shortened(violations))) }
}

fn jwks_json(keys: &[CustomKey]) -> String {
    String::from_utf8(jose::jwks_json(&[], keys)).expect("JSON is UTF-8")
}
