//! Keyward: a signing key management service.

pub mod domain;
pub mod store;
pub mod token;
pub mod grpc {
    pub mod proto;
}
