mod parts;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Algorithm, KeyState, Kid, ObjectId, RequestId, Revision, RotationPolicy, SigningKey, TenantId, Timestamp, after,
};
pub use parts::{Abandoned, Generated, Pending, RevokeRefused, RotateRefused, Rotation, Trigger};

/// All signing keys of one tenant and algorithm.
///
/// Its methods are the only changes a keyring knows. Each makes a new value with the next revision, which becomes real by
/// compare-and-swap in the store, or not at all. Rules R2 to R4 and R7 are kept here; `docs/rotation.md` tells them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyring {
    /// Whose keys.
    pub tenant: TenantId,
    /// The algorithm of all of them.
    pub algorithm: Algorithm,
    /// Raised by each change.
    pub revision: Revision,
    /// The key that is being generated, if one is.
    pub pending: Option<Pending>,
    /// Ids under which a generation failed or was interrupted; their remains are swept from the token.
    pub abandoned: Vec<Abandoned>,
    /// Every key that was ever published, oldest first.
    pub keys: Vec<SigningKey>,
    /// The rotations of the last day, and at least the latest ones; oldest first.
    pub rotations: Vec<Rotation>,
    /// Set if the keyring was added to a tenant that verifiers may know already: its first key then waits for
    /// `publish_lead`, as every other does (R3).
    #[serde(default)]
    pub join_time: Option<Timestamp>,
    /// Set once the algorithm is retired or the tenant deleted: nothing is made any more, everything ends.
    pub close_time: Option<Timestamp>,
}

/// How many rotations a keyring remembers whatever their age; those of the last day are all kept.
const ROTATIONS_KEPT: usize = 32;

/// How many swept ids a keyring keeps the account of: a token that fails for days must not make the record grow for ever.
const SWEPT_KEPT: usize = 256;

