//! A token's canary: a key of the service's own, by whose signatures the token shows that it is alive and the one it was. On the
//! home token that is the service key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generate::{bounded, token_input};
use crate::domain::{Algorithm, ObjectId, PublicKey};
use crate::jose::{BadPublicKey, Verifier};
use crate::token::{Found, KeyRef, KeySpec, Token, TokenError, TokenKey};

/// How long the test signature of a new key may take.
const TEST_WAIT_MAX: Duration = Duration::from_secs(5);

/// The key, without its token.
pub struct Canary {
    pub(super) key: Arc<KeyRef>,
    pub(super) verifier: Verifier,
}

impl Canary {
    /// Its algorithm.
    pub const ALGORITHM: Algorithm = Algorithm::ES256;

    /// The key with this CKA_ID and known public half.
    ///
    /// # Errors
    /// `public` is no P-256 key.
    pub fn new(object: ObjectId, public: PublicKey) -> Result<Self, BadPublicKey> {
        let verifier = Verifier::new(Self::ALGORITHM, &public)?;
        let key = KeyRef { object, algorithm: Self::ALGORITHM, public: Some(public), tenant: None };
        Ok(Self { key: Arc::new(key), verifier })
    }

    /// The key under this id, of which the intent is recorded: what an interrupted call left is taken up again. It is protected, and
    /// signs.
    ///
    /// # Errors
    /// Those of the token; `Unsupported` if its keys are not protected, or its signatures do not verify.
    pub async fn make(token: &dyn Token, object: ObjectId) -> Result<Self, TokenError> {
        // After a crash it is there, half there, or not there.
        let TokenKey { public, protection } = match bounded(token.find(object, Self::ALGORITHM)).await? {
            Found::Key(key) => key,
            Found::Absent | Found::Remains => {
                bounded(token.destroy(object)).await?;
                bounded(token.generate(object, KeySpec { algorithm: Self::ALGORITHM, rsa_bits: 0 })).await?
            }
        };
        let useless = |what: &str| TokenError::Unsupported(format!("{what}; use another token"));
        if !protection.holds() {
            return Err(useless("it made a key that could leave it (SENSITIVE, EXTRACTABLE or LOCAL is wrong)"));
        }
        let public = public.ok_or_else(|| useless("it made a key without a public half"))?;
        let canary = Self::new(object, public).map_err(|_| useless("it made a key that is not P-256"))?;
        match canary.probe(token, TEST_WAIT_MAX).await {
            Err(TokenError::Mismatch(_)) => Err(useless("its signatures do not verify")),
            tested => tested.map(|()| canary),
        }
    }

    /// CKA_ID of its objects.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.key.object
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        self.key.public.as_ref().expect("it was made with one")
    }

    /// Whether `token`, on which it is, signs a fresh message with it in time, and rightly.
    ///
    /// # Errors
    /// What keeps it from signing; [`TokenError::Late`] without an answer in time.
    pub(super) async fn probe(&self, token: &dyn Token, wait_max: Duration) -> Result<(), TokenError> {
        let message = format!("keyward canary {:?}", Instant::now()).into_bytes();
        let deadline = Instant::now() + wait_max;
        // Not `Token::probe`, which waits behind the generation of keys.
        let signed = token.sign(&self.key, vec![token_input(Self::ALGORITHM, message.clone())], deadline);
        let signatures = tokio::time::timeout_at(deadline.into(), signed).await.unwrap_or(Err(TokenError::Late))?;
        match signatures.as_slice() {
            [signature] if self.verifier.verify(&message, signature) => Ok(()),
            _ => Err(TokenError::Mismatch("its signature with the service's own key does not verify".to_owned())),
        }
    }
}
