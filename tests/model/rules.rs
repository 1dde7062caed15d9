//! The rules, held against every commit and against the world at rest.

use std::collections::HashMap;

use keyward::domain::rotation::{Claim, Plan, plan};
use keyward::domain::{KeyState, Keyring, Kid, ObjectId, RequestId, Revision, Timestamp, after};
use keyward::store::{Change, TenantRecord};

use super::world::{Clocks, World, timestamp};

/// What verifiers hold, and what was asked for.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) clocks: Option<Clocks>,
    pub(crate) jwts: Vec<Jwt>,
    /// Until when a cache may hold a set without the key.
    blind_until: HashMap<Kid, i64>,
    /// Activated without `force`, and not first.
    ordinary: HashMap<Kid, bool>,
    retired: HashMap<Kid, Retirement>,
    served: Vec<(i64, i64)>,
    carried_out: HashMap<RequestId, u32>,
    /// Who changed the tenant to which revision, and when the change was decided.
    authors: Vec<(Revision, usize, u64)>,
}

/// A JWT that a replica signed.
pub(crate) struct Jwt {
    pub(crate) kid: Kid,
    pub(crate) life: usize,
    pub(crate) born: u64,
    pub(crate) sign_time: Timestamp,
    pub(crate) expiry: Timestamp,
    pub(crate) policy: Revision,
}

struct Retirement {
    life: usize,
    born: u64,
    time: Timestamp,
    policy: Revision,
}

/// A JWT is signed with what a replica's snapshot says.
pub(crate) fn signed(world: &mut World, jwt: Jwt) {
    let time = world.time;
    let blind = world.ledger.blind_until.get(&jwt.kid).copied().unwrap_or(i64::MIN);
    let ordinary = world.ledger.ordinary.get(&jwt.kid).copied().unwrap_or(false);
    if world.ledger.clocks == Some(Clocks::Skewed) && ordinary && time < blind {
        world.broke(format!("R3: {} signs at {time}, and a cache may not know it until {blind}", jwt.kid));
    }
    world.ledger.jwts.push(jwt);
}

pub(crate) fn commit(world: &mut World, before: Option<&TenantRecord>, change: &Change, life: usize, born: u64) {
    if let Some(tenant) = &change.tenant {
        world.ledger.authors.push((tenant.revision, life, born));
        if let Some(before) = before {
            let (time, age) = (world.time, seconds(before.tenant.policy.jwks_max_age));
            world.ledger.served.push((time, age));
        }
    }
    for after in &change.keyrings {
        let earlier = before.and_then(|before| before.keyrings.iter().find(|one| one.algorithm == after.algorithm));
        if let Some(earlier) = earlier {
            changed(world, change, earlier, after, (life, born));
        }
    }
    accounted(world);
}

/// One keyring of a change, by the process and at the moment of `decided`.
fn changed(world: &mut World, change: &Change, before: &Keyring, after: &Keyring, decided: (usize, u64)) {
    let record = world.record.clone().expect("it was just committed");
    let (life, born) = decided;
    history_kept(world, before, after);
    one_current(world, before, after);
    for old in &before.keys {
        let Some(new) = after.key(&old.kid) else { continue };
        match (old.state, new.state) {
            (from, to) if from == to => {}
            (KeyState::Next, KeyState::Current) => activated(world, before, after, &new.kid),
            (KeyState::Current, KeyState::Previous) => {
                let policy = record.tenant.revision;
                let time = new.retire_time.expect("a previous key has retired");
                world.ledger.retired.insert(new.kid.clone(), Retirement { life, born, time, policy });
            }
            (KeyState::Previous, KeyState::Revoked) => {
                if change.events.iter().any(|event| event.detail == "retention ended") {
                    unneeded(world, &new.kid, new.revoke_time.expect("a revoked key has the time"));
                }
            }
            (KeyState::Current, KeyState::Revoked) if after.close_time.is_none() => {
                let asked = after.rotations.last().and_then(|rotation| rotation.request_id.as_ref());
                if !asked.is_some_and(|id| world.triggers.get(id).is_some_and(|trigger| trigger.revoke_replaced)) {
                    world.broke(format!("R4: {} was current and is revoked unasked", new.kid));
                }
            }
            (KeyState::Next | KeyState::Current, KeyState::Revoked) if after.close_time.is_some() => {}
            (KeyState::Revoked, KeyState::Destroyed) => {
                if old.destroy_begin_time.is_none() || !world.cleared.contains_key(&new.object) {
                    world.broke(format!("R6: {} is called destroyed", new.kid));
                }
            }
            (from, to) => world.broke(format!("section 3: a key went from {from} to {to}")),
        }
    }
    for new in after.keys.iter().filter(|key| before.key(&key.kid).is_none()) {
        if new.state != KeyState::Next || before.pending.as_ref().is_none_or(|pending| pending.object != new.object) {
            world.broke(format!("R6: {} was published without its intent", new.kid));
        }
        let now = world.time;
        let served = world.ledger.served.iter().map(|(until, age)| until + age).max().unwrap_or(i64::MIN);
        let blind = served.max(now + seconds(record.tenant.policy.jwks_max_age));
        world.ledger.blind_until.insert(new.kid.clone(), blind);
    }
}

