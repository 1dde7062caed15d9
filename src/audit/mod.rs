//! The record of what callers did, as logs that only grow (`docs/decisions/0014-audit-logs.md`).
//!
//! There are two. *Administration* has every change; it is in the store, where each event commits with its change. *Calls*
//! has the rest: signatures, refusals and failures; it is this replica's own, in files, and is what this room writes.
//!
//! In reading order: [`CallLog`] (what the faces write to), `queue` and `writer` (from a call to the disk), `segments` and
//! `lines` (the files), [`Keeper`] (checkpoints of both logs), [`page`] (what readers see), `evidence` and [`Walk`]
//! (`keyward audit verify`).

mod backwards;
mod call_log;
mod checkpoints;
mod directory;
pub mod evidence;
mod keeper;
mod lines;
mod logs;
mod page;
mod queue;
mod rate;
mod segments;
mod verify;
mod writer;

use std::path::PathBuf;

pub use call_log::{CallLog, Unwritten};
pub use checkpoints::{Checkpoints, Signed};
pub use directory::OpenError;
pub use keeper::{Administration, Keeper, Sign, retire_administration};
pub use logs::{Logs, ReadError};
pub use page::{Page, Place, page, records_from};
pub use verify::{Bad, Findings, Walk, verify_calls};

/// How the replica's own log is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where its files are; made if it is not there.
    pub directory: PathBuf,
    /// Whether signatures are recorded, and when.
    pub signing: Signing,
    /// What signing does while the log cannot be written.
    pub on_failure: OnFailure,
}

/// Whether signatures are recorded, and when. Refusals and failures always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// Not at all.
    Off,
    /// Beside the answer: a crash of the process loses what was recorded in the last moments, one of the machine up to a second.
    Async,
    /// Before the answer: a signature that a caller has is on the disk.
    Durable,
}

/// What signing does while the log cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It stops.
    Refuse,
    /// It goes on; a record tells afterwards how many there are not.
    Allow,
}
