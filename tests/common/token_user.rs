//! Somebody else who uses the installation's token, past Keyward.
//!
//! SoftHSM reads SOFTHSM2_CONF at C_Initialize, and a test cannot change its own environment: so the test runs itself once more as
//! a child, which asks [`order`] first and does that alone.

use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::{Installation, tools};

const ORDER: &str = "KEYWARD_TEST_ORDER";
const PIN: &str = "KEYWARD_TEST_PIN";

/// Has a child do `order` with the token, logged in with `pin`; what it printed. `test` is the calling test's path.
pub(crate) fn have(installation: &Installation, test: &str, pin: &str, order: &str) -> String {
    let child = Command::new(std::env::current_exe().expect("this test runs"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("SOFTHSM2_CONF", installation.softhsm_conf())
        .env(ORDER, order)
        .env(PIN, pin)
        .output()
        .expect("this test starts once more");
    let said = String::from_utf8_lossy(&child.stdout);
    // Without a look at the count, a mistyped `test` would pass by doing nothing.
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{order}: {}\n{said}{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
    said.into_owned()
}

/// What this process was started for, if it is such a child.
pub(crate) fn order() -> Option<String> {
    std::env::var(ORDER).ok()
}

/// A session of this child with the one token, logged in.
pub(crate) fn session() -> Session {
    session_with(None)
}

/// A session of this child with the token of this label, logged in.
pub(crate) fn session_on(label: &str) -> Session {
    session_with(Some(label))
}

fn session_with(label: Option<&str>) -> Session {
    let pin = std::env::var(PIN).expect("a child has the PIN");
    let pkcs11 = Pkcs11::new(tools::SOFTHSM_MODULE).expect("SoftHSM loads");
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("SoftHSM starts");
    let slots = pkcs11.get_slots_with_initialized_token().expect("slots");
    let is_it = |slot: &&Slot| {
        let info = pkcs11.get_token_info(**slot).expect("a token tells of itself");
        label.is_none_or(|label| info.label() == label)
    };
    let slot = *slots.iter().find(is_it).expect("the token is there");
    let session = pkcs11.open_rw_session(slot).expect("a session");
    session.login(UserType::User, Some(&AuthPin::from(pin))).expect("the PIN is taken");
    session
}