/// The span of the limit on manual rotations, and how long a `request_id` is surely remembered.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Keyring {
    /// A keyring with the intent of its first key.
    #[must_use]
    pub fn new(tenant: TenantId, algorithm: Algorithm, object: ObjectId, now: Timestamp) -> Self {
        Self {
            tenant,
            algorithm,
            revision: Revision::FIRST,
            pending: Some(Pending { object, create_time: now }),
            abandoned: Vec::new(),
            keys: Vec::new(),
            rotations: Vec::new(),
            join_time: None,
            close_time: None,
        }
    }

    /// A keyring for an algorithm that an existing tenant is given, with the intent of its first key.
    #[must_use]
    pub fn join(tenant: TenantId, algorithm: Algorithm, object: ObjectId, now: Timestamp) -> Self {
        Self { join_time: Some(now), ..Self::new(tenant, algorithm, object, now) }
    }

    /// Takes a retired algorithm up again, with the intent of a new first key.
    #[must_use]
    pub fn rejoin(&self, object: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| {
            keyring.join_time = Some(now);
            keyring.close_time = None;
            keyring.pending = Some(Pending { object, create_time: now });
        })
    }

    /// The key that signs; none until the first key is generated, or once the keyring is closed.
    #[must_use]
    pub fn current(&self) -> Option<&SigningKey> {
        self.in_state(KeyState::Current).next()
    }

    /// The key that will sign after the next rotation; none while it is being generated.
    #[must_use]
    pub fn next(&self) -> Option<&SigningKey> {
        self.in_state(KeyState::Next).next()
    }

    /// The keys in one state, oldest first.
    pub fn in_state(&self, state: KeyState) -> impl Iterator<Item = &SigningKey> {
        self.keys.iter().filter(move |key| key.state == state)
    }

    /// The key of this name, in whatever state.
    #[must_use]
    pub fn key(&self, kid: &Kid) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.kid == *kid)
    }

    /// The key that a rotation replaced last.
    #[must_use]
    pub fn replaced(&self) -> Option<&SigningKey> {
        self.rotations.last().and_then(|rotation| self.key(&rotation.replaced))
    }

    /// When `key` will have been published for `publish_lead` (R3).
    #[must_use]
    pub fn ready_time(key: &SigningKey, policy: &RotationPolicy) -> Timestamp {
        after(key.publish_time, policy.publish_lead)
    }

    /// The rotation that this request brought about already (R7).
    #[must_use]
    pub fn carried_out(&self, request: &RequestId) -> Option<&Rotation> {
        self.rotations.iter().find(|rotation| rotation.request_id.as_ref() == Some(request))
    }

    /// When the manual rotations of the last day took place, oldest first.
    pub fn manual_rotations(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        let manual = self.rotations.iter().filter(|rotation| rotation.manual);
        manual.map(|rotation| rotation.time).filter(move |time| after(*time, DAY) > now)
    }

    /// Records the intent to generate a key as `object`. Only when nothing is pending.
    #[must_use]
    pub fn begin(&self, object: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| keyring.pending = Some(Pending { object, create_time: now }))
    }

    /// The pending key exists on the token and passed its tests: it becomes next, and so published.
    #[must_use]
    pub fn publish(&self, generated: Generated, now: Timestamp) -> Self {
        self.changed(|keyring| {
            let Some(pending) = keyring.pending.take() else { return };
            keyring.keys.push(SigningKey {
                kid: generated.kid,
                object: pending.object,
                state: KeyState::Next,
                public: generated.public,
                certificate: generated.certificate,
                protection: generated.protection,
                create_time: pending.create_time,
                publish_time: now,
                activate_time: None,
                retire_time: None,
                retain_until: None,
                revoke_time: None,
                destroy_begin_time: None,
                destroy_time: None,
            });
        })
    }

    /// Gives the pending key up, and begins another as `replacement`.
    #[must_use]
    pub fn abandon(&self, replacement: Option<ObjectId>, now: Timestamp) -> Self {
        self.changed(|keyring| {
            if let Some(Pending { object, .. }) = keyring.pending.take() {
                keyring.abandoned.push(Abandoned { object, abandon_time: now, sweep_time: None, swept: false });
            }
            keyring.pending = replacement.map(|object| Pending { object, create_time: now });
            let mut swept = keyring.abandoned.iter().filter(|abandoned| abandoned.swept).count();
            keyring.abandoned.retain(|abandoned| {
                let kept = !abandoned.swept || swept <= SWEPT_KEPT;
                swept -= usize::from(abandoned.swept);
                kept
            });
        })
    }

    /// The token was cleared of an abandoned id.
    #[must_use]
    pub fn swept(&self, object: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| {
            for abandoned in keyring.abandoned.iter_mut().filter(|abandoned| abandoned.object == object) {
                abandoned.swept = abandoned.sweep_time.is_some();
                abandoned.sweep_time = Some(now);
            }
        })
    }

    /// The first key of a keyring starts to sign: no verifier can hold an older set, or the key was published for
    /// `publish_lead` (R3). The intent of the key after it is recorded with it.
    #[must_use]
    pub fn activate_first(&self, successor: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| {
            keyring.enter(KeyState::Next, KeyState::Current, |key| key.activate_time = Some(now));
            keyring.pending = Some(Pending { object: successor, create_time: now });
        })
    }

    /// Next becomes current, current becomes previous, and the intent of a new next key is recorded as `successor`.
    ///
    /// `policy` is the tenant's binding policy at `now`; `signed_until` is the latest clock reading under which the
    /// replaced key may have signed: later than `now` if the clock was set back.
    ///
    /// # Errors
    /// [`RotateRefused`], with nothing changed.
    pub fn rotate(
        &self,
        trigger: &Trigger,
        policy: &RotationPolicy,
        successor: ObjectId,
        now: Timestamp,
        signed_until: Timestamp,
    ) -> Result<Self, RotateRefused> {
        let Some(current) = self.current() else {
            let first = self.next().map(|next| Self::ready_time(next, policy));
            return Err(
                first.map_or(RotateRefused::Generating, |ready_time| RotateRefused::FirstKeyWaits { ready_time })
            );
        };
        if trigger.expected_current.as_ref().is_some_and(|expected| *expected != current.kid) {
            return Err(RotateRefused::Stale { current: current.kid.clone() });
        }
        let next = self.next().ok_or(RotateRefused::Generating)?;
        let ready_time = Self::ready_time(next, policy);
        if now < ready_time && !trigger.force {
            return Err(RotateRefused::TooEarly { ready_time });
        }
        let rotation = Rotation {
            time: now,
            manual: trigger.manual,
            forced: now < ready_time,
            request_id: trigger.request_id.clone(),
            of_default: trigger.of_default,
            replaced: current.kid.clone(),
            activated: next.kid.clone(),
        };
        Ok(self.changed(|keyring| {
            keyring.enter(KeyState::Current, KeyState::Previous, |key| {
                key.retire(policy, now, signed_until);
                if trigger.revoke_replaced {
                    key.revoke(now);
                }
            });
            keyring.enter(KeyState::Next, KeyState::Current, |key| key.activate_time = Some(now));
            keyring.pending = Some(Pending { object: successor, create_time: now });
            let old = |rotation: &Rotation| after(rotation.time, DAY) <= now;
            while keyring.rotations.len() >= ROTATIONS_KEPT && keyring.rotations.first().is_some_and(old) {
                keyring.rotations.remove(0);
            }
            keyring.rotations.push(rotation);
        }))
    }

    /// Takes a previous key out of the JWKS, for ever.
    ///
    /// # Errors
    /// [`RevokeRefused`]; a key that is revoked already is no error, and gives the keyring as it is.
    pub fn revoke(&self, kid: &Kid, now: Timestamp) -> Result<Self, RevokeRefused> {
        match self.key(kid).ok_or(RevokeRefused::NotFound)?.state {
            KeyState::Revoked | KeyState::Destroyed => Ok(self.clone()),
            state @ (KeyState::Next | KeyState::Current) => Err(RevokeRefused::InUse(state)),
            KeyState::Previous => Ok(self.changed(|keyring| {
                keyring.keys.iter_mut().filter(|key| key.kid == *kid).for_each(|key| key.revoke(now));
            })),
        }
    }

    /// The tenant's policy changes in the same commit. The keys stay as they are, but a change that was decided under the
    /// old policy loses its compare-and-swap: it could cut short what the new one promises (R3, R4).
    #[must_use]
    pub fn under_new_policy(&self) -> Self {
        self.changed(|_| {})
    }

    /// Makes no more keys, because the tenant gives the algorithm up: the current key becomes previous and stays published
    /// by R4; the next key, which signed nothing, is revoked. Policy and `signed_until` as in [`Keyring::rotate`].
    #[must_use]
    pub fn retire(&self, policy: &RotationPolicy, now: Timestamp, signed_until: Timestamp) -> Self {
        let mut retired = self.abandon(None, now);
        retired.close_time = Some(now);
        retired.enter(KeyState::Current, KeyState::Previous, |key| key.retire(policy, now, signed_until));
        retired.enter(KeyState::Next, KeyState::Revoked, |key| key.revoke(now));
        retired
    }

    /// Whether its very first key is not there yet, and no verifier has seen the tenant without it: the tenant is new.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.current().is_none() && self.join_time.is_none() && self.close_time.is_none()
    }

    /// Ends every key at once, because the tenant is deleted.
    #[must_use]
    pub fn close(&self, now: Timestamp) -> Self {
        let mut closed = self.abandon(None, now);
        closed.close_time = Some(now);
        closed.keys.iter_mut().filter(|key| key.state.is_published()).for_each(|key| key.revoke(now));
        closed
    }

    /// Records the intent to destroy a revoked key on the token (R6).
    #[must_use]
    pub fn begin_destroy(&self, object: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| {
            keyring.with_object(object, |key| key.destroy_begin_time = Some(now));
        })
    }

    /// The token confirmed that the private key is destroyed.
    #[must_use]
    pub fn destroyed(&self, object: ObjectId, now: Timestamp) -> Self {
        self.changed(|keyring| {
            keyring.with_object(object, |key| {
                key.state = KeyState::Destroyed;
                key.destroy_time = Some(now);
            });
        })
    }

    fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut keyring = self.clone();
        change(&mut keyring);
        keyring.revision = self.revision.next();
        keyring
    }

    fn enter(&mut self, from: KeyState, to: KeyState, also: impl Fn(&mut SigningKey)) {
        for key in self.keys.iter_mut().filter(|key| key.state == from) {
            key.state = to;
            also(key);
        }
    }

    fn with_object(&mut self, object: ObjectId, change: impl Fn(&mut SigningKey)) {
        self.keys.iter_mut().filter(|key| key.object == object).for_each(change);
    }
}

impl SigningKey {
    /// It has signed for the last time: what it signed stays verifiable until that has expired everywhere (R4).
    fn retire(&mut self, policy: &RotationPolicy, now: Timestamp, signed_until: Timestamp) {
        self.retire_time = Some(now);
        self.retain_until = Some(after(now.max(signed_until), policy.retention()));
    }

    fn revoke(&mut self, now: Timestamp) {
        self.state = KeyState::Revoked;
        self.revoke_time = Some(now);
    }
}
