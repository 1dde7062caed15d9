//! How a server is while it has too much to do: its memory, and whether its health is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::Server;
use crate::common::http::get;
use crate::processes::memory_kib;

const INTERVAL: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Default)]
pub(crate) struct Watched {
    /// Requests to `/healthz`, and how many of them were answered with 200.
    pub(crate) asked: usize,
    pub(crate) healthy: usize,
    /// The slowest answer.
    pub(crate) slowest: Duration,
    /// Most memory that the server held.
    pub(crate) memory_peak_kib: u64,
}

/// A thread that looks ten times a second.
pub(crate) struct Watch {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Watched>,
}

impl Watch {
    pub(crate) fn begin(server: &Server) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (ended, pid, url) = (Arc::clone(&ending), server.pid(), format!("{}/healthz", server.ops()));
        let thread = thread::spawn(move || {
            let mut watched = Watched::default();
            while !ended.load(Ordering::Relaxed) {
                watched.look(pid, &url);
                thread::sleep(INTERVAL);
            }
            watched
        });
        Self { ending, thread }
    }

    /// # Errors
    /// A request for `/healthz` was not answered at all.
    pub(crate) fn end(self) -> Result<Watched, String> {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "/healthz was not answered".to_owned())
    }
}

impl Watched {
    fn look(&mut self, pid: u32, url: &str) {
        let begun = Instant::now();
        self.asked += 1;
        self.healthy += usize::from(get(url).status == 200);
        self.slowest = self.slowest.max(begun.elapsed());
        self.memory_peak_kib = self.memory_peak_kib.max(memory_kib(pid));
    }
}
