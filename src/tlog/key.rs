use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::domain::{Algorithm, Curve, Digest, PublicKey};
use crate::jose::{self, BadPublicKey, Verifier};
use crate::x509;

/// One of the two audit logs of an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Log {
    /// Every change that was committed; in the store.
    Administration,
    /// The other calls: signatures, refusals and failures; in files.
    Calls,
}

impl Log {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Administration, Self::Calls];

    /// The log's name, as in its origin.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Administration => "administration",
            Self::Calls => "calls",
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The public half of the key that signs an installation's checkpoints: ES256.
#[derive(Debug)]
pub struct LogKey {
    spki: Vec<u8>,
    verifier: Verifier,
}

impl LogKey {
    /// How signatures of this kind are called in the signed note format: ECDSA, with SHA-256 and a P-256 key here.
    const SIGNATURE_TYPE: u8 = 0x02;
    /// Octets of the installation's id: nobody makes a second key of the same.
    const ID_LEN: usize = 16;

    /// The key, from its public half.
    ///
    /// # Errors
    /// It is not on P-256.
    pub fn new(public: &PublicKey) -> Result<Self, BadPublicKey> {
        let verifier = Verifier::new(Algorithm::ES256, public)?;
        Ok(Self { spki: x509::public_key_der(public), verifier })
    }

    /// The name of a log of the installation that has this key: `keyward/ID/LOG`, with the start of the key's SHA-256 as the id.
    #[must_use]
    pub fn origin(&self, log: Log) -> String {
        let id: String = self.hash()[..Self::ID_LEN].iter().map(|octet| format!("{octet:02x}")).collect();
        format!("keyward/{id}/{log}")
    }

    /// Which of the installation's logs is called so; `None`: it is of another one.
    #[must_use]
    pub fn log_of(&self, origin: &str) -> Option<Log> {
        Log::ALL.into_iter().find(|log| self.origin(*log) == origin)
    }

    /// The key as programs take it that verify signed notes: name, key id, type and SubjectPublicKeyInfo.
    #[must_use]
    pub fn verifier_key(&self, log: Log) -> String {
        let id: String = self.id().iter().map(|octet| format!("{octet:02x}")).collect();
        let key = STANDARD.encode([&[Self::SIGNATURE_TYPE], &self.spki[..]].concat());
        format!("{}+{id}+{key}", self.origin(log))
    }

    /// The key id in signature lines. For signatures of this type it is of the key alone, without the name.
    pub(super) fn id(&self) -> [u8; 4] {
        self.hash()[..4].try_into().expect("SHA-256 has more than 4 octets")
    }

    /// Whether this key signed `text`; the signature is an ECDSA-Sig-Value.
    pub(super) fn verify(&self, text: &str, der: &[u8]) -> bool {
        x509::ecdsa_raw(der, Curve::P256).is_some_and(|raw| self.verifier.verify(text.as_bytes(), &raw))
    }

    fn hash(&self) -> Vec<u8> {
        jose::digest(Digest::Sha256, &self.spki)
    }
}