/// R7, R8: nothing is forgotten, whatever the token shows.
fn history_kept(world: &mut World, before: &Keyring, after: &Keyring) {
    if after.revision != before.revision.next() {
        world.broke("R7: the revision did not rise by one");
    }
    if before.keys.iter().any(|old| after.key(&old.kid).is_none_or(|new| new.object != old.object)) {
        world.broke("R8: a key was forgotten");
    }
    let abandoned = |object| after.abandoned.iter().any(|abandoned| abandoned.object == object);
    if before.abandoned.iter().any(|old| !abandoned(old.object)) {
        world.broke("R8: an abandoned id was forgotten");
    }
    if let Some(pending) = &before.pending {
        let kept = after.pending.as_ref() == Some(pending)
            || abandoned(pending.object)
            || after.keys.iter().any(|key| key.object == pending.object);
        if !kept {
            world.broke("R6: a pending id was forgotten");
        }
    }
    for new in after.abandoned.iter().filter(|new| new.sweep_time.is_some()) {
        if !world.cleared.contains_key(&new.object) {
            world.broke("R6: an id is called swept and was not");
        }
    }
}

fn one_current(world: &mut World, before: &Keyring, after: &Keyring) {
    let count = |state| after.in_state(state).count();
    let open = after.close_time.is_none();
    if count(KeyState::Current) > 1 || (open && before.current().is_some() && count(KeyState::Current) != 1) {
        world.broke(format!("R2: {} current keys", count(KeyState::Current)));
    }
    if count(KeyState::Next) > 1 {
        world.broke(format!("R2: {} next keys", count(KeyState::Next)));
    }
}

fn activated(world: &mut World, before: &Keyring, after_change: &Keyring, kid: &Kid) {
    let Some(replaced) = before.current() else {
        // The first key of an added algorithm waits as any other; that of a new tenant does not.
        if after_change.join_time.is_some() {
            world.ledger.ordinary.insert(kid.clone(), true);
            published_long_enough(world, after_change, kid);
        }
        return;
    };
    let Some(rotation) = after_change.rotations.last().filter(|rotation| rotation.activated == *kid) else {
        return world.broke("R7: a rotation left no trace");
    };
    if rotation.replaced != replaced.kid {
        world.broke("R7: the rotation names another key");
    }
    let trigger = rotation.request_id.as_ref().and_then(|id| world.triggers.get(id).cloned());
    if let Some(id) = rotation.request_id.clone() {
        let times = world.ledger.carried_out.entry(id).or_default();
        *times += 1;
        if *times > 1 {
            world.broke("R7: a request rotated twice");
        }
    }
    if trigger.as_ref().and_then(|trigger| trigger.expected_current.as_ref()).is_some_and(|kid| *kid != replaced.kid) {
        world.broke("R7: a stale expected_current rotated");
    }
    world.ledger.ordinary.insert(kid.clone(), !rotation.forced);
    if rotation.forced {
        if !trigger.is_some_and(|trigger| trigger.force) {
            world.broke("R3: forced without having been told to");
        }
        return;
    }
    published_long_enough(world, after_change, kid);
}

fn published_long_enough(world: &mut World, keyring: &Keyring, kid: &Kid) {
    let key = keyring.key(kid).expect("it was activated");
    let time = key.activate_time.expect("it was activated");
    let lead = world.record.as_ref().map(|record| record.tenant.binding_policy(time).publish_lead).unwrap_or_default();
    if time < after(key.publish_time, lead) {
        world.broke(format!("R3: {kid} was activated before publish_lead"));
    }
}

