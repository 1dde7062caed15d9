//! What holds of the lines, whoever comes and whatever they bring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::lines::{Because, Lines, Refused};
use super::{Limits, SignJob, Signatures};
use crate::domain::{Algorithm, ObjectId};
use crate::token::{KeyRef, SignInput};

const LIMITS: Limits = Limits { depth_max: 12, wait_max: Duration::from_millis(50), workers: 2 };
/// Tenants are numbers; this one is the service itself.
const SERVICE: u8 = 0;

/// The lines, and what is known of each job that came to them.
struct World {
    lines: Lines,
    now: Instant,
    next: u64,
    /// Those that wait, with owner and cost.
    waiting: BTreeMap<u64, (u8, Duration)>,
    callers: BTreeMap<u64, oneshot::Receiver<Signatures>>,
    taken: Vec<SignJob>,
    /// The latest that each owner had taken.
    latest: BTreeMap<u8, u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Come { owner: u8, costs_ms: Vec<u16>, patience_ms: u16 },
    Take,
    PutBack,
    Leave(prop::sample::Index),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..5, prop::collection::vec(1_u16..20, 1..5), 1_u16..400)
            .prop_map(|(owner, costs_ms, patience_ms)| Step::Come { owner, costs_ms, patience_ms }),
        5 => Just(Step::Take),
        1 => Just(Step::PutBack),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => (1_u16..100).prop_map(Step::Pass),
    ]
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            lines: Lines::new(limits),
            now: Instant::now(),
            next: 0,
            waiting: BTreeMap::new(),
            callers: BTreeMap::new(),
            taken: Vec::new(),
            latest: BTreeMap::new(),
        }
    }

    /// Jobs of these costs come together. Returns the ids of those that had to go.
    fn come(&mut self, owner: u8, costs: &[Duration], patience: Duration) -> Result<Vec<u64>, Refused> {
        let tenant = (owner != SERVICE).then(|| format!("tenant-{owner}").parse().unwrap());
        let key = KeyRef { object: ObjectId::new([owner; 16]), algorithm: Algorithm::ES256, public: None, tenant };
        let (key, mut jobs, mut callers) = (Arc::new(key), Vec::new(), Vec::new());
        for cost in costs {
            let (answer, caller) = oneshot::channel();
            let inputs = vec![SignInput::Message(self.next.to_be_bytes().to_vec())];
            let deadline = self.now + patience;
            let (key, pushed, given_away) = (Arc::clone(&key), self.now, false);
            jobs.push(SignJob {
                key,
                inputs,
                deadline,
                cost: *cost,
                pushed,
                beside: Duration::ZERO,
                given_away,
                answer,
            });
            callers.push((self.next, caller));
            self.next += 1;
        }
        let displaced = self.lines.admit(jobs, self.now)?;
        for ((id, caller), cost) in callers.into_iter().zip(costs) {
            self.waiting.insert(id, (owner, *cost));
            self.callers.insert(id, caller);
        }
        let displaced: Vec<u64> = displaced.iter().map(id).collect();
        for id in &displaced {
            let (owner, _) = self.waiting.remove(id).unwrap();
            assert_ne!(owner, SERVICE, "what is the service's own goes for nobody");
        }
        Ok(displaced)
    }

    /// The next job, and whose it is.
    fn take(&mut self) -> Option<(u8, Duration)> {
        let taken = self.lines.take(self.now);
        for late in &taken.late {
            assert!(self.now >= late.deadline);
            self.waiting.remove(&id(late)).unwrap();
        }
        // Those whose callers have left were passed over without a word.
        let Some(job) = taken.job else {
            let left = |id: &u64| !self.callers.contains_key(id);
            assert!(self.waiting.keys().all(left), "nothing was given out, and {:?} wait", self.waiting);
            self.waiting.clear();
            return None;
        };
        let number = id(&job);
        let (owner, cost) = self.waiting.remove(&number).unwrap();
        assert!(self.now < job.deadline && !job.answer.is_closed());
        assert!(self.latest.insert(owner, number).is_none_or(|before| before < number), "first come, first served");
        self.taken.push(job);
        Some((owner, cost))
    }

    fn put_back(&mut self) {
        // Only the latest of its line can be the next again.
        let Some(job) = self.taken.pop() else { return };
        let owner = job.key.object.octets()[0];
        if self.latest.get(&owner) != Some(&id(&job)) {
            return self.taken.push(job);
        }
        self.latest.remove(&owner);
        let (number, cost) = (id(&job), job.cost);
        self.lines.put_back(job);
        self.waiting.insert(number, (owner, cost));
    }

    fn leave(&mut self, who: prop::sample::Index) {
        if !self.callers.is_empty() {
            let id = *who.get(&self.callers.keys().copied().collect::<Vec<_>>());
            self.callers.remove(&id);
        }
    }
}

