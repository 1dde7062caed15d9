//! The token fails and comes back.
//!
//! What takes the token's directory away is told of SoftHSM alone: Kryoptic has its database open, and does not notice.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::domain::Algorithm;
use keyward::token::{Found, KeyRef, Pkcs11Token, Token, TokenConfig, TokenError};

use crate::contract::{fresh_object, input, soon, spec, verify};
use crate::home::{Home, Module, PIN, alone, config, direct_session, runtime, with_token, with_token_on};

const ALGORITHM: Algorithm = Algorithm::ES256;

#[test]
fn a_full_queue_says_so_at_once() {
    alone("failures::a_full_queue_says_so_at_once", |home| {
        home.provision();
        let token = Pkcs11Token::open(TokenConfig { workers: 1, queue_depth_max: 1, ..config(PIN) }).unwrap();
        runtime().block_on(async {
            let key = new_key(&token, Algorithm::RS256).await;
            // The first keeps the only worker busy for a second or so; of the others one waits.
            let sign = |count| token.sign(&key, vec![input(Algorithm::RS256, b"work"); count], soon());
            let (long, a, b, c) = tokio::join!(sign(2000), sign(1), sign(1), sign(1));
            let full = [&long, &a, &b, &c]
                .into_iter()
                .filter(|done| matches!(done, Err(TokenError::QueueFull { .. })))
                .count();
            assert!((2..=3).contains(&full), "{full} of 4 were refused: {a:?} {b:?} {c:?}");
            token.sign(&key, vec![input(Algorithm::RS256, b"room again")], soon()).await.unwrap();
        });
    });
}

#[test]
fn a_job_that_would_wait_too_long_is_refused_at_once() {
    alone("failures::a_job_that_would_wait_too_long_is_refused_at_once", |home| {
        home.provision();
        let token = Pkcs11Token::open(TokenConfig { workers: 1, ..config(PIN) }).unwrap();
        runtime().block_on(async {
            let key = new_key(&token, Algorithm::RS256).await;
            let long = token.sign(&key, vec![input(Algorithm::RS256, b"work"); 500], soon());
            // In time when it is asked, and too late when the first is done.
            let deadline = Instant::now() + Duration::from_millis(5);
            let waiting = token.sign(&key, vec![input(Algorithm::RS256, b"late")], deadline);
            let (long, waiting) = tokio::join!(long, waiting);
            assert_eq!(long.unwrap().len(), 500);
            let Err(TokenError::QueueFull { retry_after }) = waiting else { panic!("{waiting:?}") };
            assert!(retry_after > Duration::from_millis(5), "{retry_after:?}");
        });
    });
}

#[test]
fn a_batch_is_signed_by_all_workers_in_order_and_lets_others_in_between() {
    with_token(
        "failures::a_batch_is_signed_by_all_workers_in_order_and_lets_others_in_between",
        |_, token| async move {
            let key = new_key(&token, Algorithm::RS256).await;
            let other = KeyRef { tenant: Some("other".parse().unwrap()), ..copy(&key) };
            let messages: Vec<Vec<u8>> = (0..400_u16).map(|number| number.to_be_bytes().to_vec()).collect();
            let inputs = messages.iter().map(|message| input(Algorithm::RS256, message)).collect();
            let batch = token.sign(&key, inputs, soon());
            let one = async {
                let signatures = token.sign(&Arc::new(other), vec![input(Algorithm::RS256, b"one")], soon()).await;
                (signatures, Instant::now())
            };
            let (batch, (one, one_done)) = tokio::join!(async { (batch.await, Instant::now()) }, one);
            let (signatures, batch_done) = (batch.0.unwrap(), batch.1);
            assert_eq!(signatures.len(), messages.len());
            for (message, signature) in messages.iter().zip(&signatures) {
                verify(key.algorithm, key.public.as_ref(), message, signature).unwrap();
            }
            one.unwrap();
            assert!(one_done < batch_done, "one signature waited for all of a batch");
        },
    );
}

#[test]
fn the_token_directory_goes_away_and_comes_back() {
    with_token_on(
        &[Module::SoftHsm],
        "failures::the_token_directory_goes_away_and_comes_back",
        |home, token| async move {
            let key = new_key(&token, ALGORITHM).await;
            let never_used = new_key(&token, ALGORITHM).await;
            sign(&token, &key).await.unwrap();
            // SoftHSM's whole directory, then the one token's in it.
            for path in [home.tokens(), only_entry(&home)] {
                home.take_away(&path);
                for key in [&key, &never_used] {
                    let refused = sign(&token, key).await;
                    assert!(matches!(refused, Err(TokenError::Unavailable(_))), "{refused:?}");
                }
                // Absence is not believed, and neither is a live session (R8).
                let found = token.find(key.object, ALGORITHM).await;
                assert!(matches!(found, Err(TokenError::Unavailable(_))), "{found:?}");
                let destroyed = token.destroy(key.object).await;
                assert!(matches!(destroyed, Err(TokenError::Unavailable(_))), "{destroyed:?}");
                let probed = token.probe().await;
                assert!(matches!(probed, Err(TokenError::Unavailable(_))), "{probed:?}");
                let generated = token.generate(fresh_object(), spec(ALGORITHM)).await;
                assert!(matches!(generated, Err(TokenError::Unavailable(_))), "{generated:?}");

                home.put_back(&path);
                until_available(|| sign(&token, &key)).await.unwrap();
                sign(&token, &never_used).await.unwrap();
                assert_eq!(&token.probe().await.unwrap(), token.identity());
                assert!(matches!(token.find(key.object, ALGORITHM).await.unwrap(), Found::Key(_)));
            }
            // And what is new then is as good as what was before.
            let new = new_key(&token, ALGORITHM).await;
            sign(&token, &new).await.unwrap();
        },
    );
}

