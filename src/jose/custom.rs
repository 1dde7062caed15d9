//! Public keys that tenants bring: a JWK Set is read strictly, and every problem in it is named at once.
//!
//! Members are allowed by name, so that no private member of whatever kind is ever published.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use curve25519_dalek::edwards::CompressedEdwardsY;
use serde::Deserialize;
use serde_json::Value;

use super::crypto::{self, Verifier};
use super::object::Object;
use crate::domain::{Algorithm, Certificate, Curve, CustomKey, CustomKid, Digest, Ed25519, Family, Octets, PublicKey};
use crate::domain::{Signatures, Verify, WebUrl};
use crate::x509;

/// Most custom keys of a tenant.
const CUSTOM_KEYS_MAX: usize = 10;

/// Most certificates in one `x5c`: chains in use have two to four.
const CHAIN_MAX: usize = 10;

/// RSA moduli: shorter ones are broken, and clients refuse longer ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// RSA exponents: FIPS 186-5 section 5.1 asks for at least 65537, and clients hold them in 31 bits.
const RSA_EXPONENTS: std::ops::RangeInclusive<u64> = 65_537..=0x7fff_ffff;

/// So much of an unknown member's name is told, in octets: it travels in headers.
const MEMBER_SHOWN_MAX: usize = 64;

/// What is wrong with one member of a JWK Set.
#[derive(Debug, PartialEq, Eq)]
pub struct JwkProblem {
    /// Which one, such as `keys[2].n`; empty: the whole.
    pub member: String,
    /// What it must be; makes a sentence after the member's name. Values are never quoted: they may be private.
    pub problem: String,
}

/// Reads a JWK Set of 1 to 10 public signature keys.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_custom_keys(json: &str) -> Result<Vec<CustomKey>, Vec<JwkProblem>> {
    let whole = |problem: &str| vec![JwkProblem { member: String::new(), problem: problem.to_owned() }];
    const SHAPE: &str = "must be a JWK Set: one JSON object {\"keys\": [...]}, each member once";
    let set: Set = serde_json::from_str(json).map_err(|_| whole(SHAPE))?;
    match set.keys.len() {
        0 => return Err(whole("must have at least one key; to have none, delete the set")),
        count if count > CUSTOM_KEYS_MAX => {
            return Err(whole(&format!("must have at most {CUSTOM_KEYS_MAX} keys, not {count}")));
        }
        _ => {}
    }
    let mut problems = Vec::new();
    let mut keys = Vec::new();
    let mut kids = HashSet::new();
    for (index, members) in set.keys.into_iter().enumerate() {
        let mut reader = Reader::new(index, members);
        let key = reader.key();
        if key.as_ref().is_some_and(|key| !kids.insert(key.kid.clone())) {
            reader.problem("kid", "must be of this key alone; another key of the set has it too");
        }
        problems.append(&mut reader.problems);
        keys.extend(key);
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    keys: Vec<Object>,
}

/// Members that a public key has not: of private keys (RFC 7518 sections 6.2.2 and 6.3.2, RFC 8037 section 2, RFC 9964) and of
/// symmetric ones (RFC 7518 section 6.4).
pub const PRIVATE_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "priv", "k"];

/// Takes the known members out of one JWK, and remembers what is wrong.
struct Reader {
    index: usize,
    members: Object,
    problems: Vec<JwkProblem>,
}

impl Reader {
    fn new(index: usize, members: Object) -> Self {
        Self { index, members, problems: Vec::new() }
    }

    fn problem(&mut self, member: &str, problem: impl Into<String>) {
        let member = format!("keys[{}].{member}", self.index);
        self.problems.push(JwkProblem { member, problem: problem.into() });
    }

