//! What administration is asked for and tells, whichever way it travels.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Found, KeySpec, Support, TokenError, TokenIdentity, TokenKey, TokenObject};
use crate::domain::{Algorithm, ObjectId};

/// Something for the administration session to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Ask {
    Generate(ObjectId, KeySpec),
    Find(ObjectId, Algorithm),
    Destroy(ObjectId),
    List,
    Probe,
    Mechanisms,
}

/// What came of it, variant for variant.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Generated(TokenKey),
    Found(Found),
    Destroyed,
    Objects(Vec<TokenObject>),
    Identity(TokenIdentity),
    Mechanisms(Vec<Support>),
}

/// A task that waits for the administration session.
pub(super) struct Task {
    pub(super) ask: Ask,
    pub(super) answer: oneshot::Sender<Result<Told, TokenError>>,
}
