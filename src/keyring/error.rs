use std::time::Duration;

use super::snapshot::Signer;
use crate::domain::{InvalidPolicy, Tenant, TenantId, Timestamp, after};
use crate::store::StoreError;
use crate::token::TokenError;

/// The pause that callers are asked for once the PIN was refused: an operator must act, and nothing comes by itself.
const PIN_REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Why a use case was not carried out: one variant for each thing that a caller can do about it.
///
/// Texts are for callers and hold nothing internal (R12); the causes in `Unavailable` and `Internal` are for the log alone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong: fix the fields and send it again.
    #[error("the request is wrong")]
    Invalid(Vec<Violation>),
    /// There is no such thing, or the caller may not know of it.
    #[error("{0}")]
    NotFound(String),
    /// Another tenant has this value.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is right, and the state is not: the text says what to do first.
    #[error("{message}")]
    Precondition {
        /// A fixed word for programs, such as `PUBLISH_LEAD`.
        reason: &'static str,
        /// What stands in the way, and the way out.
        message: String,
        /// When the same request becomes possible by itself, if that is known.
        retry_time: Option<Timestamp>,
    },
    /// Somebody else changed it first: read it again, and decide again.
    #[error("{0}")]
    Aborted(String),
    /// A limit is reached; later is better.
    #[error("{message}")]
    Limit {
        /// A fixed word for programs, such as `MANUAL_ROTATIONS_PER_DAY`.
        reason: &'static str,
        /// Which limit.
        message: String,
        /// How many there may be, where it is a number that the caller counts against.
        limit: Option<u32>,
        /// When there is room again, if that is known.
        retry_time: Option<Timestamp>,
    },
    /// Token, store or snapshot are not to be had at the moment: retry with a pause.
    #[error("{part} is not available at the moment")]
    Unavailable {
        /// Which part of the service.
        part: Part,
        /// For the log.
        cause: String,
        /// How long it will be so at least, if that is known.
        retry_after: Option<Duration>,
    },
    /// The tenant's record in the store is not to be believed (R15): an operator must restore it.
    #[error(
        "the tenant is quarantined: its record in the store is not to be believed, and nothing is signed, published or \
             changed for it until an operator has restored it; readiness and log say what is wrong"
    )]
    Quarantined {
        /// For the log.
        cause: String,
    },
    /// The caller's deadline, or the service's own, passed before the work was done.
    #[error("the deadline passed before the work could be done")]
    DeadlineExceeded,
    /// A bug, or a token that does not do what it says: an operator must look.
    #[error("internal error")]
    Internal(String),
}

/// A field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as the proto names it.
    pub field: String,
    /// What it must be; makes a sentence after the field's name.
    pub problem: String,
}

/// The parts of the service that can be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The PKCS#11 token.
    Token,
    /// The store.
    Store,
    /// The snapshot: it is too old to sign from (R10).
    Snapshot,
    /// The log of calls.
    Audit,
    /// A clock that is near enough to the other replicas'.
    Clock,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token => "the token",
            Self::Store => "the store",
            Self::Snapshot => "an up-to-date view of the store",
            Self::Audit => "the audit log",
            Self::Clock => "a clock that agrees with the other replicas'",
        })
    }
}

impl Error {
    /// One wrong field.
    pub fn invalid(field: &str, problem: impl ToString) -> Self {
        Self::Invalid(vec![Violation { field: field.to_owned(), problem: problem.to_string() }])
    }

    /// A part that is not to be had, nobody knows for how long.
    pub(crate) fn away(part: Part, cause: String) -> Self {
        Self::Unavailable { part, cause, retry_after: None }
    }

    /// The error with what only the log, and whoever starts the service, may know.
    #[must_use]
    pub fn for_log(&self) -> String {
        match self {
            Self::Unavailable { cause, .. } | Self::Quarantined { cause } | Self::Internal(cause) => {
                format!("{self}: {cause}")
            }
            _ => self.to_string(),
        }
    }

