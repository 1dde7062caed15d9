use std::fs;
use std::thread;

use serde_json::Value;

use crate::common::http::send;
use crate::common::{Installation, Issuer, short_policy};
use crate::house::{ALL_SCOPES, House, kid_that_is, wait_until, with_management};

const ROTATE: &str = "/keys/signing/rotate";

/// Between the rotation, which is sealed by the token, and the end of a generation that takes the token some time.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_whose_next_key_the_token_does_not_make_is_202_and_the_key_follows() {
    let issuer = Issuer::new();
    let installation = with_management(Installation::prepare(), &issuer).set("signing.rsa_bits", "4096");
    let installation = installation.set("limits.manual_rotations_per_day", "1000");
    let mut house = House::serve(installation, issuer, short_policy()).await;
    house.clients.create_tenant("slow", &["RS256"], short_policy()).await;
    let (tokens, away) = (house.installation.token_dir(), house.installation.dir().join("away"));
    // A generation may be over before the token is taken away: then once more.
    for _ in 0..20 {
        wait_until("the next key is ready", || {
            let keys = house.keys("slow");
            keys.iter().any(|key| key["next"] == true)
        });
        let before = house.keys("slow");
        let (url, jwt) = (house.url("slow", ROTATE), house.jwt("slow", ALL_SCOPES));
        let rotating = thread::spawn(move || {
            // Too early is told with the time; the lead is a second.
            loop {
                let answer = send("POST", &url, &[("authorization", &format!("Bearer {jwt}"))]);
                if answer.status != 409 {
                    return answer;
                }
            }
        });
        let next = kid_that_is("next", &before);
        wait_until("it took place", || kid_that_is("current", &house.keys("slow")) == next);
        fs::rename(&tokens, &away).expect("the token is taken away");
        let answer = rotating.join().expect("an answer");
        if answer.status == 202 {
            house.description.hold("POST", ROTATE, &answer);
            let keys = house.keys("slow");
            assert!(keys.iter().all(|key| key["next"] == false), "{keys:?}");
            fs::rename(&away, &tokens).expect("the token is put back");
            wait_until("the next key is made", || house.keys("slow").iter().any(|key| key["next"] == true));
            return;
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        fs::rename(&away, &tokens).expect("the token is put back");
    }
    panic!("the token was never taken away in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_away_is_503_and_nothing_is_changed() {
    let mut house = House::open().await;
    let before = house.keys("acme");
    let (tokens, away) = (house.installation.token_dir(), house.installation.dir().join("away"));
    fs::rename(&tokens, &away).expect("the token is taken away");
    let answer = house.rotate_when_allowed("acme", ROTATE).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(house.keys("acme"), before);
    fs::rename(&away, &tokens).expect("the token is put back");
    wait_until("it rotates", || house.call_as_admin("POST", "acme", ROTATE).status == 201);
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
