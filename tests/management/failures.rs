use std::fs;

use serde_json::Value;

use crate::house::{House, kid_that_is, wait_until};

const ROTATE: &str = "/keys/signing/rotate";

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_whose_next_key_the_token_does_not_make_is_202_and_the_key_follows() {
    let mut house = House::open().await;
    let before = house.keys("acme");
    let (tokens, away) = (house.installation.token_dir(), house.installation.dir().join("away"));
    fs::rename(&tokens, &away).expect("the token is taken away");
    let answer = house.rotate_when_allowed("acme", ROTATE).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let keys = house.keys("acme");
    assert_eq!(kid_that_is("current", &keys), kid_that_is("next", &before), "it took place");
    assert!(keys.iter().all(|key| key["next"] == false), "{keys:?}");
    let again = house.call_as_admin("POST", "acme", ROTATE);
    assert_eq!(again.status, 409, "a client that repeats it does no harm: {again:?}");
    assert_eq!(house.keys("acme"), keys);

    fs::rename(&away, &tokens).expect("the token is put back");
    wait_until("the next key is made", || house.keys("acme").iter().any(|key| key["next"] == true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_503_with_a_pause_and_nothing_internal() {
    let mut house = House::open().await;
    house.force_rotation("acme").await;
    let keys = house.keys("acme");
    let revoke = format!("/keys/signing/{}/revoke", kid_that_is("previous", &keys));
    let (store, away) = (house.installation.dir().join("store.sqlite"), house.installation.dir().join("away"));
    fs::rename(&store, &away).expect("the store is taken away");
    let mut custom = house.issuer.jwks();
    custom["keys"][0]["kid"] = "mine".into();
    let answers = [
        house.rotate_when_allowed("acme", ROTATE).await,
        house.call_as_admin("PUT", "acme", &revoke),
        house.put("acme", "/keys/custom-signing", custom.to_string().as_bytes()),
    ];
    for answer in answers {
        assert_eq!(answer.status, 503, "{answer:?}");
        let body = answer.json::<Value>().to_string();
        let directory = house.installation.dir().to_str().expect("a path in UTF-8");
        assert!(!body.contains(directory) && !body.contains("sqlite"), "{body}");
    }
    assert_eq!(house.keys("acme"), keys, "reading needs no store");
    fs::rename(&away, &store).expect("the store is put back");
    assert_eq!(house.call_as_admin("PUT", "acme", &revoke).status, 200);
}
