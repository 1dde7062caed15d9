//! JOSE: keys, sets and signatures as verifiers read them. Pure functions over public data.

mod claims;
mod crypto;
mod custom;
mod jwk;
mod jws;
mod object;

pub use claims::{Claims, ClaimsProblem, NumericDate};
pub use crypto::{BadPublicKey, Verifier, digest, same_mac};
pub use custom::{JwkProblem, PRIVATE_MEMBERS, parse_custom_keys};
pub use jwk::{Jwk, jwks_json, thumbprint};
pub use jws::{Jws, Malformed, encode_segment, header_segment};
