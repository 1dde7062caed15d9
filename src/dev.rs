//! `keyward dev`: everything that a first look, a developer or somebody else's CI needs, in one directory.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::domain::{Algorithm, Caller, RotationPolicy, TokenName};
use crate::keyring::{Error, Keyrings, TenantSpec};
use crate::store::StoreError;
use crate::token::{TokenError, provision};

/// The tenant that `keyward dev` makes.
pub const TENANT: &str = "demo";

/// CK_TOKEN_INFO.label of the development token.
const TOKEN_LABEL: &str = "keyward-dev";

/// Where Debian, Fedora and Homebrew put SoftHSM's module.
const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// SoftHSM's configuration, as `softhsm/` keeps it for people too.
const SOFTHSM_CONF: &str = include_str!("../softhsm/softhsm2.conf.template");

/// The environment variable that tells SoftHSM where its configuration is; it is read when the module is loaded.
pub const SOFTHSM_VARIABLE: &str = "SOFTHSM2_CONF";

/// A directory with all that a development service is made of.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Makes the directory, SoftHSM's configuration, a PIN and Keyward's configuration, as far as they are missing.
    ///
    /// # Errors
    /// A file cannot be written, or SoftHSM is not installed.
    pub fn prepare(path: &Path, listen: [SocketAddr; 3]) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let state = Self { path: path.canonicalize().map_err(failed)? };
        state.write(listen).map_err(failed)?;
        Ok(state)
    }

    fn write(&self, [grpc, public, ops]: [SocketAddr; 3]) -> std::io::Result<()> {
        let tokens = self.path.join("tokens");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&tokens)?;
        fs::write(self.softhsm_conf(), SOFTHSM_CONF.replace("@TOKEN_DIR@", &tokens.display().to_string()))?;
        let pin = self.path.join("pin");
        if !pin.exists() {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&pin)?;
            writeln!(file, "{}", random_pin())?;
        }
        let module = MODULES
            .into_iter()
            .find(|module| Path::new(module).exists())
            .ok_or_else(|| std::io::Error::other("SoftHSM is not installed; on Debian: apt-get install softhsm2"))?;
        let config = format!(
            "# Made by `keyward dev` at each start; a configuration of your own goes into another file.\n\
             [grpc]\nlisten = \"{grpc}\"\nauth = \"none\"\n\n[public]\nlisten = \"{public}\"\n\n[ops]\nlisten = \"{ops}\"\n\n\
             [token]\nmodule = \"{module}\"\nlabel = \"{TOKEN_LABEL}\"\npin_file = \"pin\"\n\n[store]\npath = \"store.sqlite\"\n",
        );
        fs::write(self.config_file(), config)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keyward's configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path.join("keyward.toml")
    }

    /// SoftHSM's configuration.
    #[must_use]
    pub fn softhsm_conf(&self) -> PathBuf {
        self.path.join("softhsm2.conf")
    }

    /// Makes the development token. Blocks on the module.
    ///
    /// # Errors
    /// Of the module.
    pub fn provision_token(&self, module: &Path, pin: &SecretString) -> Result<(), TokenError> {
        // Nobody needs the security officer again: a development token is thrown away, not administered.
        provision(module, TOKEN_LABEL, &SecretString::from(random_pin()), pin).map(drop)
    }
}

/// Whether the store of a development service was made already.
///
/// # Errors
/// As [`crate::store::Location::is_taken`].
pub async fn is_initialised(config: &crate::config::Config) -> Result<bool, StoreError> {
    Ok(config.service_key_path.exists() && config.store.is_taken().await?)
}

/// Makes the demo tenant, if it is not there: three algorithms, and times short enough to watch a rotation.
///
/// # Errors
/// Of token and store.
pub async fn create_demo(keyrings: &Arc<Keyrings>) -> Result<(), Error> {
    let id = TENANT.parse().expect("the demo tenant's name is a DNS label");
    if keyrings.tenant(&id).is_ok() {
        return Ok(());
    }
    let policy = RotationPolicy {
        max_token_ttl: Duration::from_secs(3600),
        jwks_max_age: Duration::from_secs(10),
        clock_skew: Duration::from_secs(5),
        publish_lead: Duration::from_secs(15),
        destroy_delay: Duration::from_secs(60),
        ..RotationPolicy::default()
    };
    let spec = TenantSpec {
        id,
        issuer: None,
        token: TokenName::default(),
        custom_domain: None,
        saml_sso_url: None,
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
        default_algorithm: None,
        policy,
    };
    keyrings.create_tenant(spec, &Caller::timer()).await.map(drop)
}

/// 128 random bits in decimal digits, which every token takes as a PIN.
fn random_pin() -> String {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).expect("the operating system gives random octets");
    format!("{:039}", u128::from_be_bytes(octets))
}
