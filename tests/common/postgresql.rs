//! PostgreSQL: Debian's, a server of the test process's own, and databases in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to begin to answer.
const START_MAX: Duration = Duration::from_secs(60);

/// Who owns a server that root starts: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// A running server. It ends when the last test that uses it does, and when the process does, however that ends.
pub(crate) struct Postgresql {
    directory: TempDir,
    databases: AtomicU32,
    end: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// A database that nobody else uses.
pub(crate) struct Database {
    server: Arc<Postgresql>,
    name: String,
}

impl Database {
    /// An empty one on the server that the tests of this process share.
    pub(crate) fn fresh() -> Self {
        Postgresql::shared().database()
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("postgres://keyward@localhost/{}?host={}", self.name, self.server.socket_dir().display())
    }

    /// What psql prints for a statement, as an operator would ask it.
    pub(crate) fn psql(&self, statement: &str) -> String {
        self.server.psql(&self.name, statement)
    }
}

impl Postgresql {
    /// The one that the tests of this process share.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgresql>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A server in a directory of its own, which listens on a socket there.
    fn start() -> Self {
        let directory = TempDir::with_prefix("keyward-pg-").expect("a directory");
        let data = directory.path().join("data");
        fs::create_dir(&data).expect("a directory");
        for path in [directory.path(), &data] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("the directory is ours");
            if is_root() {
                chown(path, Some(NOBODY), Some(NOBODY)).expect("root gives away");
            }
        }
        let mut initdb = as_nobody("initdb");
        initdb
            .args(["--auth=trust", "--username=keyward", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data);
        let output = initdb.output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let (end, ends) = channel();
        let (kept_data, socket_dir) = (data.clone(), directory.path().to_owned());
        // The server dies with the thread that started it; a test's own thread would end too soon.
        let keeper = thread::spawn(move || keep(&kept_data, &socket_dir, &ends));
        let server = Self { directory, databases: AtomicU32::new(0), end: Some(end), keeper: Some(keeper) };
        server.wait_until_it_answers();
        server
    }

    fn socket_dir(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    fn database(self: Arc<Self>) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("create database {name}"));
        Database { server: self, name }
    }

    fn psql(&self, database: &str, statement: &str) -> String {
        let mut psql = Command::new(programs().join("psql"));
        psql.args([
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--username=keyward",
            "--host",
        ]);
        psql.arg(self.socket_dir()).args(["--dbname", database, "--command", statement]);
        let output = psql.output().expect("psql runs");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    fn wait_until_it_answers(&self) {
        let begun = Instant::now();
        let mut is_ready = Command::new(programs().join("pg_isready"));
        is_ready.arg("--quiet").arg("--host").arg(self.socket_dir());
        while !is_ready.status().expect("pg_isready runs").success() {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START_MAX, "PostgreSQL does not answer: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postgresql {
    fn drop(&mut self) {
        self.end.take();
        if let Some(keeper) = self.keeper.take() {
            keeper.join().ok();
        }
    }
}

/// Starts the server, and stops it when nobody can tell any more to go on.
fn keep(data: &Path, socket_dir: &Path, ends: &Receiver<()>) {
    let mut postgres = as_nobody("postgres");
    postgres.arg("-D").arg(data).arg("-k").arg(socket_dir);
    // What a crash of the machine would lose is not what tests ask about; that of the server loses nothing without it.
    for setting in ["listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=32MB"] {
        postgres.args(["-c", setting]);
    }
    let log = fs::File::create(socket_dir.join("log")).expect("a log");
    postgres.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    let mut server: Child = postgres.spawn().expect("PostgreSQL starts");
    ends.recv().ok();
    // Fast shutdown: connections are cut.
    let id = i32::try_from(server.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(id, Signal::INT).ok();
    server.wait().ok();
}

/// A program of PostgreSQL's, which dies with the thread that starts it.
fn as_nobody(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if is_root() {
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    }
    command.arg(programs().join(program));
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder with PostgreSQL's programs: Debian's package installed, or unpacked. The newest, where there are several.
fn programs() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/postgresql");
    let versions = [Path::new("/"), &unpacked].map(|root| root.join("usr/lib/postgresql"));
    let versions = versions.iter().flat_map(|versions| versions.read_dir().into_iter().flatten().flatten());
    let folders = versions.map(|version| version.path().join("bin")).filter(|folder| folder.join("postgres").exists());
    folders.max().expect("PostgreSQL is missing: `make test` brings what tests need")
}