fn id(job: &SignJob) -> u64 {
    let [SignInput::Message(octets)] = &job.inputs[..] else { panic!("a job of this test has one message") };
    u64::from_be_bytes(octets.as_slice().try_into().unwrap())
}

fn ms(ms: u16) -> Duration {
    Duration::from_millis(ms.into())
}

proptest! {
    #[test]
    fn no_job_is_lost_or_given_out_twice_and_the_bounds_hold(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(LIMITS);
        let mut put_back = 0;
        for step in steps {
            match step {
                Step::Come { owner, costs_ms, patience_ms } => {
                    let costs: Vec<Duration> = costs_ms.into_iter().map(ms).collect();
                    let _ = world.come(owner, &costs, ms(patience_ms));
                }
                Step::Take => drop(world.take()),
                Step::PutBack => {
                    world.put_back();
                    put_back += 1;
                }
                Step::Leave(who) => world.leave(who),
                Step::Pass(time) => world.now += ms(time),
            }
            let (requests, waiting) = world.lines.waiting();
            // The service's own beside the tenants'.
            prop_assert!(requests <= 2 * LIMITS.depth_max + put_back);
            // Those whose callers have left may still be in line.
            let known: Duration = world.waiting.values().map(|(_, cost)| *cost).sum();
            prop_assert!(waiting <= known, "{waiting:?} in the lines, {known:?} came and did not go");
        }
        let rest: BTreeSet<u64> = world.lines.drain().iter().map(id).collect();
        for id in world.waiting.keys().filter(|id| world.callers.contains_key(id)) {
            prop_assert!(rest.contains(id), "{id} is lost");
        }
        prop_assert!(rest.iter().all(|id| world.waiting.contains_key(id)));
        prop_assert_eq!(world.lines.waiting(), (0, Duration::ZERO));
    }

    #[test]
    fn of_two_lines_with_work_neither_is_ahead_by_more_than_a_job_of_each(
        costs_ms in prop::collection::vec(1_u16..20, 2..6),
        absent in prop::collection::vec(0_usize..200, 6),
        takes in 1_usize..200,
    ) {
        let roomy = Limits { depth_max: 1000, wait_max: Duration::from_secs(3600), workers: 1 };
        let mut world = World::new(roomy);
        let owners: Vec<u8> = (0..).take(costs_ms.len()).collect();
        let cost_of = |owner: u8| ms(costs_ms[usize::from(owner)]);
        // What each has had since all of them are there: some come late, and have missed nothing.
        let mut had = vec![Duration::ZERO; owners.len()];
        let all_there = owners.iter().map(|owner| absent[usize::from(*owner)].min(takes / 2)).max().unwrap();
        for take in 0..takes {
            for owner in owners.iter().filter(|owner| take >= absent[usize::from(**owner)].min(takes / 2)) {
                world.come(*owner, &[cost_of(*owner)], Duration::from_secs(3600)).unwrap();
            }
            let Some((owner, cost)) = world.take().filter(|_| take >= all_there) else { continue };
            had[usize::from(owner)] += cost;
            for a in &owners {
                for b in &owners {
                    let (had_a, had_b) = (had[usize::from(*a)], had[usize::from(*b)]);
                    prop_assert!(had_a <= had_b + cost_of(*a) + cost_of(*b), "{had:?} of {costs_ms:?}");
                }
            }
        }
    }

    #[test]
    fn who_is_within_its_share_is_taken_on_however_much_others_send(
        flood_ms in prop::collection::vec(1_u16..20, 50..200),
        polite_ms in prop::collection::vec(1_u16..10, 1..4),
    ) {
        let mut world = World::new(LIMITS);
        let flood = |world: &mut World| {
            flood_ms.iter().filter(|cost| world.come(1, &[ms(**cost)], ms(10_000)).is_err()).count()
        };
        prop_assert!(flood(&mut world) > 0);
        for (owner, cost) in (2..).zip(polite_ms) {
            prop_assert!(world.come(owner, &[ms(cost)], ms(10_000)).is_ok());
            // Nobody who is polite goes for the flood, nor for another one.
            flood(&mut world);
            let polite = world.waiting.values().filter(|(waiting, _)| *waiting > 1).count();
            prop_assert_eq!(polite, usize::from(owner) - 1);
        }
        prop_assert!(world.come(SERVICE, &[ms(1)], ms(10_000)).is_ok());
    }
}

