use serde::Deserialize;
use serde_json::{Map, Value};

use crate::domain::{Algorithm, Curve, Kid, Octets, PublicKey};
use crate::jose::{Jws, PRIVATE_MEMBERS, Verifier, thumbprint};

/// The keys of the issuer whose JWTs are believed: a JWKS (RFC 7517 section 5) from where the operator says.
///
/// Every key has one algorithm and verifies nothing else (RFC 8725 section 3.1); all of them are asymmetric.
#[derive(Debug, PartialEq)]
pub struct TrustedKeys(Vec<TrustedKey>);

/// Two are the same that verify the same.
impl PartialEq for TrustedKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.kid, self.algorithm, &self.thumbprint) == (&other.kid, other.algorithm, &other.thumbprint)
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct TrustedKey {
    kid: Option<String>,
    algorithm: Algorithm,
    verifier: Verifier,
    /// Its RFC 7638 thumbprint, which is what Keyward would call it.
    pub(super) thumbprint: Kid,
}

/// More keys than any issuer has in use at once: a JWT without a `kid` is tried with each of its algorithm.
const KEYS_MAX: usize = 32;

impl TrustedKeys {
    /// Reads a JWKS. Keys that are not for signatures, or of a kind that Keyward does not know, are passed over.
    ///
    /// # Errors
    /// It is no JWKS, holds a private or symmetric key, or no key that could verify a JWT; the text follows a file's name.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let (keys, problems) = Self::parse_fetched(json)?;
        match problems.into_iter().next() {
            Some(problem) => Err(format!("has a bad key: {problem}")),
            None => Ok(keys),
        }
    }

    /// The same for a JWKS that somebody else writes: keys that cannot be used are passed over as well (RFC 7517 section 5), and
    /// so are those after the 32nd; also tells what is wrong with these. The one who writes a file reads the problem and mends
    /// it; an issuer must not shut its callers out by a key that they do not use.
    ///
    /// # Errors
    /// As [`TrustedKeys::parse`], but for bad keys.
    pub fn parse_fetched(json: &[u8]) -> Result<(Self, Vec<String>), String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        // The parser's own text may quote the file, which is told in logs.
        let set: Set = serde_json::from_slice(json)
            .map_err(|_| "must hold a JSON Web Key Set: an object with an array of keys".to_owned())?;
        let (mut keys, mut problems) = (Vec::new(), Vec::new());
        for (index, jwk) in set.keys.into_iter().enumerate() {
            let Value::Object(jwk) = jwk else {
                problems.push(format!("keys[{index}] is no object"));
                continue;
            };
            if let Some(secret) = PRIVATE_MEMBERS.into_iter().find(|member| jwk.contains_key(*member)) {
                return Err(format!("must hold public keys alone: keys[{index}] has the member {secret}"));
            }
            match TrustedKey::parse(jwk) {
                Ok(Some(_)) if keys.len() == KEYS_MAX => {
                    problems.push(format!("keys[{index}] is one too many: at most {KEYS_MAX} are kept"));
                }
                Ok(key) => keys.extend(key),
                Err(problem) => problems.push(format!("keys[{index}] {problem}")),
            }
        }
        match (keys.is_empty(), problems.first()) {
            (false, _) => Ok((Self(keys), problems)),
            (true, Some(problem)) => Err(format!("has a bad key and no good one: {problem}")),
            (true, None) => Err("must hold a public key for signatures (RSA, EC, Ed25519 or ML-DSA)".to_owned()),
        }
    }

    /// The key that made the signature of `jws`.
    pub(super) fn signer_of(&self, jws: &Jws<'_>) -> Option<&TrustedKey> {
        self.0.iter().filter(|key| key.may_have_signed(jws)).find(|key| key.has_signed(jws))
    }

    /// Whether there is a key that `jws` can mean at all.
    pub(super) fn knows_key_of(&self, jws: &Jws<'_>) -> bool {
        self.0.iter().any(|key| key.may_have_signed(jws))
    }
}

impl TrustedKey {
    fn parse(jwk: Map<String, Value>) -> Result<Option<Self>, String> {
        let text = |member: &str| jwk.get(member).and_then(Value::as_str).map(ToOwned::to_owned);
        let for_signatures = text("use").is_none_or(|purpose| purpose == "sig");
        let to_verify =
            jwk.get("key_ops").and_then(Value::as_array).is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let (kid, alg) = (text("kid"), text("alg"));
        // A kind of key or an algorithm that is not known here is somebody else's business (RFC 7517 section 5).
        let Ok(public) = serde_json::from_value(Value::Object(jwk)) else { return Ok(None) };
        let Ok(algorithm) = alg.map_or(Ok(usual_algorithm(&public)), |alg| alg.parse()) else { return Ok(None) };
        if !for_signatures || !to_verify {
            return Ok(None);
        }
        let public = canonical(public).ok_or("has a coordinate that is not of its curve's length")?;
        let verifier = Verifier::new(algorithm, &public)
            .map_err(|_| format!("is not a valid key for {algorithm} (RSA: from 2048 bits)"))?;
        Ok(Some(Self { kid, algorithm, verifier, thumbprint: thumbprint(&public) }))
    }

    /// Whether its kid is its thumbprint.
    pub(super) fn is_named_by_thumbprint(&self) -> bool {
        self.kid.as_deref() == Some(self.thumbprint.as_str())
    }

    fn may_have_signed(&self, jws: &Jws<'_>) -> bool {
        let named = jws.kid.is_none() || self.kid.is_none() || jws.kid == self.kid;
        named && jws.alg == self.algorithm.name()
    }