/// R4: no JWT needs a key whose retention ended.
fn unneeded(world: &mut World, kid: &Kid, time: Timestamp) {
    let Some(retired) = world.ledger.retired.get(kid) else { return };
    let policy = world.record.as_ref().map(|record| record.tenant.policy.clone()).expect("there is a record");
    let truth = timestamp(world.time);
    let needed = world.ledger.jwts.iter().filter(|jwt| jwt.kid == *kid).find(|jwt| {
        if world.ledger.clocks == Some(Clocks::Skewed) {
            return jwt.expiry > truth;
        }
        // What a process can know: what it signed itself, and what others signed under clocks not far ahead of its own.
        let own = jwt.life == retired.life && jwt.born < retired.born;
        let near = jwt.sign_time <= after(retired.time, policy.clock_skew);
        // A new policy honours what its author had signed by then.
        let honoured = |(revision, life, born): &(Revision, usize, u64)| {
            *revision <= jwt.policy || *revision > retired.policy || (*life == jwt.life && *born > jwt.born)
        };
        let same_policy = jwt.policy == retired.policy || (own && world.ledger.authors.iter().all(honoured));
        let known = (own && same_policy) || (near && jwt.policy == retired.policy);
        known && jwt.expiry > time
    });
    if let Some(jwt) = needed {
        let text = format!("R4: {kid} is revoked at {time}, and a JWT of {} lives until {}", jwt.sign_time, jwt.expiry);
        world.broke(text);
    }
}

/// R6: every object has its account, and every published key its object.
fn accounted(world: &mut World) {
    if let Some(object) = world.objects.keys().find(|object| !world.removed && !world.is_named(**object)).copied() {
        world.broke(format!("R6: nothing accounts for {object}"));
    }
    let lost = world.keyrings().iter().find_map(|keyring| {
        let published = keyring.keys.iter().filter(|key| key.state.is_published());
        let stands =
            |object: &ObjectId| matches!(world.objects.get(object).map(Vec::as_slice), Some([made]) if made.whole);
        published.map(|key| key.object).find(|object| !stands(object))
    });
    if let Some(object) = lost {
        world.broke(format!("R6: the published key {object} is lost"));
    }
}

/// The tenant goes only after everything of it went from the token.
pub(crate) fn removal(world: &mut World) {
    let cleared = &world.cleared;
    let left = |(object, made): (_, &Vec<super::world::Made>)| {
        made.iter().any(|made| cleared.get(object).is_none_or(|cleared| made.born < *cleared))
    };
    let mut keys = world.keyrings().iter().flat_map(|keyring| &keyring.keys);
    let unended = keys.any(|key| key.state != KeyState::Destroyed);
    if world.objects.iter().any(left) || unended {
        world.broke("R6: the tenant is removed before its keys");
    }
}

/// The world at rest, and when it wakes.
pub(crate) fn at_rest(world: &mut World) -> Option<Timestamp> {
    let record = world.record.clone()?;
    let wakes = record.keyrings.iter().filter_map(|keyring| keyring_at_rest(world, &record, keyring)).min();
    accounted(world);
    wakes
}

fn keyring_at_rest(world: &mut World, record: &TenantRecord, keyring: &Keyring) -> Option<Timestamp> {
    let wake = match plan(keyring, &record.tenant, timestamp(world.time), Claim::Theirs) {
        Plan::Act(action) => {
            world.broke(format!("idle: {action:?} is still to be done"));
            None
        }
        Plan::Wait(wake) => wake,
        Plan::Ended => None,
    };
    let one = |state| keyring.in_state(state).count() == 1;
    // The first key of an added algorithm is next alone until verifiers know it.
    let waits = keyring.join_time.is_some() && keyring.current().is_none();
    let whole = (waits || one(KeyState::Current)) && one(KeyState::Next);
    if keyring.close_time.is_none() && keyring.pending.is_none() && !whole {
        world.broke("R2: not one current and one next at rest");
    }
    for abandoned in keyring.abandoned.iter() {
        let swept = world.cleared.get(&abandoned.object).copied().unwrap_or(0);
        if world.objects.get(&abandoned.object).is_some_and(|made| made.iter().any(|made| made.born < swept))
            || swept == 0
        {
            world.broke(format!("R6: {} was abandoned and is not swept", abandoned.object));
        }
    }
    wake
}

/// The world after everything that had a time: nothing is left to do but to rotate.
pub(crate) fn at_last(world: &mut World) {
    let half = |keyring: &Keyring| keyring.pending.is_some() && keyring.close_time.is_none();
    let half = world.keyrings().iter().any(half);
    // What turned up after the second sweep is beyond the promise: `destroy_delay` is how late that may be.
    let mut abandoned = world.keyrings().iter().flat_map(|keyring| &keyring.abandoned);
    let unswept = abandoned.any(|abandoned| !abandoned.swept);
    if half {
        world.broke("idle: a key is pending for ever");
    } else if unswept {
        world.broke("R6: an abandoned id was not swept twice");
    }
}

fn seconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
