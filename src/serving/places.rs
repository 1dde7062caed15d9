use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long to wait before the next is asked for its place: one that is idle leaves within a millisecond, and one whose
/// client does not read, or whose call has just begun, must not be what the others wait for.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// The places of a listener. When all are taken, connections that wait for a call are asked for theirs, the one that has
/// been waiting longest first: as many clients as there are places, who only hold on to them, keep nobody out.
#[derive(Clone)]
pub(super) struct Places(Arc<State>);

struct State {
    count: usize,
    free: Arc<Semaphore>,
    wanted: Notify,
    leaving: AtomicUsize,
}

/// A connection that was asked for its place and is about to leave, until it is dropped.
pub(super) struct Leaving(Places);

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let free = Arc::new(Semaphore::new(count));
        Self(Arc::new(State { count, free, wanted: Notify::new(), leaving: AtomicUsize::new(0) }))
    }

    /// A place, as soon as there is one. The last is taken before anybody asks for it, so that who comes next finds it.
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.0.free).try_acquire_owned() {
            return place;
        }
        let mut taken = std::pin::pin!(Arc::clone(&self.0.free).acquire_owned());
        loop {
            // Half may be leaving at one time. The others came later, and the newest must have the time to bring a call.
            if self.0.leaving.load(Ordering::Relaxed) * 2 < self.0.count {
                self.ask();
            }
            if let Ok(place) = tokio::time::timeout(ASK_PAUSE, &mut taken).await {
                self.forget_the_question().await;
                return place.expect("the semaphore is never closed");
            }
        }
    }

    /// A question that nobody was there to hear must not be put to who comes next.
    async fn forget_the_question(&self) {
        tokio::select! {
            biased;
            () = self.0.wanted.notified() => {}
            () = std::future::ready(()) => {}
        }
    }

    /// Asks the next in the queue of those who wait in [`Places::wanted`].
    pub(super) fn ask(&self) {
        self.0.wanted.notify_one();
    }

    /// Waits to be asked for one's place; those who began to wait earlier are asked first.
    pub(super) async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Says that this connection gives up its place.
    pub(super) fn leave(&self) -> Leaving {
        self.0.leaving.fetch_add(1, Ordering::Relaxed);
        Leaving(self.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.0.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}
