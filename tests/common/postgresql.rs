//! PostgreSQL: Debian's, a server of the test process's own, and databases in it.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to begin to answer.
const START_MAX: Duration = Duration::from_secs(60);

/// What the socket is named after, where nobody listens at the port.
const PORT: u16 = 5432;

/// Who owns a server that root starts: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// A running server. It ends when the last test that uses it does, and when the process does, however that ends.
pub(crate) struct Server {
    directory: TempDir,
    port: u16,
    databases: AtomicU32,
    keeper: Option<Keeper>,
}

/// A database that nobody else uses.
pub(crate) struct Database {
    server: Arc<Server>,
    name: String,
}

/// psql, as an operator leaves it open.
pub(crate) struct Shell {
    process: Child,
    output: BufReader<ChildStdout>,
}

/// How a server is run.
struct Run {
    environment: Vec<(String, PathBuf)>,
    settings: Vec<String>,
    port: u16,
}

/// The thread that has the server as its child, and where it is told to end it and start it again.
struct Keeper {
    thread: JoinHandle<()>,
    restart: Sender<(Signal, Sender<()>)>,
}

impl Database {
    /// An empty one on the server that the tests of this process share.
    pub(crate) fn fresh() -> Self {
        Server::shared().database()
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        self.url_at(self.folder())
    }

    /// Its address by another socket than the server's, in this folder.
    pub(crate) fn url_at(&self, folder: &Path) -> String {
        // Through a socket nobody offers TLS.
        format!("postgres://keyward@localhost/{}?sslmode=disable&host={}", self.name, folder.display())
    }

    /// Where the server's socket is.
    pub(crate) fn folder(&self) -> &Path {
        self.server.directory.path()
    }

    /// What psql prints for a statement, as an operator would ask it.
    pub(crate) fn psql(&self, statement: &str) -> String {
        self.server.psql(&self.name, statement)
    }

    /// Has a trigger with this body (PL/pgSQL) wait in a table that somebody will make.
    pub(crate) fn set_trap(&self, table: &str, trigger: &str, body: &str) {
        self.psql(&format!(
            "create function trap() returns trigger language plpgsql as $$ begin {body} end $$; \
             create function set_trap() returns event_trigger language plpgsql as $$ begin \
             if exists (select 1 from pg_event_trigger_ddl_commands() where object_identity = 'public.{table}') then \
             execute 'create {trigger} execute function trap()'; end if; end $$; \
             create event trigger set_trap on ddl_command_end when tag in ('CREATE TABLE') execute function set_trap()"
        ));
    }

    /// Takes it away for the next time.
    pub(crate) fn remove_trap(&self) {
        self.psql("drop event trigger set_trap; drop function set_trap; drop function trap cascade");
    }

