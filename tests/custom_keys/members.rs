//! What a custom key may be, member by member.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use crate::{Trial, octets, refused, set};

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
        ("RSA", json!({"alg": "none"}), "alg", "is not an algorithm"),
        ("RSA", json!({"alg": "RSA-OAEP"}), "alg", "is not an algorithm"),
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
