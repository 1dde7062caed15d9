use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::read_lines;

/// How long an interpreter may take for an answer, its start included.
const VERDICT_WAIT_MAX_SECS: u64 = 60;

/// A script of tests/clients, asked by lines of JSON. Its standard error is the test's.
pub(crate) struct Interpreter {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

impl Interpreter {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = child.stdin.take().expect("stdin is piped");
        let answers = read_lines(child.stdout.take().expect("stdout is piped"));
        Self { child, requests, answers }
    }

    /// What each client of the script says.
    pub(crate) fn ask(&mut self, request: &Value) -> BTreeMap<String, Verdict> {
        writeln!(self.requests, "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(Duration::from_secs(VERDICT_WAIT_MAX_SECS)).expect("the script answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one client said of one JWT.
#[derive(Debug, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) valid: bool,
    pub(crate) error: Option<String>,
}
