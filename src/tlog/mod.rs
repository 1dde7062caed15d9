//! Transparency logs: a list of records that can only grow, as an RFC 6962 Merkle tree. Pure.
//!
//! A record is one JSON object: its index, the hash of the record before, and an event. So an edit, a missing record or a
//! swap is found at its index by whoever reads from the start, and the tree's root stands for all records in 32 octets that
//! can be signed and kept elsewhere ([`Checkpoint`]).
//!
//! In reading order: [`Hash`](struct@Hash), [`Frontier`] (the tree, as far as growing it needs it), [`Tip`] (where a log ends, and how it
//! goes on) and [`Record`]; [`Log`] and [`LogKey`] (which log, and whose), [`Checkpoint`].

mod checkpoint;
mod frontier;
mod hash;
mod key;
mod tip;

pub use checkpoint::{Checkpoint, Untrusted};
pub use frontier::{Frontier, NotAFrontier};
pub use hash::{Hash, NotAHash, leaf_hash, node_hash};
pub use key::{Log, LogKey};
pub use tip::{Broken, Entry, Record, Tip};
