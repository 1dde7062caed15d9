//! Errors of the Management API: the one place that makes its status codes.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::domain::Timestamp;
use crate::keyring::{Error, Violation};

/// The pause that a caller is asked for when nobody knows how long something stays away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// An answer that is no success: {statusCode, error, message}.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    headers: Vec<(HeaderName, String)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), headers: Vec::new() }
    }

    /// No JWT at all: the challenge says what is wanted, and no error (RFC 6750 section 3.1).
    pub(super) fn unauthenticated() -> Self {
        let message = "this API is for callers with a JWT: send it as Authorization: Bearer";
        Self::new(StatusCode::UNAUTHORIZED, message).with(header::WWW_AUTHENTICATE, r#"Bearer realm="keyward""#)
    }

    /// A JWT that is not believed.
    pub(super) fn invalid_token(reason: &str) -> Self {
        let challenge = format!(r#"Bearer realm="keyward", error="invalid_token", error_description="{reason}""#);
        Self::new(StatusCode::UNAUTHORIZED, reason).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// A client certificate that proves nobody.
    pub(super) fn certificate(reason: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, reason).with(header::WWW_AUTHENTICATE, r#"Bearer realm="keyward""#)
    }

    /// A request that tells in no proper way who makes it.
    pub(super) fn invalid_request(reason: &str) -> Self {
        let challenge = format!(r#"Bearer realm="keyward", error="invalid_request", error_description="{reason}""#);
        Self::new(StatusCode::BAD_REQUEST, reason).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// A JWT that does not allow the call.
    pub(super) fn insufficient_scope(needed: &[&str]) -> Self {
        let scope = needed.join(" ");
        let challenge = format!(r#"Bearer realm="keyward", error="insufficient_scope", scope="{scope}""#);
        let message = format!("the scope of the JWT must hold {}", needed.join(" and "));
        Self::new(StatusCode::FORBIDDEN, message).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// Who calls cannot be told yet.
    pub(super) fn away(reason: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason).retry_after(RETRY_PAUSE)
    }

    fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn retry_after(self, pause: Duration) -> Self {
        let secs = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        self.with(header::RETRY_AFTER, secs.max(1).to_string())
    }

    /// What Auth0's clients read of a limit; Reset is in seconds since 1970.
    fn over_limit(self, limit: u32, reset: Timestamp) -> Self {
        let secs = reset.as_second() + i64::from(reset.subsec_nanosecond() > 0);
        self.with(HeaderName::from_static("x-ratelimit-limit"), limit.to_string())
            .with(HeaderName::from_static("x-ratelimit-remaining"), "0")
            .with(HeaderName::from_static("x-ratelimit-reset"), secs.to_string())
            .retry_after(until(reset))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        error.log_refusal();
        let text = error.to_string();
        match error {
            Error::Invalid(violations) => Self::new(StatusCode::BAD_REQUEST, sentences(&violations)),
            Error::NotFound(message) => Self::new(StatusCode::NOT_FOUND, message),
            // 409 and not 429, which clients answer by asking again unasked: what is too early today needs a decision.
            Error::Precondition { message, retry_time, .. } => {
                let problem = Self::new(StatusCode::CONFLICT, message);
                match retry_time {
                    Some(time) => problem.retry_after(until(time)),
                    None => problem,
                }
            }
            Error::AlreadyExists(message) | Error::Aborted(message) => Self::new(StatusCode::CONFLICT, message),
            Error::Limit { message, limit: Some(limit), retry_time, .. } => {
                let reset = retry_time.unwrap_or_else(|| crate::domain::after(Timestamp::now(), RETRY_PAUSE));
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).over_limit(limit, reset)
            }
            // No limit of the caller's, but a service that is full.
            Error::Limit { message, limit: None, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_PAUSE)
            }
            Error::Unavailable { retry_after, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(retry_after.unwrap_or(RETRY_PAUSE))
            }
            Error::DeadlineExceeded => Self::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(RETRY_PAUSE),
            Error::Quarantined { .. } => Self::new(StatusCode::CONFLICT, text),
            Error::Internal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "statusCode": self.status.as_u16(),
            "error": self.status.canonical_reason().unwrap_or("Error"),
            "message": self.message,
        });
        let mut response = (self.status, Json(body)).into_response();
        for (name, value) in self.headers {
            response.headers_mut().insert(name, HeaderValue::from_str(&value).expect("made of visible ASCII"));
        }
        response
    }
}

fn sentences(violations: &[Violation]) -> String {
    let sentences = violations.iter().map(|violation| format!("{} {}", violation.field, violation.problem));
    sentences.collect::<Vec<_>>().join("; ")
}

fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}
