//! A token of a test's own, in a process of its own, on each module.
//!
//! A module reads its configuration at C_Initialize, which is per process. So each test runs itself once more as a child for
//! each module, with a token directory of its own, and judges the child by its exit; tests run in parallel and share nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use cryptoki::context::Pkcs11;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use keyward::domain::{Algorithm, Family};
use keyward::token::{Isolation, Pkcs11Token, TokenConfig, TokenError, provision};
use tokio::runtime::{Builder, Runtime};

/// Tells a child its directory.
const HOME: &str = "KEYWARD_TEST_TOKEN_HOME";
/// Tells a child its module.
const MODULE: &str = "KEYWARD_TEST_TOKEN_MODULE";
pub(crate) const LABEL: &str = "keyward-test";
pub(crate) const PIN: &str = "1234-user";
pub(crate) const SO_PIN: &str = "1234-officer";

/// A PKCS#11 module that the suite is mounted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    SoftHsm,
    Kryoptic,
}

impl Module {
    pub(crate) const ALL: [Self; 2] = [Self::SoftHsm, Self::Kryoptic];

    fn path(self) -> PathBuf {
        match self {
            Self::SoftHsm => "/usr/lib/softhsm/libsofthsm2.so".into(),
            Self::Kryoptic => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/kryoptic/kryoptic.so"),
        }
    }

    /// The configuration of a module that keeps its tokens in this directory, and the variable that names its file.
    fn configuration(self, tokens: &Path) -> (&'static str, String) {
        let tokens = tokens.to_str().unwrap();
        match self {
            Self::SoftHsm => {
                let template = include_str!("../../softhsm/softhsm2.conf.template");
                ("SOFTHSM2_CONF", template.replace("@TOKEN_DIR@", tokens))
            }
            // Two slots: one test makes a second token.
            Self::Kryoptic => {
                let slot = |number| {
                    format!("[[slots]]\nslot = {number}\ndbtype = \"sqlite\"\ndbargs = \"{tokens}/{number}.sql\"\n")
                };
                ("KRYOPTIC_CONF", [0, 1].map(slot).concat())
            }
        }
    }

    /// Whether it can sign with this algorithm.
    pub(crate) fn has(self, algorithm: Algorithm) -> bool {
        self == Self::Kryoptic || !matches!(algorithm.family(), Family::MlDsa(_))
    }

    /// That of this child.
    pub(crate) fn of_this_process() -> Self {
        let name = std::env::var(MODULE).expect("asked in a child alone");
        Self::ALL.into_iter().find(|module| format!("{module:?}") == name).expect("a module's name")
    }
}

/// The directory that holds the token's configuration and objects.
pub(crate) struct Home(PathBuf);

/// Runs `body` on every module, each time in a process where the module has a directory of its own. `test` is the calling
/// test's path.
pub(crate) fn alone(test: &str, body: impl FnOnce(&Home)) {
    alone_on(&Module::ALL, test, body);
}

/// The same for what is told of these modules alone.
pub(crate) fn alone_on(modules: &[Module], test: &str, body: impl FnOnce(&Home)) {
    if let Some(home) = std::env::var_os(HOME) {
        // Tokens are opened on a runtime, which goes on while the test waits.
        let _inside = runtime().enter();
        return body(&Home(home.into()));
    }
    let homes = modules.iter().map(|module| (*module, tempfile::tempdir().unwrap())).collect::<Vec<_>>();
    let children = homes.iter().map(|(module, home)| (*module, start(test, *module, home.path()))).collect::<Vec<_>>();
    for (module, child) in children {
        let child = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        // Without a look at the count, a mistyped `test` would pass by running nothing.
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{test} on {module:?} in its own process: {}\n{said}{}",
            child.status,
            String::from_utf8_lossy(&child.stderr)
        );
    }
}

fn start(test: &str, module: Module, home: &Path) -> Child {
    let path = module.path();
    assert!(path.exists(), "{} is missing: `make test` brings what tests need", path.display());
    let tokens = home.join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let (variable, configuration) = module.configuration(&tokens);
    let file = home.join("module.conf");
    std::fs::write(&file, configuration).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(HOME, home)
        .env(MODULE, format!("{module:?}"))
        .env(variable, &file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// [`alone`] with a token that is open, on a runtime.
pub(crate) fn with_token<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Home, Pkcs11Token) -> F) {
    with_token_on(&Module::ALL, test, body);
}

/// The same for what is told of these modules alone.
pub(crate) fn with_token_on<F: Future<Output = ()>>(
    modules: &[Module],
    test: &str,
    body: impl FnOnce(Home, Pkcs11Token) -> F,
) {
    alone_on(modules, test, |home| {
        home.provision();
        let token = home.open(PIN).unwrap();
        runtime().block_on(body(Home(home.0.clone()), token));
    });
}

/// That of this child.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));
    &RUNTIME
}

/// Where the module is.
pub(crate) fn module() -> PathBuf {
    Module::of_this_process().path()
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

    /// The directory under which the module keeps its tokens.
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
        name: keyward::domain::TokenName::default(),
        module: module(),
        label: LABEL.into(),
        serial: None,
        pin: pin.into(),
        workers: 2,
        queue_depth_max: 64,
        queue_wait_max: std::time::Duration::from_secs(30),
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
