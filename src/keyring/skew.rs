//! How far this replica's clock is from the database's, by which all replicas can compare theirs.
//!
//! Between two answers of the database time goes on by the clock that nobody sets, so that a step of the other one shows at once.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use super::{Clock, Error, Keyrings, Part};
use crate::domain::{RotationPolicy, Tenant, Timestamp};

/// Within this a change is published by every replica that reaches the database: it looks once a second. It is taken from what
/// `clock_skew` allows, which covers both (R3).
pub(super) const TAKEN_UP_WITHIN: Duration = Duration::from_secs(2);

/// The least `clock_skew` of tenants in a store that replicas share, for there to be room for clocks, too.
pub const CLOCK_SKEW_MIN: Duration = Duration::from_secs(3);

/// How often the database is asked, and so when a clock that was set right is believed again.
const LOOK: Duration = Duration::from_secs(1);

/// What the database said of the time, if it was asked: how far its clock was ahead of that of this process, at least and at most.
#[derive(Debug)]
pub(super) struct SharedClock {
    started: Instant,
    at_least: AtomicI64,
    at_most: AtomicI64,
}

/// Nobody was asked.
const UNKNOWN: i64 = i64::MIN;

impl SharedClock {
    pub(super) fn unknown() -> Self {
        Self { started: Instant::now(), at_least: AtomicI64::new(UNKNOWN), at_most: AtomicI64::new(UNKNOWN) }
    }

    /// The clock showed this at some moment since it was asked.
    pub(super) fn note(&self, shown: Timestamp, asked: Instant) {
        let shown = shown.as_microsecond();
        self.at_least.store(shown - self.micros(Instant::now()), Ordering::Relaxed);
        self.at_most.store(shown - self.micros(asked), Ordering::Relaxed);
    }

    /// This time, or that of the shared clock if it is later.
    pub(super) fn not_before(&self, now: Timestamp) -> Timestamp {
        match self.at_least.load(Ordering::Relaxed) {
            UNKNOWN => now,
            at_least => {
                let shared = Timestamp::from_microsecond(self.micros(Instant::now()).saturating_add(at_least));
                shared.map_or(now, |shared| shared.max(now))
            }
        }
    }

    /// How far `clock` is from it at least: what an answer took on its way is no difference.
    fn apart(&self, clock: &Clock) -> Duration {
        let (at_least, at_most) = (self.at_least.load(Ordering::Relaxed), self.at_most.load(Ordering::Relaxed));
        if at_least == UNKNOWN || at_most == UNKNOWN {
            return Duration::ZERO;
        }
        let before = self.micros(Instant::now());
        let now = clock.now().as_microsecond();
        let after = self.micros(Instant::now());
        let behind = (before + at_least).saturating_sub(now);
        let ahead = now.saturating_sub(after + at_most);
        Duration::from_micros(u64::try_from(behind.max(ahead)).unwrap_or_default())
    }

    fn micros(&self, at: Instant) -> i64 {
        // What is before the start is a matter of tests.
        let since = at.saturating_duration_since(self.started).as_micros();
        let before = self.started.saturating_duration_since(at).as_micros();
        i64::try_from(since).unwrap_or(i64::MAX / 4) - i64::try_from(before).unwrap_or(i64::MAX / 4)
    }
}

impl Keyrings {
    /// Sees that this replica's clock is near enough to the others' to plan for a tenant, or to say until when a JWT of its may live.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: another replica may do it.
    pub(super) fn check_clock(&self, tenant: &Tenant) -> Result<(), Error> {
        let apart = self.shared_clock.apart(&self.clock);
        if apart <= allowed(tenant.policy.clock_skew) {
            return Ok(());
        }
        // Health tells it; callers come in thousands.
        Err(Error::Unavailable { part: Part::Clock, cause: too_far(apart, tenant), retry_after: Some(LOOK) })
    }

    /// The same for all tenants, in words for the operator.
    pub(super) fn probe_clock(&self) -> Result<(), String> {
        let apart = self.shared_clock.apart(&self.clock);
        if apart <= allowed(CLOCK_SKEW_MIN) {
            return Ok(());
        }
        let snapshot = self.snapshot();
        let tenants = snapshot.all().map(|view| &view.record.tenant);
        match tenants.min_by_key(|tenant| tenant.policy.clock_skew) {
            Some(strictest) if apart > allowed(strictest.policy.clock_skew) => Err(too_far(apart, strictest)),
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

/// How far a replica's clock may be from the database's, so that two of them, one ahead and one behind, and a change on its way are
/// within `clock_skew`. A tenant with less than the least is from before the store was shared.
fn allowed(clock_skew: Duration) -> Duration {
    (clock_skew.max(CLOCK_SKEW_MIN) - TAKEN_UP_WITHIN) / 2
}

fn too_far(apart: Duration, tenant: &Tenant) -> String {
    format!(
        "this machine's clock is {:.1} s from the database's, and tenant {} allows {:.1} s (half of clock_skew, less the {} s that \
         a change may take to reach all replicas): keep both machines' clocks right, by NTP, or raise its clock_skew",
        apart.as_secs_f64(),
        tenant.id,
        allowed(tenant.policy.clock_skew).as_secs_f64(),
        TAKEN_UP_WITHIN.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn apart(clock: fn() -> Timestamp) -> Duration {
        let (shared, asked) = (SharedClock::unknown(), Instant::now());
        shared.note(Timestamp::now(), asked);
        shared.apart(&Clock::new(clock))
    }

    #[test]
    fn two_clocks_and_a_change_on_its_way_are_within_clock_skew() {
        for secs in [3, 4, 60, 3600] {
            let clock_skew = Duration::from_secs(secs);
            assert!(2 * allowed(clock_skew) + TAKEN_UP_WITHIN <= clock_skew, "{secs}");
        }
    }

    #[test]
    fn clocks_are_as_far_apart_as_they_show_in_both_directions() {
        let near = |apart: Duration, expected: Duration| apart.abs_diff(expected) < Duration::from_secs(1);
        let (ahead, behind) = (apart(|| Timestamp::now() + MINUTE), apart(|| Timestamp::now() - MINUTE));
        assert!(near(ahead, MINUTE) && near(behind, MINUTE), "{ahead:?} {behind:?}");
        assert_eq!(SharedClock::unknown().apart(&Clock::new(|| Timestamp::MIN)), Duration::ZERO, "nobody was asked");
    }

    #[test]
    fn an_answer_that_was_long_on_its_way_says_nothing_against_a_clock() {
        let shared = SharedClock::unknown();
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
