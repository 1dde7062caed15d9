//! The one loop: load -> plan -> one step -> compare-and-swap -> again, until the keyring rests.
//!
//! RPCs, the timer and the start-up all enter here. Each step says what a crash right after it leaves; the plan of the next
//! pass takes it from there, so that recovery is the ordinary path (R6).

use super::generate::bounded;
use super::{Error, Keyrings, new_object};
use crate::domain::rotation::{Action, Claim, Plan, plan};
use crate::domain::{Algorithm, Caller, Event, Keyring, Kid, ObjectId, Timestamp, Trigger};
use crate::store::{Change, StoreError, TenantRecord};
use crate::token::Token as _;

/// Most steps of one pass: a new keyring takes five, a rotation four. More is a plan that never rests, which is a bug.
const STEPS_MAX: usize = 64;

/// Steps that each key can add: revoked, its destruction recorded, destroyed, and one to spare.
const STEPS_PER_KEY: usize = 4;

impl Keyrings {
    /// Brings one keyring of `record` to rest, on behalf of `caller`, who has the tenant's turn. `record` is up to date
    /// afterwards, also after an error.
    ///
    /// # Errors
    /// Of the token or the store; what was committed until then stays, and the next pass goes on from it.
    pub(super) async fn drive(
        &self,
        record: &mut TenantRecord,
        algorithm: Algorithm,
        caller: &Caller,
    ) -> Result<(), Error> {
        let keys: usize = record.keyrings.iter().map(|keyring| keyring.keys.len() + keyring.abandoned.len()).sum();
        for _ in 0..STEPS_MAX + STEPS_PER_KEY * keys {
            let Some(keyring) = record.keyrings.iter().find(|keyring| keyring.algorithm == algorithm) else {
                return Ok(());
            };
            let now = self.clock.now();
            let Plan::Act(action) = plan(keyring, &record.tenant, now, self.claim(keyring)) else { return Ok(()) };
            self.check_clock(&record.tenant)?;
            let keyring = keyring.clone();
            let changed = self.step(&action, &keyring, record, now).await?;
            // Again: the token took its time, and what it did is recorded with the time at its end.
            self.check_clock(&record.tenant)?;
            let event = event(&action, &keyring, &changed, Event::new(now, word(&action, &changed), caller));
            match self.commit_keyring(record, changed, event).await {
                // Another replica acted: plan again on what it made.
                Err(StoreError::Conflict) => {
                    if let Action::Generate(object) = action {
                        self.yield_object(object, record).await?;
                    }
                }
                other => other?,
            }
        }
        Err(Error::Internal(format!("keyring {} {algorithm} does not come to rest", record.tenant.id)))
    }

    /// Commits one keyring with its event and publishes it. On [`StoreError::Conflict`] `record` is loaded anew.
    pub(super) async fn commit_keyring(
        &self,
        record: &mut TenantRecord,
        keyring: Keyring,
        event: Event,
    ) -> Result<(), StoreError> {
        let change = Change { keyrings: vec![keyring.clone()], events: vec![event], ..Change::default() };
        match self.commit(&change).await {
            Ok(()) => {
                self.claim_new(record, &keyring);
                let place = record.keyrings.iter_mut().find(|other| other.algorithm == keyring.algorithm);
                *place.expect("a keyring of the record was changed") = keyring;
                self.publish(record)
            }
            Err(StoreError::Conflict) => {
                match self.store.load(&record.tenant.id).await? {
                    Some(loaded) => {
                        *record = loaded;
                        self.publish(record)?;
                    }
                    // The tenant is gone, and its keyrings with it.
                    None => record.keyrings.clear(),
                }
                Err(StoreError::Conflict)
            }
            Err(error) => Err(error),
        }
    }

    /// Claims the intent that was just committed, if there is a new one: only this process asks the token for it. What is
    /// no longer pending needs no claim.
    pub(super) fn claim_new(&self, before: &TenantRecord, after: &Keyring) {
        let earlier = before.keyrings.iter().find(|keyring| keyring.algorithm == after.algorithm);
        let known = earlier.and_then(|keyring| keyring.pending.as_ref()).map(|pending| pending.object);
        let new = after.pending.as_ref().map(|pending| pending.object);
        if known == new {
            return;
        }
        let mut claims = self.lock_claims();
        if let Some(object) = known {
            claims.fresh.remove(&object);
            claims.asked.remove(&object);
        }
        claims.fresh.extend(new);
    }

    pub(super) fn publish(&self, record: &TenantRecord) -> Result<(), StoreError> {
        let tenant = &record.tenant.id;
        let published = self.published.publish(record);
        published.map_err(|bad| StoreError::Untrusted(format!("tenant {tenant}: {bad}")))?;
        self.quarantine.release(tenant.as_str());
        Ok(())
    }

