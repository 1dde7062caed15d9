//! What a custom key may be, member by member.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{Trial, octets, refused, set};

/// gRPC libraries refuse an answer with more in its headers than this; 8192 less what is always there.
const HEADER_OCTETS_MAX: usize = 7_936;

#[tokio::test(flavor = "multi_thread")]
async fn ten_keys_are_taken_and_an_eleventh_is_refused_with_nothing_replaced() {
    let mut trial = Trial::begin().await;
    let many = |count: usize, trial: &Trial| -> Vec<Value> {
        (0..count).map(|number| trial.key("RSA", &format!("key-{number}"), &json!({}))).collect()
    };
    let ten = set(&many(10, &trial));
    trial.put(&ten).await.expect("ten are taken");
    let eleven = set(&many(11, &trial));
    refused(trial.put(&eleven).await, "", "at most 10 keys, not 11");
    let none = set(&[]);
    refused(trial.put(&none).await, "", "at least one key");
    // The last of ten is wrong: not one of them is put.
    let mut half = many(10, &trial);
    half.iter_mut().for_each(|key| key["kid"] = format!("new-{}", key["kid"]).replace('"', "").into());
    half[9]["n"] = octets(&[1; 128]).into();
    refused(trial.put(&set(&half)).await, "keys[9].n", "2048");
    assert_eq!(trial.stored().await, ten, "nothing was replaced");
    assert_eq!(trial.on_domain().len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_member_is_named() {
    let mut trial = Trial::begin().await;
    let good = set(&[trial.key("EC", "good", &json!({}))]);
    trial.put(&good).await.expect("taken");
    let own = trial.canonical()[0]["kid"].as_str().expect("a kid").to_owned();
    let other_x5c = trial.foreign.iter().filter(|key| key["kty"] == "RSA").nth(1).expect("a second")["x5c"].clone();
    let small = |bits: usize| {
        let mut modulus = vec![0xff; bits.div_ceil(8)];
        modulus[0] = 0xff >> (8 * modulus.len() - bits);
        octets(&modulus)
    };
    let y = trial.foreign.iter().find(|key| key["kty"] == "EC").expect("one")["y"].as_str().expect("y").to_owned();
    let mut off_curve = URL_SAFE_NO_PAD.decode(&y).expect("base64url");
    off_curve[31] ^= 1;
    let secret = "c2VjcmV0";

    // kty of a good key, what is changed in it, the member that is named, and words of what is said.
    let cases = [
        ("RSA", json!({"d": secret}), "d", "private"),
        ("RSA", json!({"p": secret}), "p", "private"),
        ("RSA", json!({"q": secret}), "q", "private"),
        ("RSA", json!({"dp": secret}), "dp", "private"),
        ("RSA", json!({"dq": secret}), "dq", "private"),
        ("RSA", json!({"qi": secret}), "qi", "private"),
        ("RSA", json!({"oth": [{"r": secret}]}), "oth", "private"),
        ("EC", json!({"d": secret}), "d", "private"),
        ("OKP", json!({"d": secret}), "d", "private"),
        ("OKP", json!({"kty": "AKP", "priv": secret}), "priv", "private"),
        ("OKP", json!({"kty": "oct", "k": secret}), "k", "symmetric"),
        ("OKP", json!({"kty": "oct"}), "kty", "RSA, EC or OKP"),
        ("RSA", json!({"kty": 7}), "kty", "must be a text"),
        ("RSA", json!({"kty": null}), "kty", "must be set"),
        ("RSA", json!({"kid": null}), "kid", "must be set"),
        ("RSA", json!({"kid": ""}), "kid", "1 to 255"),
        ("RSA", json!({"kid": "k".repeat(256)}), "kid", "1 to 255"),
        ("RSA", json!({"kid": "a b"}), "kid", "visible ASCII"),
        ("EC", json!({"kid": own}), "kid", "tenant's own keys"),
        ("RSA", json!({"use": "enc"}), "use", "sig"),
        ("RSA", json!({"use": 1}), "use", "must be a text"),
        ("RSA", json!({"key_ops": ["verify", "sign"]}), "key_ops", "[\"verify\"]"),
        ("RSA", json!({"alg": "ES256"}), "alg", "of this kty"),
        ("EC", json!({"alg": "ES384"}), "alg", "of this kty and crv"),
        ("RSA", json!({"alg": "HS256"}), "alg", "of this kty"),
        ("RSA", json!({"alg": "none"}), "alg", "must be one of RS256, RS384"),
        ("RSA", json!({"alg": "RSA-OAEP"}), "alg", "must be one of RS256, RS384"),
        ("RSA", json!({"n": small(2047), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "2048"),
        ("RSA", json!({"n": small(1024), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "1024"),
        ("RSA", json!({"n": small(8193), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "8192"),
        ("RSA", json!({"n": octets(&[vec![0], vec![0xff; 256]].concat())}), "n", "leading zeros"),
        ("RSA", json!({"n": octets(&[vec![0xff; 255], vec![0xfe]].concat())}), "n", "odd"),
        ("RSA", json!({"n": "not base64url!"}), "n", "base64url"),
        ("RSA", json!({"n": null}), "n", "must be set"),
        ("RSA", json!({"e": octets(&[1])}), "e", "65537"),
        ("RSA", json!({"e": octets(&[3])}), "e", "65537"),
        ("RSA", json!({"e": octets(&[1, 0, 0])}), "e", "odd"),
        ("RSA", json!({"e": octets(&[0x80, 0, 0, 1])}), "e", "2147483647"),
        ("RSA", json!({"e": octets(&[1; 400])}), "e", "2147483647"),
        ("RSA", json!({"e": octets(&[0, 1, 0, 1])}), "e", "leading zeros"),
        ("RSA", json!({"crv": "P-256"}), "crv", "leave it out"),
        ("EC", json!({"crv": "secp256k1"}), "crv", "P-256, P-384 or P-521"),
        ("EC", json!({"crv": "P-384", "alg": null, "x5c": null, "x5t": null, "x5t#S256": null}), "x", "48 octets"),
        ("EC", json!({"y": octets(&off_curve)}), "x", "point on its curve"),
        ("EC", json!({"x": octets(&[0; 32])}), "x", "point on its curve"),
        ("EC", json!({"y": octets(&off_curve[1..])}), "y", "32 octets"),
        ("EC", json!({"y": null}), "y", "must be set"),
        ("OKP", json!({"crv": "Ed448"}), "crv", "Ed25519"),
        ("OKP", json!({"crv": "X25519"}), "crv", "Ed25519"),
        ("OKP", json!({"x": octets(&[2; 31])}), "x", "32 octets"),
        ("OKP", json!({"x": octets(&[[2; 1].as_slice(), &[0; 31]].concat())}), "x", "point on its curve"),
        ("OKP", json!({"x": octets(&[0; 32])}), "x", "point on its curve"),
        ("RSA", json!({"x5c": other_x5c}), "x5c[0]", "another key's"),
        ("RSA", json!({"x5c": []}), "x5c", "1 to 10 certificates"),
        ("RSA", json!({"x5c": "MIIB"}), "x5c", "1 to 10 certificates"),
        ("RSA", json!({"x5c": ["MIIB"]}), "x5c[0]", "certificate in DER"),
        ("RSA", json!({"x5c": ["-----BEGIN"]}), "x5c[0]", "base64"),
        ("RSA", json!({"x5t": octets(&[1; 20])}), "x5t", "hash of the first certificate"),
        ("RSA", json!({"x5t": octets(&[1; 19])}), "x5t", "20 octets"),
        ("RSA", json!({"x5t#S256": octets(&[1; 32])}), "x5t#S256", "hash of the first certificate"),
        ("RSA", json!({"x5u": "http://a.example/c"}), "x5u", "https"),
        ("RSA", json!({"state": "current"}), "state", "leave it out"),
    ];
    for (kty, changes, member, words) in cases {
        let wrong = trial.key(kty, "wrong", &changes);
        let right = trial.key("EC", "right", &json!({}));
        refused(trial.put(&set(&[right, wrong])).await, &format!("keys[1].{member}"), words);
    }

    // Two of one name; a member twice; what is no set at all.
    let twice = [trial.key("EC", "same", &json!({})), trial.key("OKP", "same", &json!({}))];
    refused(trial.put(&set(&twice)).await, "keys[1].kid", "another key of the set");
    for text in
        ["", "[]", "{}", "null", "{\"keys\": {}}", "{\"keys\": [1]}", "{\"keys\": [], \"more\": 1}", "{\"keys\": []} x"]
    {
        refused(trial.put_text(text).await, "", "");
    }
    let member_twice = r#"{"keys":[{"kty":"OKP","kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    refused(trial.put_text(member_twice).await, "", "each member once");
    let long = format!("{}{}", " ".repeat(128 * 1024), good);
    refused(trial.put_text(&long).await, "", "at most 131072 octets");
    assert_eq!(trial.stored().await, good, "nothing was replaced");

    // All problems are told at once; with another exponent the certificate is another key's.
    let wrong = trial.key("RSA", "wrong", &json!({"d": secret, "use": "enc", "e": octets(&[3])}));
    let status = trial.put(&set(&[wrong])).await.expect_err("refused");
    assert_eq!(status.get_details_bad_request().expect("BadRequest").field_violations.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_just_within_the_bounds_is_taken_and_published_as_it_was_sent() {
    let mut trial = Trial::begin().await;
    let bare = |changes: Value| {
        let mut members = json!({"x5c": null, "x5t": null, "x5t#S256": null});
        members.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        members
    };
    let chain = |trial: &Trial, length: usize| {
        let leaf = trial.key("RSA", "any", &json!({}))["x5c"][0].clone();
        json!({ "x5c": vec![leaf; length] })
    };
    let edges = [
        trial.key("EC", &"k".repeat(255), &json!({})),
        trial.key("RSA", "greatest-e", &bare(json!({"e": octets(&[0x7f, 0xff, 0xff, 0xff])}))),
        trial.key("RSA", "least-n", &bare(json!({"n": octets(&modulus(2048))}))),
        trial.key("RSA", "greatest-n", &bare(json!({"n": octets(&modulus(8192))}))),
        trial.key("RSA", "longest-x5c", &chain(&trial, 10)),
    ];
    let put = trial.put(&set(&edges)).await.expect("all are taken");
    assert_eq!(put, set(&edges));
    assert_eq!(trial.on_domain()[2..], edges);

    let longer = trial.key("RSA", "longer-x5c", &chain(&trial, 11));
    refused(trial.put(&set(&[longer])).await, "keys[0].x5c", "1 to 10 certificates");
    assert_eq!(trial.stored().await, put, "nothing was replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_problems_the_first_are_named_and_the_others_counted() {
    let mut trial = Trial::begin().await;
    let secret = "c2VjcmV0";
    let private = json!({
        "d": secret, "p": secret, "q": secret, "dp": secret, "dq": secret, "qi": secret,
        "oth": [{"r": secret, "d": secret, "t": secret}],
    });
    let ten: Vec<Value> = (0..10).map(|number| trial.key("RSA", &format!("key-{number}"), &private)).collect();
    let outcome = trial.put(&set(&ten)).await;
    let violations = violations(&outcome);
    let fields: Vec<&str> = violations.iter().map(|(field, _)| field.as_str()).collect();
    let mut first =
        ["d", "p", "q", "dp", "dq", "qi", "oth"].map(|member| format!("jwks_json.keys[0].{member}")).to_vec();
    first.extend(["jwks_json.keys[1].d".to_owned(), "jwks_json".to_owned()]);
    assert_eq!(fields, first);
    assert!(violations[8].1.contains("62 more"), "{violations:?}");
    let octets = header_octets(outcome.as_ref().expect_err("refused"));
    assert!(octets <= HEADER_OCTETS_MAX, "{octets} octets of headers");
    refused(outcome, "keys[0].oth", "private");

    // Eight are all named, with nothing to count.
    let eight = [trial.key("RSA", "seven", &private), trial.key("RSA", "one", &json!({"d": secret}))];
    first.pop();
    let outcome = trial.put(&set(&eight)).await;
    assert_eq!(self::violations(&outcome).into_iter().map(|(field, _)| field).collect::<Vec<_>>(), first);
    assert_eq!(trial.stored().await, json!({"keys": []}), "nothing was put");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_name_so_much_is_told_as_helps_to_find_it() {
    let mut trial = Trial::begin().await;
    // The second in four octets of UTF-8, none of which is told without the others.
    for character in ["m", "\u{1f511}"] {
        let names: Vec<String> = (0..10).map(|number| format!("{number}{}", character.repeat(200))).collect();
        let unknown: Map<String, Value> = names.iter().map(|name| (name.clone(), json!("c2VjcmV0"))).collect();
        let unknown = Value::Object(unknown);
        let many: Vec<Value> = (0..10).map(|number| trial.key("EC", &format!("key-{number}"), &unknown)).collect();
        let outcome = trial.put(&set(&many)).await;
        let violations = violations(&outcome);
        assert_eq!(violations.len(), 9, "{violations:?}");
        for ((field, _), name) in violations[..8].iter().zip(&names) {
            let told = field.strip_prefix("jwks_json.keys[0].").expect("of the first key");
            assert!(name.starts_with(told), "{told} is not of {name}");
            assert!(told.chars().count() <= 64 && told.len() >= 60, "{told}");
        }
        assert!(violations[8].1.contains("92 more"), "{violations:?}");
        let octets = header_octets(outcome.as_ref().expect_err("refused"));
        assert!(octets <= HEADER_OCTETS_MAX, "{octets} octets of headers");
        refused(outcome, violations[0].0.trim_start_matches("jwks_json."), "leave it out");
    }
}

/// What a refusal takes in headers: the message percent-encoded, the details in base64.
fn header_octets(status: &Status) -> usize {
    let message = status.message().bytes().map(|octet| if (b' '..=b'~').contains(&octet) { 1 } else { 3 });
    message.sum::<usize>() + status.details().len().div_ceil(3) * 4
}

/// Field and description of each violation of a refusal.
fn violations(outcome: &Result<Value, Status>) -> Vec<(String, String)> {
    let status = outcome.as_ref().expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("BadRequest");
    details.field_violations.into_iter().map(|one| (one.field, one.description)).collect()
}

/// The least odd number of so many bits.
fn modulus(bits: usize) -> Vec<u8> {
    let mut octets = vec![0; bits / 8];
    octets[0] = 0x80;
    octets[bits / 8 - 1] |= 1;
    octets
}
