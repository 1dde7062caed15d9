//! What the module itself takes for a token of this size, in a process that does nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::UserType;
use serde::{Deserialize, Serialize};

use super::state::softhsm_conf;
use crate::common::tools::SOFTHSM_MODULE;
use crate::processes::own_memory_kib;

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Bare {
    /// C_Initialize and C_Login, with the first look at the objects.
    pub(crate) open_secs: f64,
    /// A search for all objects, and the id of each.
    pub(crate) list_secs: f64,
    pub(crate) objects: usize,
    pub(crate) memory_kib: u64,
}

/// Lists in a new process.
///
/// # Errors
/// The process failed; it said why on standard error.
pub(super) fn measure(state: &Path) -> Result<Bare, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(this);
    child.args(["--raw", "list"]).arg(state).args(["0", "0"]).env("SOFTHSM2_CONF", softhsm_conf(state));
    let output = child.output().map_err(|error| format!("{child:?}: {error}"))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("the bare list failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Lists in this process and prints the figures as JSON.
///
/// # Errors
/// Of the module.
pub(crate) fn list(state: &Path) -> Result<(), String> {
    let pin = std::fs::read_to_string(state.join("pin")).map_err(|error| format!("the PIN: {error}"))?;
    let bare = list_all(pin.trim()).map_err(|error| error.to_string())?;
    println!("{}", serde_json::to_string(&bare).map_err(|error| error.to_string())?);
    Ok(())
}

fn list_all(pin: &str) -> Result<Bare, Box<dyn std::error::Error>> {
    let began = Instant::now();
    let pkcs11 = Pkcs11::new(SOFTHSM_MODULE)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_initialized_token()?.first().ok_or("no token")?;
    let session = pkcs11.open_ro_session(slot)?;
    session.login(UserType::User, Some(&pin.into()))?;
    let open_secs = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let objects = session.find_objects(&[Attribute::Token(true)])?;
    for object in &objects {
        session.get_attributes(*object, &[AttributeType::Id])?;
    }
    let list_secs = began.elapsed().as_secs_f64();
    Ok(Bare { open_secs, list_secs, objects: objects.len(), memory_kib: own_memory_kib(std::process::id()) })
}