    /// All that is in it, as an operator backs it up.
    pub(crate) fn dump(&self) -> Vec<u8> {
        let mut pg_dump = Command::new(programs().join("pg_dump"));
        pg_dump.args(["--username=keyward", "--dbname", &self.name, "--host"]).arg(self.folder());
        let output = pg_dump.output().expect("pg_dump runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Puts a backup in the place of all that is in it.
    pub(crate) fn put_back(&self, dump: &[u8]) {
        self.server.psql("postgres", &format!("drop database {} with (force)", self.name));
        self.server.psql("postgres", &format!("create database {}", self.name));
        let mut psql = self.server.client(&self.name);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("psql runs");
        psql.stdin.take().expect("it is piped").write_all(dump).expect("psql reads");
        assert!(psql.wait().expect("psql ends").success());
    }

    /// psql for several statements of one session.
    pub(crate) fn shell(&self) -> Shell {
        let mut psql = self.server.client(&self.name);
        let mut process = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql runs");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        Shell { process, output }
    }
}

impl Shell {
    /// Waits until it is done.
    pub(crate) fn ask(&mut self, statements: &str) {
        let stdin = self.process.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{statements}\n\\echo done").expect("psql reads");
        let mut line = String::new();
        while line.trim_end() != "done" {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("psql prints") > 0, "psql ended: {statements}");
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It ends when its input does.
        self.process.stdin.take();
        self.process.wait().ok();
    }
}

impl Server {
    /// A server in a directory of its own, which listens on a socket there.
    pub(crate) fn start() -> Arc<Self> {
        Self::start_with(Vec::new())
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_with(environment: Vec<(String, PathBuf)>) -> Arc<Self> {
        let settings = vec!["listen_addresses=".to_owned()];
        Self::begin(owned_directory(), Run { environment, settings, port: PORT })
    }

    /// One that also listens at 127.0.0.1 and 127.0.0.2, for those alone who come by TLS and know the password. Certificate and key are files in PEM.
    pub(crate) fn start_behind_tls(certificate: &Path, key: &Path, password: &str) -> Arc<Self> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let directory = owned_directory();
        let put = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("it is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
            let_in(&path);
            path.display().to_string()
        };
        let read = |file: &Path| fs::read(file).expect("it is there");
        let rules = b"local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n";
        let settings = vec![
            "listen_addresses=127.0.0.1,127.0.0.2".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", put("server.pem", &read(certificate))),
            format!("ssl_key_file={}", put("server.key", &read(key))),
            format!("hba_file={}", put("access", rules)),
        ];
        let server = Self::begin(directory, Run { environment: Vec::new(), settings, port });
        server.psql("postgres", &format!("alter role keyward password '{password}'"));
        server
    }

    /// Where one listens that was started behind TLS.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn begin(directory: TempDir, run: Run) -> Arc<Self> {
        let (data, port) = (directory.path().join("data"), run.port);
        let mut initdb = as_nobody("initdb");
        initdb.args(["--auth=trust", "--username=keyward", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        let output = initdb.arg(&data).output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let (restart, restarts) = channel();
        let path = directory.path().to_owned();
        // The server dies with the thread that started it; a test's own thread would end too soon.
        let thread = thread::spawn(move || keep(&path, &run, &restarts));
        let keeper = Some(Keeper { thread, restart });
        let server = Self { directory, port, databases: AtomicU32::new(0), keeper };
        server.wait_until_it_answers();
        Arc::new(server)
    }

    /// The one that the tests of this process share.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Self::start();
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A new database.
    pub(crate) fn database(self: &Arc<Self>) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("create database {name}"));
        Database { server: Arc::clone(self), name }
    }

    /// Kills it in whatever it is doing, nothing put in order, and starts it again: it comes back with what it had acknowledged.
    pub(crate) fn kill_and_start_again(&self) {
        self.end_and_start_again(Signal::QUIT);
    }

    /// Stops it as an operator does, connections and all, and starts it again.
    pub(crate) fn restart(&self) {
        self.end_and_start_again(Signal::INT);
    }

    fn end_and_start_again(&self, signal: Signal) {
        let (started, is_started) = channel();
        let keeper = self.keeper.as_ref().expect("it is there until it is dropped");
        keeper.restart.send((signal, started)).expect("the keeper waits");
        is_started.recv().expect("the keeper starts it");
        self.wait_until_it_answers();
    }

    fn psql(&self, database: &str, statement: &str) -> String {
        let output = self.client(database).args(["--command", statement]).output().expect("psql runs");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    fn client(&self, database: &str) -> Command {
        let mut psql = Command::new(programs().join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        psql.args(["--username=keyward", "--dbname", database, "--port", &self.port.to_string(), "--host"]);
        psql.arg(self.directory.path());
        psql
    }

    fn wait_until_it_answers(&self) {
        let begun = Instant::now();
        let mut is_ready = Command::new(programs().join("pg_isready"));
        is_ready.args(["--quiet", "--port", &self.port.to_string(), "--host"]).arg(self.directory.path());
        while !is_ready.status().expect("pg_isready runs").success() {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START_MAX, "PostgreSQL does not answer: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(Keeper { thread, restart }) = self.keeper.take() {
            drop(restart);
            thread.join().ok();
        }
    }
}

/// Starts the server, starts it again when told to, and stops it when nobody can tell any more.
fn keep(directory: &Path, run: &Run, restarts: &Receiver<(Signal, Sender<()>)>) {
    let mut server = spawn(directory, run);
    while let Ok((signal, started)) = restarts.recv() {
        end(&mut server, signal);
        server = spawn(directory, run);
        started.send(()).ok();
    }
    // Connections are cut.
    end(&mut server, Signal::INT);
}

fn spawn(directory: &Path, run: &Run) -> Child {
    let mut postgres = as_nobody("postgres");
    postgres.envs(run.environment.iter().map(|(name, value)| (name, value)));
    postgres.arg("-p").arg(run.port.to_string());
    postgres.arg("-D").arg(directory.join("data")).arg("-k").arg(directory);
    // A crash of the machine loses what is not on the disk; that of the server does not, and this is all that tests ask about.
    let settings = ["fsync=off", "max_connections=200", "shared_buffers=32MB"];
    for setting in settings.into_iter().chain(run.settings.iter().map(String::as_str)) {
        postgres.args(["-c", setting]);
    }
    let log = OpenOptions::new().create(true).append(true).open(directory.join("log")).expect("a log");
    postgres.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    postgres.spawn().expect("PostgreSQL starts")
}

fn end(server: &mut Child, signal: Signal) {
    kill_process(Pid::from_child(server), signal).ok();
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

/// A directory for a server, with one for its data.
fn owned_directory() -> TempDir {
    let directory = TempDir::with_prefix("keyward-pg-").expect("a directory");
    let data = directory.path().join("data");
    fs::create_dir(&data).expect("a directory");
    for path in [directory.path(), &data] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("the directory is ours");
        let_in(path);
    }
    directory
}

/// Lets a server that is not root's into a folder, or have a file.
pub(crate) fn let_in(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root gives away");
    }
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
