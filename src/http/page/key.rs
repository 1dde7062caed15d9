//! One key on the timeline.

use super::words::{Moment, between, span};
use crate::domain::{Certificate, Digest, KeyState, Keyring, RotationPolicy, SigningKey, Timestamp};
use crate::{jose, x509};

/// One key, or the place of one that is being generated.
pub(super) struct KeyPart {
    pub(super) state: &'static str,
    pub(super) say: String,
    /// Four moments, or none for a key that is being generated.
    pub(super) life: Vec<Milestone>,
    /// None for a secret, whose name is nobody's business, and for a key that is being generated.
    pub(super) public: Option<PublicPart>,
}

/// One of the four moments in a key's life as verifiers see it.
pub(super) struct Milestone {
    pub(super) name: &'static str,
    pub(super) reached: bool,
    pub(super) at: At,
}

/// When a milestone is.
pub(super) enum At {
    Time(Moment),
    Words(&'static str),
}

/// What names a published key.
pub(super) struct PublicPart {
    pub(super) kid: String,
    pub(super) certificate: Option<CertificatePart>,
}

/// The fingerprints of a certificate, in pairs of digits: a narrow page breaks the line between two of them.
pub(super) struct CertificatePart {
    pub(super) sha1: Vec<String>,
    pub(super) sha256: Vec<String>,
}

/// Reads keys of one keyring at one moment.
pub(super) struct KeyReader<'a> {
    /// The policy that binds now.
    pub(super) policy: &'a RotationPolicy,
    /// Whether the keyring's first key is still to sign.
    pub(super) is_first: bool,
    /// Whether verifiers get the keyring's keys.
    pub(super) is_published: bool,
    /// The time.
    pub(super) now: Timestamp,
}

impl KeyReader<'_> {
    /// What the page says of `key`.
    pub(super) fn read(&self, key: &SigningKey) -> KeyPart {
        let entered = if self.is_published { "Published" } else { "Generated" };
        let (say, [signs, retires, leaves]) = match key.state {
            KeyState::Next => self.next(key),
            KeyState::Current => self.current(key),
            KeyState::Previous | KeyState::Revoked | KeyState::Destroyed => self.previous(key),
        };
        KeyPart {
            state: key.state.name(),
            say,
            life: vec![Milestone::reached(entered, Some(key.publish_time)), signs, retires, leaves],
            public: self.is_published.then(|| PublicPart::new(key)),
        }
    }

    fn next(&self, key: &SigningKey) -> (String, [Milestone; 3]) {
        let ready_time = Keyring::ready_time(key, self.policy);
        let say = match between(self.now, ready_time).map(span) {
            Some(wait) if self.is_first && !self.is_published => {
                format!("The first key. It begins to sign by itself in {wait}.")
            }
            Some(wait) if self.is_first => {
                format!(
                    "The first key. It begins to sign by itself in {wait}, when every verifier has had time to fetch it."
                )
            }
            Some(wait) if self.is_published => {
                format!("Published, does not sign yet. It may in {wait}, when every verifier has had time to fetch it.")
            }
            Some(wait) => format!("Does not sign yet. It may in {wait}."),
            None if self.is_first => "The first key. It begins to sign in a moment.".to_owned(),
            None => "Ready: the next rotation makes it current.".to_owned(),
        };
        let signs = if self.is_first { "Signs" } else { "May sign" };
        (say, [Milestone::ahead(signs, ready_time), Milestone::open("Retires", "later"), self.leaves("later")])
    }

    fn current(&self, key: &SigningKey) -> (String, [Milestone; 3]) {
        let say = "Signs now: every new signature is made with this key.".to_owned();
        let retires = if self.policy.rotation_period.is_zero() { "by hand" } else { "by schedule" };
        let signs = Milestone::reached("Signs since", key.activate_time);
        (say, [signs, Milestone::open("Retires", retires), self.leaves("later")])
    }

    fn previous(&self, key: &SigningKey) -> (String, [Milestone; 3]) {
        // Without auto_revoke the end of retention changes nothing.
        let (stays, leaves) = match key.retain_until.filter(|_| self.policy.auto_revoke) {
            Some(end) => {
                let rest = between(self.now, end).map_or("a moment".to_owned(), span);
                (format!("for {rest}"), Milestone::ahead(self.leaving(), end))
            }
            None => ("until the key is revoked by hand".to_owned(), self.leaves("when revoked")),
        };
        let signed = Milestone::reached("Signed from", key.activate_time);
        let retired = Milestone::reached("Retired", key.retire_time);
        (format!("Signs no more. What it signed stays verifiable {stays}."), [signed, retired, leaves])
    }

    fn leaves(&self, when: &'static str) -> Milestone {
        Milestone::open(self.leaving(), when)
    }

    fn leaving(&self) -> &'static str {
        if self.is_published { "Leaves the JWKS" } else { "Ends" }
    }
}

impl KeyPart {
    /// The place of a key that is not there yet.
    pub(super) fn generating(state: &'static str, say: &str) -> Self {
        Self { state, say: say.to_owned(), life: Vec::new(), public: None }
    }
}

impl Milestone {
    fn reached(name: &'static str, time: Option<Timestamp>) -> Self {
        let at = time.map_or(At::Words("unknown"), |time| At::Time(time.into()));
        Self { name, reached: true, at }
    }

    fn ahead(name: &'static str, time: Timestamp) -> Self {
        Self { name, reached: false, at: At::Time(time.into()) }
    }

    fn open(name: &'static str, when: &'static str) -> Self {
        Self { name, reached: false, at: At::Words(when) }
    }
}

impl PublicPart {
    fn new(key: &SigningKey) -> Self {
        Self { kid: key.kid.to_string(), certificate: key.certificate.as_ref().map(CertificatePart::new) }
    }
}

impl CertificatePart {
    fn new(certificate: &Certificate) -> Self {
        let pairs = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02X}")).collect();
        let sha256 = jose::digest(Digest::Sha256, certificate.der());
        Self { sha1: pairs(&x509::sha1(certificate)), sha256: pairs(&sha256) }
    }
}
