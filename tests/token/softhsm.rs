//! A SoftHSM token of a test's own, in a process of its own.
//!
//! SoftHSM reads SOFTHSM2_CONF at C_Initialize, which is per process. So each test runs itself once more as a child with
//! its own token directory, and judges the child by its exit; tests run in parallel and share nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::Pkcs11;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use keyward::token::{Isolation, Pkcs11Token, TokenConfig, TokenError, provision};

const HOME: &str = "KEYWARD_TEST_TOKEN_HOME";
pub(crate) const LABEL: &str = "keyward-test";
pub(crate) const PIN: &str = "1234-user";
pub(crate) const SO_PIN: &str = "1234-officer";

/// The directory that holds the token's configuration and objects.
pub(crate) struct Home(PathBuf);

/// Runs `body` in a process where SoftHSM has a directory of its own. `test` is the calling test's path.
pub(crate) fn alone(test: &str, body: impl FnOnce(&Home)) {
    if let Some(home) = std::env::var_os(HOME) {
        return body(&Home(home.into()));
    }
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let conf = home.path().join("softhsm2.conf");
    let template = include_str!("../../softhsm/softhsm2.conf.template");
    std::fs::write(&conf, template.replace("@TOKEN_DIR@", tokens.to_str().unwrap())).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(HOME, home.path())
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    // Without a look at the count, a mistyped `test` would pass by running nothing.
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{test} in its own process: {}\n{said}{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
}

/// [`alone`] with a token that is open, on a runtime.
pub(crate) fn with_token<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Home, Pkcs11Token) -> F) {
    alone(test, |home| {
        home.provision();
        let token = home.open(PIN).unwrap();
        runtime().block_on(body(Home(home.0.clone()), token));
    });
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Where the module is: `KEYWARD_TEST_MODULE`, or Debian's place for SoftHSM.
pub(crate) fn module() -> PathBuf {
    std::env::var_os("KEYWARD_TEST_MODULE").unwrap_or_else(|| "/usr/lib/softhsm/libsofthsm2.so".into()).into()
}

impl Home {
    /// Makes the token.
    pub(crate) fn provision(&self) {
        provision(&module(), LABEL, &SO_PIN.into(), &PIN.into()).unwrap();
    }

    /// Opens it with two workers.
    pub(crate) fn open(&self, pin: &str) -> Result<Pkcs11Token, TokenError> {
        Pkcs11Token::open(config(pin))
    }

    /// The directory under which SoftHSM keeps its tokens.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// Where [`Home::take_away`] puts a directory.
    fn aside(path: &Path) -> PathBuf {
        path.with_extension("away")
    }

    /// Renames a directory, as if its disk were gone.
    pub(crate) fn take_away(&self, path: &Path) {
        std::fs::rename(path, Self::aside(path)).unwrap();
    }

    /// Renames it back.
    pub(crate) fn put_back(&self, path: &Path) {
        std::fs::rename(Self::aside(path), path).unwrap();
    }
}

/// The token that [`Home::provision`] made, with two workers.
pub(crate) fn config(pin: &str) -> TokenConfig {
    TokenConfig {
        module: module(),
        label: LABEL.into(),
        serial: None,
        pin: pin.into(),
        workers: 2,
        queue_depth_max: 64,
        isolation: Isolation::Thread,
        program: env!("CARGO_BIN_EXE_keyward").into(),
        call_timeout: std::time::Duration::from_secs(5),
        pin_refused_file: PathBuf::from(std::env::var_os(HOME).expect("asked in a child alone")).join("pin-refused"),
    }
}

/// A session with the token past Keyward, in the process that has it open.
pub(crate) fn direct_session() -> Session {
    let pkcs11 = Pkcs11::new(module()).unwrap();
    let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
    let session = pkcs11.open_rw_session(slot).unwrap();
    match session.login(UserType::User, Some(&AuthPin::from(PIN))) {
        Ok(()) | Err(cryptoki::error::Error::Pkcs11(cryptoki::error::RvError::UserAlreadyLoggedIn, _)) => session,
        Err(error) => panic!("{error}"),
    }
}
