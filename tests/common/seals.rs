use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use keyward::domain::Digest;
use keyward::jose;
use keyward::store::{Guard, Seals};

/// Seals of tests without a token: who knows the secret word makes them.
pub(crate) struct Word(pub(crate) &'static str);

impl Word {
    fn seal_of(&self, message: &[u8]) -> Vec<u8> {
        jose::digest(Digest::Sha256, &[self.0.as_bytes(), message].concat())
    }
}

#[async_trait]
impl Seals for Word {
    async fn seal(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        Ok(messages.iter().map(|message| self.seal_of(message)).collect())
    }

    fn holds(&self, message: &[u8], seal: &[u8]) -> bool {
        seal == self.seal_of(message)
    }
}

/// A guard over the store at `path`, with its witness beside it.
pub(crate) fn guard(path: &Path) -> Guard {
    Guard { seals: Arc::new(Word("sesame")), witness: witness_of(path) }
}

/// Where [`guard`] has the witness of a store.
pub(crate) fn witness_of(path: &Path) -> std::path::PathBuf {
    path.with_extension("witness")
}
