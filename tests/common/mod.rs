//! The harness of the integration tests: the real binary over a real token and a real store, and real clients.
//!
//! Every test starts what it needs and shares nothing: its own directory, token, store and ports. All waits are bounded,
//! and something missing fails the test.
//!
//! - [`Server`]: a running Keyward. `Server::dev()` is the quick one, with the tenant `demo`.
//! - [`Installation`]: a directory with token, PIN, configuration and store, which outlives the servers on it.
//! - [`Clients`]: the generated gRPC clients, and what tests do with them over and over.
//! - [`Dial`]: how clients connect: TCP, TLS with or without a certificate, a Unix socket.
//! - [`Authority`]: certificates of servers and clients, right and wrong, and lists of revoked ones, made by openssl.
//! - [`Issuer`]: an issuer of JWTs for callers, in memory.
//! - [`postgresql`]: databases on a server of the test process's own.
//! - [`proxy`]: between a replica and its database.
//! - [`token_user`]: somebody else at the installation's token.
//! - [`Interpreter`]: a script of tests/clients, which says what clients make of a JWT.
//! - [`Faults`]: the PKCS#11 module that fails on command, in the place of SoftHSM's.
//! - [`http`]: GET and its kin.
//! - [`kept`]: what a `keyward dev` keeps, and what it keeps to itself.
//! - [`under_load`]: issuers and caching verifiers through rotations.
//! - [`tools`]: where `make test` put the programs of other people.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of the harness")]

mod authority;
mod clients;
mod dial;
mod faults;
pub(crate) mod http;
mod installation;
mod interpreter;
mod issuer;
pub(crate) mod kept;
pub(crate) mod postgresql;
pub(crate) mod proxy;
mod server;
pub(crate) mod token_user;
pub(crate) mod tools;
pub(crate) mod under_load;

pub(crate) use authority::{Authority, Identity, Validity};
pub(crate) use clients::{Clients, claims, shared_policy, short_policy, verify};
pub(crate) use dial::Dial;
pub(crate) use faults::Faults;
pub(crate) use installation::{Installation, Module, said};
pub(crate) use interpreter::{Interpreter, Verdict};
pub(crate) use issuer::{Issuer, signing_input};
pub(crate) use server::{BINARY, Server, keyward, read_lines};
