//! Who waits, and whose turn it is: start-time fair queueing over token time (Goyal, Vin and Cheng, 1996), with bounds. Knows no
//! clock, no lock and no worker.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::line::{Line, Request};
use super::{Limits, SignJob};
use crate::domain::TenantId;
use crate::token::KeyRef;

/// A line's part of the bound where it was reached: what waits longer was not a burst.
const CROWDED_PART: u32 = 8;

/// As many calls for each worker may wait in any case, and as many for all together, however long they take: what waits now and then
/// at 70 % load, where nothing is to be refused (of the queues M/D/1 and M/D/2, some one in a hundred calls finds as many before it).
const WORKER_CALLS_MIN: u32 = 3;
const CALLS_MIN: u32 = 6;

/// The lines, one for each tenant and one for the service's own jobs.
///
/// *Turns.* A line's turn is how much token time it has had, on a clock that all lines share. The line whose turn is earliest is
/// served; a line that comes back begins where the clock stands, or where it left if that is later. So of two lines with work
/// neither is ahead by more than a job of each, whatever their jobs cost and however many they are; and a line alone has all.
///
/// *Bounds.* So much token time may wait as the workers do in `wait_max`, or some calls of each where those take longer, and so many
/// requests as `depth_max`: each request counts for what it costs, and at least for its part of the depth. Beyond that the longest
/// line pays: its newest request goes for a newcomer whose line is shorter. What a line has but one of is left to it, or big
/// requests would go at every small one; so more may wait than the bound, as long as the newcomer's own turn comes within it.
/// Else the newcomer is refused. The service's own line is bounded by depth alone, and nothing of it goes for others.
///
/// *Crowded.* The bound is for bursts. Once it was reached, a line alone has an eighth of it, and each of several a sixteenth: where
/// more comes than the workers do, long lines serve nobody better, and all wait longer. It ends when nothing of tenants waits, unless
/// more was refused than done since that was so the last time: then somebody only drew breath, for at most `wait_max`.
#[derive(Debug)]
pub(super) struct Lines {
    limits: Limits,
    /// The service's own line, while it is there.
    own: Option<LineId>,
    tenants: HashMap<TenantId, LineId>,
    lines: HashMap<LineId, Line>,
    /// Lines with work, by their turns.
    turns: BTreeSet<(Duration, LineId)>,
    /// Lines of tenants with work, by their load.
    longest: BTreeSet<(Duration, LineId)>,
    /// Lines without work that the clock has not reached. They are forgotten when it has.
    drained: BTreeSet<(Duration, LineId)>,
    /// The turn of the line that was served last.
    clock: Duration,
    /// Of all lines.
    waiting: Duration,
    /// Of tenants' lines.
    load: Duration,
    /// Of tenants' lines.
    requests: usize,
    /// Whether the bound was reached, and it has not ended since.
    crowded: bool,
    /// Since when it is known that tenants' lines are empty.
    empty_since: Option<Instant>,
    /// Since tenants' lines were empty: jobs of theirs that were given out, and requests that were refused or had to go.
    done: usize,
    refused: usize,
    next_id: u64,
}

/// Names a line for as long as it is there; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct LineId(u64);

/// Why a request is not taken on, and when what waits before it will have been worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) because: Because,
    pub(super) retry_after: Duration,
}

/// What stood in a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// As many requests wait as may.
    Depth,
    /// As much token time waits as may.
    Wait,
    /// Its turn would come too late for its caller.
    Deadline,
    /// It was waiting in the longest line when the bound was reached.
    Displaced,
}

impl Because {
    /// For metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Depth => "depth",
            Self::Wait => "wait",
            Self::Deadline => "deadline",
            Self::Displaced => "displaced",
        }
    }
}

/// The next job, and those that were passed over because they are late.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) job: Option<SignJob>,
    pub(super) late: Vec<SignJob>,
}

