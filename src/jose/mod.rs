//! JOSE: keys, sets and signatures as verifiers read them. Pure functions over public data.

mod claims;
mod crypto;
mod jwk;
mod jws;

pub use claims::{Claims, ClaimsProblem, NumericDate};
pub use crypto::{BadPublicKey, Verifier, digest, ecdsa_der, public_key_pem};
pub use jwk::{Jwk, jwks_json, thumbprint};
pub use jws::{Jws, Malformed, encode_segment, header_segment};
