//! The one loop: load -> plan -> one step -> compare-and-swap -> again, until the keyring rests.
//!
//! RPCs, the timer and the start-up all enter here. Each step says what a crash right after it leaves; the plan of the next
//! pass takes it from there, so that recovery is the ordinary path (R6).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Keyrings, new_object};
use crate::domain::rotation::{Action, Claim, GENERATION_LEASE, Plan, plan};
use crate::domain::{Algorithm, Generated, Keyring, ObjectId, Timestamp, Trigger};
use crate::jose::{self, Verifier};
use crate::store::{Change, Event, StoreError, TenantRecord};
use crate::token::{Found, KeyRef, KeySpec, SignInput, TokenError, TokenKey};

/// Most steps of one pass: a new keyring takes five, a rotation four. More is a plan that never rests, which is a bug.
const STEPS_MAX: usize = 64;

/// Steps that each key can add: revoked, its destruction recorded, destroyed, and one to spare.
const STEPS_PER_KEY: usize = 4;

/// Longest wait for the token's administration, which does one thing after another: longer than a generation may take
/// before another process takes it over. What the token does later is found by the next pass.
const ADMINISTRATION_WAIT_MAX: Duration = GENERATION_LEASE.saturating_add(Duration::from_secs(30));

/// What a new key signs before it is published (R11).
const TEST_MESSAGE: &[u8] = b"keyward: test of a new key";

