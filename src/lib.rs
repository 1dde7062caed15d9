//! Keyward: a signing key management service.

pub mod domain;
pub mod grpc;
pub mod jose;
pub mod keyring;
pub mod store;
pub mod token;
