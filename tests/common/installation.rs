use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Authority, Faults, Identity, Server, keyward, read_lines, tools};

const TOKEN_LABEL: &str = "keyward";

/// How long a command may take that does not serve.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Whose token an installation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    SoftHsm,
    Kryoptic,
}

/// A directory with a token of its own, SoftHSM's where nothing else is said, a PIN file, a configuration and, after `init`, a store.
///
/// It outlives the servers that run on it, so a test can kill one with -9 and start the next. One server at a time: SQLite
/// has one process, and a replica on PostgreSQL one directory.
pub(crate) struct Installation {
    dir: TempDir,
    module: Module,
    settings: BTreeMap<String, BTreeMap<String, String>>,
    grants: Vec<(String, Vec<String>)>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Installation {
    /// A new token and a configuration for it on free ports, with `keyward init` done.
    pub(crate) fn prepare() -> Self {
        Self::bare().init()
    }

    /// The same on a token of this module.
    pub(crate) fn prepare_on(module: Module) -> Self {
        Self::bare_on(module).init()
    }

    /// [`Installation::prepare`] before `keyward init`.
    pub(crate) fn bare() -> Self {
        Self::bare_on(Module::SoftHsm)
    }

    /// [`Installation::prepare_on`] before `keyward init`.
    pub(crate) fn bare_on(module: Module) -> Self {
        let dir = tempfile::Builder::new().prefix("keyward-test-").tempdir().expect("a temporary directory");
        let (settings, grants, environment) = (BTreeMap::new(), Vec::new(), Vec::new());
        let installation = Self { dir, module, settings, grants, environment };
        fs::create_dir(installation.token_dir()).expect("the token's directory is made");
        fs::write(installation.module_conf(), module.configuration(&installation.token_dir()))
            .expect("the module's configuration is written");
        installation.make_token(TOKEN_LABEL, &installation.pin_file());
        installation
            .set("grpc.listen", r#""127.0.0.1:0""#)
            .set("grpc.auth", r#""none""#)
            .set("public.listen", r#""127.0.0.1:0""#)
            .set("ops.listen", r#""127.0.0.1:0""#)
            .set("token.module", &format!("{:?}", module.path()))
            .set("token.label", &format!("{TOKEN_LABEL:?}"))
            .set("token.pin_file", r#""pin""#)
            .set("store.path", r#""store.sqlite""#)
    }

    /// Sets `section.key` of the configuration to a value written as in TOML. It holds from the next start on.
    pub(crate) fn set(mut self, key: &str, toml_value: &str) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        self.settings.entry(section.into()).or_default().insert(key.into(), toml_value.into());
        self.write();
        self
    }

    /// Takes `section.key` out of the configuration.
    pub(crate) fn without(mut self, key: &str) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        self.settings.entry(section.into()).or_default().remove(key);
        self.write();
        self
    }

    /// Grants these roles to a principal.
    pub(crate) fn grant(mut self, principal: &str, roles: &[&str]) -> Self {
        self.grants.push((principal.to_owned(), roles.iter().map(ToString::to_string).collect()));
        self.write();
        self
    }

    /// With another token beside the first, in the same directory of SoftHSM's, its label and its name in the configuration being
    /// `name`, and with the PIN in a file of its own.
    pub(crate) fn with_token(self, name: &str) -> Self {
        let pin = format!("pin-{name}");
        let serial = self.make_token(name, &self.dir().join(&pin));
        let module = self.module.path();
        let key = |key: &str| format!("tokens.{name}.{key}");
        self.set(&key("module"), &format!("{module:?}"))
            .set(&key("label"), &format!("{name:?}"))
            .set(&key("serial"), &format!("{serial:?}"))
            .set(&key("pin_file"), &format!("{pin:?}"))
    }

    /// With the fault module in the place of that token's alone.
    pub(crate) fn with_faults_on(mut self, name: &str) -> (Self, Faults) {
        let faults = Faults::new(self.dir());
        self.environment.extend(faults.environment());
        (self.set(&format!("tokens.{name}.module"), &format!("{:?}", Faults::module())), faults)
    }

    /// The store in this database.
    pub(crate) fn with_database(self, url: &str) -> Self {
        self.without("store.path").set("store.url", &format!("{url:?}"))
    }

    /// Another replica's installation, before `keyward join`: a directory of its own with the configuration and the service key
    /// of this one, which has the token.
    pub(crate) fn replica(&self) -> Self {
        let dir = tempfile::Builder::new().prefix("keyward-test-").tempdir().expect("a temporary directory");
        for name in ["pin", "module.conf", "service-key.json"] {
            // The last one is there once somebody ran `keyward init`.
            if name != "service-key.json" || self.dir().join(name).exists() {
                fs::copy(self.dir().join(name), dir.path().join(name)).expect("it is copied");
            }
        }
        let (settings, grants, environment) = (self.settings.clone(), self.grants.clone(), self.environment.clone());
        let replica = Self { dir, module: self.module, settings, grants, environment };
        // On one machine they meet there: SoftHSM's files are not safe from processes that log in or make keys at the same time.
        replica.set("token.pin_refused_file", &format!("{:?}", self.dir().join("token-pin-refused")))
    }

    /// `keyward join`.
    pub(crate) fn join(self) -> Self {
        run(&mut self.command("join"));
        self
    }

    fn write(&self) {
        let mut text = String::new();
        for (section, values) in &self.settings {
            writeln!(text, "[{section}]").expect("a String takes all");
            values.iter().for_each(|(key, value)| writeln!(text, "{key} = {value}").expect("a String takes all"));
        }
        for (principal, roles) in &self.grants {
            writeln!(text, "[[grants]]\nprincipal = {principal:?}\nroles = {roles:?}").expect("a String takes all");
        }
        fs::write(self.config_file(), text).expect("the configuration is written");
    }

    /// With the fault module in the place of SoftHSM's, which it forwards to.
    pub(crate) fn with_faults(mut self) -> (Self, Faults) {
        let faults = Faults::new(self.dir());
        self.environment.extend(faults.environment());
        (self.set("token.module", &format!("{:?}", Faults::module())), faults)
    }

    /// With SoftHSM's own module, of an installation that has the fault module before it.
    pub(crate) fn without_faults(self) -> Self {
        let module = format!("{:?}", self.module.path());
        self.set("token.module", &module)
    }

    /// gRPC over TLS with this certificate, and for clients of an authority where one is given. The files are copies, which a
    /// test can change by [`Installation::put`]: grpc.pem, grpc.key, client-ca.pem.
    pub(crate) fn with_grpc_tls(self, server: &Identity, clients: Option<&Authority>) -> Self {
        self.put("grpc.pem", &server.certificate);
        self.put("grpc.key", &server.key);
        let with_tls = self.set("grpc.certificate_file", r#""grpc.pem""#).set("grpc.key_file", r#""grpc.key""#);
        let Some(clients) = clients else { return with_tls };
        with_tls.put("client-ca.pem", &clients.certificate());
        with_tls.set("grpc.client_ca_file", r#""client-ca.pem""#)
    }

    /// The same with the list of what the authority has revoked so far: list.crl.
    pub(crate) fn with_grpc_revocation_list(self, list: &Path) -> Self {
        self.put("list.crl", list);
        self.set("grpc.crl_file", r#""list.crl""#)
    }

    /// Puts a copy of a file into the directory, at once, as those do who replace files that are read.
    pub(crate) fn put(&self, name: &str, file: &Path) {
        let whole = self.dir().join(format!("{name}.new"));
        fs::copy(file, &whole).expect("it is copied");
        fs::rename(whole, self.dir().join(name)).expect("it is put in place");
    }

    /// `keyward init`.
    pub(crate) fn init(self) -> Self {
        run(&mut self.command("init"));
        self
    }

    /// `keyward serve`, waited for until it is ready.
    pub(crate) fn serve(&self) -> Server {
        let mut command = self.command("serve");
        command.arg("--announce");
        Server::start(command)
    }

    /// `keyward VERB --config ..` in this installation's environment, for tests that run it their own way.
    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = keyward();
        command.arg(verb).arg("--config").arg(self.config_file()).env(self.module.variable(), self.module_conf());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// `keyward audit verify`.
    pub(crate) fn verify_audit(&self) -> Command {
        let mut verify = keyward();
        verify.args(["audit", "verify", "--config"]).arg(self.config_file());
        verify
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir().join("keyward.toml")
    }

    /// What SOFTHSM2_CONF must name for a program that looks at the token.
    pub(crate) fn softhsm_conf(&self) -> PathBuf {
        assert_eq!(self.module, Module::SoftHsm);
        self.module_conf()
    }

    fn module_conf(&self) -> PathBuf {
        self.dir().join("module.conf")
    }

    /// Where the module keeps the token's objects.
    pub(crate) fn token_dir(&self) -> PathBuf {
        self.dir().join("tokens")
    }

    pub(crate) fn pin_file(&self) -> PathBuf {
        self.dir().join("pin")
    }

    /// A new token of this label; its serial number.
    fn make_token(&self, label: &str, pin_file: &Path) -> String {
        let pin = random_pin();
        fs::write(pin_file, &pin).expect("the PIN file is written");
        fs::set_permissions(pin_file, Permissions::from_mode(0o600)).expect("the PIN file is made private");
        let util = |arguments: &[&str]| {
            let mut softhsm2_util = tools::softhsm2_util();
            softhsm2_util.arg("--module").arg(self.module.path()).args(arguments);
            run(softhsm2_util.env(self.module.variable(), self.module_conf()))
        };
        util(&["--init-token", "--free", "--label", label, "--pin", &pin, "--so-pin", &random_pin()]);
        let slots = util(&["--show-slots"]);
        let value = |line: &str, name: &str| line.trim().strip_prefix(name).map(|value| value.trim().to_owned());
        let mut serial = None;
        for line in slots.lines() {
            serial = value(line, "Serial number:").or(serial);
            if value(line, "Label:").as_deref() == Some(label) {
                break;
            }
        }
        serial.expect("its slot is shown")
    }
}

impl Module {
    fn path(self) -> PathBuf {
        match self {
            Self::SoftHsm => tools::SOFTHSM_MODULE.into(),
            Self::Kryoptic => tools::kryoptic_module(),
        }
    }

    /// The variable that names the module's configuration file.
    fn variable(self) -> &'static str {
        match self {
            Self::SoftHsm => "SOFTHSM2_CONF",
            Self::Kryoptic => "KRYOPTIC_CONF",
        }
    }

    fn configuration(self, token_dir: &Path) -> String {
        let token_dir = token_dir.display();
        match self {
            Self::SoftHsm => format!("directories.tokendir = {token_dir}\nobjectstore.backend = file\n"),
            Self::Kryoptic => format!("[[slots]]\nslot = 0\ndbtype = \"sqlite\"\ndbargs = \"{token_dir}/token.sql\"\n"),
        }
    }
}

fn random_pin() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// Whether a command succeeds, and what it tells on standard error.
pub(crate) fn said(mut command: Command) -> (bool, String) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let lines = read_lines(child.stderr.take().expect("it is piped"));
    let (deadline, mut text) = (Instant::now() + COMMAND_MAX, String::new());
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => writeln!(text, "{line}").expect("a String takes all"),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // A service that was to be refused, and serves.
                child.kill().expect("it was not waited for");
                child.wait().expect("it was killed");
                panic!("{command:?} does not end: {text}");
            }
        }
    }
    (child.wait().expect("it has closed its standard error").success(), text)
}

/// What a command prints that must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
