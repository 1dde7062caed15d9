use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{HeaderMap, Request, StatusCode};
use ureq::{Agent, AsSendBody, RequestExt as _};

/// An answer that takes longer hangs.
const ANSWER_WAIT_MAX_SECS: u64 = 30;

/// An HTTP answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no such JSON ({error}) in {self:?}"))
    }

    /// The names of the keys, of a JWKS.
    pub(crate) fn kids<C: FromIterator<String>>(&self) -> C {
        let jwks: Value = self.json();
        let keys = jwks["keys"].as_array().expect("a JWKS").iter();
        keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
    }

    /// A header's value; empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header in ASCII"))
    }
}

/// GET.
pub(crate) fn get(url: &str) -> Answer {
    send("GET", url, &[])
}

/// Any method without a body, with headers (`host` included) of the test's choosing. Blocks; redirects are not followed.
pub(crate) fn send(method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    run(method, url, headers, ())
}

/// The same with a body, whatever the method.
pub(crate) fn send_body(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    run(method, url, headers, body.to_vec())
}

/// GET of somebody who may not answer.
pub(crate) fn try_get(url: &str, wait_max: Duration) -> Option<Answer> {
    attempt("GET", url, &[], (), wait_max).ok()
}

fn run(method: &str, url: &str, headers: &[(&str, &str)], body: impl AsSendBody) -> Answer {
    let answer = attempt(method, url, headers, body, Duration::from_secs(ANSWER_WAIT_MAX_SECS));
    answer.unwrap_or_else(|error| panic!("{method} {url}: {error}"))
}

fn attempt(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: impl AsSendBody,
    wait_max: Duration,
) -> Result<Answer, ureq::Error> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).expect("a request that can be written");
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .allow_non_standard_methods(true)
        .proxy(None)
        .timeout_global(Some(wait_max))
        .build()
        .into();
    let mut answer = request.with_agent(&agent).run()?;
    let body = answer.body_mut().read_to_vec()?;
    Ok(Answer { status: answer.status(), headers: answer.headers().clone(), body })
}
