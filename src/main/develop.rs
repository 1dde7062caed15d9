//! `keyward dev`: a token, a store and a tenant of its own, for development and tests.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use keyward::config::Config;
use keyward::dev::{self, StateDirectory};
use keyward::serve::{Addresses, Metrics};
use keyward::setup;

use super::{Failure, announce_on_stdout, grpc_address, load, on_signal, open_token, runtime};

#[derive(clap::Args)]
pub(super) struct DevArguments {
    /// Where everything is kept from one start to the next.
    #[arg(long, value_name = "DIR", default_value = ".keyward-dev")]
    state_dir: PathBuf,
    /// A temporary directory and free ports, printed as one line of JSON; all is gone at exit.
    #[arg(long)]
    ephemeral: bool,
    /// Where gRPC is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051",
        default_value_if("ephemeral", "true", "127.0.0.1:0")
    )]
    grpc: SocketAddr,
    /// Where the JWKS is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        default_value_if("ephemeral", "true", "127.0.0.1:0")
    )]
    public: SocketAddr,
    /// Where health is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        default_value_if("ephemeral", "true", "127.0.0.1:0")
    )]
    ops: SocketAddr,
}

pub(super) fn run(arguments: &DevArguments) -> Result<(), Failure> {
    let listen = [arguments.grpc, arguments.public, arguments.ops];
    let temporary = arguments.ephemeral && std::env::var_os(EPHEMERAL_VARIABLE).is_none();
    let path = if temporary { temporary_directory()? } else { arguments.state_dir.clone() };
    let path = std::env::var_os(EPHEMERAL_VARIABLE).map_or(path, PathBuf::from);
    let state = StateDirectory::prepare(&path, listen)?;
    if std::env::var_os(dev::SOFTHSM_VARIABLE).is_none_or(|set| *set != *state.softhsm_conf()) {
        // SoftHSM reads its environment once, and a process that has threads cannot change its own: begin anew with it.
        let mut again = std::process::Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        again.args(std::env::args_os().skip(1)).env(dev::SOFTHSM_VARIABLE, state.softhsm_conf());
        if arguments.ephemeral {
            again.env(EPHEMERAL_VARIABLE, state.path());
        }
        return Err(format!("cannot start again: {}", again.exec()));
    }
    let served = develop_in(&state, arguments.ephemeral);
    if arguments.ephemeral {
        let gone = std::fs::remove_dir_all(state.path());
        return served.and(gone.map_err(|error| format!("{}: {error}", state.path().display())));
    }
    served
}

/// Tells a development service that was begun anew which temporary directory is its own.
const EPHEMERAL_VARIABLE: &str = "KEYWARD_EPHEMERAL_DIRECTORY";

fn temporary_directory() -> Result<PathBuf, Failure> {
    let directory = tempfile::Builder::new().prefix("keyward-dev-").tempdir();
    directory.map(tempfile::TempDir::keep).map_err(|error| error.to_string())
}

fn develop_in(state: &StateDirectory, ephemeral: bool) -> Result<(), Failure> {
    let runtime = runtime()?;
    let metrics = Metrics::install()?;
    let shutdown = runtime.block_on(on_signal())?;
    let config = load(&state.config_file())?;
    let initialised = runtime.block_on(dev::is_initialised(&config)).map_err(|error| error.to_string())?;
    let opened = open_token(&runtime, &config);
    let token = match opened {
        Err(_) if !initialised => {
            state.provision_token(&config.token.module, &config.token.pin).map_err(|error| error.to_string())?;
            open_token(&runtime, &config)
        }
        opened => opened,
    };
    let token = token?;
    let state_dir = state.path().to_owned();
    runtime.block_on(async move {
        if !initialised {
            setup::init(&config, &token).await.map_err(|error| error.to_string())?;
        }
        let ready = |addresses| {
            if ephemeral { announce_demo(&config, addresses, &state_dir) } else { greet(&config, addresses) }
        };
        super::run(&config, token.into(), metrics, shutdown, ready, true).await
    })
}

fn announce_demo(config: &Config, addresses: Addresses, state_dir: &Path) {
    let issuer = format!("http://{}/{}", addresses.public, dev::TENANT);
    let more = serde_json::json!({
        "tenant": dev::TENANT,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "issuer": issuer,
        "state_dir": state_dir,
    });
    announce_on_stdout(config, addresses, more.as_object().expect("an object was written"));
}

fn greet(config: &Config, addresses: Addresses) {
    let Addresses { public, .. } = addresses;
    let grpc = grpc_address(config, addresses);
    println!(
        r#"
Keyward signs at {grpc}, and verifiers fetch http://{public}/demo/.well-known/jwks.json

Look at the keys: http://{public}/demo/
Sign a JWT (grpcurl: `make run` puts one into target/test-tools/bin):
  grpcurl -plaintext -d "{{\"tenant\":\"demo\",\"claims_json\":\"$(printf '{{"sub":"alice","exp":%d}}' $(($(date +%s)+600)) | base64 | tr -d '\n')\"}}" {grpc} keyward.v1.SigningService/SignJwt
See the key set:
  curl -s http://{public}/demo/.well-known/jwks.json
Rotate the RS256 key (possible 15 s after its next key was published):
  grpcurl -plaintext -d '{{"tenant":"demo"}}' {grpc} keyward.v1.KeyService/RotateSigningKey
"#
    );
}
