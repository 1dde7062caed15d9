use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::body::Unread;
use super::{Caller, Face, Problem};
use crate::keyring::{Error, Violation};

const READ: &str = "read:custom_signing_keys";
const CREATE: &str = "create:custom_signing_keys";
const UPDATE: &str = "update:custom_signing_keys";
const DELETE: &str = "delete:custom_signing_keys";

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
pub(super) async fn set(
    State(face): State<Arc<Face>>,
    caller: Caller,
    Extension(body): Extension<Unread>,
) -> Result<Response, Problem> {
    caller.needs(&[CREATE, UPDATE])?;
    let jwks = body.text().await?;
    let by = caller.by("PUT /api/v2/keys/custom-signing");
    let published = face.keyrings.put_custom_keys(caller.tenant.clone(), &jwks, &by).await.map_err(of_body)?;
    Ok(json(published))
}

/// DELETE keys/custom-signing: there are none afterwards, whatever there was.
pub(super) async fn delete(State(face): State<Arc<Face>>, caller: Caller) -> Result<StatusCode, Problem> {
    caller.needs(&[DELETE])?;
    face.keyrings.delete_custom_keys(caller.tenant.clone(), &caller.by("DELETE /api/v2/keys/custom-signing")).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// The error with what is wrong named as it stands in the body.
fn of_body(error: Error) -> Problem {
    let Error::Invalid(violations) = error else { return error.into() };
    let in_body = |Violation { field, problem }| {
        let member = field.strip_prefix(FIELD).map(|rest| rest.trim_start_matches('.')).unwrap_or(&field);
        Violation { field: if member.is_empty() { "the body" } else { member }.to_owned(), problem }
    };
    Error::Invalid(violations.into_iter().map(in_body).collect()).into()
}
