//! Who calls: Bearer JWTs of an issuer that the operator trusts, checked for one audience. Pure, and without HTTP, so that
//! every face can ask it.
//!
//! The JWTs are verified by [`crate::jose`], as VerifyJwt does it: one reading of JWS in this service, keys that are parsed
//! once, a verifier that knows one algorithm, and time as a parameter.

mod bearer;
mod keys;

pub use bearer::{Access, Bearer, Refused};
pub use keys::TrustedKeys;
