//! Several tokens (docs/decisions/0024): tenants are on one each, and what befalls a token befalls its tenants alone. Real SoftHSM
//! tokens, with the fault module before the one that is to fail.

#[path = "../common/mod.rs"]
mod common;

mod away;
mod names;
mod objects;
mod stand;
