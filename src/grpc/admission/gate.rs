use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, header};
use tonic::Status;
use tower::{Layer, Service};

use super::super::{Answer, Answering, status};
use super::{Admission, request_id_in};
use crate::auth::methods::{self, Access, Method};
use crate::auth::{Authenticated, Presented, Refusal, Shown};
use crate::domain::{Caller, Event};
use crate::serving::{Greeter, Peer, Proof};

/// Puts a [`Gate`] before a service.
#[derive(Clone)]
pub(in crate::grpc) struct GateLayer(pub(in crate::grpc) Admission);

/// Lets through calls of methods that have a row, from callers who show who they are: what they send is not read before.
#[derive(Clone)]
pub(in crate::grpc) struct Gate<S> {
    admission: Admission,
    inner: S,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { admission: self.0.clone(), inner }
    }
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = Answer, Error = Infallible, Future = Answering> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let Some(method) = methods::find(request.uri().path()) else {
            return Box::pin(async { Ok(status::unknown_method().into_http()) });
        };
        if method.access == Access::Open {
            return self.inner.call(request);
        }
        let shown = request.extensions_mut().remove::<Shown>().unwrap_or_default();
        match self.admission.authenticate(&shown, request.headers()) {
            Ok(authenticated) => {
                request.extensions_mut().insert(authenticated);
                self.inner.call(request)
            }
            Err(refusal) => {
                // The inner service that is ready goes with the call, as tower wants it.
                let next = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, next);
                let admission = self.admission.clone();
                let headers = request.headers().clone();
                Box::pin(async move {
                    match admission.second_look(&shown, &headers, refusal, method).await {
                        Ok(authenticated) => {
                            request.extensions_mut().insert(authenticated);
                            inner.call(request).await
                        }
                        Err(status) => Ok(status.into_http()),
                    }
                })
            }
        }
    }
}

impl Admission {
    fn authenticate(&self, shown: &Shown, headers: &HeaderMap) -> Result<Authenticated, Refusal> {
        let keyrings = &self.0.keyrings;
        let whose = |thumbprint: &_| self.0.served.whose(thumbprint, &keyrings.snapshot());
        self.0.callers.authenticate(shown, presented(headers), keyrings.now(), whose)
    }

    /// A key that is unknown may be a new one. What is refused for good is recorded.
    async fn second_look(
        &self,
        shown: &Shown,
        headers: &HeaderMap,
        mut refusal: Refusal,
        method: &'static Method,
    ) -> Result<Authenticated, Status> {
        if self.0.callers.can_look_again(refusal) {
            let looked = self.0.callers.look_again().await;
            match looked.and_then(|()| self.authenticate(shown, headers)) {
                Ok(authenticated) => return Ok(authenticated),
                Err(again) => refusal = again,
            }
        }
        let status = Status::from(refusal);
        let caller = Caller { principals: shown.principals(), method: method.name, request_id: request_id_in(headers) };
        let detail = shown.address.map_or_else(String::new, |address: SocketAddr| format!("from {address}"));
        let event = Event { detail, ..Event::new(self.0.keyrings.now(), method.action, &caller) };
        self.record_failure(event, &status).await;
        Err(status)
    }
}

/// The JWT in the header (RFC 6750 section 2.1).
fn presented(headers: &HeaderMap) -> Presented<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    let (value, more) = (values.next(), values.next());
    let Some(value) = value else { return Presented::Nothing };
    let credentials = value.to_str().ok().filter(|_| more.is_none()).and_then(|value| value.split_once(' '));
    match credentials {
        Some((scheme, jwt)) if scheme.eq_ignore_ascii_case("bearer") && is_token68(jwt) => Presented::Jwt(jwt),
        _ => Presented::Malformed,
    }
}

/// RFC 9110 section 11.2, without the padding that no JWT has.
fn is_token68(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

impl Greeter for Admission {
    fn greet(&self, peer: &Peer, extensions: &mut http::Extensions) {
        let callers = &self.0.callers;
        let shown = match &peer.proof {
            Proof::None => callers.nobody(peer.address),
            Proof::Certificate(der) => callers.certificate(der, peer.address),
            Proof::UnixUser { uid } => callers.user(*uid),
        };
        extensions.insert(shown);
    }

    fn refused(&self, address: SocketAddr, reason: &'static str) {
        let caller = Caller { principals: Arc::from([]), method: "TLS handshake", request_id: None };
        let event = Event::new(self.0.keyrings.now(), "connect", &caller);
        let result = Cow::Borrowed(status::code_name(tonic::Code::Unauthenticated));
        self.0.log.record_soon(Event { result, detail: format!("{reason} from {address}"), ..event });
    }
}
