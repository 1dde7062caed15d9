//! Token and store with so many tenants, made once and kept in `target/growth`.
//!
//! Every tenant is made by the service's own CreateTenant and rotated once. SoftHSM reads a directory for each change and looks at
//! every object in each search, so that the time for all of them grows with the square of their number: they are made on copies
//! of one empty installation, a few on each, and then put together. SoftHSM's objects are files under the key of their token, the
//! same in every copy; rows are sealed each by itself, with the one service key. The administration log is that of the first
//! copy, and `keyward accept-store` notes what there is: as after a restored backup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use keyward::grpc::proto::RotationPolicy;
use sqlx::{Connection as _, SqliteConnection, query};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{problem, rotate, run};
use crate::common::tools::{SOFTHSM_MODULE, softhsm2_util};
use crate::common::{self, Clients, Server};

pub(super) const ALGORITHM: &str = "ES256";
const LABEL: &str = "keyward";
const PIN: &str = "1234567890";
/// Tenants that are made on one copy: below a hundred keys SoftHSM is quick.
const OF_ONE_COPY: usize = 25;
/// In the finished directory, when it is whole.
const WHOLE: &str = "whole";

/// A copy of what is kept. It goes with the value.
pub(super) struct State(TempDir);

/// The name of a tenant.
pub(super) fn tenant(number: usize) -> String {
    format!("tenant-{number:05}")
}

/// Previous keys stay: what is kept must be the same tomorrow.
pub(super) fn policy() -> RotationPolicy {
    RotationPolicy { auto_revoke: Some(false), ..RotationPolicy::default() }
}

pub(super) fn softhsm_conf(state: &Path) -> PathBuf {
    state.join("softhsm.conf")
}

