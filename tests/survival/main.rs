//! The service outlives its token: away and back, crashes and hangs of the module, wrong signatures. A real server each, with the
//! fault module between it and SoftHSM (docs/fault-module.md); `tests/token_faults` has every return value.
//!
//! Bounds in time are those that are promised where a busy machine keeps them too; where it may not, the test prints what it
//! measured and asserts what is still far from a failure.

#[path = "../common/mod.rs"]
mod common;

mod away;
mod crashes;
mod hangs;
mod lies;
mod load;
mod stand;
mod workers;
