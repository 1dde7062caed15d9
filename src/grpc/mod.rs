//! g
#[allow(missing_docs)]
pub mod proto;
