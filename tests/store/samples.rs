//! Values to put into a store.

use std::time::Duration;

use keyward::domain::{
    Algorithm, Caller, Certificate, Curve, CustomKey, Event, Generated, Keyring, Kid, ObjectId, Octets, Protection,
    PublicKey, Revision, RotationPolicy, Tenant, TenantId, Timestamp, TokenName,
};
use keyward::store::{Change, EventPage, Start, Store, TenantRecord, TenantRevisions, TokenBinding, TokenRecord};
use keyward::tlog::{Record, Tip};

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

/// A token that was seen, and has no canary yet.
pub(crate) fn token(name: &str) -> TokenRecord {
    let binding = TokenBinding { serial: format!("serial-{name}"), label: name.into() };
    TokenRecord { name: name.parse().unwrap(), binding, canary: object(7), public: None }
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
        custom_keys: Vec::new(),
        policy_floor: None,
        token: TokenName::default(),
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
    tenant.custom_keys = custom_keys();
    tenant.token = "west".parse().unwrap();
    tenant.delete_time = Some(Timestamp::MAX);
    tenant
}

/// A custom key of each type, one of them with every optional member.
fn custom_keys() -> Vec<CustomKey> {
    let jwks = r#"[
        {"kty":"RSA","n":"AQAB","e":"AQAB","use":"sig","kid":"a'b?#"},
        {"kty":"EC","crv":"P-384","x":"AQAB","y":"AAAB","use":"sig","kid":"b","alg":"ES384","key_ops":["verify"],
         "x5u":"https://a.example/c","x5c":["MA==","MQ=="],"x5t":"AQAB","x5t#S256":"AQAC"},
        {"kty":"OKP","crv":"Ed25519","x":"AQAB","use":"sig","kid":"c"}
    ]"#;
    serde_json::from_str(jwks).unwrap()
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
    let certificate = Certificate::new(vec![number; 3]);
    let public = match number % 4 {
        0 => Some(PublicKey::Rsa { n: octets, e: Octets(vec![1, 0, 1]) }),
        1 => Some(PublicKey::Ec { crv: Curve::P256, x: octets.clone(), y: octets }),
        2 => Some(PublicKey::Ed25519 { crv: keyward::domain::Ed25519::Ed25519, x: octets }),
        _ => None,
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
    Generated { kid: kid(number), certificate: public.is_some().then_some(certificate), public, protection }
}

pub(crate) fn kid(number: u8) -> Kid {
    format!("kid-{number}").parse().unwrap()
}

pub(crate) fn event(action: &str, tenant: &str) -> Event {
    Event {
        tenant: Some(id(tenant)),
        algorithm: Some(Algorithm::EdDSA),
        kid: Some(kid(7)),
        detail: "forced; 'quoted' \u{1f511}".into(),
        action: action.to_owned().into(),
        ..Event::new(now(), "", &Caller::anonymous("/keyward.v1.KeyService/RotateSigningKey"))
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

/// Every record; each is believed.
pub(crate) async fn all(store: &dyn Store) -> Vec<TenantRecord> {
    let loaded = store.load_all().await.unwrap();
    assert_eq!(loaded.damaged, []);
    loaded.records
}

/// The revisions of every record.
pub(crate) async fn revisions(store: &dyn Store) -> Vec<TenantRevisions> {
    let revisions = store.revisions().await.unwrap();
    assert_eq!(revisions.damaged, []);
    revisions.tenants
}

/// The latest events, newest first, out of a log that holds from its first record to its end.
pub(crate) async fn told(store: &dyn Store, limit: u32) -> Vec<Event> {
    let page = |start, limit| EventPage { tenant: None, start, limit };
    let mut tip = Tip::default();
    for record in store.events(&page(Start::Oldest(0), u32::MAX)).await.unwrap() {
        tip.follow(&record.record).unwrap();
    }
    assert_eq!(tip, store.log_tip().await.unwrap());
    let latest = store.events(&page(Start::Newest(None), limit)).await.unwrap();
    latest.iter().map(|row| Record::parse(&row.record).unwrap().event).collect()
}
