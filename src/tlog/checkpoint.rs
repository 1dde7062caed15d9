use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Hash, LogKey, Tip};
use crate::domain::Curve;
use crate::x509;

/// Longest note read, in octets: room for more cosignatures than the format asks readers to take, the longest kinds among them.
const NOTE_BYTES_MAX: usize = 128 * 1024;

/// What a log was at some moment, in three lines (C2SP tlog-checkpoint). Signed, it is a note that anybody can keep, and hold
/// against the log later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many records it had.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

/// Why a text is no checkpoint of the log that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// It is no checkpoint at all.
    #[error("it is no checkpoint: {0}")]
    Malformed(&'static str),
    /// It is of another installation, or signed by nobody that is known here.
    #[error("it is of {0}, and not signed by this installation's service key")]
    Foreign(String),
    /// It says that it is of this installation, and its signature is wrong.
    #[error("its signature by the service key does not verify")]
    Signature,
}

impl Checkpoint {
    /// What there is to sign of a log that ends at `tip`.
    #[must_use]
    pub fn new(origin: String, tip: &Tip) -> Self {
        Self { origin, size: tip.size(), root: tip.root() }
    }

    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, self.root)
    }

    /// The signed note. `signature` is ES256 over [`Checkpoint::text`], r || s. `None`: it does not verify.
    #[must_use]
    pub fn note(&self, key: &LogKey, signature: &[u8]) -> Option<String> {
        let text = self.text();
        let der = x509::ecdsa_der(signature, Curve::P256).filter(|der| key.verify(&text, der))?;
        let signature = STANDARD.encode([&key.id()[..], &der].concat());
        Some(format!("{text}\n\u{2014} {} {signature}\n", self.origin))
    }

    /// Reads a signed note, and believes it if this key signed it.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verified(note: &str, key: &LogKey) -> Result<Self, Untrusted> {
        let (checkpoint, signatures) = parse(note)?;
        // The key's name in a note is the origin; the same key under another name has signed something else.
        let by_key = |line: &&Signature<'_>| line.name == checkpoint.origin && line.id == key.id();
        let mut by_key = signatures.iter().filter(by_key).peekable();
        if by_key.peek().is_none() || key.log_of(&checkpoint.origin).is_none() {
            return Err(Untrusted::Foreign(checkpoint.origin));
        }
        let text = checkpoint_text(note);
        if by_key.all(|line| key.verify(text, &line.octets)) { Ok(checkpoint) } else { Err(Untrusted::Signature) }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} records", self.origin, self.size)
    }
}

struct Signature<'a> {
    name: &'a str,
    id: [u8; 4],
    octets: Vec<u8>,
}

/// The part of a note that is signed, with its last newline.
fn checkpoint_text(note: &str) -> &str {
    note.rfind("\n\n").map_or(note, |end| &note[..=end])
}

fn parse(note: &str) -> Result<(Checkpoint, Vec<Signature<'_>>), Untrusted> {
    let malformed = Untrusted::Malformed;
    if note.len() > NOTE_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    if note.chars().any(|letter| letter.is_control() && letter != '\n') {
        return Err(malformed("it has control characters"));
    }
    let text = checkpoint_text(note);
    let signatures = note[text.len()..].strip_prefix('\n').ok_or(malformed("it has no signatures"))?;
    let mut lines = text.lines();
    let origin = lines.next().filter(|origin| !origin.is_empty()).ok_or(malformed("it has no origin"))?;
    let size = lines.next().and_then(decimal).ok_or(malformed("its second line is no size"))?;
    let root = lines.next().and_then(|line| line.parse().ok()).ok_or(malformed("its third line is no hash"))?;
    if lines.any(str::is_empty) {
        return Err(malformed("it has an empty line"));
    }
    let signatures = signatures.strip_suffix('\n').ok_or(malformed("its last line has no end"))?;
    let signatures = signatures.split('\n').map(|line| signature(line).ok_or(malformed("a signature line is none")));
    Ok((Checkpoint { origin: origin.to_owned(), size, root }, signatures.collect::<Result<_, _>>()?))
}

/// A number without leading zeros.
fn decimal(line: &str) -> Option<u64> {
    line.parse().ok().filter(|number: &u64| number.to_string() == line)
}

fn signature(line: &str) -> Option<Signature<'_>> {
    let (name, octets) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    if name.is_empty() || name.contains(|letter: char| letter.is_whitespace() || letter == '+') {
        return None;
    }
    let octets = STANDARD.decode(octets).ok()?;
    let (id, octets) = octets.split_first_chunk::<4>()?;
    Some(Signature { name, id: *id, octets: octets.to_vec() })
}
