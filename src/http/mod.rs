//! The HTTP face: what verifiers fetch, what people look at, what orchestrators ask, and the Management API.

mod address;
mod certificates;
mod management;
mod ops;
mod page;
mod public;

pub use management::management_router;
pub use ops::ops_router;
pub use public::public_router;
