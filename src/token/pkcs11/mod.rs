//! Everything that knows cryptoki: calls into the module, and what its answers mean.
//!
//! To read: `module` (initialisation) and `connect` (login), `session` (the ladder of recovery), `index` (of objects), `sign` and `administration`
//! (the verbs), then what they speak: `mechanism`, `attributes`, `failure`.

mod administration;
mod attributes;
mod connect;
mod failure;
mod index;
mod mechanism;
mod module;
mod provision;
mod session;
mod sign;

pub(super) use administration::perform;
pub(super) use module::Module;
pub use provision::provision;
pub(super) use session::{Access, WorkerSession};
pub(super) use sign::{KEYS_MAX, sign};
