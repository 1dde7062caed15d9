//! Who may call gRPC, and that what is refused is recorded: over real TLS, with certificates made by openssl, and at a Unix
//! socket.

#[path = "../common/mod.rs"]
mod common;

mod both;
mod certificates;
mod every_method;
mod stand;
mod told;
mod unix;