impl Lines {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            own: None,
            tenants: HashMap::new(),
            lines: HashMap::new(),
            turns: BTreeSet::new(),
            longest: BTreeSet::new(),
            drained: BTreeSet::new(),
            clock: Duration::ZERO,
            waiting: Duration::ZERO,
            load: Duration::ZERO,
            requests: 0,
            crowded: false,
            empty_since: None,
            done: 0,
            refused: 0,
            next_id: 0,
        }
    }

    /// So many work at the same time from now on.
    pub(super) fn all_work(&mut self, workers: usize) {
        self.limits.workers = workers;
    }

    /// Takes on the jobs of one request, all with one key: all or none. Returns the jobs that had to go for it.
    pub(super) fn admit(&mut self, jobs: Vec<SignJob>, now: Instant) -> Result<Vec<SignJob>, Refused> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let (key, deadline) = (Arc::clone(&first.key), first.deadline);
        let wait = self.wait(key.tenant.as_ref(), first.cost);
        if deadline.saturating_duration_since(now) < wait {
            return Err(Refused { because: Because::Deadline, retry_after: wait });
        }
        let cost = first.cost;
        let bound = self.bound(cost);
        let until_room = self.waiting.saturating_sub(bound) / saturated(self.limits.workers);
        let refused = |because| Err(Refused { because, retry_after: wait.max(until_room) });
        let request = Request::new(jobs, self.least_load());
        let displaced = match &key.tenant {
            Some(tenant) => {
                self.end_breath(now);
                match self.make_room(tenant, request.load, cost, wait) {
                    Ok(displaced) => displaced,
                    Err(because) => {
                        self.refused += 1;
                        return refused(because);
                    }
                }
            }
            None if self.own_requests() >= self.limits.depth_max => return refused(Because::Depth),
            None => Vec::new(),
        };
        let id = self.line_of(&key);
        self.change(id, |line| line.push_back(request));
        Ok(displaced)
    }

    /// Gives back a job that was taken and not begun: it is the next of its line. It counts as a part of the request that was
    /// the next, which may be its own, and nothing goes for others because it is back.
    pub(super) fn put_back(&mut self, job: SignJob) {
        let id = self.line_of(&job.key);
        let least_load = self.least_load();
        self.change(id, |line| {
            line.turn = line.turn.saturating_sub(job.cost);
            let mut jobs = line.pop_front().map_or_else(VecDeque::new, |request| request.jobs);
            jobs.push_front(job);
            line.push_front(Request::new(jobs, least_load));
        });
    }

    /// The job whose turn it is. Jobs that are late and jobs whose callers have left cost no turn.
    pub(super) fn take(&mut self, now: Instant) -> Taken {
        let mut taken = Taken::default();
        let least_load = self.least_load();
        while let (None, Some(&(turn, id))) = (&taken.job, self.turns.first()) {
            let job = self.change(id, |line| {
                let mut job = line.pop_job(least_load)?;
                job.beside = line.waiting;
                if !job.answer.is_closed() && now < job.deadline {
                    line.turn += job.cost;
                }
                Some(job)
            });
            match job {
                Some(job) if job.answer.is_closed() => {}
                Some(job) if now >= job.deadline => taken.late.push(job),
                job => {
                    self.done += usize::from(job.as_ref().is_some_and(|job| job.key.tenant.is_some()));
                    taken.job = job;
                    self.clock = self.clock.max(turn);
                }
            }
        }
        self.forget();
        if self.requests == 0 {
            self.empty_since.get_or_insert(now);
        }
        taken
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<SignJob> {
        let waiting = self.lines.drain().flat_map(|(_, line)| line.requests).flat_map(|request| request.jobs).collect();
        self.clear();
        waiting
    }

    /// Requests that wait, and the token time that they take.
    pub(super) fn waiting(&self) -> (usize, Duration) {
        (self.requests + self.own_requests(), self.waiting)
    }

    /// Lines that take up memory.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.lines.len()
    }

    /// How long a job that comes now waits: until its line is worked off, and every other line has had as much as that and the
    /// job together; or until all are worked off, if that is sooner.
    fn wait(&self, tenant: Option<&TenantId>, cost: Duration) -> Duration {
        let line = self.line(tenant).filter(|line| !line.requests.is_empty());
        let before = line.map_or(Duration::ZERO, |line| line.waiting);
        let others = self.turns.len() - usize::from(line.is_some());
        let fair = before.saturating_add((before + cost).saturating_mul(u32::try_from(others).unwrap_or(u32::MAX)));
        self.waiting.min(fair) / saturated(self.limits.workers)
    }

    /// Makes room for a request of a tenant's where as much waits as may, as far as others are to make it; or says why there is none
    /// for it.
    fn make_room(
        &mut self,
        tenant: &TenantId,
        load: Duration,
        cost: Duration,
        wait: Duration,
    ) -> Result<Vec<SignJob>, Because> {
        let (own, own_time) = self.line(Some(tenant)).map_or_else(Default::default, |line| (line.load, line.waiting));
        let bound = self.bound(cost);
        self.crowded |= own >= bound || self.is_full(cost);
        let room = if self.crowded { self.crowded_room(cost, own > Duration::ZERO) } else { bound };
        if own >= room {
            return Err(if own_time < room { Because::Depth } else { Because::Wait });
        }
        let (before, mut displaced) = (self.load, Vec::new());
        while self.is_full(cost)
            && before - self.load < load
            && let Some(&(longest, id)) = self.longest.last()
            && longest > own + load
            && self.lines[&id].requests.len() > 1
        {
            displaced.extend(self.change(id, Line::pop_request));
            self.refused += 1;
        }
        if !self.is_full(cost) || !displaced.is_empty() {
            return Ok(displaced);
        }
        if self.requests >= self.limits.depth_max {
            return Err(Because::Depth);
        }
        // Within its share.
        if wait < bound / saturated(self.limits.workers) {
            return Ok(displaced);
        }
        Err(if self.waiting < bound { Because::Depth } else { Because::Wait })
    }

    /// Whether as much waits as may, for a newcomer whose jobs cost this much: a line of jobs that cost more may be as long as they
    /// need.
    fn is_full(&self, cost: Duration) -> bool {
        let longest = self.longest.last().and_then(|(_, id)| self.lines[id].newest_cost());
        self.load >= self.bound(longest.map_or(cost, |longest| longest.max(cost)))
            || self.requests >= self.limits.depth_max
    }

    /// How much may wait at most for such jobs to be taken on, as load.
    fn bound(&self, cost: Duration) -> Duration {
        self.wait_max().max(self.calls_min(cost))
    }

    /// How much of one line's may wait where it is crowded, as load.
    fn crowded_room(&self, cost: Duration, has_work: bool) -> Duration {
        let others = self.longest.len() - usize::from(has_work);
        let alone = (self.wait_max() / CROWDED_PART).max(self.calls_min(cost));
        if others == 0 { alone } else { alone / 2 }
    }

    fn calls_min(&self, cost: Duration) -> Duration {
        let calls = WORKER_CALLS_MIN.saturating_mul(saturated(self.limits.workers)).max(CALLS_MIN);
        cost.saturating_mul(calls)
    }

    /// Nobody only draws breath for so long.
    fn end_breath(&mut self, now: Instant) {
        if self.empty_since.is_some_and(|since| now.saturating_duration_since(since) >= self.limits.wait_max) {
            (self.crowded, self.done, self.refused) = (false, 0, 0);
        }
    }

    /// What the workers do in that time.
    fn wait_max(&self) -> Duration {
        self.limits.wait_max.saturating_mul(saturated(self.limits.workers))
    }

    /// A request's part of the depth; rounded up, so that as many as may wait reach the bound.
    fn least_load(&self) -> Duration {
        self.wait_max() / saturated(self.limits.depth_max) + Duration::from_nanos(1)
    }

    fn own_requests(&self) -> usize {
        self.line(None).map_or(0, |line| line.requests.len())
    }

    fn line(&self, tenant: Option<&TenantId>) -> Option<&Line> {
        self.id_of(tenant).map(|id| &self.lines[&id])
    }

    fn id_of(&self, tenant: Option<&TenantId>) -> Option<LineId> {
        tenant.map_or(self.own, |tenant| self.tenants.get(tenant).copied())
    }

    /// The line of a key; a new one begins where the clock stands.
    fn line_of(&mut self, key: &KeyRef) -> LineId {
        if let Some(id) = self.id_of(key.tenant.as_ref()) {
            return id;
        }
        let id = LineId(self.next_id);
        self.next_id += 1;
        match &key.tenant {
            Some(tenant) => drop(self.tenants.insert(tenant.clone(), id)),
            None => self.own = Some(id),
        }
        let line = Line {
            tenant: key.tenant.clone(),
            requests: VecDeque::new(),
            turn: self.clock,
            waiting: Duration::ZERO,
            load: Duration::ZERO,
        };
        self.drained.insert((line.turn, id));
        self.lines.insert(id, line);
        id
    }

    /// The one way in which a line changes: its places in the orders, and the sums, change with it.
    fn change<T>(&mut self, id: LineId, change: impl FnOnce(&mut Line) -> T) -> T {
        let line = self.lines.get_mut(&id).expect(WITH_ITS_LINE);
        let is_tenants = line.tenant.is_some();
        if line.requests.is_empty() {
            self.drained.remove(&(line.turn, id));
            line.turn = line.turn.max(self.clock);
        } else {
            self.turns.remove(&(line.turn, id));
        }
        self.waiting -= line.waiting;
        if is_tenants {
            self.longest.remove(&(line.load, id));
            self.load -= line.load;
            self.requests -= line.requests.len();
        }
        let changed = change(line);
        if line.requests.is_empty() {
            self.drained.insert((line.turn, id));
        } else {
            self.turns.insert((line.turn, id));
        }
        self.waiting += line.waiting;
        if is_tenants {
            if !line.requests.is_empty() {
                self.longest.insert((line.load, id));
            }
            self.load += line.load;
            self.requests += line.requests.len();
        }
        if self.requests > 0 {
            self.empty_since = None;
        }
        changed
    }

    /// Forgets the lines without work that the clock has reached; and all once nothing waits: nobody is ahead of anybody then.
    fn forget(&mut self) {
        if self.turns.is_empty() {
            self.clear();
        }
        if self.requests == 0 && self.done + self.refused > 0 {
            self.crowded &= self.refused > self.done;
            (self.done, self.refused) = (0, 0);
        }
        while let Some(&(turn, id)) = self.drained.first()
            && turn <= self.clock
        {
            self.drained.remove(&(turn, id));
            match self.lines.remove(&id).expect(WITH_ITS_LINE).tenant {
                Some(tenant) => drop(self.tenants.remove(&tenant)),
                None => self.own = None,
            }
        }
    }

    fn clear(&mut self) {
        self.own = None;
        self.tenants.clear();
        self.lines.clear();
        self.turns.clear();
        self.longest.clear();
        self.drained.clear();
        (self.clock, self.waiting, self.load) = Default::default();
        self.requests = 0;
    }
}

const WITH_ITS_LINE: &str = "an id is there as long as its line";

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}
