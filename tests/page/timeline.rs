//! What the page says of each key: its state, its times and its names, as the API has them.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keyward::grpc::proto::{KeyState, ListSigningKeysRequest, RotationPolicy, SigningKey, Tenant};

use crate::browser::{Browser, Key, PAGE_WAIT_MAX_SECS, Seen};
use crate::common::http::get;
use crate::common::{Clients, Installation};
use crate::{acme, page_of, policy, secs};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_each_key_as_the_api_does_and_follows_a_rotation() {
    let (server, mut clients) = acme(Tenant::default()).await;
    let mut browser = Browser::start();
    clients.force_rotation("acme", "RS256").await;
    let before = browser.look(&page_of(&server));
    assert_shows(&before, &mut clients).await;
    assert_eq!(before.title, "acme: signing keys");
    assert!(!before.text.contains("SAML"), "the tenant has no saml_sso_url");
    assert_eq!(before.states("RS256"), ["next", "current", "previous"]);
    assert_eq!(before.states("ES256"), ["next", "current"]);

    clients.force_rotation("acme", "RS256").await;
    let after = browser.look(&page_of(&server));
    assert_shows(&after, &mut clients).await;
    assert_eq!(
        after.states("RS256"),
        ["next", "current", "previous", "previous"],
        "the latest previous key comes first"
    );
    let kids = |seen: &Seen| -> Vec<String> { seen.keyring("RS256").keys.iter().map(Key::kid).collect() };
    assert_eq!(kids(&after)[1..], kids(&before), "each key has moved one place down");
    assert_eq!(before.states("ES256"), after.states("ES256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_shows_how_far_it_is_and_what_comes_when() {
    let policy = RotationPolicy { rotation_period: secs(30 * 86_400), ..policy() };
    let (server, mut clients) = acme(Tenant { rotation_policy: Some(policy), ..Tenant::default() }).await;
    clients.force_rotation("acme", "ES256").await;
    let seen = Browser::start().look(&page_of(&server));
    let milestones: Vec<Vec<(&str, bool)>> = seen.keyring("ES256").keys.iter().map(Key::milestones).collect();
    assert_eq!(
        milestones,
        [
            [("Published", true), ("May sign", false), ("Retires", false), ("Leaves the JWKS", false)],
            [("Published", true), ("Signs since", true), ("Retires", false), ("Leaves the JWKS", false)],
            [("Published", true), ("Signed from", true), ("Retired", true), ("Leaves the JWKS", false)],
        ]
    );
    for words in [
        "Rotates every 30 d, next on 20",
        "It may in ",
        "Signs now: every new signature is made with this key.",
        "Signs no more. What it signed stays verifiable for 24 h",
        "by schedule",
    ] {
        assert!(seen.keyring("ES256").text.contains(words), "{words}: {}", seen.text);
    }
    for words in ["ECDSA on P-256 with SHA-256", "published 6 min before it may sign", "stays 24 h 6 min after"] {
        assert!(seen.text.contains(words), "{words}: {}", seen.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_on_the_page_without_a_name() {
    let algorithms = vec!["ES256".into(), "HS256".into()];
    let (server, mut clients) = acme(Tenant { algorithms, ..Tenant::default() }).await;
    clients.force_rotation("acme", "HS256").await;
    let request = ListSigningKeysRequest { tenant: "acme".into(), ..ListSigningKeysRequest::default() };
    let listed = clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys;
    let secrets: Vec<&SigningKey> = listed.iter().filter(|key| key.algorithm == "HS256").collect();
    assert_eq!(secrets.len(), 3);

    let seen = Browser::start().look(&page_of(&server));
    assert_eq!(seen.states("HS256"), ["next", "current", "previous"]);
    assert!(seen.keyring("HS256").text.contains("are secrets and are never published"), "{}", seen.text);
    assert!(seen.keyring("HS256").keys.iter().all(|key| key.codes.is_empty()), "{seen:?}");
    let html = String::from_utf8(get(&page_of(&server)).body).expect("UTF-8");
    for secret in secrets {
        assert!(!html.contains(&secret.kid), "the kid of a secret is on the page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_keys_are_being_generated_the_page_says_so_and_is_not_kept() {
    // Keys that take a moment to generate, on whatever machine.
    let installation = Installation::prepare().set("signing.rsa_bits", "4096");
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let creation = tokio::spawn(async move { clients.create_tenant("acme", &["RS256", "PS256"], policy()).await });
    let deadline = Instant::now() + Duration::from_secs(PAGE_WAIT_MAX_SECS);
    let early = loop {
        assert!(Instant::now() < deadline, "no page in {PAGE_WAIT_MAX_SECS} s");
        let answer = get(&page_of(&server));
        if answer.status == 200 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(early.header("cache-control"), "no-store");
    let html = String::from_utf8(early.body).expect("UTF-8");
    assert!(html.contains("Nothing is signed or published until it is there"), "{html}");
    creation.await.expect("created");
    let settled = get(&page_of(&server));
    assert_eq!(settled.header("cache-control"), "public, max-age=10");
    assert!(!String::from_utf8_lossy(&settled.body).contains("Nothing is signed"));
}

/// The page holds what GetSigningKey and its kin say of every published key, and no other key.
pub(crate) async fn assert_shows(seen: &Seen, clients: &mut Clients) {
    let request = ListSigningKeysRequest { tenant: "acme".into(), page_size: 100, ..ListSigningKeysRequest::default() };
    let listed = clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys;
    let published = |key: &&SigningKey| matches!(key.state(), KeyState::Next | KeyState::Current | KeyState::Previous);
    let mut expected: Vec<&SigningKey> = listed.iter().filter(published).collect();
    let shown: Vec<(&str, &Key)> =
        seen.keyrings.iter().flat_map(|ring| ring.keys.iter().map(|key| (ring.algorithm.as_str(), key))).collect();
    assert_eq!(shown.len(), expected.len(), "{}", seen.text);
    for (algorithm, key) in shown {
        let position = expected.iter().position(|known| known.kid == key.kid()).expect("a published kid, shown once");
        let known = expected.swap_remove(position);
        assert_eq!(algorithm, known.algorithm);
        assert_eq!(format!("KEY_STATE_{}", key.state.to_uppercase()), known.state().as_str_name());
        let mut times = vec![known.publish_time];
        match known.state() {
            KeyState::Next => times.push(known.publish_time.map(|time| later(time, 360))),
            KeyState::Current => times.push(known.activate_time),
            _ => times.extend([known.activate_time, known.retire_time, known.revoke_scheduled_time]),
        }
        let names = [known.kid.clone(), known.fingerprint.clone(), sha256_of(&known.certificate_pem)];
        assert_eq!(key.codes, names, "{known:?}");
        let times: Vec<(String, String)> = times.into_iter().map(|time| words(time.expect("a time"))).collect();
        assert_eq!(key.times, times, "{known:?}");
    }
}

/// What openssl prints as the SHA-256 fingerprint of a certificate.
fn sha256_of(pem: &str) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl starts");
    child.stdin.take().expect("stdin is piped").write_all(pem.as_bytes()).expect("openssl reads");
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success(), "openssl refuses {pem}");
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.trim().split_once('=').expect("NAME=FINGERPRINT").1.to_owned()
}

/// A time as the page has it: for machines and for people, to the second and in UTC.
fn words(time: prost_types::Timestamp) -> (String, String) {
    let datetime = prost_types::Timestamp { nanos: 0, ..time }.to_string();
    let text = datetime.replace('T', " ").replace('Z', " UTC");
    (datetime, text)
}

fn later(time: prost_types::Timestamp, seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds + seconds, ..time }
}
