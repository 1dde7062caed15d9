//! Chromium, and what it sees.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::DOMAIN;
use crate::common::{read_lines, tools};

/// How long the browser may take for a page, its own start included; the script has shorter limits of its own.
pub(crate) const PAGE_WAIT_MAX_SECS: u64 = 120;

/// Chromium, driven by tests/clients/page.mjs. Its standard error is the test's.
pub(crate) struct Browser {
    script: Child,
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
}

/// What is in the page, as the browser shows it.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) url: String,
    pub(crate) title: String,
    pub(crate) lang: String,
    pub(crate) text: String,
    pub(crate) headings: Vec<(u8, String)>,
    pub(crate) keyrings: Vec<Ring>,
    pub(crate) links: Vec<Link>,
    pub(crate) elements: Vec<String>,
    pub(crate) contrast: Contrast,
    pub(crate) background: String,
    pub(crate) selects: Vec<String>,
    pub(crate) selected: Option<String>,
    pub(crate) scroll_width: u32,
    pub(crate) inner_width: u32,
    pub(crate) complaints: Vec<String>,
    pub(crate) requests: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Ring {
    pub(crate) algorithm: String,
    pub(crate) text: String,
    pub(crate) keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Key {
    pub(crate) state: String,
    pub(crate) top: f64,
    pub(crate) codes: Vec<String>,
    pub(crate) times: Vec<(String, String)>,
    pub(crate) milestones: Vec<(String, bool)>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Link {
    pub(crate) href: String,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// The text with the lowest contrast.
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "the text is printed where the contrast is too low")]
pub(crate) struct Contrast {
    pub(crate) ratio: f64,
    pub(crate) text: String,
}

impl Seen {
    pub(crate) fn keyring(&self, algorithm: &str) -> &Ring {
        self.keyrings.iter().find(|ring| ring.algorithm == algorithm).unwrap_or_else(|| panic!("{}", self.text))
    }

    /// The states of a keyring from the top of the page down.
    pub(crate) fn states(&self, algorithm: &str) -> Vec<&str> {
        let mut keys: Vec<&Key> = self.keyring(algorithm).keys.iter().collect();
        keys.sort_by(|one, other| one.top.total_cmp(&other.top));
        keys.into_iter().map(|key| key.state.as_str()).collect()
    }
}

impl Key {
    pub(crate) fn kid(&self) -> String {
        self.codes.first().expect("a kid").clone()
    }

    pub(crate) fn milestones(&self) -> Vec<(&str, bool)> {
        self.milestones.iter().map(|(name, reached)| (name.as_str(), *reached)).collect()
    }
}

impl Browser {
    pub(crate) fn start() -> Self {
        let mut command = tools::node("page.mjs");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = script.stdin.take();
        let answers = read_lines(script.stdout.take().expect("stdout is piped"));
        Self { script, requests, answers }
    }

    /// A page as it is on a wide and light screen.
    pub(crate) fn look(&mut self, url: &str) -> Seen {
        self.look_as(url, "light", 1120, None)
    }

    /// A page about which the browser has nothing to complain.
    pub(crate) fn look_as(&mut self, url: &str, scheme: &str, width: u32, screenshot: Option<&Path>) -> Seen {
        let seen = self.ask(url, scheme, width, screenshot);
        assert_eq!(seen.complaints, [""; 0], "{url}");
        seen
    }

    pub(crate) fn ask(&mut self, url: &str, scheme: &str, width: u32, screenshot: Option<&Path>) -> Seen {
        let request = json!({
            "url": url,
            "scheme": scheme,
            "width": width,
            "screenshot": screenshot,
            "domains": {DOMAIN: "127.0.0.1"},
        });
        writeln!(self.requests.as_mut().expect("open until the end"), "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(Duration::from_secs(PAGE_WAIT_MAX_SECS)).expect("the script answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its requests the script closes the browser, whose files then go too.
        drop(self.requests.take());
        while self.answers.recv_timeout(Duration::from_secs(10)).is_ok() {}
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}
