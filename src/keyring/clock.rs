use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::domain::Timestamp;

/// The wall clock, which remembers the latest time that it ever showed.
///
/// A key that signed under a clock that was ahead has made JWTs that live until then plus `max_token_ttl`, whatever the
/// clock says afterwards; [`Clock::latest`] is what their retention counts from (R4).
#[derive(Clone)]
pub struct Clock {
    source: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    latest_micros: Arc<AtomicI64>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Timestamp::now)
    }

    /// A clock that shows what `source` says.
    pub fn new(source: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { source: Arc::new(source), latest_micros: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    /// The time, in microseconds: what the store and the wire keep.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let micros = (self.source)().as_microsecond();
        self.latest_micros.fetch_max(micros, Ordering::Relaxed);
        timestamp(micros)
    }

    /// The latest time that [`Clock::now`] has shown.
    #[must_use]
    pub fn latest(&self) -> Timestamp {
        timestamp(self.latest_micros.load(Ordering::Relaxed))
    }
}

fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MIN)
}
