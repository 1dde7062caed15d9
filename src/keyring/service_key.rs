//! The service key: an ES256 key of the service's own on the home token, whose public half is pinned when the service is set up.
//!
//! It seals records (R15), signs the checkpoints of audit logs, and is the home token's canary. Each of these messages begins with words of its own, so that none passes for another.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::Canary;
use super::generate::token_input;
use crate::domain::{Digest, ObjectId, PublicKey};
use crate::jose::{BadPublicKey, digest};
use crate::store::Seals;
use crate::token::{Token, TokenError};

/// How long its signatures may take: a change waits behind signatures that are under way, and no longer than a caller waits.
const SIGN_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pause before a full queue is tried again: the queue is for those who can be turned away, and a change can wait.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// How many seals are remembered, each with 32 octets: those of ten thousand tenants, and some more.
const SEEN_MAX: usize = 1 << 16;

/// The key, ready to sign and to verify.
pub struct ServiceKey {
    token: Arc<dyn Token>,
    key: Canary,
    seen: Seen,
}

/// Seals that were found right, each with its message, as the SHA-256 of both: a record is read far more often than it changes, and
/// to look at its seal takes as long as ten calls take beside their signatures.
#[derive(Default)]
struct Seen(Mutex<HashSet<[u8; 32]>>);

impl Seen {
    /// Whether it was seen, or is right by `verify`.
    fn holds(&self, message: &[u8], seal: &[u8], verify: impl FnOnce() -> bool) -> bool {
        // With its length, so that none of a message passes for the end of a seal.
        let both = [&seal.len().to_be_bytes(), seal, message].concat();
        let both = digest(Digest::Sha256, &both).try_into().expect("SHA-256 has 32 octets");
        // A set is never left half changed.
        let seen = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen().contains(&both) {
            return true;
        }
        let holds = verify();
        if holds {
            let mut seen = seen();
            if seen.len() >= SEEN_MAX {
                seen.clear();
            }
            seen.insert(both);
        }
        holds
    }
}

impl ServiceKey {
    /// The key with this CKA_ID and pinned public half.
    ///
    /// # Errors
    /// `public` is no P-256 key.
    pub fn new(token: Arc<dyn Token>, object: ObjectId, public: PublicKey) -> Result<Self, BadPublicKey> {
        Ok(Self { token, key: Canary::new(object, public)?, seen: Seen::default() })
    }

    /// The key as its token's canary.
    #[must_use]
    pub fn canary(&self) -> &Canary {
        &self.key
    }

    /// CKA_ID of its objects.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.key.object()
    }

    /// Its pinned public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        self.key.public()
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
            && messages
                .iter()
                .zip(&signatures)
                .all(|(message, signature)| self.key.verifier.verify(message, signature));
        if right { Ok(signatures) } else { Err(TokenError::Mismatch("the service key's signature".to_owned())) }
    }

    async fn ask(&self, messages: &[Vec<u8>], deadline: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        loop {
            let inputs = messages.iter().map(|message| token_input(Canary::ALGORITHM, message.clone())).collect();
            match self.token.sign(&self.key.key, inputs, deadline).await {
                Err(TokenError::QueueFull { .. }) => tokio::time::sleep(QUEUE_PAUSE).await,
                answer => return answer,
            }
        }
    }
}

#[async_trait]
impl Seals for ServiceKey {
    async fn seal(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        self.sign_all(messages).await.map_err(|error| error.to_string())
    }

    fn holds(&self, message: &[u8], seal: &[u8]) -> bool {
        self.seen.holds(message, seal, || self.key.verifier.verify(message, seal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_right_is_remembered_and_only_as_it_was() {
        let seen = Seen::default();
        assert!(!seen.holds(b"record", b"seal", || false));
        assert!(seen.holds(b"record", b"seal", || true), "it was not remembered as wrong");
        assert!(seen.holds(b"record", b"seal", || false), "it is not looked at again");
        for (message, seal) in [("Record", "seal"), ("record", "Seal"), ("lrecord", "sea"), ("ecord", "sealr")] {
            assert!(!seen.holds(message.as_bytes(), seal.as_bytes(), || false), "{message} {seal}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let seen = Seen::default();
        for number in 0..=SEEN_MAX {
            assert!(seen.holds(&number.to_be_bytes(), b"seal", || true));
        }
        assert!(seen.0.lock().expect("whole").len() <= SEEN_MAX);
    }
}