    /// The key; `None` if it lacks what makes one. It is only good if there is no problem either.
    fn key(&mut self) -> Option<CustomKey> {
        for member in PRIVATE_MEMBERS {
            if self.members.0.remove(member).is_some() {
                self.problem(
                    member,
                    "is private or symmetric; send the public members alone, and treat the key as known to others",
                );
            }
        }
        let kid = self.named::<CustomKid>("kid", true);
        let public = self.public_key();
        if self.text("use", false).is_some_and(|found| found != "sig") {
            self.problem("use", "must be \"sig\", or be left out");
        }
        let alg = self.named::<Algorithm>("alg", false);
        if let (Some(alg), Some(public)) = (alg, &public)
            && !fits(alg, public)
        {
            self.problem("alg", "must be an algorithm that signs with a key of this kty and crv");
        }
        let key_ops = self.members.0.remove("key_ops").map(|found| {
            if found != serde_json::json!(["verify"]) {
                self.problem("key_ops", "must be [\"verify\"], or be left out");
            }
            [Verify::Verify]
        });
        let x5u = self.named::<WebUrl>("x5u", false);
        let x5c = self.chain(public.as_ref());
        let leaf = x5c.as_ref().and_then(|(_, leaf)| leaf.as_ref());
        let sha1 = leaf.map(|leaf| x509::sha1(leaf).to_vec());
        let sha256 = leaf.map(|leaf| crypto::digest(Digest::Sha256, leaf.der()));
        let x5t = self.hash("x5t", 20, sha1);
        let x5t_s256 = self.hash("x5t#S256", 32, sha256);
        for member in std::mem::take(&mut self.members.0).into_keys() {
            let whole = |end: &usize| member.is_char_boundary(*end);
            let end = (0..=MEMBER_SHOWN_MAX.min(member.len())).rev().find(whole).unwrap_or_default();
            let shown = &member[..end];
            self.problem(shown, "is not a member that is published here; leave it out");
        }
        let x5c = x5c.map(|(texts, _)| texts);
        Some(CustomKey { public: public?, r#use: Signatures::Sig, kid: kid?, alg, key_ops, x5u, x5c, x5t, x5t_s256 })
    }

    fn public_key(&mut self) -> Option<PublicKey> {
        match self.text("kty", true)?.as_str() {
            "RSA" => self.rsa_key(),
            "EC" => self.ec_key(),
            "OKP" => self.ed25519_key(),
            _ => {
                // Whatever else the key has belongs to a type that is not known here.
                self.members.0.clear();
                self.problem("kty", "must be RSA, EC or OKP");
                None
            }
        }
    }

    fn rsa_key(&mut self) -> Option<PublicKey> {
        let (n, e) = (self.octets("n"), self.octets("e"));
        let (n, e) = (n?, e?);
        let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
        if n.first() == Some(&0) || !is_odd(&n) || !RSA_BITS.contains(&bits) {
            let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
            self.problem(
                "n",
                format!("must be an odd modulus of {least} to {most} bits without leading zeros; it has {bits}"),
            );
        }
        let exponent = (e.len() <= 8).then(|| e.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)));
        if e.first() == Some(&0) || !is_odd(&e) || !exponent.is_some_and(|exponent| RSA_EXPONENTS.contains(&exponent)) {
            let (least, most) = (RSA_EXPONENTS.start(), RSA_EXPONENTS.end());
            self.problem("e", format!("must be odd, from {least} to {most}, without leading zeros (usual: AQAB)"));
        }
        Some(PublicKey::Rsa { n: Octets(n), e: Octets(e) })
    }

    fn ec_key(&mut self) -> Option<PublicKey> {
        let crv = match self.text("crv", true).as_deref() {
            Some("P-256") => Some((Curve::P256, Algorithm::ES256)),
            Some("P-384") => Some((Curve::P384, Algorithm::ES384)),
            Some("P-521") => Some((Curve::P521, Algorithm::ES512)),
            Some(_) => {
                self.problem("crv", "must be P-256, P-384 or P-521 for kty EC");
                None
            }
            None => None,
        };
        let (x, y) = (self.octets("x"), self.octets("y"));
        let ((crv, algorithm), x, y) = (crv?, x?, y?);
        let len = crv.coordinate_len();
        for (member, coordinate) in [("x", &x), ("y", &y)] {
            if coordinate.len() != len {
                self.problem(member, format!("must be the {len} octets of a coordinate of its curve"));
                return None;
            }
        }
        let public = PublicKey::Ec { crv, x: Octets(x), y: Octets(y) };
        if Verifier::new(algorithm, &public).is_err() {
            self.problem("x", "must be with y a point on its curve");
        }
        Some(public)
    }

