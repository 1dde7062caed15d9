use keyward::grpc::proto::{GetSigningKeyRequest, KeyState, ListSigningKeysRequest, RotationPolicy, SigningKey};
use serde_json::Value;

use crate::common::http::Answer;
use crate::common::{Installation, Issuer, short_policy};
use crate::house::{ALL_SCOPES, House, kid_that_is, now, with_management};

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_what_grpc_lists_in_auth0s_words() {
    let mut house = House::open().await;
    let fresh = house.keys("acme");
    assert_eq!(fresh.len(), 2, "current and next of the default algorithm alone: {fresh:?}");
    for _ in 0..2 {
        house.force_rotation("acme").await;
    }
    let previous = kid_that_is("previous", &house.keys("acme"));
    assert_eq!(house.call_as_admin("PUT", "acme", &format!("/keys/signing/{previous}/revoke")).status, 200);

    let keys = house.keys("acme");
    let order: Vec<&str> = keys.iter().map(state).collect();
    assert_eq!(order, ["current", "next", "previous", "revoked"]);
    for key in &keys {
        let kid = key["kid"].as_str().expect("a kid");
        let known = known_to_grpc(&mut house, "acme", kid).await;
        assert_eq!(state(key), state_of(&known), "{key}");
        assert_eq!(text(key, "cert"), known.certificate_pem);
        assert_eq!(text(key, "pkcs7"), known.pkcs7_pem);
        assert_eq!(text(key, "fingerprint"), known.fingerprint);
        assert_eq!(text(key, "thumbprint"), known.thumbprint);
        let times = [
            ("current_since", known.activate_time),
            ("current_until", known.retire_time),
            ("revoked_at", known.revoke_time),
        ];
        for (member, time) in times {
            assert_eq!(millis(key, member), time.map(|time| time.seconds * 1000 + i64::from(time.nanos / 1_000_000)));
        }
        let one: Value = house.call_as_admin("GET", "acme", &format!("/keys/signing/{kid}")).json();
        assert_eq!(&one, key, "the list and the key agree");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_history_is_cut_to_the_keys_in_use_and_the_latest_of_the_others() {
    let issuer = Issuer::new();
    let installation = with_management(Installation::prepare(), &issuer);
    let installation = installation.set("limits.manual_rotations_per_day", "1000");
    let mut house = House::serve(installation, issuer, short_policy()).await;
    house.force_rotation("acme").await;
    let oldest = kid_that_is("previous", &house.keys("acme"));
    house.force_rotations("acme", 100, true).await;
    let keys = house.keys("acme");
    assert_eq!(keys.len(), 100);
    let order: Vec<&str> = keys.iter().map(state).collect();
    assert_eq!(order[..4], ["current", "next", "previous", "revoked"]);
    assert_eq!(keys[2]["kid"], oldest, "the oldest of all, and still published");
    let revoked: Vec<_> = keys[3..].iter().map(|key| millis(key, "revoked_at").expect("a time")).collect();
    assert!(revoked.is_sorted_by(|earlier, later| earlier >= later), "{revoked:?}");
    assert_eq!(keys[3]["current_until"], keys[0]["current_since"], "the latest is the one that was replaced last");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_algorithm_is_another_list_and_hs256_has_no_certificate() {
    let mut house = House::open().await;
    house.clients.create_tenant("web", &["HS256", "RS256"], short_policy()).await;
    let default = house.keys("web");
    assert_eq!(default.len(), 2);
    for key in &default {
        for member in ["cert", "pkcs7", "fingerprint", "thumbprint"] {
            assert!(key.get(member).is_none(), "{member} of a secret: {key}");
        }
    }
    let rsa: Vec<Value> = house.call_as_admin("GET", "web", "/keys/signing?algorithm=RS256").json();
    assert!(rsa.iter().all(|key| key.get("cert").is_some()), "{rsa:?}");
    assert_ne!(kid_that_is("current", &rsa), kid_that_is("current", &default));
    let secret = kid_that_is("current", &default);
    assert_eq!(house.call_as_admin("GET", "web", &format!("/keys/signing/{secret}")).status, 200);
    let other = house.call_as_admin("GET", "web", "/keys/signing?include_totals=true&algorithm=RS256");
    assert_eq!(other.json::<Vec<Value>>(), rsa, "parameters of other servers are passed over");

    for (query, word) in [
        ("algorithm=ES256", "RS256"),
        ("algorithm=none", "algorithm"),
        ("algorithm=", "algorithm"),
        ("algorithm=RS256&algorithm=HS256", "once"),
    ] {
        for (method, path) in [("GET", "/keys/signing"), ("POST", "/keys/signing/rotate")] {
            let answer = house.call_as_admin(method, "web", &format!("{path}?{query}"));
            assert_eq!(answer.status, 400, "{query}: {answer:?}");
            assert!(message(&answer).contains(word) && message(&answer).contains("algorithm"), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_answers_with_the_new_next_key_and_is_the_one_of_grpc() {
    let mut house = House::open().await;
    let before = house.keys("acme");
    let answer = house.rotate_when_allowed("acme", "/keys/signing/rotate").await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made: Value = answer.json();
    let after = house.keys("acme");
    assert_eq!(made["kid"], kid_that_is("next", &after));
    assert_eq!(made["cert"], after.iter().find(|key| key["next"] == true).expect("a next key")["cert"]);
    assert_eq!(kid_that_is("current", &after), kid_that_is("next", &before));
    assert_eq!(kid_that_is("previous", &after), kid_that_is("current", &before));

    let list = ListSigningKeysRequest { tenant: "acme".into(), ..ListSigningKeysRequest::default() };
    let edwards = house.clients.keys.list_signing_keys(list).await.expect("a list").into_inner().keys;
    let edwards: Vec<&SigningKey> = edwards.iter().filter(|key| key.algorithm == "EdDSA").collect();
    assert_eq!(edwards.len(), 2, "the other keyring was left alone: {edwards:?}");
    let answer = house.rotate_when_allowed("acme", "/keys/signing/rotate?algorithm=EdDSA").await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(house.keys("acme"), after, "and now this one is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_too_early_is_409_with_the_time_and_cannot_be_forced() {
    let lead = prost_types::Duration { seconds: 1800, nanos: 0 };
    let mut house = House::open_with(RotationPolicy { publish_lead: Some(lead), ..short_policy() }).await;
    let before = house.keys("acme");
    for path in ["/keys/signing/rotate", "/keys/signing/rotate?force=true"] {
        let answer = house.call_as_admin("POST", "acme", path);
        assert_eq!(answer.status, 409, "{answer:?}");
        let wait: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1700..=1800).contains(&wait), "{wait}");
        assert!(message(&answer).contains("becomes possible at 20"), "{answer:?}");
    }
    assert_eq!(house.keys("acme"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_by_hand_are_limited_and_the_limit_is_told_in_headers() {
    let mut house = House::open().await;
    // Two by gRPC and one here: it is one limit.
    house.force_rotation("acme").await;
    house.force_rotation("acme").await;
    let answer = house.rotate_when_allowed("acme", "/keys/signing/rotate").await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let answer = house.call_as_admin("POST", "acme", "/keys/signing/rotate");
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.header("x-ratelimit-limit"), "3");
    assert_eq!(answer.header("x-ratelimit-remaining"), "0");
    let reset: u64 = answer.header("x-ratelimit-reset").parse().expect("seconds since 1970");
    let day = 24 * 60 * 60;
    assert!((now() + day - 300..=now() + day).contains(&reset), "{reset}");
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!(wait.abs_diff(reset - now()) <= 60, "{wait}");
    assert!(house.call_as_admin("GET", "acme", "/keys/signing").status == 200, "only rotations are limited");
    let answer = house.rotate_when_allowed("b2b", "/keys/signing/rotate").await;
    assert_eq!(answer.status, 201, "only this tenant's");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_previous_key_is_revoked_and_that_twice_if_asked() {
    let mut house = House::open().await;
    house.force_rotation("acme").await;
    let keys = house.keys("acme");
    for flag in ["current", "next"] {
        let path = format!("/keys/signing/{}/revoke", kid_that_is(flag, &keys));
        let answer = house.call_as_admin("PUT", "acme", &path);
        assert_eq!(answer.status, 409, "{flag}: {answer:?}");
        assert!(message(&answer).contains("keys/signing/rotate"), "the way out: {answer:?}");
        assert_eq!(answer.header("retry-after"), "");
    }
    assert_eq!(house.keys("acme"), keys);

    let previous = kid_that_is("previous", &keys);
    let path = format!("/keys/signing/{previous}/revoke");
    let revoked: Value = house.call_as_admin("PUT", "acme", &path).json();
    assert_eq!(revoked["kid"], previous);
    assert_eq!(revoked["cert"], keys.iter().find(|key| key["previous"] == true).expect("the key")["cert"]);
    assert_eq!(house.call_as_admin("PUT", "acme", &path).json::<Value>(), revoked);
    let jwks: Value = crate::common::http::get(&house.server.jwks_uri("acme")).json();
    assert!(jwks["keys"].as_array().expect("keys").iter().all(|key| key["kid"] != previous));
    let one: Value = house.call_as_admin("GET", "acme", &format!("/keys/signing/{previous}")).json();
    assert_eq!((&one["revoked"], &one["previous"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404_and_other_methods_are_405() {
    let mut house = House::open().await;
    let others = kid_that_is("current", &house.keys("b2b"));
    for kid in [others.as_str(), "nobody", "a%20b", "%E2%82%AC", &"k".repeat(200)] {
        for (method, path) in [("GET", format!("/keys/signing/{kid}")), ("PUT", format!("/keys/signing/{kid}/revoke"))]
        {
            let answer = house.call_as_admin(method, "acme", &path);
            assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
        }
    }
    let jwt = house.jwt("acme", ALL_SCOPES);
    let send = |method: &str, path: &str| {
        let url = format!("{}{path}", house.server.management());
        crate::common::http::send(method, &url, &[("authorization", &format!("Bearer {jwt}"))])
    };
    for (method, path, allow) in [
        ("POST", "/keys/signing", "GET,HEAD"),
        ("DELETE", "/keys/signing", "GET,HEAD"),
        ("GET", "/keys/signing/rotate", "POST"),
        ("POST", "/keys/signing/x/revoke", "PUT"),
        ("PATCH", "/keys/custom-signing", "GET,HEAD,PUT,DELETE"),
    ] {
        let answer = send(method, &format!("/acme/api/v2{path}"));
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, allow), "{method} {path}");
        assert_problem(&answer);
    }
    for path in [
        "/",
        "/acme",
        "/acme/api/v2",
        "/acme/api/v2/",
        "/acme/api/v2/keys/signing/",
        "/acme/api/v1/keys/signing",
        "/acme/api/v2/clients",
        "/acme/.well-known/jwks.json",
        "/healthz",
        "/acme/api/v2/keys/signing/x/y",
    ] {
        let answer = send("GET", path);
        assert_eq!(answer.status, 404, "{path}");
        assert_problem(&answer);
    }
    assert_eq!(send("GET", "/%ff/api/v2/keys/signing").status, 400);
    let public = format!("{}/acme/api/v2/keys/signing", house.server.public());
    assert_eq!(crate::common::http::get(&public).status, 404, "it has its own listener");
}

/// An error of the form that all have, on a path that the description may not have.
fn assert_problem(answer: &Answer) {
    assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
    let body: Value = answer.json();
    let members: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(members, ["error", "message", "statusCode"]);
    assert_eq!(body["statusCode"], answer.status.as_u16());
}

async fn known_to_grpc(house: &mut House, tenant: &str, kid: &str) -> SigningKey {
    let request = GetSigningKeyRequest { tenant: tenant.into(), kid: kid.into() };
    house.clients.keys.get_signing_key(request).await.expect("the key").into_inner()
}

fn state(key: &Value) -> &'static str {
    let flags = ["current", "next", "previous", "revoked"];
    let set: Vec<&str> = flags.into_iter().filter(|flag| key[flag] == true).collect();
    assert_eq!(set.len(), 1, "one state: {key}");
    flags.into_iter().find(|flag| *flag == set[0]).expect("one of them")
}

fn state_of(key: &SigningKey) -> &'static str {
    match key.state() {
        KeyState::Current => "current",
        KeyState::Next => "next",
        KeyState::Previous => "previous",
        KeyState::Revoked | KeyState::Destroyed => "revoked",
        other => panic!("{other:?} is not listed"),
    }
}

fn text(key: &Value, member: &str) -> String {
    key[member].as_str().unwrap_or_else(|| panic!("no {member} in {key}")).to_owned()
}

fn millis(key: &Value, member: &str) -> Option<i64> {
    let text = key.get(member)?.as_str().expect("a text");
    Some(text.parse::<jiff::Timestamp>().expect("RFC 3339").as_millisecond())
}

fn message(answer: &Answer) -> String {
    answer.json::<Value>()["message"].as_str().expect("a message").to_owned()
}
