use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::domain::Digest;
use crate::jose;

/// The hash of a record, of a subtree or of a whole log: SHA-256. Its text is base64 with padding, as in checkpoints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash([u8; 32]);

/// A text that is no hash.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 32 octets in base64")]
pub struct NotAHash;

impl Hash {
    /// The octets.
    #[must_use]
    pub const fn octets(&self) -> &[u8; 32] {
        &self.0
    }

    /// The root of a log without records (RFC 6962 section 2.1): the hash of nothing.
    #[must_use]
    pub fn of_nothing() -> Self {
        sha256(&[])
    }
}

/// MTH({d(0)}) of RFC 6962 section 2.1: the hash of one record.
#[must_use]
pub fn leaf_hash(record: &[u8]) -> Hash {
    // The prefix keeps a record from passing for two hashes, and two hashes for a record.
    sha256(&[&[0], record].concat())
}

/// The inner step of MTH in RFC 6962 section 2.1: the hash of two subtrees side by side.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], &left.0[..], &right.0[..]].concat())
}

fn sha256(octets: &[u8]) -> Hash {
    let digest = jose::digest(Digest::Sha256, octets);
    Hash(digest.try_into().expect("SHA-256 has 32 octets"))
}

impl From<[u8; 32]> for Hash {
    fn from(octets: [u8; 32]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let octets = STANDARD.decode(text).map_err(|_| NotAHash)?;
        octets.try_into().map(Self).map_err(|_| NotAHash)
    }
}

impl TryFrom<String> for Hash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}
