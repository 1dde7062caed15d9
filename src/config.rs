//! Configuration: raw TOML and environment in, a checked [`Config`] or all its problems at once out. The only reader of
//! files and environment.

mod audit;
mod callers;
mod files;
mod grpc;
mod management;
mod store;
mod token;
mod watched;

pub use audit::{AuditSettings, Places};
pub use callers::{CallerSettings, JwtKeys, JwtSettings};
pub use grpc::GrpcSettings;
pub use management::ManagementSettings;
pub use watched::Watched;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat, Value, ValueKind};
use secrecy::SecretString;

use crate::files::directory_of;
use crate::store::Location;
use crate::token::TokenConfig;

/// A configuration in which every value and every relation was checked.
#[derive(Debug)]
pub struct Config {
    /// gRPC.
    pub grpc: GrpcSettings,
    /// Where the JWKS and discovery are served.
    pub public_listen: SocketAddr,
    /// Under which URL verifiers reach `public_listen`; `None`: `http://` and its address.
    pub public_base_url: Option<String>,
    /// Where health and readiness are served.
    pub ops_listen: SocketAddr,
    /// The Management API; off unless it is configured.
    pub management: Option<ManagementSettings>,
    /// The home token, which has the service key.
    pub token: TokenConfig,
    /// The others, on which tenants can be placed, ordered by name.
    pub further_tokens: Vec<TokenConfig>,
    /// Whether a start tells how token and store differ.
    pub reconcile_at_start: bool,
    /// Where tenants and keyrings are kept.
    pub store: Location,
    /// The file in which this replica remembers what it has seen of the store.
    pub store_witness_path: PathBuf,
    /// The file that pins the service key.
    pub service_key_path: PathBuf,
    /// The audit logs.
    pub audit: AuditSettings,
    /// Modulus length of new RSA keys.
    pub rsa_bits: u32,
    /// Share of signatures other than RSA that are verified before they are released.
    pub verify_share: f64,
    /// Longest wait of a signature for the token.
    pub sign_wait_max: Duration,
    /// How old the snapshot may be that is signed from.
    pub snapshot_max_age: Duration,
    /// How often a tenant's keys may be rotated by hand in 24 hours.
    pub manual_rotations_per_day: u32,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Problems(Vec<Problem>);

/// One key, and what it must be.
#[derive(Debug)]
struct Problem {
    key: String,
    text: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s):", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {} {}", problem.key, problem.text))
    }
}

impl Config {
    /// Reads the file, overlays `KEYWARD__SECTION__KEY` from the environment, and checks everything.
    ///
    /// # Errors
    /// All problems, each with its key.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Self::check(Reader::open(path)?)
    }

    fn check(mut reader: Reader) -> Result<Self, Problems> {
        let config = Self {
            grpc: reader.grpc(),
            public_listen: reader.address("public.listen", "127.0.0.1:8080"),
            public_base_url: reader.base_url("public.base_url"),
            ops_listen: reader.address("ops.listen", "127.0.0.1:9090"),
            management: reader.management(),
            token: reader.home_token(),
            further_tokens: reader.further_tokens(),
            reconcile_at_start: reader.flag("token.reconcile_at_start", true),
            store: reader.store(),
            store_witness_path: reader.path("store.witness_file", "store-witness.jsonl"),
            service_key_path: reader.service_key_path(),
            audit: reader.audit(),
            rsa_bits: reader.number("signing.rsa_bits", 2048, 2048..=4096),
            verify_share: reader.share("signing.verify_share", 0.01),
            sign_wait_max: Duration::from_millis(reader.number("signing.wait_max_ms", 5000, 10..=60_000)),
            snapshot_max_age: Duration::from_millis(reader.number(
                "signing.snapshot_max_age_ms",
                30_000,
                3000..=600_000,
            )),
            manual_rotations_per_day: reader.number("limits.manual_rotations_per_day", 5, 1..=10_000),
        };
        if !matches!(config.rsa_bits, 2048 | 3072 | 4096) {
            reader.problem("signing.rsa_bits", "must be 2048, 3072 or 4096");
        }
        reader.tokens_apart(&config);
        reader.finish(config)
    }
}

/// Takes known keys out of the table, and remembers what is wrong.
struct Reader {
    values: BTreeMap<String, Value>,
    directory: PathBuf,
    problems: Vec<Problem>,
}

