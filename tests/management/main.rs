//! The Management API: who may call it, what it answers, and that docs/openapi.json says so.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod auth0;
mod certificates;
mod custom;
mod described;
mod examples;
mod failures;
mod house;
mod listener;
mod signatures;
mod signing;
