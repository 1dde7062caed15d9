//! Who calls: Bearer JWTs of an issuer that the operator trusts, checked for one audience. Pure, and without HTTP, so that
//! every face can ask it.
//!
//! The JWTs are verified by [`crate::jose`], as VerifyJwt does it: one reading of JWS in this service, keys that are parsed
//! once, a verifier that knows one algorithm, and time as a parameter.

mod bearer;
mod certificate;
mod grants;
mod keys;
pub mod methods;
mod roles;

pub use bearer::{Access, Bearer, Refused};
pub use certificate::{NamesNobody, principal_of};
pub use grants::{BadGrant, GRANTS_MAX, Grants, ROLES_MAX};
pub use keys::TrustedKeys;
pub use roles::{Roles, UnknownRole};