    fn has_signed(&self, jws: &Jws<'_>) -> bool {
        self.verifier.verify(jws.signing_input.as_bytes(), &jws.signature)
    }
}

/// The algorithm of a key whose JWK names none: the only one of its curve; for RSA what OpenID Connect has as default.
fn usual_algorithm(public: &PublicKey) -> Algorithm {
    match public {
        PublicKey::Rsa { .. } => Algorithm::RS256,
        PublicKey::Ec { crv: Curve::P256, .. } => Algorithm::ES256,
        PublicKey::Ec { crv: Curve::P384, .. } => Algorithm::ES384,
        PublicKey::Ec { crv: Curve::P521, .. } => Algorithm::ES512,
        PublicKey::Ed25519 { .. } => Algorithm::EdDSA,
        PublicKey::MlDsa { alg, .. } => alg.algorithm(),
    }
}

/// The one way to write this key, so that its thumbprint is the key's and not that of a spelling.
fn canonical(public: PublicKey) -> Option<PublicKey> {
    match public {
        PublicKey::Rsa { n, e } => Some(PublicKey::Rsa { n: Octets::unsigned(&n.0), e: Octets::unsigned(&e.0) }),
        PublicKey::Ec { crv, ref x, ref y } => {
            (x.0.len() == crv.coordinate_len() && y.0.len() == crv.coordinate_len()).then_some(public)
        }
        PublicKey::Ed25519 { .. } | PublicKey::MlDsa { .. } => Some(public),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The key of RFC 7515 appendix A.3.
    fn ec() -> Value {
        json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
               "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})
    }

    fn with(member: &str, value: Value) -> Value {
        let mut jwk = ec();
        jwk[member] = value;
        jwk
    }

    fn parse(keys: &[Value]) -> Result<TrustedKeys, String> {
        TrustedKeys::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_has_the_algorithm_of_its_curve_unless_it_names_one() {
        assert_eq!(parse(&[ec()]).unwrap().0[0].algorithm, Algorithm::ES256);
        let problem = parse(&[with("alg", json!("ES384"))]).unwrap_err();
        assert!(problem.contains("keys[0]") && problem.contains("ES384"), "{problem}");
    }

    #[test]
    fn a_set_with_a_secret_is_refused_and_the_secret_is_not_told() {
        for member in PRIVATE_MEMBERS {
            let problem = parse(&[ec(), with(member, json!("secret"))]).unwrap_err();
            assert!(
                problem.contains("keys[1]") && problem.contains(member) && !problem.contains("secret"),
                "{problem}"
            );
        }
        assert!(parse(&[json!({"kty": "oct", "k": "AAAA"})]).is_err());
        let akp = json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "priv": "secret"});
        assert!(parse(&[ec(), akp]).unwrap_err().contains("member priv"), "RFC 9964");
    }

    #[test]
    fn keys_for_other_things_are_passed_over_but_one_must_be_left() {
        let others = [
            with("use", json!("enc")),
            with("key_ops", json!(["deriveKey"])),
            with("alg", json!("ECDH-ES")),
            json!({"kty": "AKP", "alg": "FALCON-512", "pub": "AAAA"}),
        ];
        assert!(parse(&others).unwrap_err().contains("must hold a public key"));
        assert_eq!(parse(&[&others[..], &[ec()]].concat()).unwrap().0.len(), 1);
        assert!(parse(&[]).is_err());
        assert!(TrustedKeys::parse(b"[]").is_err());
        assert!(parse(&vec![ec(); KEYS_MAX + 1]).is_err());
    }

    #[test]
    fn of_a_fetched_set_the_usable_keys_are_kept() {
        let fetched = |keys: &[Value]| TrustedKeys::parse_fetched(json!({ "keys": keys }).to_string().as_bytes());
        let weak = json!({"kty": "RSA", "n": "4".repeat(171), "e": "AQAB"});
        let (keys, problems) = fetched(&[weak.clone(), json!("no key"), with("x", json!("AQAB")), ec()]).unwrap();
        assert_eq!((keys.0.len(), problems.len()), (1, 3), "{problems:?}");
        let (keys, problems) = fetched(&vec![ec(); KEYS_MAX + 1]).unwrap();
        assert_eq!((keys.0.len(), problems.len()), (KEYS_MAX, 1), "{problems:?}");
        assert!(fetched(std::slice::from_ref(&weak)).unwrap_err().contains("2048"));
        assert!(fetched(&[ec(), with("d", json!("secret"))]).is_err());
        assert!(parse(&[weak, ec()]).unwrap_err().contains("keys[0]"), "a file is mended");
    }

    #[test]
    fn a_key_has_one_thumbprint_however_it_is_written() {
        let n = format!("{}BQ", "q".repeat(342 - 2));
        let rsa = |n: &str| PublicKey::Rsa { n: serde_json::from_value(json!(n)).unwrap(), e: Octets(vec![1, 0, 1]) };
        let plain = rsa(&n);
        let PublicKey::Rsa { n: octets, .. } = &plain else { unreachable!() };
        let padded = PublicKey::Rsa { n: Octets([&[0], &*octets.0].concat()), e: Octets(vec![0, 1, 0, 1]) };
        assert_ne!(thumbprint(&plain), thumbprint(&padded));
        assert_eq!(thumbprint(&canonical(padded).unwrap()), thumbprint(&plain));
        // One octet moved from x to y: the same point to a parser that joins them.
        let shifted = PublicKey::Ec { crv: Curve::P256, x: Octets(vec![1; 31]), y: Octets(vec![1; 33]) };
        assert!(canonical(shifted).is_none());
    }
}
