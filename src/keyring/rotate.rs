//! Rotation and revocation, as operators ask for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::{Listed, listed_key, no_key};
use super::{Error, Keyrings, Part};
use crate::domain::{
    Algorithm, Caller, Event, KeyState, Keyring, Kid, RequestId, RevokeRefused, RotateRefused, Rotation, TenantId,
    Timestamp, Trigger, after,
};
use crate::store::{StoreError, TenantRecord};

/// A rotation that somebody asks for.
#[derive(Clone, Debug)]
pub struct RotateKeys {
    /// Whose keyring.
    pub tenant: TenantId,
    /// Which one; `None`: that of the default algorithm.
    pub algorithm: Option<Algorithm>,
    /// What the caller insists on.
    pub trigger: Trigger,
}

/// A keyring as a rotation left it.
#[derive(Debug)]
pub struct Rotated {
    /// The key that signs now.
    pub current: Listed,
    /// The new next key, unless the token could not generate it yet.
    pub next: Option<Listed>,
    /// The key that was replaced.
    pub previous: Option<Listed>,
}

/// How often a rotation or revocation that lost a compare-and-swap decides again before it gives up.
pub(super) const TRIES_MAX: usize = 8;

/// When to ask again for a rotation whose next key is being generated: the timer looks after it as often.
pub(super) const GENERATION_PAUSE: Duration = Duration::from_secs(1);

/// A token that fails later than that hangs: its caller has waited enough.
const FAILED_SOON: Duration = Duration::from_secs(10);

/// How often the fence looks whether the last request with a revoked key has ended: requests take milliseconds.
const FENCE_LOOK: Duration = Duration::from_millis(1);

/// The same for other replicas, which look at the store once a second.
const FENCE_LOOK_AT_OTHERS: Duration = Duration::from_millis(50);

impl Keyrings {
    /// Rotates a keyring.
    ///
    /// # Errors
    /// [`Error::Aborted`] when the expected key is not current, [`Error::Precondition`] before the next key is ready (R3),
    /// [`Error::Limit`] over the tenant's daily limit, and those of the store. A token that cannot generate the new next
    /// key is no error: the rotation took place.
    pub async fn rotate(self: &Arc<Self>, request: RotateKeys, caller: &Caller) -> Result<Rotated, Error> {
        let (tenant, caller) = (request.tenant.clone(), caller.clone());
        self.in_turn(&tenant, |this| async move { this.rotate_to_the_end(request, &caller).await }).await
    }