#[test]
fn only_the_probe_notices_and_recovers_too() {
    with_token_on(&[Module::SoftHsm], "failures::only_the_probe_notices_and_recovers_too", |home, token| async move {
        new_key(&token, ALGORITHM).await;
        home.take_away(&home.tokens());
        let probed = token.probe().await;
        assert!(matches!(probed, Err(TokenError::Unavailable(_))), "{probed:?}");
        home.put_back(&home.tokens());
        until_available(|| token.probe()).await.unwrap();
    });
}

#[test]
fn a_lost_login_is_made_again() {
    with_token("failures::a_lost_login_is_made_again", |_, token| async move {
        let key = new_key(&token, ALGORITHM).await;
        sign(&token, &key).await.unwrap();
        // Logs out every session of the process.
        direct_session().logout().unwrap();
        sign(&token, &key).await.unwrap();
        direct_session().logout().unwrap();
        assert!(matches!(token.find(key.object, ALGORITHM).await.unwrap(), Found::Key(_)));
        direct_session().logout().unwrap();
        token.probe().await.unwrap();
        direct_session().logout().unwrap();
        token.destroy(key.object).await.unwrap();
        assert_eq!(token.find(key.object, ALGORITHM).await.unwrap(), Found::Absent);
        direct_session().logout().unwrap();
        new_key(&token, ALGORITHM).await;
    });
}

#[test]
fn a_wrong_pin_is_refused() {
    alone("failures::a_wrong_pin_is_refused", |home| {
        home.provision();
        let refused = home.open("wrong-pin");
        assert!(matches!(refused, Err(TokenError::PinRefused)), "{refused:?}");
        home.open(PIN).unwrap();
    });
}

#[test]
fn a_pin_that_is_changed_under_way_is_tried_once() {
    with_token_on(
        &[Module::SoftHsm],
        "failures::a_pin_that_is_changed_under_way_is_tried_once",
        |home, token| async move {
            let key = new_key(&token, ALGORITHM).await;
            let session = direct_session();
            session.set_pin(&PIN.into(), &"5678-changed".into()).unwrap();
            drop(session);
            sign(&token, &key).await.unwrap();
            home.take_away(&home.tokens());
            let refused = sign(&token, &key).await;
            assert!(matches!(refused, Err(TokenError::Unavailable(_))), "{refused:?}");
            home.put_back(&home.tokens());

            let refused = until_available(|| sign(&token, &key)).await;
            assert!(matches!(refused, Err(TokenError::PinRefused)), "{refused:?}");
            // From then on the token is not asked: it is not even there.
            home.take_away(&home.tokens());
            assert!(matches!(sign(&token, &key).await, Err(TokenError::PinRefused)));
            assert!(matches!(token.probe().await, Err(TokenError::PinRefused)));
            assert!(matches!(token.find(key.object, ALGORITHM).await, Err(TokenError::PinRefused)));
            assert!(matches!(token.destroy(key.object).await, Err(TokenError::PinRefused)));
            assert!(matches!(token.generate(fresh_object(), spec(ALGORITHM)).await, Err(TokenError::PinRefused)));
        },
    );
}

async fn new_key(token: &dyn Token, algorithm: Algorithm) -> Arc<KeyRef> {
    let object = fresh_object();
    let public = token.generate(object, spec(algorithm)).await.unwrap().public;
    Arc::new(KeyRef { object, algorithm, public, tenant: None })
}

fn copy(key: &KeyRef) -> KeyRef {
    let KeyRef { object, algorithm, public, tenant } = key;
    KeyRef { object: *object, algorithm: *algorithm, public: public.clone(), tenant: tenant.clone() }
}

async fn sign(token: &dyn Token, key: &Arc<KeyRef>) -> Result<(), TokenError> {
    let signatures = token.sign(key, vec![input(key.algorithm, b"message")], soon()).await?;
    verify(key.algorithm, key.public.as_ref(), b"message", &signatures[0]).unwrap();
    Ok(())
}

/// Does what a caller does who is told `Unavailable`: retries until something else comes back.
async fn until_available<T, F: Future<Output = Result<T, TokenError>>>(
    attempt: impl Fn() -> F,
) -> Result<T, TokenError> {
    let give_up = soon();
    loop {
        match attempt().await {
            Err(TokenError::Unavailable(_)) if Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// The one token's own directory.
fn only_entry(home: &Home) -> PathBuf {
    let mut entries: Vec<_> = std::fs::read_dir(home.tokens()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}
