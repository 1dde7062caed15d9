//! The one way to the handlers. A call is admitted in four steps, and told in one record:
//!
//! 1. `gate`, before its message is read: who calls? The connection was greeted, the header may have a JWT.
//! 2. [`Admission::call`]: may they do this, for this tenant? One row of [`crate::auth::methods`] says who may.
//! 3. A signature that could not be recorded is not begun.
//! 4. The handler. It has the keyrings from its [`Admitted`] and from nowhere else, so none can forget to ask.
//! 5. The record, before the answer.

mod gate;
mod messages;
mod served;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{door, status};
use crate::audit::CallLog;
use crate::auth::methods::{Access, Kind, Method};
use crate::auth::{Authenticated, Callers, Refusal};
use crate::domain::{Caller, Event, RequestId};
use crate::keyring::Keyrings;
pub(super) use gate::GateLayer;
use messages::{About, Answers, Asks};
use served::Served;

/// By what name a caller may call a call, for the record. Proxies set it too.
const REQUEST_ID: &str = "x-request-id";

/// What every call passes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Admission(Arc<Inner>);

struct Inner {
    keyrings: Arc<Keyrings>,
    callers: Callers,
    log: CallLog,
    served: Served,
}

/// A call that may be made.
pub(super) struct Admitted {
    /// Who makes it.
    pub(super) caller: Caller,
    /// When the caller stops waiting.
    pub(super) deadline: Instant,
    keyrings: Arc<Keyrings>,
}

impl Admitted {
    /// The use cases.
    pub(super) fn keyrings(&self) -> &Arc<Keyrings> {
        &self.keyrings
    }
}

impl Admission {
    pub(super) fn new(keyrings: Arc<Keyrings>, callers: Callers, log: CallLog) -> Self {
        Self(Arc::new(Inner { keyrings, callers, log, served: Served::default() }))
    }

    /// Answers a call by `handle`, if it may be made.
    pub(super) async fn call<Q, A, F>(
        &self,
        request: Request<Q>,
        handle: impl FnOnce(Admitted, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        Q: Asks,
        A: Answers,
        F: Future<Output = Result<A, Status>>,
    {
        let (metadata, mut extensions, message) = request.into_parts();
        let about = About::of(&message);
        // Not there if the call came past the gate: then nobody knows who calls, and that is nobody.
        let Some(authenticated) = extensions.remove::<Authenticated>() else {
            return Err(Refusal::NoCredentials.into());
        };
        let caller = Caller {
            principals: Arc::clone(&authenticated.principals),
            method: Q::METHOD.name,
            request_id: request_id(&message, &metadata),
        };
        if let Err(refusal) = may(&authenticated, Q::METHOD, message.tenant()) {
            let status = Status::from(refusal);
            self.record_failure(self.event(Q::METHOD, &caller, about), &status).await;
            return Err(status);
        }
        let signs = Q::METHOD.kind == Kind::Signature;
        if signs && let Err(unwritten) = self.0.log.ready() {
            return Err(status::unwritten(&unwritten));
        }
        let input_sha256 = message.input_sha256();
        let keyrings = Arc::clone(&self.0.keyrings);
        let admitted = Admitted { caller: caller.clone(), deadline: door::deadline(&metadata), keyrings };
        let outcome = handle(admitted, message).await;
        match outcome {
            Ok(answer) => {
                if signs {
                    let about = about.signed(&answer);
                    let signer = about.tenant.clone().zip(about.kid.clone());
                    let event = Event { input_sha256, ..self.event(Q::METHOD, &caller, about) };
                    self.0.log.record(event).await.map_err(|unwritten| status::unwritten(&unwritten))?;
                    if let Some((tenant, kid)) = signer {
                        self.0.keyrings.may_release(&tenant, &kid)?;
                    }
                }
                Ok(Response::new(answer))
            }
            Err(status) => {
                let event = Event { input_sha256, ..self.event(Q::METHOD, &caller, about) };
                self.record_failure(event, &status).await;
                Err(status)
            }
        }
    }

    fn event(&self, method: &Method, caller: &Caller, about: About) -> Event {
        let About { tenant, algorithm, kid } = about;
        Event { tenant, algorithm, kid, ..Event::new(self.0.keyrings.now(), method.action, caller) }
    }

    /// The answer stays what it is: the log tells by itself that it cannot be written.
    async fn record_failure(&self, event: Event, status: &Status) {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let detail = if event.detail.is_empty() { reason } else { format!("{reason} {}", event.detail) };
        let result = Cow::Borrowed(status::code_name(status.code()));
        let _ = self.0.log.record(Event { result, detail, ..event }).await;
    }
}

fn may(authenticated: &Authenticated, method: &Method, tenant: &str) -> Result<(), Refusal> {
    match method.access {
        Access::Roles(needs) => authenticated.allow(needs, tenant),
        Access::Open | Access::Authenticated => Ok(()),
    }
}

/// The request's own id where it has one, or the header's. What is none is passed over: it names nothing.
fn request_id(message: &impl Asks, metadata: &MetadataMap) -> Option<Arc<str>> {
    match message.request_id() {
        "" => request_id_in(metadata.as_ref()),
        id => valid(id),
    }
}

/// The one in the header alone, for calls whose message is not read.
fn request_id_in(headers: &HeaderMap) -> Option<Arc<str>> {
    headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).and_then(valid)
}

fn valid(id: &str) -> Option<Arc<str>> {
    id.parse::<RequestId>().ok().map(|id| Arc::from(id.as_str()))
}
