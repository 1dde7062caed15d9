//! Octets of a gRPC message -> what is asked for. First octet: which method.
#![no_main]

use std::time::Duration;

use keyward::domain::{RotationPolicy, TenantId};
use keyward::grpc::fuzzing::{Asked, ask};
use keyward::keyring::BATCH_INPUTS_MAX;
use keyward_fuzz::{METHODS, assert_is_for_the_sender};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((method, octets)) = input.split_first() else { return Corpus::Reject };
    let Some(method) = METHODS.get(usize::from(*method)) else { return Corpus::Reject };
    match ask(method, octets) {
        // Not that message: the transport says so, and no method sees it.
        None => return Corpus::Keep,
        Some(Err(error)) => assert_is_for_the_sender(method, error),
        Some(Ok(asked)) => assert_is_valid(asked),
    }
    Corpus::Keep
});

/// Each text that came in is one again after it has gone out, and every number is within its bounds.
fn assert_is_valid(asked: Asked) {
    let is_tenant = |tenant: &TenantId| assert_eq!(tenant.to_string().parse().as_ref(), Ok(tenant));
    match asked {
        Asked::SignJwt(choice) | Asked::Current(choice) => {
            is_tenant(&choice.tenant);
            assert!(choice.kid.is_none());
        }
        Asked::Sign(choice, inputs) => {
            is_tenant(&choice.tenant);
            assert!((1..=BATCH_INPUTS_MAX).contains(&inputs.len()));
        }
        Asked::ListKeys(list) => {
            is_tenant(&list.tenant);
            assert!((1..=1000).contains(&list.page_size) && list.states.len() <= 7);
        }
        Asked::ListTenants(size, after) => {
            assert!((1..=1000).contains(&size));
            after.iter().for_each(is_tenant);
        }
        Asked::Events(size) => assert!((1..=1000).contains(&size)),
        Asked::Checkpoint(log) => assert!(keyward::tlog::Log::ALL.contains(&log)),
        Asked::Rotate(rotate) => {
            is_tenant(&rotate.tenant);
            assert!(rotate.trigger.manual, "only the timer rotates by schedule");
            assert!(rotate.trigger.request_id.is_none_or(|id| (1..=64).contains(&id.as_str().len())));
        }
        Asked::Named(tenant, kid) => {
            is_tenant(&tenant);
            assert!(kid.is_none_or(|kid| (1..=128).contains(&kid.as_str().len())));
        }
        Asked::Create(spec) => {
            is_tenant(&spec.id);
            assert!(spec.issuer.is_none_or(|issuer| !issuer.host().is_empty() && issuer.as_str().len() <= 255));
            assert!(spec.custom_domain.is_none_or(|domain| domain.as_str().len() <= 253));
            assert_is_policy(&spec.policy);
        }
        Asked::Update(tenant, update) => {
            is_tenant(&tenant);
            assert!(update.issuer.is_none_or(|issuer| !issuer.host().is_empty()));
            update.policy.iter().for_each(assert_is_policy);
        }
    }
}

/// Times are kept in whole milliseconds. Whether they go together is asked in the keyring room; asking must be possible.
fn assert_is_policy(policy: &RotationPolicy) {
    let times = [
        policy.max_token_ttl,
        policy.jwks_max_age,
        policy.clock_skew,
        policy.publish_lead,
        policy.rotation_period,
        policy.destroy_delay,
    ];
    assert!(
        times
            .iter()
            .all(|time| Duration::from_millis(time.subsec_millis().into()).subsec_nanos() == time.subsec_nanos())
    );
    let _ = policy.check();
}
