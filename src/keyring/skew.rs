//! How far this replica's clock is from the database's, by which all replicas can compare theirs.
//!
//! Between two answers of the database time goes on by the clock that nobody sets, so that a step of the other one shows at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Clock, Error, Keyrings, Part};
use crate::domain::{RotationPolicy, Tenant, Timestamp, after};

/// Within this a change is published by every replica that reaches the database: it looks once a second. It is taken from what
/// `clock_skew` allows, which covers both (R3).
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(1);

/// The least `clock_skew` that leaves room for both.
const CLOCK_SKEW_MIN: Duration = Duration::from_secs(2);

/// What clocks may be apart where a policy is from before the store was shared, and leaves no room.
const APART_MIN: Duration = CLOCK_SKEW_MIN.saturating_sub(TAKEN_UP_WITHIN);

/// What the database said of the time, if it was asked.
#[derive(Debug, Default)]
pub(super) struct SharedClock(Mutex<Option<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    shown: Timestamp,
    /// It was shown at some moment between these.
    asked: Instant,
    answered: Instant,
}

impl SharedClock {
    /// The clock showed this at some moment since it was asked.
    pub(super) fn note(&self, shown: Timestamp, asked: Instant) {
        let reading = Reading { shown, asked, answered: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }

    /// How far `clock` is from it at least: what an answer took on its way is no difference.
    fn apart(&self, clock: &Clock) -> Duration {
        let Some(Reading { shown, asked, answered }) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) else {
            return Duration::ZERO;
        };
        let before = Instant::now();
        let now = clock.now();
        let earliest = after(shown, before.saturating_duration_since(answered));
        let latest = after(shown, asked.elapsed());
        if now < earliest {
            earliest.duration_since(now).unsigned_abs()
        } else if now > latest {
            now.duration_since(latest).unsigned_abs()
        } else {
            Duration::ZERO
        }
    }
}

impl Keyrings {
    /// Sees that this replica's clock is near enough to the others' to plan for a tenant.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: another replica may do it.
    pub(super) fn check_clock(&self, tenant: &Tenant) -> Result<(), Error> {
        let apart = self.shared_clock.apart(&self.clock);
        if apart <= allowed(&tenant.policy) {
            return Ok(());
        }
        Err(Error::away(Part::Clock, too_far(apart, tenant)))
    }

    /// The same for all tenants, in words for the operator.
    pub(super) fn probe_clock(&self) -> Result<(), String> {
        let apart = self.shared_clock.apart(&self.clock);
        if apart <= APART_MIN {
            return Ok(());
        }
        let snapshot = self.snapshot();
        let tenants = snapshot.all().map(|view| &view.record.tenant);
        match tenants.min_by_key(|tenant| tenant.policy.clock_skew) {
            Some(strictest) if apart > allowed(&strictest.policy) => Err(too_far(apart, strictest)),
            _ => Ok(()),
        }
    }

    /// Refuses a policy that leaves no room for several replicas.
    pub(super) fn check_clock_skew(&self, policy: &RotationPolicy) -> Result<(), Error> {
        if self.settings.sole || policy.clock_skew >= CLOCK_SKEW_MIN {
            return Ok(());
        }
        let problem = format!(
            "must be at least {} s where replicas share the store: within it all of them publish a change",
            CLOCK_SKEW_MIN.as_secs()
        );
        Err(Error::invalid("tenant.rotation_policy.clock_skew", problem))
    }
}

fn allowed(policy: &RotationPolicy) -> Duration {
    policy.clock_skew.saturating_sub(TAKEN_UP_WITHIN).max(APART_MIN)
}

fn too_far(apart: Duration, tenant: &Tenant) -> String {
    format!(
        "this machine's clock is {:.1} s from the database's, and tenant {} allows {:.1} s (clock_skew, less the second that a \
         change takes to reach all replicas): keep both machines' clocks right, by NTP",
        apart.as_secs_f64(),
        tenant.id,
        allowed(&tenant.policy).as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn apart(clock: fn() -> Timestamp) -> Duration {
        let (shared, asked) = (SharedClock::default(), Instant::now());
        shared.note(Timestamp::now(), asked);
        shared.apart(&Clock::new(clock))
    }

    #[test]
    fn clocks_are_as_far_apart_as_they_show_in_both_directions() {
        let near = |apart: Duration, expected: Duration| apart.abs_diff(expected) < Duration::from_secs(1);
        let (ahead, behind) = (apart(|| Timestamp::now() + MINUTE), apart(|| Timestamp::now() - MINUTE));
        assert!(near(ahead, MINUTE) && near(behind, MINUTE), "{ahead:?} {behind:?}");
        assert_eq!(SharedClock::default().apart(&Clock::new(|| Timestamp::MIN)), Duration::ZERO, "nobody was asked");
    }

    #[test]
    fn an_answer_that_was_long_on_its_way_says_nothing_against_a_clock() {
        let shared = SharedClock::default();
        let asked = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine is up for longer");
        // At any moment of those ten seconds the clock may have shown it.
        for ago in [0, 5, 10] {
            shared.note(Timestamp::now() - Duration::from_secs(ago), asked);
            assert_eq!(shared.apart(&Clock::system()), Duration::ZERO, "{ago} s");
        }
        shared.note(Timestamp::now() - Duration::from_secs(14), asked);
        let apart = shared.apart(&Clock::system());
        assert!(apart > Duration::from_secs(3) && apart < Duration::from_secs(5), "{apart:?}");
    }
}
