//! The command line: flags, and the wiring of the parts.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use keyward::config::{CallerSettings, Config};
use keyward::dev;
use keyward::domain::{Caller, Principal};
use keyward::serve::{self, Addresses, Listeners, Metrics};
use keyward::setup::{self, Opened, OpenedTokens};
use keyward::token::{Pkcs11Token, Token as _, TokenConfig, TokenError, TokenIdentity, share_cores};
use rustix::process::{DumpableBehavior, getuid, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Prints a line for whoever ran the command. A reader that goes away, such as `head`, ends the command without a word.
macro_rules! say {
    ($($text:tt)*) => {
        if writeln!(std::io::stdout(), $($text)*).is_err() {
            std::process::exit(1);
        }
    };
}

/// For everything in the process, the PKCS#11 module included: SoftHSM allocates some hundred times for a signature.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "main/accept.rs"]
mod accept;
#[path = "main/audit.rs"]
mod audit;
#[path = "main/develop.rs"]
mod develop;
#[path = "main/migrate.rs"]
mod migrate;
#[path = "main/reconcile.rs"]
mod reconcile;

/// Signing keys on a PKCS#11 token: issuers sign over gRPC, verifiers fetch the JWKS.
#[derive(Parser)]
#[command(name = "keyward", version, after_help = "Log lines go to standard error; KEYWARD_LOG=debug shows more.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the store, its witness file, the service key and the file that pins it. Touches nothing that exists.
    Init {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Makes a replica of a service whose store is in PostgreSQL: its own witness file, of what is in the store now.
    ///
    /// Give it the configuration of the first replica and its service key file (service_key.file), and run it once, before `serve`.
    Join {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Moves the store out of its SQLite file into the PostgreSQL database that the configuration names by now (store.url).
    ///
    /// Stop the service, make a backup, and put store.url in the place of store.path; token, service key file and witness file stay
    /// as they are. The database must be empty. Tenants, keys, tokens and the administration log go over as they are and are read
    /// back before it counts; if anything fails or is not believed, the database stays empty and the file holds. Afterwards
    /// `serve` goes on with the database, and does not take the file any more.
    ///
    /// Interrupted, run it again: it moves the store, or says that it is done.
    Migrate(migrate::MigrateArguments),
    /// Serves until SIGTERM or SIGINT.
    Serve {
        #[command(flatten)]
        config: ConfigFile,
        /// Prints the addresses as one line of JSON on standard output once the service is ready.
        #[arg(long)]
        announce: bool,
    },
    /// Says how a store that was put back from a backup differs from what was seen of it; with --confirm, makes it hold.
    ///
    /// Stop the service first. Records that somebody edited do not hold with --confirm either: they stay in quarantine.
    AcceptStore {
        #[command(flatten)]
        config: ConfigFile,
        /// Makes the older records hold, with new seals; forgets tenants that are not there; removes those that were deleted
        /// since; and says so in the administration log. Without it nothing is changed.
        #[arg(long)]
        confirm: bool,
    },
    /// Tells how the token differs from what the store accounts for: keys that are missing or incomplete, objects that no row
    /// accounts for. Changes nothing, unless objects are named. Exits with 3 if something differs.
    ///
    /// Stop the service first; `serve` tells the same in its log when it starts. It looks at every object on the token.
    Reconcile(reconcile::ReconcileArguments),
    /// Tells all problems of a configuration at once, and which algorithms the token has. Logs in to the token.
    Check {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Looks at the audit logs, without token and PIN, while the service runs or not.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Runs the PKCS#11 module for the service that starts it. Not for people.
    #[command(hide = true)]
    TokenWorker,
    /// Serves a SoftHSM token, a SQLite store and a tenant `demo`, made in one directory. For development and tests.
    ///
    /// KEYWARD__SECTION__KEY in the environment sets a key of the configuration, such as KEYWARD__MANAGEMENT__LISTEN.
    Dev(develop::DevArguments),
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration (TOML). KEYWARD__SECTION__KEY in the environment overrides a key of it.
    #[arg(long = "config", value_name = "FILE")]
    path: PathBuf,
}

/// What to tell the person who ran the command.
type Failure = String;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    run_command(arguments.command).unwrap_or_else(|failure| {
        eprintln!("keyward: {failure}");
        ExitCode::FAILURE
    })
}

fn run_command(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Init { config } => init(&load(&config.path)?),
        Command::Join { config } => join(&load(&config.path)?),
        Command::Migrate(arguments) => migrate::run(&load(&arguments.config.path)?, &arguments),
        Command::Serve { config, announce } => serve(&load(&config.path)?, announce),
        Command::AcceptStore { config, confirm } => accept::run(&load(&config.path)?, confirm),
        Command::Reconcile(arguments) => return reconcile::run(&load(&arguments.config.path)?, &arguments),
        Command::Check { config } => check(&load(&config.path)?),
        Command::Audit(command) => audit::run(command),
        Command::TokenWorker => work_for_service(),
        Command::Dev(arguments) => develop::run(&arguments),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("KEYWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

/// Reads the configuration. The PIN is in this process from here on: no core dump, no debugger of the same user.
fn load(path: &Path) -> Result<Config, Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())?;
    Config::load(path).map_err(|problems| problems.to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    share_cores(&mut runtime).enable_all().build().map_err(|error| error.to_string())
}

/// Whoever runs this command, as the administration log names them.
fn operator(command: &'static str) -> Caller {
    let principal = Principal::Unix(getuid().as_raw());
    Caller { principals: Arc::from([principal]), method: command, request_id: None }
}

/// Opens the home token, with worker processes that the runtime looks after, if they are configured.
fn open_token(runtime: &tokio::runtime::Runtime, config: &Config) -> Result<Arc<Pkcs11Token>, Failure> {
    open(runtime, &config.token).map(Arc::new).map_err(|error| error.to_string())
}

fn open(runtime: &tokio::runtime::Runtime, config: &TokenConfig) -> Result<Pkcs11Token, TokenError> {
    let _inside = runtime.enter();
    Pkcs11Token::open(config.clone())
}

/// A service manager that ends all processes of a service tells them so: this one ends when its service does, which may have
/// signatures to finish.
fn work_for_service() -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    let _inside = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // Once it was asked for, the signal ends the process no more.
        let _ = signal(kind).map_err(|error| error.to_string())?;
    }
    keyward::token::work_as_process().map_err(|error| error.to_string())
}

fn init(config: &Config) -> Result<(), Failure> {
    let runtime = runtime()?;
    let token = open_token(&runtime, config)?;
    let made = runtime.block_on(setup::init(config, &token));
    token.close();
    made.map_err(|error| error.to_string())?;
    let [witness, pin] = [&config.store_witness_path, &config.service_key_path].map(|path| path.display());
    eprintln!("made {}, {witness} and {pin}", config.store);
    Ok(())
}

fn join(config: &Config) -> Result<(), Failure> {
    let runtime = runtime()?;
    let token = open_token(&runtime, config)?;
    let joined = runtime.block_on(setup::join(config, &token));
    token.close();
    let joined = joined.map_err(|error| error.to_string())?;
    for damage in &joined.damaged {
        say!("{}: will be in quarantine: {}", damage.tenant, damage.problem);
    }
    eprintln!("made {}; the store has {} tenants", config.store_witness_path.display(), joined.records.len());
    Ok(())
}

fn check(config: &Config) -> Result<(), Failure> {
    let runtime = runtime()?;
    let mut failures = Vec::new();
    for (index, token) in std::iter::once(&config.token).chain(&config.further_tokens).enumerate() {
        let name = if token.name.is_home() { "token".to_owned() } else { format!("token {}", token.name) };
        let looked_at = open(&runtime, token).and_then(|opened| {
            let support = runtime.block_on(opened.mechanisms());
            opened.close();
            Ok((opened.identity().clone(), support?))
        });
        if index == 0 && looked_at.is_ok() {
            say!("configuration: ok");
        }
        match looked_at {
            Ok((identity, support)) => {
                let TokenIdentity { label, serial, manufacturer, model } = identity;
                say!("{name}: {label} (serial {serial}, {manufacturer} {model})");
                for (algorithm, supported) in support {
                    say!("  {algorithm}: {}", supported.err().unwrap_or_else(|| "ok".to_owned()));
                }
            }
            Err(error) if token.name.is_home() => failures.push(error.to_string()),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

fn serve(config: &Config, announce: bool) -> Result<(), Failure> {
    let runtime = runtime()?;
    // The token counts, too.
    let metrics = Metrics::install()?;
    let tokens = runtime.block_on(setup::open_tokens(config)).map_err(|error| error.to_string())?;
    // Only now: a start that hangs in the module has nothing to drain, and SIGTERM ends it as it ends any process.
    let shutdown = runtime.block_on(on_signal())?;
    runtime.block_on(run(
        config,
        tokens,
        metrics,
        shutdown,
        |addresses| {
            if announce {
                announce_on_stdout(config, addresses, &serde_json::Map::new());
            }
        },
        false,
    ))
}

/// Everything from the opened tokens to the last answer. `ready` is told the addresses once the service can sign, or waits
/// for its token alone.
async fn run(
    config: &Config,
    tokens: OpenedTokens,
    metrics: Metrics,
    shutdown: CancellationToken,
    ready: impl FnOnce(Addresses),
    demo: bool,
) -> Result<(), Failure> {
    let text = |error: setup::SetupError| error.to_string();
    serve::raise_open_files_limit(config);
    let listeners = Listeners::bind(config).await?;
    let addresses = listeners.addresses().map_err(|error| error.to_string())?;
    let Opened { tokens: attended, store, service_key } = setup::open(config, &tokens).await.map_err(text)?;
    let keeper = setup::open_audit(config, &service_key)?;
    let keyrings = serve::keyrings(config, addresses, attended, Arc::clone(&store) as _);
    keyrings.refresh().await.map_err(|error| error.for_log())?;
    if demo {
        dev::create_demo(&keyrings).await.map_err(|error| error.for_log())?;
    }
    if matches!(config.grpc.callers, CallerSettings::Anybody) {
        tracing::warn!(
            "grpc.auth is \"none\": every process on this machine that reaches gRPC may sign and administer"
        );
    }
    if let Some(management) = addresses.management {
        tracing::info!(%management, "the Management API is served");
    }
    let grpc = grpc_address(config, addresses);
    tracing::info!(grpc, public = %addresses.public, ops = %addresses.ops, token = %tokens.home.identity().label, "serving");
    if !shutdown.is_cancelled() {
        ready(addresses);
    }
    let served = serve::run(config, keyrings, service_key, keeper, listeners, metrics, shutdown).await;
    store.close().await;
    // C_Finalize blocks, and nothing else is left to do.
    tokio::task::block_in_place(|| tokens.close());
    tracing::info!("stopped");
    served
}

/// A token that is cancelled by SIGTERM or SIGINT.
async fn on_signal() -> Result<CancellationToken, Failure> {
    let shutdown = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|error| error.to_string())?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(shutdown)
}

fn announce_on_stdout(config: &Config, addresses: Addresses, more: &serde_json::Map<String, serde_json::Value>) {
    let mut line = serde_json::json!({
        "grpc": grpc_address(config, addresses),
        "public": format!("http://{}", addresses.public),
        "ops": format!("http://{}", addresses.ops),
        "pid": std::process::id(),
    });
    if let (Some(settings), Some(address)) = (&config.management, addresses.management) {
        line["management"] = serve::management_url(settings, address).into();
    }
    line.as_object_mut().expect("an object was written").extend(more.clone());
    println!("{line}");
}

/// Where gRPC is served, as clients write it.
fn grpc_address(config: &Config, addresses: Addresses) -> String {
    let unix = config.grpc.unix_socket.as_ref().map(|path| format!("unix:{}", path.display()));
    addresses.grpc.map(|address| address.to_string()).or(unix).unwrap_or_default()
}
