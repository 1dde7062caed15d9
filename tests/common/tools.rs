use std::path::{Path, PathBuf};
use std::process::Command;

/// SoftHSM's module, where Debian's package puts it.
pub(crate) const SOFTHSM_MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// The module of Kryoptic, a token in software that has ML-DSA.
pub(crate) fn kryoptic_module() -> PathBuf {
    test_tool("kryoptic/kryoptic.so")
}

/// grpcurl, which knows nothing of Keyward but what reflection tells it.
pub(crate) fn grpcurl() -> Command {
    Command::new(test_tool("bin/grpcurl"))
}

/// The Python that has the Python clients, about to run a script of tests/clients.
pub(crate) fn python(script: &str) -> Command {
    let mut command = Command::new(test_tool("venv/bin/python"));
    command.arg(client_script(script));
    command
}

/// The same Python, about to run a program of examples/.
pub(crate) fn python_example(program: &str) -> Command {
    let mut command = Command::new(test_tool("venv/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(program));
    command
}

/// Node, about to run a script of tests/clients, whose argument is the folder whose node_modules has the clients.
pub(crate) fn node(script: &str) -> Command {
    let mut command = Command::new(test_tool("bin/node"));
    command.arg(client_script(script)).arg(test_tool("node"));
    command
}

/// SoftHSM's own tool, which makes tokens of other modules too.
pub(crate) fn softhsm2_util() -> Command {
    assert!(Path::new(SOFTHSM_MODULE).exists(), "{SOFTHSM_MODULE} is missing: `make test` brings what tests need");
    Command::new("softhsm2-util")
}

fn test_tool(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(path);
    assert!(path.exists(), "{} is missing: `make test` brings what tests need", path.display());
    path
}

fn client_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}
