use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf as _;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

/// Octets of bodies that have not come to their end, of all calls of a listener. The clients decide how long these are kept,
/// so their sum is what must be bounded.
#[derive(Clone)]
pub(super) struct Budget(Arc<Spending>);

struct Spending {
    bytes_max: usize,
    bytes: AtomicUsize,
}

/// The calls of one connection, from the whole header to the head of the answer.
#[derive(Clone)]
pub(super) struct Calls(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    budget: Budget,
}

#[derive(Default)]
struct State {
    /// Begun, and not answered.
    under_way: usize,
    /// Those of which the body is still to come: the client holds these up.
    arriving: usize,
    /// When the latest one began or ended.
    latest: Option<Instant>,
}

/// A call, until it is dropped.
pub(super) struct Call(Calls);

/// The body of a call, which tells when it has come to its end.
pub(super) struct Arriving<B> {
    body: B,
    calls: Option<Calls>,
    /// What it has taken of the budget.
    bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Spending { bytes_max, bytes: AtomicUsize::new(0) }))
    }

    /// Takes so much of it, and says whether it was there. It is to be given back in any case.
    fn take(&self, bytes: usize) -> bool {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.0.bytes_max
    }

    fn give_back(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Calls {
    /// None yet.
    pub(super) fn new(budget: Budget) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), budget }))
    }

    pub(super) fn begin<B: Body>(&self, body: B) -> (Call, Arriving<B>) {
        let arriving = !body.is_end_stream();
        let mut state = self.state();
        state.under_way += 1;
        state.arriving += usize::from(arriving);
        state.latest = Some(Instant::now());
        drop(state);
        (Call(self.clone()), Arriving { body, calls: arriving.then(|| self.clone()), bytes: 0 })
    }

    /// Whether the service has something to do for this client.
    pub(super) fn are_under_way(&self) -> bool {
        self.state().is_busy()
    }

    /// When a call was last under way.
    pub(super) fn latest(&self) -> Option<Instant> {
        let state = self.state();
        if state.is_busy() { Some(Instant::now()) } else { state.latest }
    }

    /// Returns when no call has been under way for so long, counted from now at the earliest. It looks only when the time can
    /// have come: calls set no timer.
    pub(super) async fn rest(&self, limit: Duration) {
        let begun = Instant::now();
        let mut until = begun + limit;
        loop {
            sleep_until(until).await;
            until = self.latest().unwrap_or(begun).max(begun) + limit;
            if until <= Instant::now() {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values: nobody can leave them half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_busy(&self) -> bool {
        // An answer may come before the body has: then there are fewer calls than bodies.
        self.under_way > self.arriving
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.latest = Some(Instant::now());
    }
}

impl<B> Arriving<B> {
    fn arrived(&mut self) {
        if let Some(calls) = self.calls.take() {
            calls.state().arriving -= 1;
            calls.0.budget.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.arrived();
    }
}

impl<B: Body<Error: Error + Send + Sync + 'static> + Unpin> Body for Arriving<B> {
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context)).map(|frame| frame.map_err(Into::into));
        if let (Some(calls), Some(Ok(frame))) = (&self.calls, &frame) {
            let bytes = frame.data_ref().map_or(0, |data| data.remaining());
            let was_there = calls.0.budget.take(bytes);
            self.bytes += bytes;
            if !was_there {
                self.arrived();
                // The word of HTTP/2 for it, which gRPC knows as RESOURCE_EXHAUSTED.
                return Poll::Ready(Some(Err(h2::Error::from(Reason::ENHANCE_YOUR_CALM).into())));
            }
        }
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.arrived();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
