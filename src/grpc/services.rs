use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::codegen::{Body, StdError};
use tonic::service::Routes;
use tower::Service;

use super::admission::Admission;
use super::proto::signing_service_server::{SERVICE_NAME, SigningServiceServer};
use super::{Answer, Answering};

/// All services. What issuers call thousands of times a second does not pass the router, which takes as long as the rest of the way
/// to the handler.
#[derive(Clone)]
pub(super) struct Services {
    signing: SigningServiceServer<Admission>,
    others: axum::Router,
}

impl Services {
    pub(super) fn new(signing: SigningServiceServer<Admission>, others: Routes) -> Self {
        // with_state prepares the routes: without it each connection would do so.
        Self { signing, others: others.into_axum_router().with_state(()) }
    }
}

impl<B> Service<http::Request<B>> for Services
where
    B: Body<Data = bytes::Bytes, Error: Into<StdError> + Send> + Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    /// Always.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answering {
        let path = request.uri().path();
        if path
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(SERVICE_NAME))
            .is_some_and(|rest| rest.starts_with('/'))
        {
            return self.signing.call(request);
        }
        // As tonic's own body, which keeps why a body was refused; axum's does not.
        let answering = self.others.call(request.map(tonic::body::Body::new));
        Box::pin(async move { Ok(answering.await?.map(tonic::body::Body::new)) })
    }
}