impl Reader {
    /// Reads the file, and overlays the environment.
    fn open(path: &Path) -> Result<Self, Problems> {
        let whole = |text: String| Problems(vec![Problem { key: path.display().to_string(), text }]);
        let text = std::fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
        let environment = Environment::with_prefix("KEYWARD").prefix_separator("__").separator("__");
        let layers =
            config::Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).add_source(environment);
        let table = layers.build().and_then(config::Config::try_deserialize::<BTreeMap<String, Value>>);
        let table =
            table.map_err(|error| whole(format!("is not valid TOML: {}", without_source(&error.to_string()))))?;
        Ok(Self::new(table, directory_of(path)))
    }

    fn new(table: BTreeMap<String, Value>, directory: &Path) -> Self {
        let (mut values, mut problems) = (BTreeMap::new(), Vec::new());
        for (section, value) in table {
            match value.kind {
                ValueKind::Table(table) => {
                    for (key, value) in table {
                        match value.kind {
                            // Somebody meant something by it, and would take it for done.
                            ValueKind::Table(inner) if inner.is_empty() => problems.push(Problem {
                                key: format!("{section}.{key}"),
                                text: "must not be an empty section: set its keys, or leave it out".to_owned(),
                            }),
                            // A section of a section, such as [grpc.jwt].
                            ValueKind::Table(inner) => {
                                let inner = inner.into_iter();
                                values.extend(inner.map(|(name, value)| (format!("{section}.{key}.{name}"), value)));
                            }
                            _ => {
                                values.insert(format!("{section}.{key}"), value);
                            }
                        }
                    }
                }
                _ => {
                    values.insert(section, value);
                }
            }
        }
        Self { values, directory: directory.to_owned(), problems }
    }

    fn finish(self, config: Config) -> Result<Config, Problems> {
        let Self { values, mut problems, .. } = self;
        let unknown = |key: String| Problem { key, text: "is not a key of Keyward; is it misspelt?".to_owned() };
        problems.extend(values.into_keys().map(unknown));
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    fn problem(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem { key: key.to_owned(), text: text.into() });
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.values.remove(key)?;
        match value.into_string() {
            Ok(text) => Some(text),
            Err(_) => {
                self.problem(key, "must be a text");
                None
            }
        }
    }

    fn required_text(&mut self, key: &str) -> String {
        let given = self.values.contains_key(key);
        let text = self.text(key);
        if !given || text.as_deref() == Some("") {
            self.problem(key, "must be set");
        }
        text.unwrap_or_default()
    }

    fn path(&mut self, key: &str, default: &str) -> PathBuf {
        let path = self.text(key).unwrap_or_else(|| default.to_owned());
        self.directory.join(path)
    }

    fn required_path(&mut self, key: &str) -> PathBuf {
        let path = self.required_text(key);
        self.directory.join(path)
    }

    fn address(&mut self, key: &str, default: &str) -> SocketAddr {
        let text = self.text(key).unwrap_or_else(|| default.to_owned());
        text.parse().unwrap_or_else(|_| {
            self.problem(key, format!("must be an IP address and a port, such as {default}"));
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn base_url(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        let web = url::Url::parse(&text).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host().is_some()
                // It is published, and the parser passes over line ends.
                && url.username().is_empty()
                && url.password().is_none()
                && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !web {
            self.problem(
                key,
                "must be the http or https URL under which this listener is reached, without user, query and fragment",
            );
        }
        Some(text.trim_end_matches('/').to_owned())
    }

    fn number<N>(&mut self, key: &str, default: N, range: std::ops::RangeInclusive<N>) -> N
    where
        N: TryFrom<i64> + PartialOrd + fmt::Display + Copy,
    {
        let Some(value) = self.values.remove(key) else { return default };
        let number = value.into_int().ok().and_then(|number| N::try_from(number).ok());
        number.filter(|number| range.contains(number)).unwrap_or_else(|| {
            self.problem(key, format!("must be a whole number from {} to {}", range.start(), range.end()));
            default
        })
    }

    fn share(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.values.remove(key) else { return default };
        value.into_float().ok().filter(|share| (0.0..=1.0).contains(share)).unwrap_or_else(|| {
            self.problem(key, "must be a number from 0 to 1");
            default
        })
    }

    /// The PIN, from the file or the environment: never from the TOML, which people copy and commit.
    fn pin(&mut self, key: &str, variable: &str) -> SecretString {
        self.secret(key, variable).unwrap_or_else(|| {
            self.problem(key, format!("must name a file that holds the PIN, or {variable} be set"));
            SecretString::from(String::new())
        })
    }

    /// A secret from the file that the key names, or from the environment. `None` if there is neither.
    fn secret(&mut self, key: &str, variable: &str) -> Option<SecretString> {
        let file = self.text(key).map(|path| self.directory.join(path));
        let secret = match (file, std::env::var(variable)) {
            (Some(_), Ok(_)) => Err(format!("must not be set together with {variable} in the environment")),
            (Some(file), Err(_)) => read_secret(&file),
            (None, Ok(secret)) => Ok(secret),
            (None, Err(_)) => return None,
        };
        let secret = secret.and_then(|secret| match secret.as_str() {
            "" => Err("must not name an empty file".to_owned()),
            _ => Ok(secret),
        });
        Some(secret.map(SecretString::from).unwrap_or_else(|text| {
            self.problem(key, text);
            SecretString::from(String::new())
        }))
    }
}

/// A parser's text without the lines of the file that it shows: whoever writes a secret there by mistake finds it in no log.
fn without_source(error: &str) -> String {
    let shows_source =
        |line: &&str| line.trim_start_matches([' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']).starts_with('|');
    error.lines().filter(|line| !shows_source(line)).collect::<Vec<_>>().join("; ")
}

fn read_secret(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {}: {error}", path.display());
    let file = std::fs::metadata(path).map_err(unreadable)?;
    // Of root's files a group may read one: so are secrets handed to services (systemd's LoadCredential=, Secrets of Kubernetes). It
    // is the rule of PostgreSQL's clients.
    let others = if file.uid() == 0 { 0o037 } else { 0o077 };
    if file.mode() & others != 0 {
        let path = path.display();
        return Err(format!("must be readable by its owner alone, or by a group if it is root's: chmod 600 {path}"));
    }
    std::fs::read_to_string(path).map(|secret| secret.trim_end_matches(['\r', '\n']).to_owned()).map_err(unreadable)
}