    /// Names the key in what only the operator is told: a key may fail where the token does not.
    pub(super) fn of_signer(mut self, signer: &Signer) -> Self {
        if let Self::Unavailable { cause, retry_after: None, .. } | Self::Internal(cause) = &mut self {
            let tenant = signer.key.tenant.as_ref().map_or("", |tenant| tenant.as_str());
            cause.push_str(&format!("; signing with key {} of tenant {tenant}", signer.kid));
        }
        self
    }

    /// Logs the refusal of a call, where a face handles it: what only the operator may know goes here and nowhere else.
    pub fn log_refusal(&self) {
        match self {
            // It was told when it went down, and callers come in thousands.
            Self::Unavailable { part, cause, retry_after: Some(_) } => {
                tracing::debug!(cause, "refused: {part} is not available");
            }
            Self::Unavailable { part, cause, retry_after: None } => {
                tracing::warn!(cause, "refused: {part} is not available");
            }
            Self::Quarantined { cause } => tracing::warn!(cause, "refused: the tenant is quarantined"),
            Self::Internal(cause) => tracing::error!(cause, "internal error"),
            Self::Invalid(_)
            | Self::NotFound(_)
            | Self::AlreadyExists(_)
            | Self::Precondition { .. }
            | Self::Aborted(_)
            | Self::Limit { .. }
            | Self::DeadlineExceeded => tracing::debug!(error = %self, "refused"),
        }
    }

    /// The algorithm is none of the tenant's.
    pub(super) fn not_of_tenant(tenant: &Tenant) -> Self {
        let names: Vec<&str> = tenant.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        Self::invalid("algorithm", format!("must be one of the tenant's: {}", names.join(", ")))
    }

    /// The tenant is not there, or not for this caller.
    #[must_use]
    pub fn no_tenant(id: &TenantId) -> Self {
        Self::NotFound(format!("there is no tenant {id} here; ListTenants shows those that there are"))
    }
}

impl From<TokenError> for Error {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::QueueFull { retry_after } => Self::Limit {
                reason: "TOKEN_QUEUE_FULL",
                message: "more signatures are asked for than the token makes; retry with a pause".to_owned(),
                limit: None,
                retry_time: Some(after(Timestamp::now(), retry_after)),
            },
            TokenError::Late => Self::DeadlineExceeded,
            TokenError::Unavailable(cause) => Self::away(Part::Token, cause),
            TokenError::Down { problem: cause, retry_after } => {
                Self::Unavailable { part: Part::Token, cause, retry_after: Some(retry_after) }
            }
            TokenError::PinRefused => {
                Self::Unavailable { part: Part::Token, cause: error.to_string(), retry_after: Some(PIN_REFUSED_PAUSE) }
            }
            TokenError::Unsupported(_) => Self::Precondition {
                reason: "TOKEN_MECHANISM",
                message:
                    "the token cannot generate or use a key of this algorithm and size; `keyward check` names what \
                          it lacks"
                        .to_owned(),
                retry_time: None,
            },
            TokenError::Mismatch(cause) => Self::Internal(cause),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Aborted("another change came first; read it again and retry".to_owned()),
            StoreError::Taken { field } => Self::AlreadyExists(format!("{field} is taken by another tenant")),
            StoreError::ReadOnly(_) | StoreError::Unavailable(_) | StoreError::Refused(_) | StoreError::Damaged(_) => {
                Self::away(Part::Store, error.to_string())
            }
            StoreError::Unsealed(_) => Self::away(Part::Token, error.to_string()),
            StoreError::Untrusted(cause) => Self::Quarantined { cause },
        }
    }
}

impl From<Vec<InvalidPolicy>> for Error {
    fn from(problems: Vec<InvalidPolicy>) -> Self {
        let violation =
            |InvalidPolicy { field, problem }| Violation { field: format!("tenant.rotation_policy.{field}"), problem };
        Self::Invalid(problems.into_iter().map(violation).collect())
    }
}
