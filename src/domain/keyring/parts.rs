//! What a keyring holds besides keys, what it is asked for, and why it refuses.

use serde::{Deserialize, Serialize};

use crate::domain::{Certificate, KeyState, Kid, ObjectId, Protection, PublicKey, RequestId, Timestamp};

/// The intent to generate a key (R6): recorded before the token is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// CKA_ID that the key will have.
    pub object: ObjectId,
    /// When the intent was recorded.
    pub create_time: Timestamp,
}

/// An id under which no key came to be. Objects may still stand under it on the token, or turn up there late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// CKA_ID of whatever was made.
    pub object: ObjectId,
    /// When the generation was given up.
    pub abandon_time: Timestamp,
    /// When the token was last cleared of this id. Twice: at once, and after `destroy_delay` for what turned up late.
    pub sweep_time: Option<Timestamp>,
    /// Whether the second sweep is done too; the entry stays as the account of the id (R8), until many newer ones follow.
    pub swept: bool,
}

/// One rotation that took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// When.
    pub time: Timestamp,
    /// Asked for by a person or program, rather than by schedule.
    pub manual: bool,
    /// Broke R3 because it was told to.
    pub forced: bool,
    /// The caller's name for the request.
    pub request_id: Option<RequestId>,
    /// The caller named no algorithm, and this was the default's keyring.
    #[serde(default)]
    pub of_default: bool,
    /// The key that was current before.
    pub replaced: Kid,
    /// The key that became current.
    pub activated: Kid,
}

/// The public facts of a key that the token has generated and that passed its tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The key's name.
    pub kid: Kid,
    /// The public key; none for HS256.
    pub public: Option<PublicKey>,
    /// The certificate that the key signed for itself; none for HS256.
    pub certificate: Option<Certificate>,
    /// What the token says of the private key; [`Protection::holds`] was checked.
    pub protection: Protection,
}

/// Who asks for a rotation, and what they insist on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// A person or program, rather than the schedule.
    pub manual: bool,
    /// Rotate although the next key has not been published for `publish_lead` (R3).
    pub force: bool,
    /// Revoke the replaced key in the same change.
    pub revoke_replaced: bool,
    /// Only if this key is the current one (R7).
    pub expected_current: Option<Kid>,
    /// The caller's name for the request (R7).
    pub request_id: Option<RequestId>,
    /// The caller named no algorithm; the use case knows.
    pub of_default: bool,
}

/// Why a keyring does not rotate now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotateRefused {
    /// The caller's idea of the current key is out of date (R7).
    #[error("the current key is {current}, not the expected one")]
    Stale {
        /// The key that is current.
        current: Kid,
    },
    /// The keyring has no current or no next key yet.
    #[error("the next key is still being generated")]
    Generating,
    /// The first key of an added algorithm has not been published for long enough (R3); it becomes current by itself.
    #[error("the first key may sign from {ready_time} on")]
    FirstKeyWaits {
        /// When it will have been.
        ready_time: Timestamp,
    },
    /// The next key has not been published for long enough (R3).
    #[error("the next key may sign from {ready_time} on")]
    TooEarly {
        /// When it will have been.
        ready_time: Timestamp,
    },
}

/// Why a key is not revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeRefused {
    /// No key of this kid is in the keyring.
    #[error("no such key")]
    NotFound,
    /// The key is in use, or about to be.
    #[error("the key is {0}")]
    InUse(KeyState),
}
