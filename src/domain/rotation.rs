//! What a keyring needs next: the one decision that the RPCs, the timer and the start-up share.

use super::{KeyState, Keyring, Kid, ObjectId, SigningKey, Tenant, Timestamp, after};

/// The one next thing to do for a keyring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Do this, then plan again.
    Act(Action),
    /// Nothing until then; `None`: nothing until somebody changes something.
    Wait(Option<Timestamp>),
    /// The keyring is closed and nothing of it is left on the token.
    Ended,
}

/// One step. The first group only changes the record; the second has an effect on the token, whose intent is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let the first key sign: at once in a new tenant, after `publish_lead` where an algorithm was added (R3).
    ActivateFirst,
    /// Take a previous key whose retention has ended out of the JWKS (R4).
    Retire(Kid),
    /// Rotate by schedule.
    Rotate,
    /// Record the intent to generate the next key.
    Begin,
    /// Record the intent to destroy a revoked key.
    BeginDestroy(ObjectId),
    /// Generate the pending key.
    Generate(ObjectId),
    /// See what became of a pending key that another process, or an earlier attempt, may have generated.
    Recover(ObjectId),
    /// Destroy a revoked key.
    Destroy(ObjectId),
    /// Clear the token of what an abandoned generation left.
    Sweep(ObjectId),
}

impl Action {
    /// Whether it has an effect on the token that the keyring is on: not to be had while that one is away.
    #[must_use]
    pub fn asks_token(&self) -> bool {
        match self {
            Self::Generate(_) | Self::Recover(_) | Self::Destroy(_) | Self::Sweep(_) => true,
            Self::ActivateFirst | Self::Retire(_) | Self::Rotate | Self::Begin | Self::BeginDestroy(_) => false,
        }
    }
}

/// What the planning process knows of a pending key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This process recorded the intent and has not asked the token yet: it alone may generate.
    Fresh,
    /// This process asked the token and does not know what came of it, or is the only one there is.
    Ours,
    /// Another process may be generating it at this moment.
    Theirs,
}

/// How long a process may take to generate a key before another one takes over its intent: an RSA-4096 key on a slow HSM
/// takes tens of seconds.
pub const GENERATION_LEASE: std::time::Duration = std::time::Duration::from_secs(120);

/// The next step of `keyring` under its tenant's policy at `now`.
///
/// Changes of the record come before effects on the token, so that a token that is away delays no revocation.
#[must_use]
pub fn plan(keyring: &Keyring, tenant: &Tenant, now: Timestamp, claim: Claim) -> Plan {
    let open = keyring.close_time.is_none();
    let first = keyring.current().is_none();
    let slots = [
        activation(keyring, tenant, now, open && first),
        retirement(keyring, tenant, now),
        schedule(keyring, tenant, now, open),
        destruction_intent(keyring, tenant, now),
        generation_intent(keyring, open),
        // What frees room on the token comes before what takes it.
        destruction(keyring),
        sweep(keyring, tenant, now),
        generation(keyring, now, claim),
    ];
    let mut wake = None;
    for slot in slots {
        match slot {
            Slot::Due(action) => return Plan::Act(action),
            Slot::At(time) => wake = Some(wake.map_or(time, |earlier: Timestamp| earlier.min(time))),
            Slot::Nothing => {}
        }
    }
    let over = !open && wake.is_none() && keyring.keys.iter().all(|key| key.state == KeyState::Destroyed);
    if over { Plan::Ended } else { Plan::Wait(wake) }
}

/// When somebody has to look at a tenant next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Now: one of its keyrings has something to be done, or nothing of a deleted tenant is left.
    Due,
    /// Not before this time, as long as nothing of the tenant changes.
    At(Timestamp),
    /// Not before something of the tenant changes.
    Nothing,
}

