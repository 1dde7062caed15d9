//! Who calls, and what they may do. It knows no HTTP but for one fetch, and no gRPC, so that every face can ask it.
//!
//! In reading order: [`methods`] (the one table of who may call what) and `roles`; `certificate` and `grants` (whom a
//! connection proves, and their roles); `bearer` (JWTs) with the `keys` of their issuer, from a file or `fetched` from its
//! URL; [`Callers`], which puts the proofs of one call together.
//!
//! The JWTs are verified by [`crate::jose`], as VerifyJwt does it: one reading of JWS in this service, keys that are parsed
//! once, a verifier that knows one algorithm, and time as a parameter.

mod bearer;
mod callers;
mod certificate;
mod fetch;
mod fetched;
mod grants;
mod keys;
pub mod methods;
mod roles;

pub use bearer::{Access, Bearer, IssuerKeys, Ours, Refused};
pub use callers::{Authenticated, Callers, Identity, Jwts, Presented, Refusal, Shown};
pub use certificate::{NamesNobody, principal_of};
use fetched::Looked;
pub use fetched::{FetchTimes, Fetched};
pub use grants::{BadGrant, GRANTS_MAX, Grants, ROLES_MAX};
pub use keys::TrustedKeys;
pub use roles::{Roles, UnknownRole};