#[test]
fn a_tenant_alone_has_all_there_is_and_no_more() {
    let mut world = World::new(LIMITS);
    let refused = (0..20).find_map(|_| world.come(1, &[ms(10)], ms(10_000)).err()).unwrap();
    // Ten of 10 ms take two workers the 50 ms that may wait.
    assert_eq!((refused.because, refused.retry_after), (Because::Wait, ms(50)));
    assert_eq!(world.lines.waiting(), (10, ms(100)));
    // And by count, where they cost next to nothing.
    let mut world = World::new(LIMITS);
    let refused = (0..20).find_map(|_| world.come(1, &[Duration::from_nanos(1)], ms(10_000)).err()).unwrap();
    assert_eq!(refused.because, Because::Depth);
    assert_eq!(world.lines.waiting().0, LIMITS.depth_max);
}

#[test]
fn once_too_much_has_come_less_may_wait_until_it_has_passed() {
    let mut world = World::new(Limits { depth_max: 1000, ..LIMITS });
    // Those that are taken on, until some are refused.
    let flood = |world: &mut World, refusals: usize| {
        let (mut taken_on, mut refused) = (0, 0);
        while refused < refusals {
            let came = world.come(1, &[ms(1)], ms(10_000)).is_ok();
            (taken_on, refused) = (taken_on + usize::from(came), refused + usize::from(!came));
        }
        taken_on
    };
    assert_eq!(flood(&mut world, 1), 100);
    // An eighth of the bound, as long as it goes on.
    for _ in 0..80 {
        world.take().unwrap();
        assert_eq!(flood(&mut world, 1), 0);
    }
    for _ in 0..30 {
        world.take().unwrap();
        flood(&mut world, 10);
    }
    assert_eq!(world.lines.waiting(), (13, ms(13)));
    // Who is polite is taken on all the same, a small burst included, and nobody goes for it.
    for _ in 0..7 {
        assert!(world.come(2, &[ms(1)], ms(10_000)).unwrap().is_empty());
    }
    assert!(world.come(2, &[ms(1)], ms(10_000)).is_err());
    // Also when all was worked off while they drew breath.
    while world.take().is_some() {}
    assert_eq!(flood(&mut world, 1), 13);
    while world.take().is_some() {}
    assert_eq!(flood(&mut world, 20), 100);
    // But nobody draws breath for as long as may wait, whatever was refused.
    while world.take().is_some() {}
    flood(&mut world, 200);
    while world.take().is_some() {}
    world.now += LIMITS.wait_max;
    assert_eq!(flood(&mut world, 1), 100);
}

#[test]
fn of_several_floods_each_has_half_the_room_of_one() {
    let mut world = World::new(Limits { depth_max: 1000, ..LIMITS });
    let flood = |world: &mut World| {
        for _ in 0..60 {
            (1..=4).for_each(|tenant| drop(world.come(tenant, &[ms(1)], ms(10_000))));
        }
    };
    flood(&mut world);
    assert_eq!(world.lines.waiting().0, 100);
    for _ in 0..150 {
        world.take().unwrap();
        flood(&mut world);
    }
    assert_eq!(world.lines.waiting().0, 4 * 7);
}

#[test]
fn a_cheap_call_does_not_go_for_a_dear_one_that_may_wait() {
    let mut world = World::new(LIMITS);
    for _ in 0..5 {
        assert!(world.come(1, &[ms(200)], ms(10_000)).unwrap().is_empty());
        assert!(world.come(2, &[ms(1)], ms(10_000)).unwrap().is_empty());
    }
    // Nor do many cheap ones wait for longer because dear ones do.
    let mut world = World::new(Limits { depth_max: 1000, ..LIMITS });
    world.come(1, &[ms(200)], ms(10_000)).unwrap();
    assert_eq!((0..300).filter(|_| world.come(2, &[ms(1)], ms(10_000)).is_ok()).count(), 100);
}