    async fn rotate_to_the_end(&self, mut request: RotateKeys, caller: &Caller) -> Result<Rotated, Error> {
        request.trigger.of_default = request.algorithm.is_none();
        let mut record = self.load(&request.tenant).await?;
        // A repetition of a call without algorithm means the keyring that the first one rotated, whatever is the default by now
        // (R7).
        let repeated = request.trigger.request_id.as_ref().and_then(|id| {
            let of_default = |keyring: &&Keyring| keyring.carried_out(id).is_some_and(|rotation| rotation.of_default);
            record.keyrings.iter().find(of_default).map(|keyring| keyring.algorithm)
        });
        let algorithm = request.algorithm.or(repeated).unwrap_or(record.tenant.default_algorithm);
        for _ in 0..TRIES_MAX {
            if !record.tenant.algorithms.contains(&algorithm) {
                return Err(match request.algorithm {
                    Some(_) => Error::not_of_tenant(&record.tenant),
                    None => retired_since(),
                });
            }
            let keyring = keyring_of(&record, algorithm)?;
            let carried_out = request.trigger.request_id.as_ref().and_then(|id| keyring.carried_out(id));
            if let Some(rotation) = carried_out {
                // The repetition may ask for more than the first call did.
                let replaced = keyring.key(&rotation.replaced).filter(|_| request.trigger.revoke_replaced);
                if let Some(previous) = replaced.filter(|key| key.state == KeyState::Previous) {
                    let kid = previous.kid.clone();
                    match self.revoke_by_hand(&mut record, algorithm, &kid, caller).await {
                        Err(StoreError::Conflict) => continue,
                        other => other?,
                    }
                }
            } else {
                // A key that must go goes without its token, as far as it can: its next one is published already.
                if !request.trigger.revoke_replaced {
                    self.check_token(&record.tenant)?;
                }
                self.check_clock(&record.tenant)?;
                let now = self.clock.now();
                let rotated = self.rotated_by_hand(keyring, &record, &request.trigger, now)?;
                let event = rotate_event(&rotated, &request.trigger, Event::new(now, "rotate", caller));
                let forced = rotated.rotations.last().is_some_and(|rotation| rotation.forced);
                match self.commit_keyring(&mut record, rotated, event).await {
                    Err(StoreError::Conflict) => continue,
                    other => other?,
                }
                // Not before the commit: a rotation that the store refused took no verifier by surprise.
                if forced {
                    tracing::warn!(tenant = %request.tenant, %algorithm, "forced rotation: verifiers may not know the new key yet");
                }
            }
            if request.trigger.revoke_replaced {
                // For a repetition too: the first call may have failed before its fence.
                self.fence(keyring_of(&record, algorithm)?, request.trigger.request_id.as_ref()).await?;
            }
            let begun = Instant::now();
            let mut driven = self.drive(&mut record, algorithm, caller).await;
            // A generation is not repeated by the token's workers, which have recovered by now if it failed but once.
            if let Err(Error::Unavailable { part: Part::Token, .. }) = driven
                && begun.elapsed() < FAILED_SOON
                && self.check_token(&record.tenant).is_ok()
            {
                driven = self.drive(&mut record, algorithm, caller).await;
            }
            if let Err(error) = driven {
                tracing::warn!(tenant = %request.tenant, %algorithm, error = error.for_log(), "rotated; the new next key is not generated yet");
            }
            return rotated_answer(&record, algorithm, self.clock.now());
        }
        Err(StoreError::Conflict.into())
    }

    /// The keyring after a rotation by hand, or why not: stale before limit, limit before lead.
    fn rotated_by_hand(
        &self,
        keyring: &Keyring,
        record: &TenantRecord,
        trigger: &Trigger,
        now: Timestamp,
    ) -> Result<Keyring, Error> {
        let current = keyring.current();
        if let (Some(expected), Some(current)) = (&trigger.expected_current, current)
            && *expected != current.kid
        {
            return Err(refusal(RotateRefused::Stale { current: current.kid.clone() }, now));
        }
        let mut manual: Vec<Timestamp> =
            record.keyrings.iter().flat_map(|keyring| keyring.manual_rotations(now)).collect();
        manual.sort();
        let limit = self.settings.manual_rotations_per_day as usize;
        if manual.len() >= limit {
            let retry_time = manual.get(manual.len() - limit).map(|time| after(*time, Duration::from_secs(86_400)));
            let when = retry_time.map_or_else(String::new, |time| format!("; the next one is possible at {time}"));
            return Err(Error::Limit {
                reason: "MANUAL_ROTATIONS_PER_DAY",
                message: format!(
                    "the keys of this tenant were rotated by hand {limit} times in 24 hours{when}, or once \
                     limits.manual_rotations_per_day is raised"
                ),
                limit: Some(self.settings.manual_rotations_per_day),
                retry_time,
            });
        }
        self.rotated(keyring, record, trigger, now).map_err(|refused| refusal(refused, now))
    }

    /// Revokes a previous key.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`] for a key that is in use, and those of the store.
    pub async fn revoke(self: &Arc<Self>, tenant: TenantId, kid: Kid, caller: &Caller) -> Result<Listed, Error> {
        let (of, caller) = (tenant.clone(), caller.clone());
        self.in_turn(&of, |this| async move { this.revoke_to_the_end(&tenant, &kid, &caller).await }).await
    }

