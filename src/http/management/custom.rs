use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::{Caller, Face, Problem};
use crate::keyring::{Error, Violation};

const READ: &str = "read:custom_signing_keys";
const CREATE: &str = "create:custom_signing_keys";
const UPDATE: &str = "update:custom_signing_keys";
const DELETE: &str = "delete:custom_signing_keys";

/// Longest body taken, in octets: more than the longest set, whose own limit then says what is wrong.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// How long a body may take to arrive.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);

/// What the use case calls its argument, which here is the body itself.
const FIELD: &str = "jwks_json";

/// GET keys/custom-signing.
pub(super) async fn get(State(face): State<Arc<Face>>, caller: Caller) -> Result<Response, Problem> {
    caller.needs(&[READ])?;
    let jwks = face.keyrings.custom_keys(&caller.tenant)?;
    let set: Value = serde_json::from_str(&jwks).map_err(|error| Error::Internal(error.to_string()))?;
    if set["keys"].as_array().is_none_or(Vec::is_empty) {
        let message = "the tenant has no custom keys; PUT keys/custom-signing sets them";
        return Err(Problem::new(StatusCode::NOT_FOUND, message));
    }
    Ok(json(jwks))
}

/// PUT keys/custom-signing: the whole set, or nothing.
pub(super) async fn set(State(face): State<Arc<Face>>, caller: Caller, body: Body) -> Result<Response, Problem> {
    caller.needs(&[CREATE, UPDATE])?;
    let jwks = read(body).await?;
    let published = face.keyrings.put_custom_keys(caller.tenant, &jwks).await.map_err(of_body)?;
    Ok(json(published))
}

/// DELETE keys/custom-signing: there are none afterwards, whatever there was.
pub(super) async fn delete(State(face): State<Arc<Face>>, caller: Caller) -> Result<StatusCode, Problem> {
    caller.needs(&[DELETE])?;
    face.keyrings.delete_custom_keys(caller.tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

async fn read(body: Body) -> Result<String, Problem> {
    let too_large = || {
        let message = format!("the body is longer than {BODY_BYTES_MAX} octets; a set has at most 10 keys");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let octets = tokio::time::timeout(BODY_WAIT_MAX, to_bytes(body, BODY_BYTES_MAX)).await;
    let octets = octets.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the body did not arrive within 30 s"))?;
    // The one other error, a connection that ended, is read by nobody.
    let octets = octets.map_err(|_| too_large())?;
    String::from_utf8(octets.into())
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the body must be JSON in UTF-8"))
}

/// The same, with what is wrong named as it stands in the body.
fn of_body(error: Error) -> Problem {
    let Error::Invalid(violations) = error else { return error.into() };
    let in_body = |Violation { field, problem }| {
        let member = field.strip_prefix(FIELD).map(|rest| rest.trim_start_matches('.')).unwrap_or(&field);
        Violation { field: if member.is_empty() { "the body" } else { member }.to_owned(), problem }
    };
    Error::Invalid(violations.into_iter().map(in_body).collect()).into()
}
