//! The PKCS#11 token: the only room that knows cryptoki.
//!
//! A [`Token`] has four verbs, a list and a probe. [`Pkcs11Token`] implements it with a session for each worker; nothing above
//! this room sees a session, a handle or a return value.
//!
//! To read: `front` and `arriving` (what callers hold), `queue` and `task` (what waits), `threads` and `process` (who works it off), `pkcs11`
//! (the module); `latch` (a refused PIN), `alone` (one administration at a time), `turns` and `sharing` (who has a core), and `repeats` (what is
//! told of failures).

mod alone;
mod arriving;
mod front;
mod latch;
mod pkcs11;
mod process;
mod queue;
mod repeats;
mod sharing;
mod task;
mod threads;
mod turns;

pub use arriving::ArrivingToken;
pub use front::{Isolation, Pkcs11Token, TokenConfig};
pub use pkcs11::provision;
pub use process::work_as_process;
pub use sharing::share_cores;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{Algorithm, ObjectId, Protection, PublicKey, TenantId};

/// The environment variable that holds the home token's PIN where it is in no file; those of the others begin with it.
pub const PIN_VARIABLE: &str = "KEYWARD_TOKEN_PIN";

/// A token that makes, keeps and uses private keys.
///
/// A call that hangs in the module cannot be called back: whoever needs an answer in time bounds the wait.
#[async_trait]
pub trait Token: Send + Sync + 'static {
    /// Generates a key under `object`, protected as R1 demands, and reads back what it is.
    ///
    /// Not idempotent: the caller records its intent first and asks once. After an error, or no answer at all, a key, half
    /// a pair or nothing may stand on the token; [`Token::find`] tells, [`Token::destroy`] clears.
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError>;

    /// What stands on the token under `object`. `Absent` proves nothing about a token that is not well (R8).
    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError>;

    /// Signs every input with one key, in order: all or nothing. With a secret, makes their MACs.
    ///
    /// Before the key's first use its public key is read from the token and compared with `key.public`. A job that is still
    /// queued at `deadline` is dropped before it reaches the token.
    async fn sign(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, TokenError>;

    /// Destroys every object under `object`. Idempotent: nothing there is success.
    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError>;

    /// Every object that is kept on the token, Keyward's or not, in no order. For reports: it costs a search and a call for
    /// each object.
    async fn list(&self) -> Result<Vec<TokenObject>, TokenError>;

    /// For each algorithm whether the token has the mechanisms to generate keys and to sign with them, or in words which
    /// it lacks.
    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError>;

    /// Shows that the token answers and is the one it was: a login that holds and the serial number expected.
    async fn probe(&self) -> Result<TokenIdentity, TokenError>;
}

/// What key to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Decides key type, curve and usage.
    pub algorithm: Algorithm,
    /// Modulus length for RSA keys: 2048, 3072 or 4096. Not looked at for others.
    pub rsa_bits: u32,
}

/// A key pair or secret as the token shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// Its public half; a secret has none.
    pub public: Option<PublicKey>,
    /// What the token says of its private half, or of the secret. Not judged here.
    pub protection: Protection,
}

/// What stands on the token under an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// The token shows nothing.
    Absent,
    /// A whole key of the right type: exactly one private and one public key, or one secret.
    Key(TokenKey),
    /// Anything else: half a pair, or more than one.
    Remains,
}

/// A key that is asked to sign.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyRef {
    /// CKA_ID of its objects.
    pub object: ObjectId,
    /// Decides the mechanism.
    pub algorithm: Algorithm,
    /// What its public half must be; `None` for a secret.
    pub public: Option<PublicKey>,
    /// On whose share of the token its signatures count; `None` for the service's own.
    #[serde(skip)]
    pub tenant: Option<TenantId>,
}

/// An object on the token, as its attributes show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenObject {
    /// CKA_CLASS.
    pub class: ObjectKind,
    /// CKA_ID; Keyward's own have 16 octets. Empty if it shows none.
    pub id: Vec<u8>,
    /// CKA_LABEL; empty if it shows none.
    pub label: String,
}

/// The classes of objects that a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// CKO_PRIVATE_KEY.
    PrivateKey,
    /// CKO_PUBLIC_KEY.
    PublicKey,
    /// CKO_SECRET_KEY.
    SecretKey,
    /// Anything else, or an object that was cut off before it had a class.
    Other,
}

/// What to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignInput {
    /// The digest that the algorithm signs over; its length was checked.
    Digest(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The message, for EdDSA and HS256.
    Message(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// Whether a token has what an algorithm needs to generate keys and to sign, or in words what it lacks.
pub type Support = (Algorithm, Result<(), String>);

/// Which token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenIdentity {
    /// CK_TOKEN_INFO.label.
    pub label: String,
    /// CK_TOKEN_INFO.serialNumber.
    pub serial: String,
    /// CK_TOKEN_INFO.manufacturerID.
    pub manufacturer: String,
    /// CK_TOKEN_INFO.model.
    pub model: String,
}

/// Why the token did not do it. The texts are for the log and the operator; callers are told in their own words (R12).
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum TokenError {
    /// More is waiting than the queue may hold, or than can be done by the deadline: the caller retries later (R13).
    #[error("the token's queue is full")]
    QueueFull {
        /// When what waits now will have been done, by estimate.
        retry_after: Duration,
    },
    /// The deadline passed before the token was asked, or before it answered: there are no signatures.
    #[error("the deadline passed before the token had signed")]
    Late,
    /// The token, or the key on it, is not to be had at the moment (R8): retry later. The text names function and return
    /// value.
    #[error("the token is not available: {0}")]
    Unavailable(String),
    /// The token was not asked, because it is known to be away: retry later.
    #[error("the token is down: {problem}")]
    Down {
        /// What it last failed with.
        problem: String,
        /// After how long it will have been tried again.
        retry_after: Duration,
    },
    /// The token refused the PIN: an operator must act, no retry helps (R14).
    #[error(
        "the token refused the PIN, which is not tried again: correct it and restart; if it was right and the token has been \
         unlocked, remove the file of token.pin_refused_file and restart"
    )]
    PinRefused,
    /// The token cannot do this at all: a mechanism it lacks, a key size out of its range. The text names it.
    #[error("the token cannot do this: {0}")]
    Unsupported(String),
    /// The token holds something else under this id than the store says, or returned what cannot be a signature: an
    /// operator must look.
    #[error("the token is not as recorded: {0}")]
    Mismatch(String),
}

/// What is told once nobody works any more.
fn gone() -> TokenError {
    TokenError::Unavailable("the token is closed".into())
}

/// Whatever a thread did that panicked while it held it: what is kept so is sound after each step of a change.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// At start, when it is known which token must come.
fn tell_away(error: &TokenError) {
    tracing::error!(%error, "the token is looked for until it is there");
}
