//! Which core does what.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::load::Waiting;

/// The server's core and the load's; `None` where the machine has but one, and nothing is pinned.
pub(crate) struct Cores(Option<(usize, usize)>);

/// Where something is to run.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Server,
    Load,
    Both,
}

impl Cores {
    /// Takes the first two cores that this process may use, and puts the calling thread on the second.
    ///
    /// # Errors
    /// The system does not let the process choose.
    pub(crate) fn choose() -> Result<Self, String> {
        let allowed = sched_getaffinity(None).map_err(|error| format!("sched_getaffinity: {error}"))?;
        let mut numbers = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let cores = match (numbers.next(), numbers.next()) {
            (Some(server), Some(load)) => Self(Some((server, load))),
            _ => {
                eprintln!("bench: one core only: nothing is pinned, and server and load take time from each other");
                Self(None)
            }
        };
        cores.pin(Place::Load)?;
        Ok(cores)
    }

    /// Whether there are two.
    pub(crate) const fn are_two(&self) -> bool {
        self.0.is_some()
    }

    /// Starts something on the server's core: a child inherits the core of the thread that starts it.
    ///
    /// # Errors
    /// The system does not let the process choose.
    pub(crate) fn on_servers<T>(&self, start: impl FnOnce() -> T) -> Result<T, String> {
        self.within(Place::Server, start)
    }

    /// Does something there, and comes back to the load's core.
    ///
    /// # Errors
    /// The system does not let the process choose.
    pub(crate) fn within<T>(&self, place: Place, what: impl FnOnce() -> T) -> Result<T, String> {
        self.pin(place)?;
        let done = what();
        self.pin(Place::Load)?;
        Ok(done)
    }

    /// What a client does on the calling thread while it waits: on the load's core nobody else is to run.
    pub(crate) fn waiting(&self) -> Waiting {
        let is_on = |core| sched_getaffinity(None).is_ok_and(|set| set.count() == 1 && set.is_set(core));
        match self.0 {
            Some((_, load)) if is_on(load) => Waiting::Awake,
            _ => Waiting::Asleep,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self.0 {
            Some((server, load)) => format!("server and raw loop on core {server}, load on core {load}"),
            None => "not pinned: the machine has one core".into(),
        }
    }

    fn pin(&self, place: Place) -> Result<(), String> {
        let Some((server, load)) = self.0 else { return Ok(()) };
        let mut set = CpuSet::new();
        for core in match place {
            Place::Server => vec![server],
            Place::Load => vec![load],
            Place::Both => vec![server, load],
        } {
            set.set(core);
        }
        sched_setaffinity(None, &set).map_err(|error| format!("cannot choose a core of {server} and {load}: {error}"))
    }
}