impl Keyrings {
    /// Brings one keyring of `record` to rest. `record` is up to date afterwards, also after an error. The caller has the
    /// tenant's turn.
    ///
    /// # Errors
    /// Of the token or the store; what was committed until then stays, and the next pass goes on from it.
    pub(super) async fn drive(&self, record: &mut TenantRecord, algorithm: Algorithm) -> Result<(), Error> {
        let keys: usize = record.keyrings.iter().map(|keyring| keyring.keys.len() + keyring.abandoned.len()).sum();
        for _ in 0..STEPS_MAX + STEPS_PER_KEY * keys {
            let Some(keyring) = record.keyrings.iter().find(|keyring| keyring.algorithm == algorithm) else {
                return Ok(());
            };
            let now = self.clock.now();
            let Plan::Act(action) = plan(keyring, &record.tenant, now, self.claim(keyring)) else { return Ok(()) };
            let keyring = keyring.clone();
            let changed = self.step(&action, &keyring, record, now).await?;
            let event = event(&action, &keyring, &changed, now);
            match self.commit_keyring(record, changed, event).await {
                // Another replica acted: plan again on what it made.
                Err(StoreError::Conflict) => self.yield_object(&action, record).await?,
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
        match self.store.commit(&change).await {
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
        self.published.publish(record).map_err(|bad| StoreError::Damaged(format!("tenant {}: {bad}", record.tenant.id)))
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
            Action::Generate(object) => match self.generate(*object, keyring.algorithm).await {
                Ok(generated) => keyring.publish(generated, self.clock.now()),
                Err(error) => return Err(error.into()),
            },
            Action::Recover(object) => self.recover(*object, keyring).await?,
            Action::Destroy(object) => {
                bounded(self.token.destroy(*object)).await?;
                keyring.destroyed(*object, self.clock.now())
            }
            Action::Sweep(object) => {
                bounded(self.token.destroy(*object)).await?;
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

    /// Generates a pending key and puts it to the test. Remembers how far it came, so that the next pass neither loses nor
    /// doubles the key.
    async fn generate(&self, object: ObjectId, algorithm: Algorithm) -> Result<Generated, TokenError> {
        {
            // From here on this process may have to find out what came of it: after an error, or a commit that was lost.
            let mut claims = self.lock_claims();
            claims.fresh.remove(&object);
            claims.asked.insert(object);
        }
        let spec = KeySpec { algorithm, rsa_bits: self.settings.rsa_bits };
        let key = bounded(self.token.generate(object, spec)).await.inspect_err(|error| match error {
            // The token was not asked: the intent is as fresh as before.
            TokenError::QueueFull | TokenError::Late | TokenError::PinRefused => {
                self.lock_claims().fresh.insert(object);
            }
            TokenError::Unavailable(_) | TokenError::Unsupported(_) | TokenError::Mismatch(_) => {}
        })?;
        self.tested(object, algorithm, key).await
    }

    /// Finds out what became of a pending key, and takes it up or gives it up.
    async fn recover(&self, object: ObjectId, keyring: &Keyring) -> Result<Keyring, Error> {
        match bounded(self.token.find(object, keyring.algorithm)).await? {
            Found::Pair(key) => match self.tested(object, keyring.algorithm, key).await {
                Ok(generated) => return Ok(keyring.publish(generated, self.clock.now())),
                // A pair that the token shows and that fails its test is of no use to anybody: give it up below.
                Err(TokenError::Mismatch(cause) | TokenError::Unavailable(cause)) => {
                    tracing::error!(%object, cause, "a recovered key failed its test");
                }
                Err(error) => return Err(error.into()),
            },
            // Also after a failure that this process was told of: what the token shows nothing of may still turn up (R8),
            // and a second pair under the same id would make a published key unusable.
            Found::Absent | Found::Remains => {}
        }
        // What a crash leaves here is an abandoned id in the record at the latest after the commit; until then the same
        // pending id, which the next pass recovers again. The sweep clears the token.
        Ok(keyring.abandon(Some(new_object()), self.clock.now()))
    }

    /// R1 and R11: a new key shows that it cannot leave the token, and signs, before anybody hears of it.
    async fn tested(&self, object: ObjectId, algorithm: Algorithm, key: TokenKey) -> Result<Generated, TokenError> {
        if !key.protection.holds() {
            let cause = format!("the token did not protect key {object} as R1 demands: {:?}", key.protection);
            return Err(TokenError::Mismatch(cause));
        }
        let verifier = Verifier::new(algorithm, &key.public).map_err(|bad| TokenError::Mismatch(bad.to_string()))?;
        let input = match algorithm.digest() {
            Some(digest) => SignInput::Digest(jose::digest(digest, TEST_MESSAGE)),
            None => SignInput::Message(TEST_MESSAGE.to_vec()),
        };
        let reference = Arc::new(KeyRef { object, algorithm, public: key.public.clone() });
        let deadline = Instant::now() + self.settings.sign_wait_max;
        let signatures = self.token.sign(&reference, vec![input], deadline).await?;
        if !signatures.first().is_some_and(|signature| verifier.verify(TEST_MESSAGE, signature)) {
            return Err(TokenError::Mismatch(format!("the test signature of new key {object} does not verify")));
        }
        Ok(Generated { kid: jose::thumbprint(&key.public), public: key.public, protection: key.protection })
    }

    /// After a lost compare-and-swap: if this process generated a key that another one has given up meanwhile, the key is
    /// destroyed at once. A crash before that is what the second sweep is for.
    async fn yield_object(&self, action: &Action, record: &TenantRecord) -> Result<(), Error> {
        let Action::Generate(object) = action else { return Ok(()) };
        let named = record.keyrings.iter().any(|keyring| {
            keyring.keys.iter().any(|key| key.object == *object)
                || keyring.pending.as_ref().is_some_and(|pending| pending.object == *object)
        });
        if !named {
            self.token.destroy(*object).await?;
        }
        Ok(())
    }
}

/// The token's answer, unless it takes too long.
async fn bounded<T>(work: impl Future<Output = Result<T, TokenError>>) -> Result<T, TokenError> {
    let answer = tokio::time::timeout(ADMINISTRATION_WAIT_MAX, work).await;
    answer.unwrap_or_else(|_| Err(TokenError::Unavailable("it does not answer".to_owned())))
}

/// The planner asked for something that the keyring refuses: they disagree on the rules.
fn unplanned(action: &Action, refused: &dyn std::error::Error) -> Error {
    Error::Internal(format!("the plan {action:?} was refused: {refused}"))
}

/// What the audit log tells of a step.
fn event(action: &Action, before: &Keyring, after: &Keyring, time: Timestamp) -> Event {
    let kid_of = |object: &ObjectId| after.keys.iter().find(|key| key.object == *object).map(|key| key.kid.clone());
    let (action, kid, detail) = match action {
        Action::ActivateFirst => ("activate", after.current().map(|key| key.kid.clone()), String::new()),
        Action::Begin => ("begin_generate", None, pending(after)),
        Action::Retire(kid) => ("revoke", Some(kid.clone()), "retention ended".to_owned()),
        Action::Rotate => ("rotate", after.current().map(|key| key.kid.clone()), "by schedule".to_owned()),
        Action::BeginDestroy(object) => ("begin_destroy", kid_of(object), String::new()),
        Action::Destroy(object) => ("destroy", kid_of(object), String::new()),
        Action::Sweep(object) => ("sweep", None, format!("object {object}")),
        Action::Generate(object) | Action::Recover(object) => match kid_of(object) {
            Some(kid) => ("publish", Some(kid), String::new()),
            None => ("abandon", None, pending(before)),
        },
    };
    let (tenant, algorithm) = (after.tenant.clone(), Some(after.algorithm));
    Event { time, action: action.to_owned(), tenant, algorithm, kid, detail }
}

fn pending(keyring: &Keyring) -> String {
    keyring.pending.as_ref().map_or_else(String::new, |pending| format!("object {}", pending.object))
}
