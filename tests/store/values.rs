//! Every keyring that the domain can make comes back from the store as it went in.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use keyward::domain::{Algorithm, KeyState, Keyring, ObjectId, RotationPolicy, Timestamp, Trigger, after};
use keyward::store::{Change, Store, StoreError, TenantRecord};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::contract::Harness;
use crate::samples::{full_tenant, generated, kid, now, object, of_keyring};

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Publish,
    Abandon { replace: bool },
    ActivateFirst,
    Rotate(Trigger),
    Revoke,
    BeginDestroy,
    Destroyed,
    Swept,
    Close,
}

pub(crate) fn values_come_back_as_they_went<H: Harness>() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let harness = runtime.block_on(H::fresh());
    // One store for all histories, each of a tenant of its own. No file of regressions: a failure is told in full.
    let tenants = AtomicU8::new(0);
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let histories = (prop::sample::select(Algorithm::ALL.to_vec()), prop::collection::vec((step(), wait()), 1..24));
    let outcome = runner.run(&histories, |(algorithm, steps)| {
        let name = format!("tenant-{}", tenants.fetch_add(1, Ordering::Relaxed));
        runtime
            .block_on(follow(&*harness.store(), &name, algorithm, &steps))
            .map_err(|error| TestCaseError::fail(format!("{algorithm}: {error}")))?
    });
    outcome.unwrap();
}

/// Commits a history change by change, and loads it after each.
async fn follow(
    store: &dyn Store,
    name: &str,
    algorithm: Algorithm,
    steps: &[(Step, Duration)],
) -> Result<Result<(), TestCaseError>, StoreError> {
    let tenant = full_tenant(name);
    let mut time = now();
    let mut keyring = Keyring::new(tenant.id.clone(), algorithm, object(0), time);
    let first = Change { tenant: Some(tenant.clone()), keyrings: vec![keyring.clone()], ..Change::default() };
    store.commit(&first).await?;
    for (number, (step, wait)) in (1..).zip(steps) {
        time = after(time, *wait);
        let Some(next) = taken(&keyring, step, number, time) else { continue };
        if next.revision == keyring.revision {
            continue;
        }
        store.commit(&of_keyring(next.clone())).await?;
        keyring = next;
        let expected = TenantRecord { tenant: tenant.clone(), keyrings: vec![keyring.clone()] };
        let loaded = store.load(&tenant.id).await?;
        if loaded.as_ref() != Some(&expected) {
            return Ok(Err(TestCaseError::fail(format!("{loaded:?} is not {expected:?}"))));
        }
    }
    Ok(Ok(()))
}

/// The keyring after a step, where the domain allows the step.
fn taken(keyring: &Keyring, step: &Step, number: u8, time: Timestamp) -> Option<Keyring> {
    let first_of = |state| keyring.in_state(state).next();
    let policy = RotationPolicy::default();
    match step {
        Step::Begin => keyring.pending.is_none().then(|| keyring.begin(object(number), time)),
        Step::Publish => keyring.pending.as_ref().map(|_| keyring.publish(generated(number), time)),
        Step::Abandon { replace } => Some(keyring.abandon(replace.then(|| object(number)), time)),
        Step::ActivateFirst if keyring.current().is_some() => None,
        Step::ActivateFirst => keyring.next().map(|_| keyring.activate_first(object(number), time)),
        Step::Rotate(trigger) => keyring.rotate(trigger, &policy, object(number), time, time).ok(),
        Step::Revoke => keyring.revoke(&first_of(KeyState::Previous)?.kid, time).ok(),
        Step::BeginDestroy => Some(keyring.begin_destroy(first_of(KeyState::Revoked)?.object, time)),
        Step::Destroyed => Some(keyring.destroyed(first_of(KeyState::Revoked)?.object, time)),
        Step::Swept => Some(keyring.swept(keyring.abandoned.first().map(|it| it.object)?, time)),
        Step::Close => Some(keyring.close(time)),
    }
}

/// Steps weighted so that histories get far: the early ones often, the last one seldom.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Begin),
        6 => Just(Step::Publish),
        1 => any::<bool>().prop_map(|replace| Step::Abandon { replace }),
        4 => Just(Step::ActivateFirst),
        6 => trigger().prop_map(Step::Rotate),
        3 => Just(Step::Revoke),
        3 => Just(Step::BeginDestroy),
        3 => Just(Step::Destroyed),
        2 => Just(Step::Swept),
        1 => Just(Step::Close),
    ]
}

fn trigger() -> impl Strategy<Value = Trigger> {
    (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of("[!-~]{1,64}")).prop_map(
        |(manual, force, revoke_replaced, request_id)| Trigger {
            manual,
            force,
            revoke_replaced,
            expected_current: None,
            request_id: request_id.map(|text| text.parse().unwrap()),
            of_default: manual,
        },
    )
}

/// From nothing to years, down to the nanosecond.
fn wait() -> impl Strategy<Value = Duration> {
    (0_u64..100_000_000, 0_u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
}

/// The steps above reach every state a key can be in, and so the property is about all of them.
#[test]
fn histories_reach_every_state() {
    let object_of = |number: u8| ObjectId::new([number; 16]);
    let forced = Trigger { force: true, ..Trigger::default() };
    let steps = [
        Step::Publish,
        Step::ActivateFirst,
        Step::Publish,
        Step::Rotate(forced.clone()),
        Step::Publish,
        Step::Rotate(forced),
        Step::Publish,
        Step::Revoke,
        Step::BeginDestroy,
        Step::Destroyed,
    ];
    let mut keyring = Keyring::new("acme".parse().unwrap(), Algorithm::ES256, object_of(0), now());
    for (number, step) in (1..).zip(&steps) {
        keyring = taken(&keyring, step, number, now()).unwrap();
    }
    let states: Vec<_> = keyring.keys.iter().map(|key| (key.kid.clone(), key.state)).collect();
    assert_eq!(
        states,
        [
            (kid(1), KeyState::Destroyed),
            (kid(3), KeyState::Previous),
            (kid(5), KeyState::Current),
            (kid(7), KeyState::Next)
        ]
    );
}
