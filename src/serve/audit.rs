//! What makes the checkpoints of audit logs: the service key signs them, and the store has one of the logs.

use std::sync::Arc;

use async_trait::async_trait;

use crate::audit::{Administration, Sign};
use crate::keyring::{Keyrings, ServiceKey};

/// The service key as the checkpoints' signer.
pub(super) struct Signer(pub(super) Arc<ServiceKey>);

#[async_trait]
impl Sign for Signer {
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.0.sign(message).await.map_err(|error| error.to_string())
    }
}

/// The store's log of administration.
pub(super) struct Records(pub(super) Arc<Keyrings>);

#[async_trait]
impl Administration for Records {
    async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, String> {
        self.0.records(from, limit).await.map_err(|error| error.for_log())
    }
}
