//! How those who serve and those who sign share a core, where a token in software computes on it (docs/decisions/0031).
//!
//! A thread that is woken takes the core from whoever has it, as a rule: so each call that arrives breaks off the signature that is
//! being made, which then goes on with cold caches. While tokens compute much, a thread that serves waits until whoever has the core
//! rests. In turn, who signs lets others have the core where answers are handed over.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use preempt_rt::sched::{Pid, RtResult, Scheduler, SchedulerParams, get_scheduler, set_scheduler};
use tokio::runtime::Builder;

use super::locked;

/// How often it is looked at whether tokens compute much.
const WINDOW: Duration = Duration::from_millis(100);

/// Parts of one core's time from which on it is much, and below which it is not any more: breaking off costs the token time, too. Of
/// one core, however many there are, for somebody may have given Keyward no more.
const MUCH_PERCENT: u32 = 25;
const LITTLE_PERCENT: u32 = 15;

/// Nanoseconds of processor time that the tokens' calls had since it was looked at: of all tokens, in this process and in its workers.
static COMPUTED: AtomicU64 = AtomicU64::new(0);

/// Of the process, as its threads and its cores are.
static LOAD: LazyLock<Mutex<Load>> = LazyLock::new(|| Mutex::new(Load { since: Instant::now(), is_much: false }));

/// The policy that the process was started with.
static CHOSEN: OnceLock<Option<Scheduler>> = OnceLock::new();

/// Has the threads of a runtime give way to tokens that compute.
pub fn share_cores(runtime: &mut Builder) -> &mut Builder {
    runtime.on_thread_start(begin).on_thread_park(give_way)
}

/// A token's calls had the processor for so long.
pub(super) fn computed(busy: Duration) {
    COMPUTED.fetch_add(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// A new thread has the policy of the one that started it, which may be giving way, and hands it on to worker processes. The first is
/// started by one that never gives way.
fn begin() {
    if is_free() {
        let _ = change(Scheduler::SCHED_BATCH, Scheduler::SCHED_NORMAL);
    }
}

/// Whether nobody chose another policy for this process.
fn is_free() -> bool {
    let chosen = CHOSEN.get_or_init(|| get_scheduler(Pid::current_thread()).ok());
    *chosen == Some(Scheduler::SCHED_NORMAL)
}

/// For a thread that serves, before it rests: what it does when it is woken.
fn give_way() {
    thread_local!(static GIVES_WAY: Cell<bool> = const { Cell::new(false) });
    static TOLD: Once = Once::new();
    if !is_free() {
        return;
    }
    let gives_way = locked(&LOAD).look(Instant::now(), || Duration::from_nanos(COMPUTED.swap(0, Ordering::Relaxed)));
    if GIVES_WAY.replace(gives_way) != gives_way
        && let Err(error) = follow(gives_way)
    {
        TOLD.call_once(|| {
            tracing::info!(%error, "threads cannot choose how they are scheduled: calls that arrive break off signatures");
        });
    }
}

/// With SCHED_BATCH a thread that is woken takes the core from nobody.
fn follow(gives_way: bool) -> RtResult<()> {
    let (usual, giving_way) = (Scheduler::SCHED_NORMAL, Scheduler::SCHED_BATCH);
    if gives_way { change(usual, giving_way) } else { change(giving_way, usual) }
}

fn change(from: Scheduler, to: Scheduler) -> RtResult<()> {
    let this = Pid::current_thread();
    if get_scheduler(this)? == from {
        set_scheduler(this, to, SchedulerParams { priority: 0 })?;
    }
    Ok(())
}

/// What tokens take of the cores.
struct Load {
    since: Instant,
    is_much: bool,
}

impl Load {
    /// Whether it is much; `computed` tells, and takes, what there was since it was asked for the last time.
    fn look(&mut self, now: Instant, computed: impl FnOnce() -> Duration) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            let percent = if self.is_much { LITTLE_PERCENT } else { MUCH_PERCENT };
            self.is_much = computed().saturating_mul(100) >= elapsed * percent;
            self.since = now;
        }
        self.is_much
    }
}

/// What a thread that signs shows others.
#[derive(Default)]
pub(super) struct Courtesy {
    /// How many times it got the core back late, one after the other.
    late: u32,
    keeps_until: Option<Instant>,
}

impl Courtesy {
    /// A burst of answers is served in less. Who has the core for longer, so many times, computes on it, and would get most of it from one
    /// who lets it go again and again: then it is kept for a while.
    const SERVED: Duration = Duration::from_millis(1);
    const LATE_MAX: u32 = 3;
    const KEEPS: Duration = Duration::from_secs(1);

    /// Lets others have the core: a thread that gives way does not take it by itself, and there are answers for it.
    pub(super) fn let_others_go_on(&mut self) {
        let begun = Instant::now();
        if self.keeps_until.is_some_and(|until| begun < until) {
            return;
        }
        thread::yield_now();
        self.is_back(begun, Instant::now());
    }

    fn is_back(&mut self, begun: Instant, now: Instant) {
        self.late = if now - begun > Self::SERVED { self.late + 1 } else { 0 };
        self.keeps_until = (self.late >= Self::LATE_MAX).then(|| now + Self::KEEPS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_and_those_that_it_starts_do_not() {
        let policies = || {
            let policy = || get_scheduler(Pid::current_thread()).expect("it is there");
            follow(true).expect("anybody may");
            let giving_way = policy();
            let of_another = move || {
                begin();
                policy()
            };
            let others = thread::spawn(of_another).join().expect("no panic");
            follow(false).expect("anybody may");
            (giving_way, others, policy())
        };
        assert!(is_free(), "tests are run without a policy of their own");
        let policies = thread::spawn(policies).join().expect("no panic");
        assert_eq!(policies, (Scheduler::SCHED_BATCH, Scheduler::SCHED_NORMAL, Scheduler::SCHED_NORMAL));
    }

    #[test]
    fn much_begins_with_a_quarter_of_a_core_and_ends_where_tokens_compute_less() {
        let start = Instant::now();
        let mut load = Load { since: start, is_much: false };
        let mut now = start;
        let mut after = |millis: u64, computed: u64| {
            now += Duration::from_millis(millis);
            load.look(now, || Duration::from_millis(computed))
        };
        assert!(!after(100, 24));
        assert!(!after(99, 99), "the time is not over");
        assert!(after(1, 25));
        assert!(after(100, 15) && after(100, 200));
        assert!(!after(100, 14));
        assert!(after(100, 30));
        assert!(!after(3_600_000, 60_000), "a quiet hour");
    }

    #[test]
    fn who_gets_the_core_back_late_again_and_again_keeps_it_for_a_while() {
        let (begun, late, soon) = (Instant::now(), Duration::from_millis(4), Duration::from_micros(300));
        let mut courtesy = Courtesy::default();
        let mut kept_after = |took| {
            courtesy.is_back(begun, begun + took);
            courtesy.keeps_until
        };
        assert_eq!([late, late, soon, late, late].map(&mut kept_after), [None; 5]);
        assert_eq!(kept_after(late), Some(begun + late + Courtesy::KEEPS));
        assert_eq!(kept_after(soon), None);
    }
}
