use serde_json::{Value, json};

use crate::common::Issuer;
use crate::common::http::{get, send};
use crate::house::{DOMAIN, House, ISSUER};

const PATH: &str = "/keys/custom-signing";

/// A set of this many keys.
fn set(count: usize) -> Value {
    let keys: Vec<Value> = (0..count)
        .map(|number| {
            let mut jwk = Issuer::new().jwk();
            jwk["kid"] = json!(format!("mine-{number}"));
            jwk
        })
        .collect();
    json!({ "keys": keys })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_put_whole_read_back_and_deleted() {
    let mut house = House::open().await;
    assert_eq!(house.call_as_admin("GET", "acme", PATH).status, 404);
    for count in [1, 10, 2] {
        let set = set(count);
        let answer = house.put("acme", PATH, set.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json::<Value>(), set);
        assert_eq!(house.call_as_admin("GET", "acme", PATH).json::<Value>(), set);
    }
    let on_domain: Value =
        send("GET", &format!("{}/.well-known/jwks.json", house.server.public()), &[("host", DOMAIN)]).json();
    assert_eq!(on_domain["keys"].as_array().expect("keys").len(), 6);
    let canonical: Value = get(&house.server.jwks_uri("acme")).json();
    assert_eq!(canonical["keys"].as_array().expect("keys").len(), 4, "published on the custom domain alone");
    assert_eq!(house.call_as_admin("GET", "b2b", PATH).status, 404, "another tenant's are its own");
    for _ in 0..2 {
        let answer = house.call_as_admin("DELETE", "acme", PATH);
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    }
    assert_eq!(house.call_as_admin("GET", "acme", PATH).status, 404);
    for change in ["put_custom_keys", "delete_custom_keys"] {
        let by = format!(r#"by="jwt:{ISSUER}#ops""#);
        let told = |line: &String| line.contains(change) && line.contains(r#"tenant="acme""#) && line.contains(&by);
        assert!(house.server.log().iter().any(told), "the log does not say who: {change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_set_changes_nothing_and_what_is_wrong_is_named_as_it_stands_in_the_body() {
    let mut house = House::open().await;
    let good = set(2);
    assert_eq!(house.put("acme", PATH, good.to_string().as_bytes()).status, 200);
    let with = |member: &str, value: Value| {
        let mut set = good.clone();
        set["keys"][1][member] = value;
        set.to_string()
    };
    for (bad, named) in [
        (String::new(), "the body must be a JWK Set"),
        ("{".to_owned(), "the body must be a JWK Set"),
        ("[]".to_owned(), "the body must be a JWK Set"),
        (r#"{"keys":[]}"#.to_owned(), "the body must have at least one key"),
        (set(11).to_string(), "the body must have at most 10 keys"),
        (with("kid", json!("mine-0")), "keys[1].kid "),
        (with("k", json!("c2VjcmV0")), "keys[1].k "),
        (with("d", json!("c2VjcmV0")), "keys[1].d "),
        (with("use", json!("enc")), "keys[1].use "),
        (with("x", json!("AAAA")), "keys[1].x "),
    ] {
        let answer = house.put("acme", PATH, bad.as_bytes());
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
        let body: Value = answer.json();
        let message = body["message"].as_str().expect("a text");
        assert!(message.starts_with(named) && !message.contains("c2VjcmV0"), "{bad}: {message}");
    }
    assert_eq!(house.put("acme", PATH, b"\xff").status, 400);
    assert_eq!(house.put("acme", PATH, &vec![b' '; 200_000]).status, 400);
    assert_eq!(house.put("acme", PATH, &vec![b' '; 300_000]).status, 413);
    assert_eq!(house.call_as_admin("GET", "acme", PATH).json::<Value>(), good);
}