    async fn revoke_to_the_end(&self, tenant: &TenantId, kid: &Kid, caller: &Caller) -> Result<Listed, Error> {
        let mut record = self.load(tenant).await?;
        for _ in 0..TRIES_MAX {
            let keyring = record.keyrings.iter().find(|keyring| keyring.key(kid).is_some()).ok_or_else(no_key)?;
            let algorithm = keyring.algorithm;
            let state = keyring.key(kid).map(|key| key.state);
            keyring.revoke(kid, self.clock.now()).map_err(revoke_refusal)?;
            if state == Some(KeyState::Previous) {
                match self.revoke_by_hand(&mut record, algorithm, kid, caller).await {
                    Err(StoreError::Conflict) => continue,
                    other => other?,
                }
                if let Err(error) = self.drive(&mut record, algorithm, caller).await {
                    tracing::warn!(%tenant, %algorithm, error = error.for_log(), "revoked; what follows is left to the timer");
                }
            }
            // A replica that has not heard of the rotation before this may still sign with it. For a repetition, too.
            self.fence_others().await?;
            let keyring = keyring_of(&record, algorithm)?;
            return keyring.key(kid).map(|key| listed_key(keyring, key, true)).ok_or_else(no_key);
        }
        Err(StoreError::Conflict.into())
    }

    /// Commits the revocation of a previous key. On [`StoreError::Conflict`] `record` is loaded anew.
    async fn revoke_by_hand(
        &self,
        record: &mut TenantRecord,
        algorithm: Algorithm,
        kid: &Kid,
        caller: &Caller,
    ) -> Result<(), StoreError> {
        // Whatever this clock shows: destruction counts from it.
        let now = self.shared_clock.not_before(self.clock.now());
        let keyring = record.keyrings.iter().find(|keyring| keyring.algorithm == algorithm);
        let Some(Ok(revoked)) = keyring.map(|keyring| keyring.revoke(kid, now)) else {
            return Err(StoreError::Conflict);
        };
        let event = Event {
            tenant: Some(record.tenant.id.clone()),
            algorithm: Some(algorithm),
            kid: Some(kid.clone()),
            detail: "by hand".to_owned(),
            ..Event::new(now, "revoke", caller)
        };
        self.commit_keyring(record, revoked, event).await
    }

    /// A tenant's record as the store has it now.
    pub(super) async fn load(&self, tenant: &TenantId) -> Result<TenantRecord, Error> {
        let record = self.store.load(tenant).await?;
        let record = record.filter(|record| record.tenant.delete_time.is_none());
        let record = record.ok_or_else(|| Error::no_tenant(tenant))?;
        // A change whose outcome this process was not told is published here at the latest (R10).
        self.publish(&record)?;
        Ok(record)
    }

    /// Waits until no request can sign any more with the key that this rotation replaced (R10). The snapshot has let it go
    /// already, and no request holds a signer for longer than `sign_wait_max`.
    async fn fence(&self, keyring: &Keyring, request: Option<&RequestId>) -> Result<(), Error> {
        let asked_for = |rotation: &&Rotation| request.is_none() || rotation.request_id.as_ref() == request;
        let Some(rotation) = keyring.rotations.iter().rev().find(asked_for) else { return Ok(()) };
        let patience = Instant::now() + self.settings.sign_wait_max + Duration::from_secs(1);
        while self.published.is_held(&rotation.replaced) {
            if Instant::now() > patience {
                let cause = "a request still holds the revoked key".to_owned();
                return Err(Error::away(Part::Snapshot, cause));
            }
            tokio::time::sleep(FENCE_LOOK).await;
        }
        self.fence_others().await
    }

    /// Waits until no other replica can sign from what was there before, either because it has taken up the change or because its
    /// snapshot has become too old.
    async fn fence_others(&self) -> Result<(), Error> {
        let now = self.store.changes(None).await?.until;
        let patience = Instant::now() + self.settings.snapshot_max_age + Duration::from_secs(1);
        while !self.store.all_have_taken_up(now).await? {
            if Instant::now() > patience {
                return Err(Error::away(
                    Part::Snapshot,
                    "another replica may still sign with the revoked key".to_owned(),
                ));
            }
            tokio::time::sleep(FENCE_LOOK_AT_OTHERS).await;
        }
        Ok(())
    }
}