/// When somebody has to look at `tenant` next: what [`plan`] says of all its keyrings, so that nobody need ask it until then.
#[must_use]
pub fn outlook(tenant: &Tenant, keyrings: &[Keyring], now: Timestamp, claim: impl Fn(&Keyring) -> Claim) -> Outlook {
    let mut over = tenant.delete_time.is_some();
    // With the floor, what it makes wait may come earlier than planned under it.
    let mut wake = tenant.policy_floor.as_ref().map(|floor| floor.until).filter(|until| *until > now);
    for keyring in keyrings {
        match plan(keyring, tenant, now, claim(keyring)) {
            Plan::Act(_) => return Outlook::Due,
            Plan::Wait(time) => {
                over = false;
                wake = wake.into_iter().chain(time).min();
            }
            Plan::Ended => {}
        }
    }
    if over { Outlook::Due } else { wake.map_or(Outlook::Nothing, Outlook::At) }
}

/// What one concern asks for.
enum Slot {
    Due(Action),
    At(Timestamp),
    Nothing,
}

impl Slot {
    fn at(time: Timestamp, now: Timestamp, action: Action) -> Self {
        if time <= now { Self::Due(action) } else { Self::At(time) }
    }

    /// The earliest of several.
    fn earliest(slots: impl Iterator<Item = (Timestamp, Action)>, now: Timestamp) -> Self {
        slots.min_by_key(|(time, _)| *time).map_or(Self::Nothing, |(time, action)| Self::at(time, now, action))
    }
}

fn activation(keyring: &Keyring, tenant: &Tenant, now: Timestamp, wanted: bool) -> Slot {
    match keyring.next().filter(|_| wanted) {
        Some(next) if keyring.join_time.is_some() => {
            Slot::at(Keyring::ready_time(next, &tenant.binding_policy(now)), now, Action::ActivateFirst)
        }
        Some(_) => Slot::Due(Action::ActivateFirst),
        None => Slot::Nothing,
    }
}

fn retirement(keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> Slot {
    if !tenant.policy.auto_revoke {
        return Slot::Nothing;
    }
    let ends = |key: &SigningKey| key.retain_until.map(|time| (time, Action::Retire(key.kid.clone())));
    Slot::earliest(keyring.in_state(KeyState::Previous).filter_map(ends), now)
}

fn schedule(keyring: &Keyring, tenant: &Tenant, now: Timestamp, open: bool) -> Slot {
    let period = tenant.policy.rotation_period;
    let activated = keyring.current().and_then(|key| key.activate_time);
    match (activated, keyring.next()) {
        (Some(activated), Some(next)) if open && !period.is_zero() => {
            let ready_time = Keyring::ready_time(next, &tenant.binding_policy(now));
            Slot::at(after(activated, period).max(ready_time), now, Action::Rotate)
        }
        _ => Slot::Nothing,
    }
}

fn destruction_intent(keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> Slot {
    let waiting = keyring.in_state(KeyState::Revoked).filter(|key| key.destroy_begin_time.is_none());
    let due = |key: &SigningKey| {
        key.revoke_time.map(|time| (after(time, tenant.policy.destroy_delay), Action::BeginDestroy(key.object)))
    };
    Slot::earliest(waiting.filter_map(due), now)
}

fn generation_intent(keyring: &Keyring, open: bool) -> Slot {
    let missing = keyring.next().is_none() && keyring.pending.is_none();
    if open && missing { Slot::Due(Action::Begin) } else { Slot::Nothing }
}

fn generation(keyring: &Keyring, now: Timestamp, claim: Claim) -> Slot {
    let Some(pending) = &keyring.pending else { return Slot::Nothing };
    match claim {
        Claim::Fresh => Slot::Due(Action::Generate(pending.object)),
        Claim::Ours => Slot::Due(Action::Recover(pending.object)),
        Claim::Theirs => Slot::at(after(pending.create_time, GENERATION_LEASE), now, Action::Recover(pending.object)),
    }
}

fn destruction(keyring: &Keyring) -> Slot {
    let begun = keyring.in_state(KeyState::Revoked).find(|key| key.destroy_begin_time.is_some());
    begun.map_or(Slot::Nothing, |key| Slot::Due(Action::Destroy(key.object)))
}

fn sweep(keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> Slot {
    let open = keyring.abandoned.iter().filter(|abandoned| !abandoned.swept);
    let due = open.map(|abandoned| {
        let first = abandoned.abandon_time;
        let time = if abandoned.sweep_time.is_none() { first } else { after(first, tenant.policy.destroy_delay) };
        (time, Action::Sweep(abandoned.object))
    });
    Slot::earliest(due, now)
}
