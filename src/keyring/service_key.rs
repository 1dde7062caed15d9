//! The service key: an ES256 key of the service's own on the token, whose public half is pinned when the service is set up.
//!
//! It seals records (R15), signs the checkpoints of audit logs, and shows by a signature that the token is alive and the one it
//! was. Each of these messages begins with words of its own, so that none passes for another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::generate::token_input;
use crate::domain::{Algorithm, ObjectId, PublicKey};
use crate::jose::{BadPublicKey, Verifier};
use crate::store::Seals;
use crate::token::{KeyRef, Token, TokenError};

/// How long its signatures may take: a change waits behind signatures that are under way, and no longer than a caller waits.
const SIGN_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pause before a full queue is tried again: the queue is for those who can be turned away, and a change can wait.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// The key, ready to sign and to verify.
pub struct ServiceKey {
    token: Arc<dyn Token>,
    key: Arc<KeyRef>,
    verifier: Verifier,
}

impl ServiceKey {
    /// Its algorithm.
    pub const ALGORITHM: Algorithm = Algorithm::ES256;

    /// The key with this CKA_ID and pinned public half.
    ///
    /// # Errors
    /// `public` is no P-256 key.
    pub fn new(token: Arc<dyn Token>, object: ObjectId, public: PublicKey) -> Result<Self, BadPublicKey> {
        let verifier = Verifier::new(Self::ALGORITHM, &public)?;
        let key = KeyRef { object, algorithm: Self::ALGORITHM, public: Some(public), tenant: None };
        Ok(Self { token, key: Arc::new(key), verifier })
    }

    /// CKA_ID of its objects.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.key.object
    }

    /// Its pinned public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        self.key.public.as_ref().expect("it was made with one")
    }

    /// The signature of a message, as r || s (RFC 7518 section 3.4).
    ///
    /// # Errors
    /// Those of the token; [`TokenError::Mismatch`] if what it returned does not verify.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        Ok(self.sign_all(vec![message.to_vec()]).await?.remove(0))
    }

    /// The signatures of messages, in order: all or none.
    ///
    /// # Errors
    /// As [`ServiceKey::sign`].
    pub async fn sign_all(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TokenError> {
        let deadline = Instant::now() + SIGN_WAIT_MAX;
        let signatures = tokio::time::timeout_at(deadline.into(), self.ask(&messages, deadline)).await;
        let signatures =
            signatures.unwrap_or_else(|_| Err(TokenError::Unavailable("it does not answer".to_owned())))?;
        let right = signatures.len() == messages.len()
            && messages.iter().zip(&signatures).all(|(message, signature)| self.holds(message, signature));
        if right { Ok(signatures) } else { Err(TokenError::Mismatch("the service key's signature".to_owned())) }
    }

    async fn ask(&self, messages: &[Vec<u8>], deadline: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        loop {
            let inputs = messages.iter().map(|message| token_input(Self::ALGORITHM, message.clone())).collect();
            match self.token.sign(&self.key, inputs, deadline).await {
                Err(TokenError::QueueFull { .. }) => tokio::time::sleep(QUEUE_PAUSE).await,
                answer => return answer,
            }
        }
    }

    /// The canary: whether `token`, on which it is, signs a fresh message with it in time, and rightly.
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
            [signature] if self.holds(&message, signature) => Ok(()),
            _ => Err(TokenError::Mismatch("its signature with the service key does not verify".to_owned())),
        }
    }
}

#[async_trait]
impl Seals for ServiceKey {
    async fn seal(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        self.sign_all(messages).await.map_err(|error| error.to_string())
    }

    fn holds(&self, message: &[u8], seal: &[u8]) -> bool {
        self.verifier.verify(message, seal)
    }
}
