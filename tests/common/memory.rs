#![allow(dead_code, reason = "each of two test binaries uses a part of it")]

use std::collections::HashMap;
use std::future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use keyward::domain::{Algorithm, Curve, ObjectId, Octets, Protection, PublicKey, RotationPolicy, TenantId, TokenName};
use keyward::keyring::{Settings, TenantSpec};
use keyward::token::{
    Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey, TokenObject,
};

/// What keyrings on a token in memory are told.
pub(crate) fn settings(sign_wait_max: Duration, snapshot_max_age: Duration) -> Settings {
    Settings {
        base_url: "https://keys.example".to_owned(),
        rsa_bits: 2048,
        verify_share: 1.0,
        sign_wait_max,
        snapshot_max_age,
        others_wait_max: Duration::ZERO,
        manual_rotations_per_day: 100,
        sole: true,
    }
}

/// A tenant of the one algorithm that a token in memory knows, with SAML metadata.
pub(crate) fn tenant(id: TenantId) -> TenantSpec {
    TenantSpec {
        id,
        issuer: None,
        token: TokenName::default(),
        custom_domain: None,
        saml_sso_url: Some("https://idp.example/sso".parse().expect("a URL")),
        algorithms: vec![Algorithm::ES256],
        default_algorithm: None,
        policy: RotationPolicy::default(),
    }
}

/// What a token does when it is asked to sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It signs.
    #[default]
    Well,
    /// It is not to be had, and says so.
    Away,
    /// It never answers.
    Hanging,
    /// Too much waits for it.
    Full,
    /// It refuses the PIN.
    PinRefused,
    /// It makes signatures that do not verify.
    Wrong,
}

/// ES256 keys in memory, and the faults that a test asks for.
#[derive(Default)]
pub(crate) struct MemoryToken(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    pairs: HashMap<ObjectId, EcdsaKeyPair>,
    mood: Mood,
    /// Keys with a mood of their own.
    moods: HashMap<ObjectId, Mood>,
    /// How often each key was asked to sign.
    asked: HashMap<ObjectId, usize>,
}

impl MemoryToken {
    /// From now on it does so with all keys.
    pub(crate) fn becomes(&self, mood: Mood) {
        let mut inside = self.lock();
        inside.mood = mood;
        inside.moods.clear();
    }

    /// From now on it does so with this key.
    pub(crate) fn becomes_with(&self, object: ObjectId, mood: Mood) {
        self.lock().moods.insert(object, mood);
    }

    /// How often this key was asked to sign.
    pub(crate) fn asked(&self, object: ObjectId) -> usize {
        self.lock().asked.get(&object).copied().unwrap_or_default()
    }

    /// The objects on it.
    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.lock().pairs.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().expect("no panic")
    }

    /// What it does with this key, or with the token as a whole.
    fn mood(&self, object: Option<ObjectId>) -> Mood {
        let mut inside = self.lock();
        if let Some(object) = object {
            *inside.asked.entry(object).or_default() += 1;
        }
        let own = object.and_then(|object| inside.moods.get(&object));
        own.copied().unwrap_or(inside.mood)
    }

    /// Fails as a token does that is not there.
    async fn administer(&self) -> Result<(), TokenError> {
        match self.mood(None) {
            Mood::Well | Mood::Wrong => Ok(()),
            other => fail(other).await,
        }
    }
}

async fn fail<T>(mood: Mood) -> Result<T, TokenError> {
    match mood {
        Mood::Hanging => future::pending().await,
        Mood::Full => Err(TokenError::QueueFull { retry_after: Duration::from_millis(1) }),
        Mood::PinRefused => Err(TokenError::PinRefused),
        Mood::Well | Mood::Wrong | Mood::Away => Err(TokenError::Unavailable("C_Sign: CKR_DEVICE_REMOVED".to_owned())),
    }
}

fn shown(pair: &EcdsaKeyPair) -> TokenKey {
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (Octets(x.to_vec()), Octets(y.to_vec()));
    TokenKey { public: Some(PublicKey::Ec { crv: Curve::P256, x, y }), protection: protection() }
}

/// What a good key's token says of it.
pub(crate) fn protection() -> Protection {
    let text = || "memory".to_owned();
    Protection {
        token_label: text(),
        token_serial: text(),
        token_manufacturer: text(),
        token_model: text(),
        sensitive: true,
        always_sensitive: true,
        extractable: false,
        never_extractable: true,
        local: true,
    }
}

#[async_trait]
impl Token for MemoryToken {
    async fn generate(&self, object: ObjectId, _: KeySpec) -> Result<TokenKey, TokenError> {
        self.administer().await?;
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("random octets");
        let key = shown(&pair);
        self.lock().pairs.insert(object, pair);
        Ok(key)
    }

    async fn find(&self, object: ObjectId, _: Algorithm) -> Result<Found, TokenError> {
        self.administer().await?;
        Ok(self.lock().pairs.get(&object).map_or(Found::Absent, |pair| Found::Key(shown(pair))))
    }

    async fn sign(&self, key: &Arc<KeyRef>, inputs: Vec<SignInput>, _: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        let mood = self.mood(Some(key.object));
        if !matches!(mood, Mood::Well | Mood::Wrong) {
            return fail(mood).await;
        }
        let inside = self.lock();
        let pair = inside.pairs.get(&key.object).ok_or_else(|| TokenError::Unavailable("no such key".to_owned()))?;
        let sign = |input| match input {
            SignInput::Digest(digest) => {
                let digest = Digest::import_less_safe(&digest, &SHA256).expect("a SHA-256 digest");
                let mut signature = pair.sign_digest(&digest).expect("signed").as_ref().to_vec();
                signature[40] ^= u8::from(mood == Mood::Wrong);
                signature
            }
            SignInput::Message(_) => panic!("ES256 signs digests"),
        };
        Ok(inputs.into_iter().map(sign).collect())
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.administer().await?;
        self.lock().pairs.remove(&object);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        Err(TokenError::Unavailable("this token is not listed".to_owned()))
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        Ok(Algorithm::ALL.map(|algorithm| (algorithm, Ok(()))).to_vec())
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        Err(TokenError::Unavailable("this token is not probed".to_owned()))
    }
}
