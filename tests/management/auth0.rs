//! The published Auth0 management client for Node, unchanged, against Keyward over TLS.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::http::send;
use crate::common::{Authority, read_lines, tools};
use crate::house::{ALL_SCOPES, DOMAIN, House, kid_that_is};

/// How long Node may take for an answer, its start and the client's own retries included.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn the_client_lists_rotates_and_revokes_signing_keys() {
    let authority = Authority::new();
    let mut house = House::open_with_tls(&authority).await;
    let mut auth0 = Auth0::start(&authority.certificate());
    let domain = house.domain("acme");
    auth0.sign_in(&domain, &house.jwt("acme", ALL_SCOPES));

    let before = auth0.data("list", &json!([]));
    let before = before.as_array().expect("a bare array");
    assert_eq!(before.len(), 2);
    let (current, next) = (kid_that_is("current", before), kid_that_is("next", before));
    let key = auth0.data("get", &json!([current]));
    assert_eq!(&key, before.iter().find(|key| key["kid"] == *current).expect("the key"));
    let seen = auth0.ask(&json!({ "inspect": key["cert"] }));
    assert_eq!(seen["fingerprint"], key["fingerprint"], "as Node reads the certificate");
    assert_eq!(key["thumbprint"], seen["fingerprint"].as_str().expect("a text").replace(':', ""));

    let made = auth0.rotate_when_allowed();
    let after = auth0.data("list", &json!([]));
    let after = after.as_array().expect("a bare array");
    assert_eq!(made["kid"], kid_that_is("next", after));
    assert_eq!((kid_that_is("current", after), kid_that_is("previous", after)), (next.clone(), current.clone()));

    let revoked = auth0.data("revoke", &json!([current]));
    assert_eq!((&revoked["kid"], &revoked["cert"]), (&json!(current), &key["cert"]));
    let key = auth0.data("get", &json!([current]));
    assert_eq!((&key["revoked"], &key["previous"]), (&json!(true), &json!(false)));
    assert!(key["revoked_at"].is_string(), "{key}");

    // Errors are the client's own types.
    assert_eq!(auth0.error("get", &json!(["nobody"]))["name"], "NotFoundError");
    assert_eq!(auth0.error("revoke", &json!(["nobody"]))["name"], "NotFoundError");
    let in_use = auth0.error("revoke", &json!([next]));
    assert_eq!((&in_use["name"], &in_use["status"]), (&json!("ManagementError"), &json!(409)));
    assert_eq!(auth0.error("list", &json!([{"queryParams": {"algorithm": "none"}}]))["name"], "BadRequestError");
    for _ in 0..2 {
        house.force_rotation("acme").await;
    }
    // Its own retries would wait for tomorrow, a minute at a time.
    let limited = auth0.error("rotate", &json!([{ "maxRetries": 0 }]));
    assert_eq!(limited["name"], "TooManyRequestsError", "{limited}");
    assert_eq!(limited["headers"]["x-ratelimit-remaining"], "0");
    auth0.sign_in(&domain, &house.jwt("acme", "read:signing_keys"));
    assert_eq!(auth0.error("rotate", &json!([]))["name"], "ForbiddenError");
    auth0.sign_in(&domain, &house.jwt("b2b", ALL_SCOPES));
    let unauthorized = auth0.error("list", &json!([]));
    assert_eq!(unauthorized["name"], "UnauthorizedError");
    assert_eq!(unauthorized["body"]["statusCode"], 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_sets_gets_and_deletes_custom_keys_by_path_and_by_domain() {
    let authority = Authority::new();
    let house = House::open_with_tls(&authority).await;
    let mut auth0 = Auth0::start(&authority.certificate());
    let by_path = (house.domain("acme"), house.jwt("acme", ALL_SCOPES));
    let mut claims = house.claims("acme", ALL_SCOPES);
    claims["aud"] = json!(format!("https://{DOMAIN}/api/v2/"));
    let port = house.server.management().rsplit_once(':').expect("an address").1;
    let by_domain = (format!("{DOMAIN}:{port}"), house.issuer.jwt(&claims));
    for (domain, jwt) in [by_path, by_domain] {
        auth0.resource = "customSigning";
        auth0.sign_in(&domain, &jwt);
        assert_eq!(auth0.error("get", &json!([]))["name"], "NotFoundError", "{domain}");
        let mut keys = house.issuer.jwks();
        keys["keys"][0]["kid"] = json!("mine");
        assert_eq!(auth0.data("set", &json!([keys])), keys);
        assert_eq!(auth0.data("get", &json!([])), keys);
        assert_eq!(published(&house), ["mine"]);

        let mut private = keys.clone();
        private["keys"][0]["d"] = json!("AAAA");
        let refused = auth0.error("set", &json!([private]));
        assert_eq!(refused["name"], "BadRequestError");
        assert!(refused["body"]["message"].as_str().expect("a text").starts_with("keys[0].d "), "{refused}");
        assert_eq!(auth0.data("get", &json!([])), keys, "nothing was replaced");

        assert_eq!(auth0.data("delete", &json!([])), Value::Null);
        assert_eq!(auth0.error("get", &json!([]))["name"], "NotFoundError");
        assert!(published(&house).is_empty());
        auth0.resource = "signing";
        assert_eq!(auth0.data("list", &json!([])).as_array().expect("a bare array").len(), 2, "{domain}");
    }
}

/// The kids of the custom domain's JWKS that are not Keyward's.
fn published(house: &House) -> Vec<String> {
    let url = format!("{}/.well-known/jwks.json", house.server.public());
    let jwks: Value = send("GET", &url, &[("host", DOMAIN)]).json();
    let custom = jwks["keys"].as_array().expect("keys").iter().filter(|key| key.get("state").is_none());
    custom.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// The client, in a Node that lives as long as the test.
struct Auth0 {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    domain: String,
    jwt: String,
    resource: &'static str,
}

impl Auth0 {
    fn start(authority: &Path) -> Self {
        let mut command = tools::node("auth0.mjs");
        command.env("NODE_EXTRA_CA_CERTS", authority).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = child.stdin.take().expect("stdin is piped");
        let answers = read_lines(child.stdout.take().expect("stdout is piped"));
        Self { child, requests, answers, domain: String::new(), jwt: String::new(), resource: "signing" }
    }

    fn sign_in(&mut self, domain: &str, jwt: &str) {
        (self.domain, self.jwt) = (domain.to_owned(), jwt.to_owned());
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(ANSWER_WAIT_MAX).expect("the script answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    }

    fn call(&mut self, method: &str, arguments: &Value) -> Value {
        let call = json!(["keys", self.resource, method]);
        self.ask(&json!({"domain": self.domain, "token": self.jwt, "call": call, "arguments": arguments}))
    }

    fn data(&mut self, method: &str, arguments: &Value) -> Value {
        let mut answer = self.call(method, arguments);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["data"].take()
    }

    fn error(&mut self, method: &str, arguments: &Value) -> Value {
        let mut answer = self.call(method, arguments);
        assert!(answer.get("error").is_some(), "{method}: {answer}");
        answer["error"].take()
    }

    /// Rotates, again after each 409's Retry-After until it is granted.
    fn rotate_when_allowed(&mut self) -> Value {
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        loop {
            let mut answer = self.call("rotate", &json!([]));
            if answer.get("error").is_none() {
                assert_eq!(answer["status"], 201, "{answer}");
                return answer["data"].take();
            }
            let wait = answer["error"]["headers"]["retry-after"].as_str().and_then(|secs| secs.parse().ok());
            let wait = Duration::from_secs(wait.unwrap_or_else(|| panic!("no time to try again: {answer}")));
            assert!(Instant::now() + wait < deadline, "not in {ANSWER_WAIT_MAX:?}: {answer}");
            std::thread::sleep(wait);
        }
    }
}

impl Drop for Auth0 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
