use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

/// Names the binary.
pub(crate) const BINARY: &str = "KEYWARD_TEST_BINARY";
/// How long a server may take until it is ready: 2 s are promised; two busy cores with many servers need more.
const READY_WAIT_MAX_SECS: u64 = 60;
/// How long a server may take to drain and leave after SIGTERM.
const STOP_WAIT_MAX_SECS: u64 = 30;
const STOP_POLL_MILLIS: u64 = 5;

/// A running Keyward. Dropping it kills it: a test that is about shutdown calls [`Server::terminate`].
///
/// If the test fails, what the server logged is printed with the failure.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    announced: Announcement,
    /// What `keyward dev --ephemeral` makes is in here, and goes with it.
    _temporary_files: TempDir,
}

/// The line of JSON that a server prints once it is ready. The tenant's part is empty but for `keyward dev`.
#[derive(Debug, Default, Deserialize)]
struct Announcement {
    grpc: String,
    public: String,
    ops: String,
    pid: u32,
    #[serde(default)]
    management: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
    #[serde(default)]
    state_dir: String,
}

/// The binary: the one that was built with the test or benchmark, unless [`BINARY`] names another, such as a
/// released one.
pub(crate) fn keyward() -> Command {
    Command::new(env::var_os(BINARY).unwrap_or_else(|| env!("CARGO_BIN_EXE_keyward").into()))
}

impl Server {
    /// `keyward dev --ephemeral`: ready to sign for the tenant `demo`, and all gone when dropped.
    pub(crate) fn dev() -> Self {
        let mut command = keyward();
        command.args(["dev", "--ephemeral"]);
        Self::start(command)
    }

    /// The same with its own code's debug lines.
    pub(crate) fn dev_that_tells_more() -> Self {
        let mut command = keyward();
        command.args(["dev", "--ephemeral"]).env("KEYWARD_LOG", "info,keyward=debug");
        Self::start(command)
    }

    /// Runs a command that announces itself, and waits until it has.
    pub(crate) fn start(mut command: Command) -> Self {
        let temporary_files =
            tempfile::Builder::new().prefix("keyward-test-").tempdir().expect("a temporary directory");
        command.env("TMPDIR", temporary_files.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the keyward binary starts");
        let lines = read_lines(child.stdout.take().expect("stdout is piped"));
        let log = collect_lines(child.stderr.take().expect("stderr is piped"));
        let mut server = Self { child, log, announced: Announcement::default(), _temporary_files: temporary_files };
        let line = lines
            .recv_timeout(Duration::from_secs(READY_WAIT_MAX_SECS))
            .unwrap_or_else(|_| panic!("no announcement from {command:?}"));
        server.announced =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("announced {line:?}, which is no JSON: {error}"));
        assert_eq!(server.announced.pid, server.child.id(), "the announced process is the one that was started");
        server
    }

    /// Where gRPC is served, as host:port.
    pub(crate) fn grpc(&self) -> &str {
        &self.announced.grpc
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The base URL of the public listener.
    pub(crate) fn public(&self) -> &str {
        &self.announced.public
    }

    /// The base URL of the ops listener.
    pub(crate) fn ops(&self) -> &str {
        &self.announced.ops
    }

    /// The base URL of the Management API; empty where it is off.
    pub(crate) fn management(&self) -> &str {
        &self.announced.management
    }

    /// The tenant that `keyward dev` made, its issuer and the URL of its JWKS.
    pub(crate) fn demo(&self) -> (&str, &str, &str) {
        let Announcement { tenant, issuer, jwks_uri, .. } = &self.announced;
        assert!(!tenant.is_empty(), "only `keyward dev` makes a tenant");
        (tenant, issuer, jwks_uri)
    }

    /// The directory that `keyward dev` keeps its token and store in.
    pub(crate) fn state_dir(&self) -> &str {
        &self.announced.state_dir
    }

    /// The URL of a tenant's JWKS on the canonical path.
    pub(crate) fn jwks_uri(&self, tenant: &str) -> String {
        format!("{}/{tenant}/.well-known/jwks.json", self.public())
    }

    /// A value of `/metrics`, by the name of the series with its labels; 0 where there is none yet.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let page = super::http::get(&format!("{}/metrics", self.ops()));
        let page = String::from_utf8(page.body).expect("text");
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// The largest amount of memory that the process has held so far, in KiB (VmHWM in proc_pid_status(5)).
    pub(crate) fn memory_peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
        peak.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it as a power cut would: SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child that was not waited for can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    /// Asks it to leave (SIGTERM) and tells how it left. It drains: connections that a test holds open and does not serve,
    /// because this blocks its runtime, are waited for.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .expect("a child that was not waited for can be signalled");
        let deadline = Instant::now() + Duration::from_secs(STOP_WAIT_MAX_SECS);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "still there {STOP_WAIT_MAX_SECS} s after SIGTERM");
            thread::sleep(Duration::from_millis(STOP_POLL_MILLIS));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to do if it has left already: its status is kept, and its pid is not signalled again.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.log().iter().for_each(|line| eprintln!("server {}: {line}", self.child.id()));
        }
    }
}

/// The lines of a child's output, as they come.
pub(crate) fn read_lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    // Reads on when nobody listens, or the child would stand still at a full pipe.
    thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
    });
    lines
}

fn collect_lines(output: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&log);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
    log
}
