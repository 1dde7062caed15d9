//! From the domain to the wire.

use std::time::Duration;

use super::proto;
use crate::domain::{self, KeyState, Timestamp};
use crate::keyring::{Listed, ListedState};
use crate::x509;

pub(super) fn signing_key(listed: Listed) -> proto::SigningKey {
    let mut message = proto::SigningKey {
        tenant: listed.tenant.to_string(),
        algorithm: listed.algorithm.to_string(),
        state: state(listed.state).into(),
        create_time: Some(timestamp(listed.create_time)),
        revoke_scheduled_time: listed.revoke_scheduled_time.map(timestamp),
        ..proto::SigningKey::default()
    };
    if let Some(key) = listed.key {
        message.public_key_pem = key.public.as_ref().map(x509::public_key_pem).unwrap_or_default();
        if let Some(certificate) = &key.certificate {
            message.certificate_pem = x509::pem(certificate);
            message.pkcs7_pem = x509::pkcs7_pem(certificate);
            message.fingerprint = x509::fingerprint(certificate);
            message.thumbprint = x509::thumbprint(certificate);
        }
        message.kid = key.kid.to_string();
        message.publish_time = Some(timestamp(key.publish_time));
        message.activate_time = key.activate_time.map(timestamp);
        message.retire_time = key.retire_time.map(timestamp);
        message.revoke_time = key.revoke_time.map(timestamp);
        message.destroy_time = key.destroy_time.map(timestamp);
        message.protection = Some(proto::Protection {
            token_label: key.protection.token_label,
            token_serial: key.protection.token_serial,
            token_manufacturer: key.protection.token_manufacturer,
            token_model: key.protection.token_model,
            cka_id: key.object.to_string(),
            sensitive: key.protection.sensitive,
            always_sensitive: key.protection.always_sensitive,
            extractable: key.protection.extractable,
            never_extractable: key.protection.never_extractable,
            local: key.protection.local,
        });
    }
    message
}

pub(super) fn state(state: ListedState) -> proto::KeyState {
    match state {
        ListedState::Pending => proto::KeyState::Pending,
        ListedState::Abandoned => proto::KeyState::Abandoned,
        ListedState::Key(KeyState::Next) => proto::KeyState::Next,
        ListedState::Key(KeyState::Current) => proto::KeyState::Current,
        ListedState::Key(KeyState::Previous) => proto::KeyState::Previous,
        ListedState::Key(KeyState::Revoked) => proto::KeyState::Revoked,
        ListedState::Key(KeyState::Destroyed) => proto::KeyState::Destroyed,
    }
}

pub(super) fn tenant(tenant: domain::Tenant) -> proto::Tenant {
    proto::Tenant {
        id: tenant.id.to_string(),
        issuer: tenant.issuer.to_string(),
        custom_domain: tenant.custom_domain.map(String::from).unwrap_or_default(),
        saml_sso_url: tenant.saml_sso_url.map(String::from).unwrap_or_default(),
        algorithms: tenant.algorithms.iter().map(ToString::to_string).collect(),
        default_algorithm: tenant.default_algorithm.to_string(),
        rotation_policy: Some(proto::RotationPolicy {
            max_token_ttl: Some(duration(tenant.policy.max_token_ttl)),
            jwks_max_age: Some(duration(tenant.policy.jwks_max_age)),
            clock_skew: Some(duration(tenant.policy.clock_skew)),
            publish_lead: Some(duration(tenant.policy.publish_lead)),
            rotation_period: Some(duration(tenant.policy.rotation_period)),
            destroy_delay: Some(duration(tenant.policy.destroy_delay)),
            auto_revoke: Some(tenant.policy.auto_revoke),
        }),
        create_time: Some(timestamp(tenant.create_time)),
        revision: tenant.revision.number(),
        token: tenant.token.into(),
    }
}

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("a policy's times are at most ten years")
}
