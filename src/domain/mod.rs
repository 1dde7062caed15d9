//! The words of the service and its decisions: pure values and functions, with no async, no I/O and no clock.
//!
//! Time is always passed in. Everything here is either a value that cannot be wrong (it was parsed at the door) or a
//! decision about such values, so that the rules of `docs/rotation.md` can be tested over thousands of histories.

mod algorithm;
mod custom_key;
mod event;
mod key;
mod keyring;
mod names;
pub mod rotation;
mod tenant;

pub use algorithm::{Algorithm, Curve, Digest, Family, ParameterSet, UnknownAlgorithm};
pub use custom_key::{CustomKey, Signatures, Verify};
pub use event::{Caller, Event, Principal, UnknownPrincipal};
pub use key::{Certificate, Ed25519, KeyState, Octets, Protection, PublicKey, SigningKey};
pub use keyring::{Abandoned, Generated, Keyring, Pending, RevokeRefused, RotateRefused, Rotation, Trigger};
pub use names::{
    CustomKid, Domain, InvalidName, Issuer, Kid, ObjectId, RequestId, Revision, TenantId, TokenName, WebUrl,
};
pub use tenant::{InvalidPolicy, PolicyFloor, RotationPolicy, Tenant};

pub use jiff::Timestamp;

/// The moment `wait` after `start`, or the last representable one: a limit that far away is never reached.
#[must_use]
pub fn after(start: Timestamp, wait: std::time::Duration) -> Timestamp {
    start.checked_add(wait).unwrap_or(Timestamp::MAX)
}
