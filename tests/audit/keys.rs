//! A service key in memory, and an administration log in memory.

use std::sync::Mutex;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use keyward::audit::{Administration, Sign};
use keyward::domain::{Curve, Event, Octets, PublicKey};
use keyward::tlog::{LogKey, Tip};

pub(crate) struct ServiceKey(EcdsaKeyPair);

impl ServiceKey {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("random octets"))
    }

    pub(crate) fn public(&self) -> PublicKey {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        PublicKey::Ec { crv: Curve::P256, x: Octets(x.to_vec()), y: Octets(y.to_vec()) }
    }

    pub(crate) fn log_key(&self) -> LogKey {
        LogKey::new(&self.public()).expect("a key on P-256")
    }

    pub(crate) fn sign_now(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(&SystemRandom::new(), message).expect("signed").as_ref().to_vec()
    }
}

#[async_trait]
impl Sign for ServiceKey {
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.sign_now(message))
    }
}

/// The administration log of a store in memory.
#[derive(Default)]
pub(crate) struct Records(pub(crate) Mutex<(Tip, Vec<Vec<u8>>)>);

impl Records {
    pub(crate) fn append(&self, event: &Event) {
        let mut log = self.0.lock().expect("no panic");
        let record = log.0.append(event);
        log.1.push(record);
    }
}

#[async_trait]
impl Administration for Records {
    async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, String> {
        let log = self.0.lock().expect("no panic");
        let from = usize::try_from(from).expect("few records");
        Ok(log.1.iter().skip(from).take(limit as usize).cloned().collect())
    }
}
