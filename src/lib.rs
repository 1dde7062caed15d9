//! Keyward: a signing key management service.

pub mod domain;
pub mod jose;
pub mod store;
pub mod token;
#[allow(missing_docs)]
pub mod grpc {
    pub mod proto;
}