    fn ed25519_key(&mut self) -> Option<PublicKey> {
        if self.text("crv", true).is_some_and(|crv| crv != "Ed25519") {
            self.problem("crv", "must be Ed25519 for kty OKP");
        }
        let x = self.octets("x")?;
        // A point of small order verifies signatures that nobody made.
        let point = CompressedEdwardsY::from_slice(&x).ok().and_then(|x| x.decompress());
        if point.is_none_or(|point| point.is_small_order()) {
            self.problem("x", "must be the 32 octets of a point on its curve");
        }
        Some(PublicKey::Ed25519 { crv: Ed25519::Ed25519, x: Octets(x) })
    }

    /// `x5c`, and its first certificate if it can be read.
    fn chain(&mut self, public: Option<&PublicKey>) -> Option<(Vec<String>, Option<Certificate>)> {
        let chain: Option<Vec<String>> = serde_json::from_value(self.members.0.remove("x5c")?).ok();
        let chain = chain.filter(|chain| (1..=CHAIN_MAX).contains(&chain.len()));
        let Some(chain) = chain else {
            self.problem("x5c", format!("must be 1 to {CHAIN_MAX} certificates in base64"));
            return None;
        };
        let mut leaf = None;
        for (place, text) in chain.iter().enumerate() {
            let member = format!("x5c[{place}]");
            let Ok(der) = STANDARD.decode(text) else {
                self.problem(&member, "must be a certificate in base64, with padding and without line breaks");
                continue;
            };
            match x509::public_key_of(&der) {
                Err(unreadable) => self.problem(&member, unreadable.to_string()),
                Ok(key) if place == 0 && public.is_some_and(|public| !key.is(public)) => {
                    self.problem(&member, "must be a certificate of this key; it is another key's");
                }
                Ok(_) => {}
            }
            leaf = leaf.or(Some(Certificate::new(der)));
        }
        Some((chain, leaf))
    }

    /// A certificate's hash: of this length, and of the first of `x5c` if there is one.
    fn hash(&mut self, member: &str, len: usize, of_leaf: Option<Vec<u8>>) -> Option<Octets> {
        if !self.members.0.contains_key(member) {
            return None;
        }
        let hash = self.octets(member)?;
        if hash.len() != len {
            self.problem(member, format!("must be {len} octets in base64url"));
        } else if of_leaf.is_some_and(|of_leaf| of_leaf != hash) {
            self.problem(member, "must be the hash of the first certificate of x5c");
        }
        Some(Octets(hash))
    }

    fn octets(&mut self, member: &str) -> Option<Vec<u8>> {
        let text = self.text(member, true)?;
        let octets = URL_SAFE_NO_PAD.decode(text).ok().filter(|octets| !octets.is_empty());
        if octets.is_none() {
            self.problem(member, "must be octets in base64url without padding");
        }
        octets
    }

    fn named<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, member: &str, required: bool) -> Option<T> {
        let text = self.text(member, required)?;
        text.parse().map_err(|problem: T::Err| self.problem(member, problem.to_string())).ok()
    }

    fn text(&mut self, member: &str, required: bool) -> Option<String> {
        match self.members.0.remove(member) {
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.problem(member, "must be a text");
                None
            }
            None => {
                if required {
                    self.problem(member, "must be set");
                }
                None
            }
        }
    }
}

fn fits(algorithm: Algorithm, public: &PublicKey) -> bool {
    match (algorithm.family(), public) {
        (Family::RsaPkcs1 | Family::RsaPss, PublicKey::Rsa { .. }) | (Family::Ed25519, PublicKey::Ed25519 { .. }) => {
            true
        }
        (Family::Ecdsa(curve), PublicKey::Ec { crv, .. }) => curve == *crv,
        _ => false,
    }
}
