//! Errors on the wire: the one place that knows gRPC codes.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::audit::Unwritten;
use crate::auth::{Refusal, Refused};
use crate::domain::Timestamp;
use crate::keyring::{Error, Part, Violation};

/// The domain of ErrorInfo.
const DOMAIN: &str = "keyward";

/// The pause that a caller is asked for when nobody knows how long something stays away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The least pause that a caller is asked for: a shorter one is none.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(1);

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.log_refusal();
        let (code, reason) = class(&error);
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, DOMAIN, HashMap::new());
        let message = match &error {
            Error::Invalid(violations) => {
                for Violation { field, problem } in violations {
                    details.add_bad_request_violation(field, problem);
                }
                let sentences = violations.iter().map(|violation| format!("{} {}", violation.field, violation.problem));
                sentences.collect::<Vec<_>>().join("; ")
            }
            Error::Precondition { message, retry_time, .. } => {
                details.add_precondition_failure_violation(reason, "", message);
                if let Some(time) = retry_time {
                    details.set_retry_info(Some(until(*time)));
                }
                message.clone()
            }
            Error::Limit { message, retry_time, .. } => {
                details.add_quota_failure_violation(reason, message);
                // What was told a moment ago may be now: that is no pause.
                details.set_retry_info(Some(retry_time.map_or(RETRY_PAUSE, until).max(RETRY_PAUSE_MIN)));
                message.clone()
            }
            Error::Unavailable { retry_after, .. } => {
                details.set_retry_info(Some(retry_after.unwrap_or(RETRY_PAUSE)));
                error.to_string()
            }
            Error::NotFound(_)
            | Error::AlreadyExists(_)
            | Error::Aborted(_)
            | Error::Quarantined { .. }
            | Error::DeadlineExceeded
            | Error::Internal(_) => error.to_string(),
        };
        Self::with_error_details(code, message, details)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = match refusal {
            Refusal::NoCredentials => (Code::Unauthenticated, "NO_CREDENTIALS"),
            Refusal::Certificate(_) => (Code::Unauthenticated, "CERTIFICATE_NAMES_NOBODY"),
            Refusal::Authorization => (Code::Unauthenticated, "AUTHORIZATION_MALFORMED"),
            Refusal::Jwt(Refused::KeysAway) => return away("JWKS_UNAVAILABLE", &refusal, RETRY_PAUSE),
            Refusal::Jwt(Refused::NotYet(pause)) => return away("JWKS_UNAVAILABLE", &refusal, pause),
            Refusal::Jwt(Refused::CannotTell) => return away("TENANT_QUARANTINED", &refusal, RETRY_PAUSE),
            Refusal::Jwt(Refused::UnknownKey | Refused::Signature | Refused::Audience | Refused::Wrong(_)) => {
                (Code::Unauthenticated, "JWT_REFUSED")
            }
            Refusal::Role(_) => (Code::PermissionDenied, "ROLE_MISSING"),
        };
        Self::with_error_details(
            code,
            refusal.to_string(),
            ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new()),
        )
    }
}

/// What cannot be recorded is not done.
pub(super) fn unwritten(unwritten: &Unwritten) -> Status {
    tracing::debug!(%unwritten, "refused");
    away("AUDIT_UNAVAILABLE", &"the audit log is not available at the moment", RETRY_PAUSE)
}

fn away(reason: &str, message: &dyn Display, pause: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(pause));
    Status::with_error_details(Code::Unavailable, message.to_string(), details)
}

/// A call of a method that is not served.
pub(super) fn unknown_method() -> Status {
    let details = ErrorDetails::with_error_info("METHOD_UNKNOWN", DOMAIN, HashMap::new());
    Status::with_error_details(Code::Unimplemented, "this service has no such method", details)
}

/// The name of a code, as google.rpc.Code has it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A request that no method saw.
pub(super) fn rejection(reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

fn class(error: &Error) -> (Code, &'static str) {
    match error {
        Error::Invalid(_) => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        Error::NotFound(_) => (Code::NotFound, "NOT_FOUND"),
        Error::AlreadyExists(_) => (Code::AlreadyExists, "ALREADY_EXISTS"),
        Error::Precondition { reason, .. } => (Code::FailedPrecondition, reason),
        Error::Aborted(_) => (Code::Aborted, "REVISION_CHANGED"),
        Error::Limit { reason, .. } => (Code::ResourceExhausted, reason),
        Error::Unavailable { part: Part::Token, .. } => (Code::Unavailable, "TOKEN_UNAVAILABLE"),
        Error::Unavailable { part: Part::Store, .. } => (Code::Unavailable, "STORE_UNAVAILABLE"),
        Error::Unavailable { part: Part::Snapshot, .. } => (Code::Unavailable, "SNAPSHOT_TOO_OLD"),
        Error::Unavailable { part: Part::Audit, .. } => (Code::Unavailable, "AUDIT_UNAVAILABLE"),
        Error::Unavailable { part: Part::Clock, .. } => (Code::Unavailable, "CLOCK_SKEW"),
        Error::Quarantined { .. } => (Code::FailedPrecondition, "TENANT_QUARANTINED"),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Error::Internal(_) => (Code::Internal, "INTERNAL"),
    }
}

fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}
