//! Which core does what.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The server's core and the load's; `None` where the machine has but one, and nothing is pinned.
pub(crate) struct Cores(Option<(usize, usize)>);

impl Cores {
    /// Takes the first two cores that this process may use, and puts the calling thread on the second.
    ///
    /// # Errors
    /// The system does not let the process choose.
    pub(crate) fn choose() -> Result<Self, String> {
        let allowed = sched_getaffinity(None).map_err(|error| format!("sched_getaffinity: {error}"))?;
        let mut numbers = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (Some(server), Some(load)) = (numbers.next(), numbers.next()) else {
            eprintln!("bench: one core only: nothing is pinned, and server and load take time from each other");
            return Ok(Self(None));
        };
        pin(load)?;
        Ok(Self(Some((server, load))))
    }

    /// Starts something on the server's core: a child inherits the core of the thread that starts it.
    ///
    /// # Errors
    /// The system does not let the process choose.
    pub(crate) fn on_servers<T>(&self, start: impl FnOnce() -> T) -> Result<T, String> {
        let Some((server, load)) = self.0 else { return Ok(start()) };
        pin(server)?;
        let started = start();
        pin(load)?;
        Ok(started)
    }

    pub(crate) fn describe(&self) -> String {
        match self.0 {
            Some((server, load)) => format!("server and raw loop on core {server}, load on core {load}"),
            None => "not pinned: the machine has one core".into(),
        }
    }
}

fn pin(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| format!("cannot run on core {core}: {error}"))
}
