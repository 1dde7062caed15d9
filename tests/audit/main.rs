//! The audit logs: what stands in them, that it is there when it must be, and that nobody changes it unseen.

mod call_log;
mod checkpoints;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod keys;
mod service;
mod tampering;