    /// What this process may do about the pending key.
    pub(super) fn claim(&self, keyring: &Keyring) -> Claim {
        let Some(pending) = &keyring.pending else { return Claim::Theirs };
        let claims = self.lock_claims();
        if claims.fresh.contains(&pending.object) {
            Claim::Fresh
        } else if self.settings.sole || claims.asked.contains(&pending.object) {
            Claim::Ours
        } else {
            Claim::Theirs
        }
    }

    /// Takes one step; the keyring to commit.
    async fn step(
        &self,
        action: &Action,
        keyring: &Keyring,
        record: &TenantRecord,
        now: Timestamp,
    ) -> Result<Keyring, Error> {
        let changed = match action {
            // 1. Changes of the record alone, at the time they were planned for: a crash before the commit leaves the old
            //    state, after it the new one.
            Action::ActivateFirst => keyring.activate_first(new_object(), now),
            Action::Begin => keyring.begin(new_object(), now),
            Action::BeginDestroy(object) => keyring.begin_destroy(*object, now),
            Action::Retire(kid) => keyring.revoke(kid, now).map_err(|refused| unplanned(action, &refused))?,
            Action::Rotate => self
                .rotated(keyring, record, &Trigger::default(), now)
                .map_err(|refused| unplanned(action, &refused))?,
            // 2. Effects on the token, which take their time; their intent stands in the record. A crash leaves objects
            //    under an id that the record names, and the next process recovers, destroys or sweeps them.
            Action::Generate(object) => {
                let generated = self.generate(*object, keyring.algorithm, &record.tenant).await?;
                keyring.publish(generated, self.clock.now())
            }
            Action::Recover(object) => self.recover(*object, keyring, &record.tenant).await?,
            Action::Destroy(object) => {
                bounded(self.tokens.of(&record.tenant).destroy(*object)).await?;
                keyring.destroyed(*object, self.clock.now())
            }
            Action::Sweep(object) => {
                bounded(self.tokens.of(&record.tenant).destroy(*object)).await?;
                keyring.swept(*object, self.clock.now())
            }
        };
        Ok(changed)
    }

    /// The keyring after a rotation at `now`, if the rules allow one.
    pub(super) fn rotated(
        &self,
        keyring: &Keyring,
        record: &TenantRecord,
        trigger: &Trigger,
        now: Timestamp,
    ) -> Result<Keyring, crate::domain::RotateRefused> {
        let policy = record.tenant.binding_policy(now);
        keyring.rotate(trigger, &policy, new_object(), now, self.clock.latest())
    }
}

/// The planner asked for something that the keyring refuses: they disagree on the rules.
fn unplanned(action: &Action, refused: &dyn std::error::Error) -> Error {
    Error::Internal(format!("the plan {action:?} was refused: {refused}"))
}

/// What the audit log calls a step.
fn word(action: &Action, after: &Keyring) -> &'static str {
    match action {
        Action::ActivateFirst => "activate",
        Action::Begin => "begin_generate",
        Action::Retire(_) => "revoke",
        Action::Rotate => "rotate",
        Action::BeginDestroy(_) => "begin_destroy",
        Action::Destroy(_) => "destroy",
        Action::Sweep(_) => "sweep",
        Action::Generate(object) | Action::Recover(object) if kid_of(after, object).is_some() => "publish",
        Action::Generate(_) | Action::Recover(_) => "abandon",
    }
}

/// What it tells of the step besides.
fn event(action: &Action, before: &Keyring, after: &Keyring, begun: Event) -> Event {
    let (kid, detail) = match action {
        Action::ActivateFirst => (after.current().map(|key| key.kid.clone()), String::new()),
        Action::Begin => (None, pending(after)),
        Action::Retire(kid) => (Some(kid.clone()), "retention ended".to_owned()),
        Action::Rotate => (after.current().map(|key| key.kid.clone()), "by schedule".to_owned()),
        Action::BeginDestroy(object) | Action::Destroy(object) => (kid_of(after, object), String::new()),
        Action::Sweep(object) => (None, format!("object {object}")),
        Action::Generate(object) | Action::Recover(object) => match kid_of(after, object) {
            Some(kid) => (Some(kid), String::new()),
            None => (None, pending(before)),
        },
    };
    Event { tenant: Some(after.tenant.clone()), algorithm: Some(after.algorithm), kid, detail, ..begun }
}

fn kid_of(keyring: &Keyring, object: &ObjectId) -> Option<Kid> {
    keyring.keys.iter().find(|key| key.object == *object).map(|key| key.kid.clone())
}

fn pending(keyring: &Keyring) -> String {
    keyring.pending.as_ref().map_or_else(String::new, |pending| format!("object {}", pending.object))
}
