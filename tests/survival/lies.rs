//! One signature in a hundred is wrong, and the module says OK.
//!
//! Each wrong one costs a key, and a rotation writes half a dozen sealed records: a hundred thousand signatures are a thousand
//! rotations. So each run makes a tenth of them; `KEYWARD_TEST_SIGNATURES=100000` makes all, in some minutes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keyward::grpc::proto::batch_sign_input::Input;
use keyward::grpc::proto::{BatchSignInput, BatchSignRequest, BatchSignResponse, RotateSigningKeyRequest};
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::stand::{Isolation, Stand};
use crate::common::http::get;
use crate::common::{Clients, short_policy};

const SIGNATURES: usize = 10_000;
/// How many instead of those.
const SIGNATURES_VARIABLE: &str = "KEYWARD_TEST_SIGNATURES";
/// Many, because a keyring whose key is replaced for each wrong signature grows.
const TENANTS: usize = 8;
/// Issuers that sign at the same time.
const ISSUERS: usize = 4;
/// Few enough that most batches have no wrong signature, and many enough that a hundred thousand take no time.
const BATCH: usize = 20;
/// Longest pause between two signatures of an issuer: a replaced key, and all that the service needs for it, is back before.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn of_many_signatures_no_wrong_one_reaches_a_caller() {
    let wanted = std::env::var(SIGNATURES_VARIABLE).map_or(SIGNATURES, |text| text.parse().expect("a number"));
    let all = |it: crate::common::Installation| it.set("signing.verify_share", "1.0");
    let stand = Stand::with(Isolation::Process, &["ES256"], all).await;
    let mut clients = stand.clients.clone();
    let tenants: Vec<String> = (0..TENANTS).map(|number| format!("issuer-{number}")).collect();
    for tenant in &tenants {
        clients.create_tenant(tenant, &["ES256"], short_policy()).await;
    }
    stand.faults.set("C_Sign flip share 1%");
    let begun = Instant::now();
    let issuers: Vec<_> = tenants
        .chunks(TENANTS / ISSUERS)
        .map(|tenants| (tenants.to_vec(), stand.server.public().to_owned()))
        .map(|(tenants, public)| tokio::spawn(issue(clients.clone(), tenants, public, wanted / TENANTS)))
        .collect();
    let mut told = Told::default();
    for issuer in issuers {
        told.add(&issuer.await.expect("no issuer fails"));
    }
    let wrong = stand.faults.fired(0);
    println!("{wrong} wrong signatures in {:?}: {told:?}", begun.elapsed());
    assert!(told.released >= wanted);
    assert!(wrong as usize >= wanted / 200, "{wrong} were wrong");
    stand.faults.clear();
}

/// What the callers were told.
#[derive(Debug, Default)]
struct Told {
    /// Signatures, each of which was verified here.
    released: usize,
    refused: HashMap<String, usize>,
    rotations: usize,
}

impl Told {
    fn add(&mut self, other: &Self) {
        self.released += other.released;
        self.rotations += other.rotations;
        other.refused.iter().for_each(|(what, count)| *self.refused.entry(what.clone()).or_default() += count);
    }

    fn refuse(&mut self, status: &Status) {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        *self.refused.entry(format!("{:?} {reason}", status.code())).or_default() += 1;
    }
}

/// Signs its share for each of its tenants in turn, and replaces keys as an operator does who is told that one is quarantined.
async fn issue(mut clients: Clients, tenants: Vec<String>, public: String, share: usize) -> Told {
    let mut told = Told::default();
    for tenant in tenants {
        let mut keys = Keys { url: format!("{public}/{tenant}/.well-known/jwks.json"), known: HashMap::new() };
        let enough = told.released + share;
        let mut limit = Instant::now() + STANDSTILL_MAX;
        while told.released < enough {
            match batch(&mut clients, &tenant).await {
                Ok(answer) => {
                    told.released += keys.verify(&tenant, &answer);
                    limit = Instant::now() + STANDSTILL_MAX;
                }
                Err(status) => {
                    told.refuse(&status);
                    replace_key(&mut clients, &tenant, &status, &mut told).await;
                    assert!(Instant::now() < limit, "{tenant} stands still: {status:?}; {told:?}");
                }
            }
        }
    }
    told
}

async fn batch(clients: &mut Clients, tenant: &str) -> Result<BatchSignResponse, Status> {
    let input = |number| BatchSignInput { input: Some(Input::Message(message(tenant, number))) };
    let request = BatchSignRequest {
        tenant: tenant.into(),
        inputs: (0..BATCH).map(input).collect(),
        ..BatchSignRequest::default()
    };
    Ok(clients.signing.batch_sign(request).await?.into_inner())
}

fn message(tenant: &str, number: usize) -> Vec<u8> {
    format!("message {number} of {tenant}").into_bytes()
}

/// By force, because the key's signatures are wrong; if it is refused, the next call will be told so, too.
async fn replace_key(clients: &mut Clients, tenant: &str, status: &Status, told: &mut Told) {
    if matches!(status.code(), Code::Internal | Code::FailedPrecondition) {
        let request =
            RotateSigningKeyRequest { tenant: tenant.into(), force: true, ..RotateSigningKeyRequest::default() };
        match clients.keys.rotate_signing_key(request).await {
            Ok(_) => told.rotations += 1,
            Err(status) => told.refuse(&status),
        }
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// The public keys of a tenant as a verifier knows them.
struct Keys {
    url: String,
    known: HashMap<String, Vec<u8>>,
}

impl Keys {
    /// Every signature of an answer; how many there are.
    fn verify(&mut self, tenant: &str, answer: &BatchSignResponse) -> usize {
        if !self.known.contains_key(&answer.kid) {
            self.fetch();
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.known[&answer.kid]);
        assert_eq!(answer.signatures.len(), BATCH);
        for (number, signature) in answer.signatures.iter().enumerate() {
            key.verify(&message(tenant, number), signature).expect("a wrong signature was released");
        }
        BATCH
    }

    fn fetch(&mut self) {
        let jwks: Value = get(&self.url).json();
        for key in jwks["keys"].as_array().expect("keys") {
            let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().expect("a member")).expect("base64url");
            let point = [vec![4], part("x"), part("y")].concat();
            self.known.insert(key["kid"].as_str().expect("a kid").to_owned(), point);
        }
    }
}
