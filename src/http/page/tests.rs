//! Pages of moments that a browser hardly catches, and of tenants that take long to come about.

use std::time::Duration;

use askama::Template as _;

use super::parts::{Place, TenantPage};
use crate::domain::{
    Algorithm, Certificate, Generated, KeyState, Keyring, ObjectId, Octets, Protection, PublicKey, Revision,
    RotationPolicy, Tenant, Timestamp, TokenName, Trigger, after,
};

const BASE: &str = "https://keys.example.com/acme";

fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

/// `count` seconds after the start.
fn at(count: u64) -> Timestamp {
    after(start(), Duration::from_secs(count))
}

fn tenant(policy: RotationPolicy) -> Tenant {
    Tenant {
        id: "acme".parse().unwrap(),
        issuer: BASE.parse().unwrap(),
        custom_domain: None,
        saml_sso_url: None,
        algorithms: vec![Algorithm::ES256],
        default_algorithm: Algorithm::ES256,
        policy,
        custom_keys: Vec::new(),
        policy_floor: None,
        token: TokenName::default(),
        create_time: start(),
        delete_time: None,
        revision: Revision::FIRST,
    }
}

fn object(number: u8) -> ObjectId {
    ObjectId::new([number; 16])
}

fn generated(number: u8) -> Generated {
    Generated {
        kid: format!("kid-{number}").parse().unwrap(),
        public: Some(PublicKey::Ed25519 { crv: crate::domain::Ed25519::Ed25519, x: Octets(vec![number; 32]) }),
        certificate: Some(Certificate::new(vec![number; 8])),
        protection: Protection {
            token_label: String::new(),
            token_serial: String::new(),
            token_manufacturer: String::new(),
            token_model: String::new(),
            sensitive: true,
            always_sensitive: true,
            extractable: false,
            never_extractable: true,
            local: true,
        },
    }
}

/// A keyring that was rotated so often, once in ten minutes, with its next key still to come.
fn rotated(times: u8, policy: &RotationPolicy) -> Keyring {
    let first = Keyring::new("acme".parse().unwrap(), Algorithm::ES256, object(0), start());
    let first = first.publish(generated(0), start()).activate_first(object(1), start());
    (1..=times).fold(first, |keyring, number| {
        let now = at(600 * u64::from(number));
        let ready = keyring.publish(generated(number), at(600 * u64::from(number - 1)));
        ready.rotate(&Trigger::default(), policy, object(number + 1), now, now).unwrap()
    })
}

fn html(tenant: &Tenant, keyring: Keyring, now: Timestamp) -> String {
    let place = Place { issuer: BASE, base_url: BASE, has_saml_metadata: false, custom_keys: &tenant.custom_keys };
    let page = TenantPage::new(tenant, &[keyring], place, now);
    page.render().unwrap().replace('\u{a0}', " ")
}

#[test]
fn a_tenant_whose_first_keys_are_being_generated_says_so() {
    let tenant = tenant(RotationPolicy::default());
    let keyring = Keyring::new(tenant.id.clone(), Algorithm::ES256, object(0), start());
    let html = html(&tenant, keyring, start());
    assert!(html.contains("<h3>first key</h3>") && html.contains("Nothing is signed or published until it is there"));
    assert!(!html.contains("<h3>current</h3>") && !html.contains("Signs now"), "{html}");
}

