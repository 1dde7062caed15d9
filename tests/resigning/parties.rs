//! The processes and sockets around Keyward: the proxy, the service behind it, and what that service verifies JWTs with.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::LIFE_SECS_MAX;
use crate::common::{Server, read_lines, tools};
use crate::signer::{AUDIENCE, DOMAIN, INSIDE, OUTSIDE};

/// How long an interpreter may take to start, and any of the parties to answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// examples/resign/resign_proxy.py, on a free port.
pub(crate) struct Proxy {
    child: Child,
    address: String,
    log: Receiver<String>,
}

/// What a client of the proxy gets.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Proxy {
    /// The last of two options of one name counts.
    pub(crate) fn start(server: &Server, outside_issuer: &str, upstream: &str, options: &[&str]) -> Self {
        let mut command = tools::python_example("resign/resign_proxy.py");
        command.args(["--listen", "127.0.0.1:0", "--upstream", upstream, "--audience", AUDIENCE]);
        command.args(["--issuer", outside_issuer, "--jwks-uri", &server.jwks_uri(OUTSIDE)]);
        command.args(["--keyward", server.grpc(), "--tenant", INSIDE, "--domain", DOMAIN]);
        command.args(["--life-secs-max", &LIFE_SECS_MAX.to_string()]).args(options);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let lines = read_lines(child.stdout.take().expect("stdout is piped"));
        let log = read_lines(child.stderr.take().expect("stderr is piped"));
        let mut proxy = Self { child, address: String::new(), log };
        let line = lines.recv_timeout(ANSWER_WAIT_MAX).unwrap_or_else(|_| {
            panic!("the proxy did not start: {:?}", proxy.log.try_iter().collect::<Vec<_>>());
        });
        let announced: Value = serde_json::from_str(&line).expect("its address in JSON");
        let url = announced["listen"].as_str().expect("its address");
        proxy.address = url.strip_prefix("http://").expect("plain HTTP").to_owned();
        proxy
    }

    /// GET with a JWT.
    pub(crate) fn get(&self, jwt: &str) -> Answer {
        self.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {jwt}\r\n\r\n").as_bytes())
    }

    /// A request, octet for octet; the answer is all that comes until the proxy closes.
    pub(crate) fn send(&self, request: &[u8]) -> Answer {
        let mut connection = TcpStream::connect(&self.address).expect("the proxy listens");
        connection.set_read_timeout(Some(ANSWER_WAIT_MAX)).expect("a limit for reading");
        connection.write_all(request).expect("the proxy reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Answer { status, headers, body: body.to_owned() }
    }

    /// The next line that an operator reads.
    pub(crate) fn log_line(&self) -> String {
        self.log.recv_timeout(ANSWER_WAIT_MAX).expect("a line on standard error")
    }
}

impl Answer {
    /// A header's value, if it is there once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(present, _)| present == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The service behind the proxy: it keeps what it is asked, and answers always the same.
pub(crate) struct Upstream {
    address: String,
    requests: Receiver<String>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the port's number").to_string();
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                // The request is kept before it is answered: whoever has the answer finds it.
                let Some(request) = read_request(&connection) else { continue };
                if sender.send(request).is_err() {
                    return;
                }
                let _ = (&connection).write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\nX-Upstream: yes\r\nConnection: close\r\n\r\nfrom the upstream",
                );
            }
        });
        Self { address, requests }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What was asked, as it came.
    pub(crate) fn request(&self) -> String {
        self.requests.recv_timeout(ANSWER_WAIT_MAX).expect("the upstream was asked")
    }

    /// Nothing was asked.
    pub(crate) fn assert_silent(&self, why: &str) {
        assert!(self.requests.try_recv().is_err(), "{why}: the upstream was asked");
    }
}

fn read_request(connection: &TcpStream) -> Option<String> {
    connection.set_read_timeout(Some(ANSWER_WAIT_MAX)).ok()?;
    let mut reader = BufReader::new(connection);
    let (mut request, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        request.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(request + &String::from_utf8_lossy(&body))
}

/// What the upstream verifies with: it knows the custom domain's issuer alone.
pub(crate) struct ResourceServer {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    jwks_uri: String,
    kid: String,
}

impl ResourceServer {
    pub(crate) fn start(server: &Server) -> Self {
        let mut command = tools::python("resource_server.py");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = child.stdin.take().expect("stdin is piped");
        let answers = read_lines(child.stdout.take().expect("stdout is piped"));
        let jwks_uri = format!("{}/.well-known/jwks.json", server.public());
        Self { child, requests, answers, jwks_uri, kid: String::new() }
    }

    /// The JWT's claims; it must verify.
    pub(crate) fn accept(&mut self, jwt: &str) -> Value {
        let request = json!({
            "jwks_uri": self.jwks_uri,
            "host": DOMAIN,
            "issuer": format!("https://{DOMAIN}"),
            "audience": AUDIENCE,
            "algorithm": "PS384",
            "jwt": jwt,
        });
        writeln!(self.requests, "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(ANSWER_WAIT_MAX).expect("the script answers");
        let answer: Value = serde_json::from_str(&answer).expect("an answer in JSON");
        assert!(answer["error"].is_null(), "{jwt}: {answer}");
        self.kid = answer["kid"].as_str().expect("a kid").to_owned();
        answer["claims"].clone()
    }

    /// The key that signed what was accepted last.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }
}

impl Drop for ResourceServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
