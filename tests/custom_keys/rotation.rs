//! Custom keys put and deleted while the tenant's own keys rotate: who fetches a set sees each change whole or not at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use keyward::grpc::proto::{DeleteCustomSigningKeysRequest, RotateSigningKeyRequest, RotateSigningKeyResponse, Tenant};
use serde_json::{Value, json};

use crate::common::{Clients, Installation, short_policy};
use crate::{Trial, canonical, on_domain, set};

/// A set, another in its place, none: so many times, with a rotation beside each change.
const ROUNDS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn while_own_keys_rotate_the_custom_ones_are_there_whole_or_not_at_all() {
    let installation = Installation::prepare().set("limits.manual_rotations_per_day", "1000");
    let server = installation.serve();
    Clients::connect(&server).await.create_tenant("other", &["RS256", "ES256", "EdDSA"], short_policy()).await;
    let wanted = Tenant { algorithms: vec!["ES256".into()], ..Tenant::default() };
    let mut trial = Trial::on(server, "other", wanted).await;
    let ten = (0..10).map(|number| trial.key("RSA", &format!("ten-{number}"), &json!({}))).collect();
    let two = vec![trial.key("EC", "two-0", &json!({})), trial.key("OKP", "two-1", &json!({}))];
    let sets: Arc<[Vec<Value>; 3]> = Arc::new([ten, two, Vec::new()]);
    let told = Arc::new(Mutex::new(kids(&trial.canonical())));
    let over = Arc::new(AtomicBool::new(false));

    // Somebody fetches all the time; without the server, should this test fail, no more.
    let watch = {
        let (public, sets, told, over) =
            (trial.server.public().to_owned(), Arc::clone(&sets), Arc::clone(&told), Arc::clone(&over));
        tokio::task::spawn_blocking(move || {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                let known = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                look(&public, sets.as_slice(), &known);
                looks += 1;
            }
            looks
        })
    };
    for round in 0..ROUNDS * sets.len() {
        let rotation = tokio::spawn(rotate(trial.clients.clone()));
        let now = &sets[round % sets.len()];
        if now.is_empty() {
            let request = DeleteCustomSigningKeysRequest { tenant: "acme".into() };
            trial.clients.keys.delete_custom_signing_keys(request).await.expect("deleted");
        } else {
            trial.put(&set(now)).await.expect("taken");
        }
        // Answered: whoever fetches from now on sees it.
        assert_eq!(custom(&trial.on_domain()), *now, "round {round}");
        let rotated = rotation.await.expect("rotated");
        let own = [rotated.current.expect("current").kid, rotated.next.expect("next").kid];
        for keys in [trial.on_domain(), trial.canonical()] {
            assert_eq!(kids(&keys)[..2], own, "round {round}");
            assert_eq!((&keys[0]["state"], &keys[1]["state"]), (&json!("current"), &json!("next")), "round {round}");
        }
        told.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
    }
    over.store(true, Ordering::Relaxed);
    let looks = watch.await.expect("every look was right");
    assert!(looks > 0, "nobody looked");
}

/// One look at both addresses. `told` are the tenant's own keys that its operator knows by now.
fn look(public: &str, sets: &[Vec<Value>], told: &[String]) {
    let on_domain = on_domain(public);
    let custom = custom(&on_domain);
    assert!(sets.contains(&custom), "a part of a set: {:?}", kids(&custom));
    let canonical = canonical(public);
    assert_eq!(self::custom(&canonical), [json!(null); 0], "custom keys on the canonical path");
    for keys in [&on_domain, &canonical] {
        let count = |state: &str| keys.iter().filter(|key| key["state"] == state).count();
        assert_eq!(count("current"), 1, "{:?}", states(keys));
        // None for the moment in which the new one is being generated.
        assert!(count("next") <= 1, "{:?}", states(keys));
        let there = kids(keys);
        for kid in told {
            assert!(there.contains(kid), "{kid} is gone: {there:?}");
        }
    }
}

async fn rotate(mut clients: Clients) -> RotateSigningKeyResponse {
    let request = RotateSigningKeyRequest { tenant: "acme".into(), force: true, ..RotateSigningKeyRequest::default() };
    clients.keys.rotate_signing_key(request).await.expect("rotated").into_inner()
}

/// Those without a state, which only own keys have.
fn custom(keys: &[Value]) -> Vec<Value> {
    keys.iter().filter(|key| key.get("state").is_none()).cloned().collect()
}

fn kids(keys: &[Value]) -> Vec<String> {
    keys.iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

fn states(keys: &[Value]) -> Vec<&Value> {
    keys.iter().map(|key| &key["state"]).collect()
}