fn keyring_of(record: &TenantRecord, algorithm: Algorithm) -> Result<&Keyring, Error> {
    let found = record.keyrings.iter().find(|keyring| keyring.algorithm == algorithm);
    found.ok_or_else(|| Error::not_of_tenant(&record.tenant))
}

fn refusal(refused: RotateRefused, now: Timestamp) -> Error {
    match refused {
        RotateRefused::Stale { current } => Error::Aborted(format!(
            "expected_current_kid is not the current key, which is {current}; somebody may have rotated already"
        )),
        RotateRefused::FirstKeyWaits { ready_time } => Error::Precondition {
            reason: "PUBLISH_LEAD",
            message: format!(
                "the first key of this algorithm becomes current by itself at {ready_time}, when it has been published \
                 for publish_lead; nothing is there to be rotated before"
            ),
            retry_time: Some(ready_time),
        },
        RotateRefused::Generating => Error::Precondition {
            reason: "NEXT_KEY_GENERATING",
            message: "the next key is still being generated; retry in a moment".to_owned(),
            retry_time: Some(after(now, GENERATION_PAUSE)),
        },
        RotateRefused::TooEarly { ready_time } => Error::Precondition {
            reason: "PUBLISH_LEAD",
            message: format!(
                "verifiers may not know the next key yet: rotation becomes possible at {ready_time}, when it has been \
                 published for publish_lead; set force to rotate all the same, if the current key is no longer trusted"
            ),
            retry_time: Some(ready_time),
        },
    }
}

fn revoke_refusal(refused: RevokeRefused) -> Error {
    let message = match refused {
        RevokeRefused::NotFound => return no_key(),
        RevokeRefused::InUse(KeyState::Current) => {
            "the key is current, and revoking it would leave nothing to sign with; rotate first, then revoke it, or \
             rotate with revoke_replaced"
        }
        RevokeRefused::InUse(_) => "the key is next; rotate twice first, so that it becomes previous, then revoke it",
    };
    Error::Precondition { reason: "KEY_IN_USE", message: message.to_owned(), retry_time: None }
}

fn rotate_event(rotated: &Keyring, trigger: &Trigger, begun: Event) -> Event {
    let rotation = rotated.rotations.last();
    let mut detail = vec!["by hand".to_owned()];
    if rotation.is_some_and(|rotation| rotation.forced) {
        detail.push("forced".to_owned());
    }
    if trigger.revoke_replaced {
        detail.push("replaced key revoked".to_owned());
    }
    if let Some(request_id) = &trigger.request_id {
        detail.push(format!("request_id {request_id}"));
    }
    Event {
        tenant: Some(rotated.tenant.clone()),
        algorithm: Some(rotated.algorithm),
        kid: rotated.current().map(|key| key.kid.clone()),
        detail: detail.join(", "),
        ..begun
    }
}

fn retired_since() -> Error {
    Error::Precondition {
        reason: "ALGORITHM_RETIRED",
        message: "the algorithm was retired after this rotation; it has no current key".to_owned(),
        retry_time: None,
    }
}

fn rotated_answer(record: &TenantRecord, algorithm: Algorithm, now: Timestamp) -> Result<Rotated, Error> {
    let keyring = keyring_of(record, algorithm)?;
    let show = |key| listed_key(keyring, key, record.tenant.policy.auto_revoke);
    let Some(current) = keyring.current().map(show) else {
        // Retired since the rotation, and perhaps taken up again.
        let policy = record.tenant.binding_policy(now);
        return Err(match keyring.next() {
            Some(next) => refusal(RotateRefused::FirstKeyWaits { ready_time: Keyring::ready_time(next, &policy) }, now),
            None => retired_since(),
        });
    };
    Ok(Rotated { current, next: keyring.next().map(show), previous: keyring.replaced().map(show) })
}