impl State {
    /// A copy of the state with so many tenants, which is made if there is none.
    ///
    /// # Errors
    /// Of files, SoftHSM and the service.
    pub(super) fn copy(tenants: usize, runtime: &Runtime) -> Result<Self, String> {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/growth");
        fs::create_dir_all(&kept).map_err(problem(&kept))?;
        let whole = kept.join(tenants.to_string());
        if !whole.join(WHOLE).exists() {
            eprintln!("bench: growth: {tenants} tenants are made first, and kept in {}", whole.display());
            make(&whole, tenants, runtime)?;
        }
        let copy = tempfile::Builder::new().prefix("run-").tempdir_in(&kept).map_err(problem(&kept))?;
        copy_all(&whole, copy.path())?;
        Ok(Self(copy))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn serve(&self) -> Server {
        serve(self.path())
    }
}

fn make(whole: &Path, tenants: usize, runtime: &Runtime) -> Result<(), String> {
    // Where a commit need not wait for a disk, if there is such a place: nothing of it is kept.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let copies = tempfile::Builder::new().prefix("keyward-growth-").tempdir_in(&place).map_err(problem(&place))?;
    let empty = copies.path().join("empty");
    make_empty(&empty)?;
    if whole.exists() {
        fs::remove_dir_all(whole).map_err(problem(whole))?;
    }
    let mut first = true;
    for start in (0..tenants).step_by(OF_ONE_COPY) {
        let numbers = start..tenants.min(start + OF_ONE_COPY);
        let copy = copies.path().join(start.to_string());
        copy_all(&empty, &copy)?;
        let server = serve(&copy);
        runtime.block_on(async {
            let mut clients = Clients::connect(&server).await;
            for number in numbers.clone() {
                clients.create_tenant(&tenant(number), &[ALGORITHM], policy()).await;
                rotate(&mut clients, &tenant(number)).await?;
            }
            drop(clients);
            // On a thread of its own: the server waits for connections, which are closed here meanwhile.
            tokio::task::spawn_blocking(move || server.terminate()).await.map_err(|error| error.to_string())
        })?;
        if std::mem::take(&mut first) {
            copy_all(&copy, whole)?;
        } else {
            add(&copy, whole, runtime)?;
        }
        fs::remove_dir_all(&copy).map_err(problem(&copy))?;
        if numbers.end % 1000 == 0 {
            eprintln!("bench: growth: {} of {tenants}", numbers.end);
        }
    }
    run(keyward("accept-store", whole).arg("--confirm"))?;
    fs::write(whole.join(WHOLE), "").map_err(problem(whole))
}

/// A token, a configuration and a store without tenants.
fn make_empty(state: &Path) -> Result<(), String> {
    fs::create_dir_all(state.join("tokens")).map_err(problem(state))?;
    fs::write(state.join("pin"), PIN).map_err(problem(state))?;
    run(Command::new("chmod").arg("600").arg(state.join("pin")))?;
    let config = format!(
        "[grpc]\nlisten = \"127.0.0.1:0\"\nauth = \"none\"\n[public]\nlisten = \"127.0.0.1:0\"\n\
         base_url = \"https://keys.example.com\"\n[ops]\nlisten = \"127.0.0.1:0\"\n\
         [token]\nmodule = {SOFTHSM_MODULE:?}\nlabel = {LABEL:?}\npin_file = \"pin\"\n[store]\npath = \"store.sqlite\"\n"
    );
    fs::write(state.join("keyward.toml"), config).map_err(problem(state))?;
    write_softhsm_conf(state)?;
    let mut init = softhsm2_util();
    init.args(["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN]);
    run(init.env("SOFTHSM2_CONF", softhsm_conf(state)))?;
    run(&mut keyward("init", state))
}

fn write_softhsm_conf(state: &Path) -> Result<(), String> {
    let tokens = state.join("tokens");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(softhsm_conf(state), text).map_err(problem(state))
}

fn keyward(verb: &str, state: &Path) -> Command {
    let mut command = common::keyward();
    command.arg(verb).arg("--config").arg(state.join("keyward.toml")).env("SOFTHSM2_CONF", softhsm_conf(state));
    command
}

fn serve(state: &Path) -> Server {
    let mut command = keyward("serve", state);
    command.arg("--announce");
    // SoftHSM looks at every object in each search, of which there are sixty thousand: that is slow, and no hang.
    command.env("KEYWARD__TOKEN__CALL_TIMEOUT_MS", "60000").env("KEYWARD__SIGNING__WAIT_MAX_MS", "60000");
    // What a start looks at for a minute afterwards is told by its log, and is not what a call takes.
    command.env("KEYWARD__TOKEN__RECONCILE_AT_START", "false");
    Server::start(command)
}

/// Adds one copy's objects and rows.
fn add(copy: &Path, whole: &Path, runtime: &Runtime) -> Result<(), String> {
    let (from, to) = (token(copy)?, token(whole)?);
    for entry in fs::read_dir(&from).map_err(problem(&from))? {
        let entry = entry.map_err(problem(&from))?;
        let place = to.join(entry.file_name());
        // Each copy has the service key and the token's own files.
        if !place.exists() {
            fs::copy(entry.path(), &place).map_err(problem(&place))?;
        }
    }
    let done = runtime.block_on(async {
        let file = |state: &Path| format!("{}", state.join("store.sqlite").display());
        let mut store = SqliteConnection::connect(&format!("sqlite://{}", file(whole))).await?;
        query("attach ?1 as copy").bind(file(copy)).execute(&mut store).await?;
        query("insert into main.tenant select * from copy.tenant").execute(&mut store).await?;
        query("insert into main.keyring select * from copy.keyring").execute(&mut store).await?;
        store.close().await
    });
    done.map_err(|error| format!("{}: {error}", copy.display()))
}

/// The directory of the one token.
fn token(state: &Path) -> Result<PathBuf, String> {
    let tokens = state.join("tokens");
    let mut entries = fs::read_dir(&tokens).map_err(problem(&tokens))?;
    let entry = entries.next().ok_or("a state without a token")?;
    entry.map(|entry| entry.path()).map_err(problem(&tokens))
}

/// Copies a state; its token is where the copy is.
fn copy_all(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(problem(to))?;
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to))?;
    write_softhsm_conf(to)
}
