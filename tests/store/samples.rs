//! Values to put into a store.

use std::time::Duration;

use keyward::domain::{
    Algorithm, Curve, Generated, Keyring, Kid, ObjectId, Octets, Protection, PublicKey, Revision, RotationPolicy,
    Tenant, TenantId, Timestamp,
};
use keyward::store::{Change, Event, TokenBinding};

/// The moment of everything here, to the nanosecond.
pub(crate) fn now() -> Timestamp {
    "2026-11-21T03:04:05.678901234Z".parse().unwrap()
}

pub(crate) fn binding() -> TokenBinding {
    TokenBinding { serial: "a1b2c3d4e5f60718".into(), label: "keyward \"test\"".into() }
}

pub(crate) fn id(text: &str) -> TenantId {
    text.parse().unwrap()
}

/// A tenant of the first revision with an issuer of its own.
pub(crate) fn tenant(name: &str) -> Tenant {
    Tenant {
        id: id(name),
        issuer: format!("https://{name}.example.com/").parse().unwrap(),
        custom_domain: None,
        saml_sso_url: None,
        algorithms: vec![Algorithm::ES256],
        default_algorithm: Algorithm::ES256,
        policy: RotationPolicy::default(),
        policy_floor: None,
        create_time: now(),
        delete_time: None,
        revision: Revision::FIRST,
    }
}

/// A tenant in which every optional member is present.
pub(crate) fn full_tenant(name: &str) -> Tenant {
    let policy = RotationPolicy { rotation_period: Duration::from_millis(86_400_001), ..RotationPolicy::default() };
    let mut tenant = tenant(name).with_policy(policy, now());
    tenant.custom_domain = Some(format!("login.{name}.example").parse().unwrap());
    tenant.saml_sso_url = Some("https://idp.example.com/sso?a=%22b%22".parse().unwrap());
    tenant.algorithms = Algorithm::ALL.to_vec();
    tenant.delete_time = Some(Timestamp::MAX);
    tenant
}

/// The tenant as its next change leaves it.
pub(crate) fn changed(mut tenant: Tenant) -> Tenant {
    tenant.policy.destroy_delay += Duration::from_secs(1);
    tenant.revision = tenant.revision.next();
    tenant
}

/// A keyring of the first revision.
pub(crate) fn keyring(tenant: &str, algorithm: Algorithm) -> Keyring {
    Keyring::new(id(tenant), algorithm, object(1), now())
}

pub(crate) fn object(number: u8) -> ObjectId {
    ObjectId::new([number; 16])
}

pub(crate) fn generated(number: u8) -> Generated {
    let octets = Octets(vec![number; 32]);
    let public = match number % 3 {
        0 => PublicKey::Rsa { n: octets, e: Octets(vec![1, 0, 1]) },
        1 => PublicKey::Ec { crv: Curve::P256, x: octets.clone(), y: octets },
        _ => PublicKey::Ed25519 { crv: keyward::domain::Ed25519::Ed25519, x: octets },
    };
    let protection = Protection {
        token_label: "keyward \"test\"".into(),
        token_serial: "a1b2c3d4e5f60718".into(),
        token_manufacturer: "Müller & Søn\u{0}\u{1f511}".into(),
        token_model: String::new(),
        sensitive: true,
        always_sensitive: true,
        extractable: false,
        never_extractable: true,
        local: number.is_multiple_of(2),
    };
    Generated { kid: kid(number), public, protection }
}

pub(crate) fn kid(number: u8) -> Kid {
    format!("kid-{number}").parse().unwrap()
}

pub(crate) fn event(action: &str, tenant: &str) -> Event {
    Event {
        time: now(),
        action: action.into(),
        tenant: id(tenant),
        algorithm: Some(Algorithm::EdDSA),
        kid: Some(kid(7)),
        detail: "forced; 'quoted' \u{1f511}".into(),
    }
}

/// The change that creates or replaces `tenant` alone.
pub(crate) fn of_tenant(tenant: Tenant) -> Change {
    Change { tenant: Some(tenant), ..Change::default() }
}

/// The change that creates or replaces `keyring` alone.
pub(crate) fn of_keyring(keyring: Keyring) -> Change {
    Change { keyrings: vec![keyring], ..Change::default() }
}
