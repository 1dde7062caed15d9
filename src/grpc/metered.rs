use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use metrics::{Counter, Histogram};
use tonic::Code;
use tower::{Layer, Service};

use super::door;
use super::status::code_name;
use super::{Answer, Answering, OPEN_MESSAGE_BYTES_MAX};
use crate::auth::methods::{self, METHODS};

/// Counts each call by method and code, and says in words why the transport turned one away. The outermost layer: it sees what
/// the caller is told.
#[derive(Clone)]
pub(super) struct MeteredLayer(Arc<Meters>);

#[derive(Clone)]
pub(super) struct Metered<S> {
    meters: Arc<Meters>,
    inner: S,
}

struct Meters {
    message_bytes_max: usize,
    /// One for each row of the methods' table, and one for all else.
    methods: Vec<Meter>,
}

/// What is counted of one method. The handles are kept: no label is looked at while calls are made.
struct Meter {
    method: &'static str,
    duration: Histogram,
    /// By the number of the code. Made at the first call that ends so: most methods end in few ways.
    codes: [OnceLock<Counter>; CODES],
}

/// The codes of gRPC, OK to UNAUTHENTICATED.
const CODES: usize = 17;

impl MeteredLayer {
    pub(super) fn new(message_bytes_max: usize) -> Self {
        let names = METHODS.iter().map(|method| method.name).chain(["unknown"]);
        Self(Arc::new(Meters { message_bytes_max, methods: names.map(Meter::new).collect() }))
    }
}

impl<S> Layer<S> for MeteredLayer {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Metered<S> {
        Metered { meters: Arc::clone(&self.0), inner }
    }
}

impl<S, B> Service<http::Request<B>> for Metered<S>
where
    S: Service<http::Request<B>, Response = Answer, Error = Infallible, Future = Answering>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Counted;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let begun = Instant::now();
        let method = methods::position(request.uri().path()).unwrap_or(METHODS.len());
        let own = request.uri().path().starts_with("/keyward.");
        let message_bytes_max = if own { self.meters.message_bytes_max } else { OPEN_MESSAGE_BYTES_MAX };
        let answering = self.inner.call(request);
        Counted { answering, meters: Arc::clone(&self.meters), method, begun, message_bytes_max }
    }
}

/// A call that is counted when it has been answered.
pub(super) struct Counted {
    answering: Answering,
    meters: Arc<Meters>,
    method: usize,
    begun: Instant,
    message_bytes_max: usize,
}

impl Future for Counted {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(answer) = ready!(self.answering.as_mut().poll(context));
        let answer = door::explain_rejection(answer, self.message_bytes_max);
        self.meters.methods[self.method].count(answer.headers(), self.begun);
        Poll::Ready(Ok(answer))
    }
}

impl Meter {
    fn new(method: &'static str) -> Self {
        let method = method.trim_start_matches('/');
        let duration = metrics::histogram!("keyward_call_duration_seconds", "method" => method);
        Self { method, duration, codes: [const { OnceLock::new() }; CODES] }
    }

    /// A call that has been answered. A code in the head ends a call; without it the call went well so far, which is to the
    /// end for all but streams.
    fn count(&self, headers: &http::HeaderMap, begun: Instant) {
        let code = headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        let counter = self.codes[code as usize].get_or_init(
            || metrics::counter!("keyward_calls_total", "method" => self.method, "code" => code_name(code)),
        );
        counter.increment(1);
        self.duration.record(begun.elapsed().as_secs_f64());
    }
}
