use std::sync::Arc;

use axum::Json;
use axum::extract::{RawPathParams, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::json;

use super::{Caller, Face, Problem};
use crate::domain::{Algorithm, KeyState, Kid, SigningKey, Timestamp, Trigger};
use crate::keyring::{Error, ListKeys, Listed, ListedState, RotateKeys};
use crate::x509;

const READ: &str = "read:signing_keys";
const CREATE: &str = "create:signing_keys";
const UPDATE: &str = "update:signing_keys";

/// Keys in one answer: those in use, and then what was revoked last. Years of rotations are for `KeyService` and its pages.
const LISTED_MAX: usize = 100;

/// A signing key as Auth0's clients know it. What is not known is not there; HS256 has nothing that a certificate says.
#[derive(Serialize)]
struct Key {
    kid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pkcs7: Option<String>,
    current: bool,
    next: bool,
    previous: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thumbprint: Option<String>,
    revoked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
}

/// The key that a change was about.
#[derive(Serialize)]
struct Changed {
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
    kid: String,
}

/// GET keys/signing: the keyring of the default algorithm, or of `?algorithm=`, so that one key is current.
pub(super) async fn list(State(face): State<Arc<Face>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    caller.needs(&[READ])?;
    let algorithm = algorithm_of(&uri)?;
    let default = || {
        let snapshot = face.keyrings.snapshot();
        snapshot.tenant(&caller.tenant).map(|view| view.record.tenant.default_algorithm)
    };
    let list = ListKeys {
        tenant: caller.tenant.clone(),
        algorithm: algorithm.or_else(default),
        states: [KeyState::Next, KeyState::Current, KeyState::Previous, KeyState::Revoked, KeyState::Destroyed]
            .map(ListedState::Key)
            .to_vec(),
        // All of one keyring, oldest first: the newest are wanted.
        page_size: usize::MAX - 1,
        after: None,
    };
    let mut keys = face.keyrings.list_keys(&list)?.keys;
    keys.reverse();
    keys.sort_by_key(rank);
    keys.truncate(LISTED_MAX);
    let keys: Vec<Key> = keys.into_iter().filter_map(|listed| listed.key).map(Key::new).collect();
    Ok(Json(keys).into_response())
}

/// GET keys/signing/{kid}: a key of any algorithm, in any state.
pub(super) async fn one(
    State(face): State<Arc<Face>>,
    caller: Caller,
    path: RawPathParams,
) -> Result<Response, Problem> {
    caller.needs(&[READ])?;
    let listed = face.keyrings.key(&caller.tenant, &kid_of(&path)?).map_err(of_key)?;
    let key = listed.key.map(Key::new).ok_or_else(no_key)?;
    Ok(Json(key).into_response())
}

/// POST keys/signing/rotate. Never forced: who must break R3 uses RotateSigningKey, where it has to be said.
pub(super) async fn rotate(State(face): State<Arc<Face>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    caller.needs(&[CREATE, UPDATE])?;
    let request = RotateKeys {
        tenant: caller.tenant.clone(),
        algorithm: algorithm_of(&uri)?,
        trigger: Trigger { manual: true, ..Trigger::default() },
    };
    let rotated =
        face.keyrings.rotate(request, &caller.by("POST /api/v2/keys/signing/rotate")).await.map_err(of_rotation)?;
    let Some(next) = rotated.next.and_then(changed) else {
        // No 5xx: clients ask again after one by themselves, and the rotation took place.
        let message =
            "the keys were rotated; the new next key is not generated yet, and keys/signing shows it once it is";
        return Ok((StatusCode::ACCEPTED, Json(json!({ "message": message }))).into_response());
    };
    Ok((StatusCode::CREATED, Json(next)).into_response())
}

/// PUT keys/signing/{kid}/revoke.
pub(super) async fn revoke(
    State(face): State<Arc<Face>>,
    caller: Caller,
    path: RawPathParams,
) -> Result<Response, Problem> {
    caller.needs(&[UPDATE])?;
    let by = caller.by("PUT /api/v2/keys/signing/{kid}/revoke");
    let listed = face.keyrings.revoke(caller.tenant.clone(), kid_of(&path)?, &by).await.map_err(of_revocation)?;
    Ok(Json(changed(listed).ok_or_else(no_key)?).into_response())
}

impl Key {
    fn new(key: SigningKey) -> Self {
        let certificate = key.certificate.as_ref();
        Self {
            current: key.state == KeyState::Current,
            next: key.state == KeyState::Next,
            previous: key.state == KeyState::Previous,
            revoked: key.revoke_time.is_some(),
            current_since: key.activate_time.map(rfc3339),
            current_until: key.retire_time.map(rfc3339),
            revoked_at: key.revoke_time.map(rfc3339),
            cert: certificate.map(x509::pem),
            pkcs7: certificate.map(x509::pkcs7_pem),
            fingerprint: certificate.map(x509::fingerprint),
            thumbprint: certificate.map(x509::thumbprint),
            kid: key.kid.into(),
        }
    }
}

fn changed(listed: Listed) -> Option<Changed> {
    let key = listed.key?;
    Some(Changed { cert: key.certificate.as_ref().map(x509::pem), kid: key.kid.into() })
}

/// Current, next, previous, and then the others.
fn rank(listed: &Listed) -> u8 {
    match listed.state {
        ListedState::Key(KeyState::Current) => 0,
        ListedState::Key(KeyState::Next) => 1,
        ListedState::Key(KeyState::Previous) => 2,
        ListedState::Key(KeyState::Revoked | KeyState::Destroyed) | ListedState::Pending | ListedState::Abandoned => 3,
    }
}

/// In milliseconds, as clients of this API have always been given times.
fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// `?algorithm=`, once and with the name of an algorithm; other parameters are for other servers.
fn algorithm_of(uri: &Uri) -> Result<Option<Algorithm>, Problem> {
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let mut given = query.filter(|(name, _)| name == "algorithm").map(|(_, value)| value);
    let Some(name) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Error::invalid("algorithm", "must be given once").into());
    }
    name.parse().map(Some).map_err(|problem| Error::invalid("algorithm", problem).into())
}

/// What is no kid is the kid of no key.
fn kid_of(path: &RawPathParams) -> Result<Kid, Problem> {
    let kid = path.iter().find(|(name, _)| *name == "kid").and_then(|(_, text)| text.parse().ok());
    kid.ok_or_else(no_key)
}

fn no_key() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "the tenant has no key of this kid; GET keys/signing lists those that it has")
}

// The use cases tell ways out by the names of RPCs and their fields; here they are told by what this API has.

fn of_key(error: Error) -> Problem {
    match error {
        Error::NotFound(_) => no_key(),
        other => other.into(),
    }
}

fn of_revocation(error: Error) -> Problem {
    match error {
        Error::Precondition { reason: reason @ "KEY_IN_USE", retry_time, .. } => {
            let message = "the key is current or next, and only a previous key can be revoked: POST keys/signing/rotate \
                           first, twice for the next key";
            Error::Precondition { reason, message: message.to_owned(), retry_time }.into()
        }
        other => of_key(other),
    }
}

fn of_rotation(error: Error) -> Problem {
    match error {
        Error::Precondition { reason: reason @ "PUBLISH_LEAD", retry_time: Some(time), .. } => {
            let message = format!(
                "verifiers may not know the next key yet: rotation becomes possible at {time}, when it has been \
                 published for publish_lead; a forced rotation is possible by gRPC alone"
            );
            Error::Precondition { reason, message, retry_time: Some(time) }.into()
        }
        other => other.into(),
    }
}