#[test]
fn a_next_key_that_is_being_generated_has_its_place() {
    let policy = RotationPolicy::default();
    let html = html(&tenant(policy.clone()), rotated(1, &policy), at(601));
    let places: Vec<usize> = ["<h3>next</h3>", "Being generated on the token", "<h3>current</h3>", "<h3>previous</h3>"]
        .map(|words| html.find(words).unwrap_or_else(|| panic!("{words}: {html}")))
        .into();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_next_key_says_whether_it_may_sign_already() {
    let policy = RotationPolicy::default();
    let keyring = rotated(0, &policy).publish(generated(1), at(100));
    let shown = |now| html(&tenant(policy.clone()), keyring.clone(), now);
    assert!(shown(at(400)).contains("It may in 1 min"), "{}", shown(at(400)));
    for now in [at(460), at(5000)] {
        assert!(shown(now).contains("Ready: the next rotation makes it current."), "{}", shown(now));
    }
    assert!(shown(at(400)).contains(r#"datetime="2026-03-01T12:07:40Z""#), "publish_time and publish_lead");
}

#[test]
fn a_previous_key_that_nobody_revokes_stays_until_somebody_does() {
    let policy = RotationPolicy { auto_revoke: false, ..RotationPolicy::default() };
    let html = html(&tenant(policy.clone()), rotated(1, &policy), at(700));
    assert!(html.contains("until the key is revoked by hand") && html.contains("when revoked"), "{html}");
    assert!(html.contains("It stays until it is revoked by hand."), "{html}");
}

#[test]
fn of_many_previous_keys_the_latest_are_shown_and_the_rest_are_counted() {
    let policy = RotationPolicy::default();
    let keyring = rotated(20, &policy);
    assert_eq!(keyring.in_state(KeyState::Previous).count(), 20);
    let html = html(&tenant(policy), keyring, at(600 * 20));
    assert_eq!(html.matches("<h3>previous</h3>").count(), 16);
    assert!(html.contains("4 earlier previous keys are in the JWKS."), "{html}");
    for (kid, shown) in [("kid-20", true), ("kid-19", true), ("kid-4", true), ("kid-3", false), ("kid-0", false)] {
        assert_eq!(html.contains(&format!(">{kid}<")), shown, "{kid}");
    }
}

#[test]
fn a_longer_time_of_a_policy_replaced_a_moment_ago_is_the_one_shown() {
    let long = RotationPolicy { publish_lead: Duration::from_secs(7200), ..RotationPolicy::default() };
    let changed = tenant(long).with_policy(RotationPolicy::default(), at(10));
    let keyring = rotated(0, &changed.policy).publish(generated(1), at(5));
    let html = html(&changed, keyring, at(20));
    assert!(html.contains(r#"datetime="2026-03-01T14:00:05Z""#), "as RotateSigningKey would answer: {html}");
}

#[test]
fn a_closed_keyring_is_not_shown() {
    let policy = RotationPolicy::default();
    let html = html(&tenant(policy.clone()), rotated(1, &policy).close(at(700)), at(701));
    assert!(!html.contains("<section"), "{html}");
}

#[test]
fn a_retired_algorithm_shows_its_previous_keys_alone() {
    let policy = RotationPolicy::default();
    let keyring = rotated(1, &policy).publish(generated(2), at(610)).retire(&policy, at(700), at(700));
    let html = html(&tenant(policy), keyring, at(701));
    assert!(html.contains("Retired: no key of it signs any more."), "{html}");
    assert_eq!(html.matches("<h3>").count(), 2, "{html}");
    assert_eq!(html.matches("<h3>previous</h3>").count(), 2, "{html}");
}

#[test]
fn the_first_key_of_an_added_algorithm_says_when_it_begins() {
    let tenant = tenant(RotationPolicy::default());
    let joined = Keyring::join(tenant.id.clone(), Algorithm::ES256, object(0), start()).publish(generated(0), start());
    let html = html(&tenant, joined, at(60));
    assert!(html.contains("It begins to sign by itself in 5 min, when every verifier"), "{html}");
    assert!(!html.contains("<h3>current</h3>"), "{html}");
}

#[test]
fn a_secret_shows_where_it_stands_and_nothing_that_names_it() {
    let policy = RotationPolicy::default();
    let secret = |number| Generated { public: None, certificate: None, ..generated(number) };
    let keyring = Keyring::new("acme".parse().unwrap(), Algorithm::HS256, object(0), start());
    let keyring = keyring.publish(secret(0), start()).activate_first(object(1), start()).publish(secret(1), start());
    let keyring = keyring.rotate(&Trigger::default(), &policy, object(2), at(600), at(600)).unwrap();
    let html = html(&tenant(policy), keyring.publish(secret(2), at(601)), at(700));
    for words in ["never published", "<h3>next</h3>", "<h3>current</h3>", "<h3>previous</h3>", "HMAC with SHA-256"] {
        assert!(html.contains(words), "{words}: {html}");
    }
    assert!(!html.contains("kid-") && !html.contains("SHA-1") && !html.contains("?kid="), "{html}");
    assert!(!html.contains(">Published<") && !html.contains(">Leaves the JWKS<"), "{html}");
}