#[test]
fn of_what_takes_long_three_for_each_worker_may_wait() {
    let fill = |world: &mut World, cost| (0..200).take_while(|_| world.come(1, &[cost], ms(10_000)).is_ok()).count();
    let mut world = World::new(LIMITS);
    assert_eq!(fill(&mut world, ms(9)), 12);
    // Where it is crowded, more than an eighth of the bound.
    for _ in 0..6 {
        world.take().unwrap();
    }
    assert_eq!((fill(&mut world, ms(9)), fill(&mut world, ms(9))), (0, 0));
    world.take().unwrap();
    assert_eq!(fill(&mut world, ms(9)), 1);
    // And more than the bound, where that is less.
    let mut world = World::new(LIMITS);
    assert_eq!(fill(&mut world, ms(200)), 6);
    // Who is quicker is taken on, for one of them: there are as many as may be.
    assert_eq!(world.come(2, &[ms(1)], ms(10_000)).unwrap().len(), 1);
}

#[test]
fn who_could_not_be_served_in_time_is_refused_at_once() {
    let mut world = World::new(LIMITS);
    world.come(1, &[ms(40)], ms(10_000)).unwrap();
    let refused = world.come(1, &[ms(1)], ms(19)).unwrap_err();
    assert_eq!((refused.because, refused.retry_after), (Because::Deadline, ms(20)));
    world.come(1, &[ms(1)], ms(21)).unwrap();
    // Of another line, it is the turn next.
    world.come(2, &[ms(1)], ms(1)).unwrap();
}

#[test]
fn what_is_late_costs_no_turn_and_is_told_so() {
    let mut world = World::new(LIMITS);
    world.come(1, &[ms(20)], ms(50)).unwrap();
    world.come(1, &[ms(1)], ms(10_000)).unwrap();
    world.come(2, &[ms(5)], ms(10_000)).unwrap();
    world.now += ms(60);
    let taken = world.lines.take(world.now);
    assert_eq!(taken.late.iter().map(id).collect::<Vec<_>>(), [0]);
    // Had it cost a turn, the other line would come before it.
    assert_eq!(taken.job.as_ref().map(id), Some(1));
}

#[test]
fn a_big_request_goes_for_nobody_small_and_gives_way_between_its_jobs() {
    let mut world = World::new(LIMITS);
    world.come(1, &[ms(20); 100], ms(10_000)).unwrap();
    world.take().unwrap();
    assert_eq!(world.come(2, &[ms(5)], ms(10_000)).unwrap(), Vec::<u64>::new());
    assert_eq!(world.take().unwrap(), (2, ms(5)));
    assert_eq!(world.take().unwrap(), (1, ms(20)));
    // Not because a worker could not do what it had of it, either.
    world.put_back();
    assert_eq!(world.come(2, &[ms(5)], ms(10_000)).unwrap(), Vec::<u64>::new());
    let mut owners = [world.take().unwrap().0, world.take().unwrap().0];
    owners.sort_unstable();
    assert_eq!(owners, [1, 2]);
    // A second one of the same tenant has to wait until there is room, and another's has its share.
    assert_eq!(world.come(1, &[ms(20); 100], ms(10_000)).unwrap_err().because, Because::Wait);
    world.come(3, &[ms(20); 100], ms(10_000)).unwrap();
    let owners: Vec<u8> = (0..4).map(|_| world.take().unwrap().0).collect();
    assert!(owners == [3, 1, 3, 1] || owners == [1, 3, 1, 3], "{owners:?}");
}

#[test]
fn a_line_that_was_worked_off_does_not_come_back_ahead_of_the_others() {
    let mut world = World::new(LIMITS);
    for _ in 0..3 {
        world.come(1, &[ms(10)], ms(10_000)).unwrap();
    }
    let mut owners = Vec::new();
    for _ in 0..4 {
        world.come(2, &[ms(10)], ms(10_000)).unwrap();
        owners.push(world.take().unwrap().0);
    }
    owners.sort_unstable();
    assert_eq!(owners, [1, 1, 2, 2], "one comes anew each time, and has no more of it");
}

#[test]
fn a_line_costs_memory_only_as_long_as_it_counts() {
    let mut world = World::new(Limits { depth_max: 1000, ..LIMITS });
    for owner in 1..=200 {
        world.come(owner, &[ms(1)], ms(10_000)).unwrap();
        world.take().unwrap();
        assert_eq!(world.lines.kept(), 0);
    }
    // While another waits, until the clock has passed them.
    for _ in 0..10 {
        world.come(255, &[ms(4)], ms(10_000)).unwrap();
    }
    for owner in 1..=200 {
        world.come(owner, &[ms(1)], ms(10_000)).unwrap();
        world.take().unwrap();
    }
    for _ in 0..4 {
        world.take().unwrap();
    }
    assert_eq!(world.lines.kept(), 1);
}
