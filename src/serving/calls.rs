use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use http::Request;
use http_body::Body;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::arriving::Arriving;
use super::bounds::{Bounds, CALL_BYTES, FIELD_BYTES};
use super::budget::Budget;

/// The calls of one connection, from the whole header to the head of the answer, and to the end of what the client sends.
#[derive(Clone)]
pub(super) struct Calls(Arc<Shared>);

/// What a connection holds.
pub(super) struct Shared {
    number: u64,
    address: Option<SocketAddr>,
    bytes_max: usize,
    body_max: Duration,
    budget: Budget,
    state: Mutex<State>,
    cut: CancellationToken,
}

#[derive(Default)]
struct State {
    /// Begun, and not answered.
    under_way: usize,
    /// The bodies that are still to come, the oldest first: the client holds these up.
    arriving: BTreeMap<u64, Held>,
    begun: u64,
    /// What they hold together.
    bytes: usize,
    /// When the latest call began or ended.
    latest: Option<Instant>,
    /// What it held was given back already: there is no more to take.
    is_cut: bool,
    /// A line in the log for each connection, not for each call of it.
    is_told: bool,
}

/// A call of which the end has not come.
struct Held {
    since: Instant,
    bytes: usize,
    is_late: bool,
    waker: Option<Waker>,
}

/// A call, until it is dropped.
pub(super) struct Call(Calls);

/// A body that may not go on.
#[derive(Debug)]
pub(super) struct Refused;

impl Calls {
    /// None yet.
    pub(super) fn new(budget: Budget, bounds: &Bounds, address: Option<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            number: budget.number(),
            address,
            bytes_max: bounds.connection_bytes_max,
            body_max: bounds.body_max,
            budget,
            state: Mutex::default(),
            cut: CancellationToken::new(),
        });
        shared.budget.enter(shared.number, Arc::downgrade(&shared));
        Self(shared)
    }

    /// A call with its header; it counts until its body has come to its end.
    pub(super) fn begin<B: Body>(&self, request: Request<B>) -> (Call, Request<Arriving<B>>) {
        let now = Instant::now();
        let (parts, body) = request.into_parts();
        let mut state = self.0.state();
        state.under_way += 1;
        state.latest = Some(now);
        let call = Call(self.clone());
        if body.is_end_stream() {
            return (call, Request::from_parts(parts, Arriving::whole(body)));
        }
        let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
        let bytes = CALL_BYTES + parts.uri.path().len() + fields.sum::<usize>();
        state.begun += 1;
        let number = state.begun;
        state.arriving.insert(number, Held { since: now, bytes: 0, is_late: false, waker: None });
        drop(state);
        let body = match self.came(number, bytes) {
            Ok(()) => Arriving::of(body, self.clone(), number),
            Err(Refused) => {
                self.arrived(number);
                Arriving::refused(body)
            }
        };
        (call, Request::from_parts(parts, body))
    }

    /// So much of a call came. Whether it may go on.
    pub(super) fn came(&self, number: u64, bytes: usize) -> Result<(), Refused> {
        let mut state = self.0.state();
        if state.is_cut || state.is_late(number) {
            return Err(Refused);
        }
        if state.bytes + bytes > self.0.bytes_max {
            self.0.tell(&mut state, "share");
            return Err(Refused);
        }
        state.bytes += bytes;
        if let Some(held) = state.arriving.get_mut(&number) {
            held.bytes += bytes;
        }
        let was_there = self.0.budget.take(bytes);
        drop(state);
        if !was_there {
            self.0.budget.make_room();
        }
        Ok(())
    }

    /// A body waits for what its client sends. Whether it may go on.
    pub(super) fn waits(&self, number: u64, waker: &Waker) -> Result<(), Refused> {
        let mut state = self.0.state();
        match state.arriving.get_mut(&number) {
            Some(held) if held.is_late => Err(Refused),
            Some(held) => {
                match &mut held.waker {
                    Some(kept) => kept.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Nothing more of this call comes.
    pub(super) fn arrived(&self, number: u64) {
        let mut state = self.0.state();
        let Some(held) = state.arriving.remove(&number) else { return };
        if !state.is_cut {
            state.bytes -= held.bytes;
            self.0.budget.give_back(held.bytes);
        }
    }

    /// Gives up bodies that do not come to their end in time, and returns when the connection is to be cut at once. It looks
    /// only when the time can have come: calls set no timer.
    pub(super) async fn cut(&self) {
        let hurry = async {
            loop {
                let next = self.give_up_late();
                sleep_until(next).await;
            }
        };
        tokio::select! {
            () = self.0.cut.cancelled() => {}
            () = hurry => {}
        }
    }

    /// And says when the next can be late.
    fn give_up_late(&self) -> Instant {
        let mut state = self.0.state();
        let now = Instant::now();
        let (mut late, mut next) = (Vec::new(), now + self.0.body_max);
        for held in state.arriving.values_mut().filter(|held| !held.is_late) {
            if held.since + self.0.body_max > now {
                next = held.since + self.0.body_max;
                break;
            }
            held.is_late = true;
            late.extend(held.waker.take());
            self.0.budget.count("slow");
        }
        if !late.is_empty() && !state.is_told {
            state.is_told = true;
            self.0.log("calls without an end are given up");
        }
        drop(state);
        late.into_iter().for_each(Waker::wake);
        next
    }

    /// Whether the service has something to do for this client.
    pub(super) fn are_under_way(&self) -> bool {
        self.0.state().is_busy()
    }

    /// When a call was last under way.
    pub(super) fn latest(&self) -> Option<Instant> {
        let state = self.0.state();
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
}

impl Shared {
    /// What it holds, in octets, by how long, in milliseconds.
    pub(super) fn held_for(&self) -> u128 {
        let state = self.state();
        let of = |held: &Held| held.bytes as u128 * (held.since.elapsed().as_millis() + 1);
        if state.is_cut { 0 } else { state.arriving.values().map(of).sum() }
    }

    /// Lets it hold no more.
    pub(super) fn cut(&self) {
        let mut state = self.state();
        if !state.is_cut {
            state.is_cut = true;
            self.budget.give_back(std::mem::take(&mut state.bytes));
            self.budget.count("budget");
            self.log("the listener is full of calls without an end: the connection that holds most for longest is cut");
            self.cut.cancel();
        }
    }

    fn tell(&self, state: &mut State, reason: &'static str) {
        self.budget.count(reason);
        if !state.is_told {
            state.is_told = true;
            self.log("a connection holds too much of calls without an end: more of them are refused");
        }
    }

    fn log(&self, what: &'static str) {
        let client = self.address.map(|address| address.to_string()).unwrap_or_default();
        tracing::warn!(listener = self.budget.listener(), client, "{what}");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values: nobody can leave them half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.budget.leave(self.number);
    }
}

impl State {
    fn is_busy(&self) -> bool {
        // An answer may come before the body has: then there are fewer calls than bodies.
        self.under_way > self.arriving.len()
    }

    fn is_late(&self, number: u64) -> bool {
        self.arriving.get(&number).is_some_and(|held| held.is_late)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.0.state();
        state.under_way -= 1;
        state.latest = Some(Instant::now());
    }
}
