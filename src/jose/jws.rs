use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::object::Object;
use crate::domain::{Algorithm, Kid};

/// Base64url without padding, as every segment of a compact JWS is written.
#[must_use]
pub fn encode_segment(octets: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// The protected header of a JWT, encoded. `typ` was checked to be plain text.
#[must_use]
pub fn header_segment(algorithm: Algorithm, kid: &Kid, typ: &str) -> String {
    encode_segment(format!(r#"{{"alg":"{algorithm}","kid":"{kid}","typ":"{typ}"}}"#).as_bytes())
}

/// A compact JWS (RFC 7515 section 7.1) taken apart; nothing of it is verified yet.
#[derive(Debug)]
pub struct Jws<'a> {
    /// The `alg` of the header.
    pub alg: String,
    /// The `kid` of the header.
    pub kid: Option<String>,
    /// The `typ` of the header.
    pub typ: Option<String>,
    /// What was signed: header and payload as they stand.
    pub signing_input: &'a str,
    /// The payload.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Why a text is not a compact JWS that can be verified here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl<'a> Jws<'a> {
    /// Takes a compact JWS apart.
    ///
    /// # Errors
    /// It is not three segments of base64url, its header is not a JSON object with `alg`, or the header has `crit`: there
    /// is no extension that Keyward understands (RFC 7515 section 4.1.11).
    pub fn parse(text: &'a str) -> Result<Self, Malformed> {
        const SHAPE: Malformed = Malformed("not three segments of base64url joined by dots");
        let (signing_input, signature) = text.rsplit_once('.').ok_or(SHAPE)?;
        let (header, payload) = signing_input.split_once('.').ok_or(SHAPE)?;
        let decode = |segment: &str| URL_SAFE_NO_PAD.decode(segment).map_err(|_| SHAPE);
        const HEADER: Malformed = Malformed("the header is not a JSON object with alg, each member once");
        let Object(mut header) = serde_json::from_slice(&decode(header)?).map_err(|_| HEADER)?;
        let Some(Value::String(alg)) = header.remove("alg") else { return Err(HEADER) };
        let mut text = |member: &str| match header.remove(member) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(HEADER),
        };
        let (kid, typ) = (text("kid")?, text("typ")?);
        if header.contains_key("crit") {
            return Err(Malformed("the header demands an extension (crit) that is not supported"));
        }
        Ok(Self { alg, kid, typ, signing_input, payload: decode(payload)?, signature: decode(signature)? })
    }
}
