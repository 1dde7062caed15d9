//! Keyward: a signing key management service.
//!
//! Read it in this order:
//!
//! - [`domain`]: the words and the decisions: keys, keyrings, policies, and what a keyring needs next. Pure.
//! - [`x509`], [`jose`] and [`saml`]: keys, sets, signatures and certificates as verifiers read them. Pure.
//! - [`tlog`]: records that can only grow in number, as a Merkle tree. Pure.
//! - [`token`] and [`store`]: the two outside worlds, each behind one small trait. The PKCS#11 module runs in processes of its
//!   own.
//! - [`keyring`]: the use cases; the only caller of token and store.
//! - [`telemetry`]: what operators see besides the log.
//! - [`auth`]: who calls. [`audit`]: the record of what they did. [`tls`]: who this service is. [`serving`]: connections, and
//!   how many, how long and how old.
//! - [`grpc`] and [`http`]: the two faces.
//! - [`config`], [`setup`], [`serve`], [`dev`]: how a process begins, runs and ends.
//!
//! Calls go down (grpc, http -> keyring -> token, store -> domain), values come back; `tests/architecture.rs` holds that.

pub mod audit;
pub mod auth;
pub mod config;
pub mod dev;
pub mod domain;
mod files;
pub mod grpc;
pub mod http;
pub mod jose;
pub mod keyring;
pub mod saml;
pub mod serve;
pub mod serving;
pub mod setup;
pub mod store;
pub mod telemetry;
pub mod tlog;
pub mod tls;
pub mod token;
pub mod x509;
