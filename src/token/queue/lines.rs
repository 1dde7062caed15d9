//! Who waits, and whose turn it is: start-time fair queueing over token time (Goyal, Vin and Cheng, 1996), with bounds. Knows no
//! clock, no lock and no worker.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Limits, SignJob};
use crate::domain::TenantId;
use crate::token::KeyRef;

/// The lines, one for each tenant and one for the service's own jobs.
///
/// *Turns.* A line's turn is how much token time it has had, on a clock that all lines share. The line whose turn is earliest is
/// served; a line that comes back begins where the clock stands, or where it left if that is later. So of two lines with work
/// neither is ahead by more than a job of each, whatever their jobs cost and however many they are; and a line alone has all.
///
/// *Bounds.* So much token time may wait as the workers do in `wait_max`, and so many requests as `depth_max`: each request counts
/// for what it costs, and at least for its part of the depth. Beyond that the longest line pays: its newest request goes, or the
/// newcomer if its own line would be the longest. What a line has but one of is left to it, or big requests would go at every
/// small one. The service's own line is bounded by depth alone, and nothing of it goes for others.
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
    next_id: u64,
}

/// Names a line for as long as it is there; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct LineId(u64);

#[derive(Debug)]
struct Line {
    tenant: Option<TenantId>,
    /// First come, first served.
    requests: VecDeque<Request>,
    turn: Duration,
    /// Token time that waits.
    waiting: Duration,
    /// How much of the bounds its requests take.
    load: Duration,
}

/// Jobs that came together: all are signed, or none is of use.
#[derive(Debug)]
struct Request {
    jobs: VecDeque<SignJob>,
    cost: Duration,
    load: Duration,
}

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
            next_id: 0,
        }
    }

    /// Takes on the jobs of one request, all with one key: all or none. Returns the jobs that had to go for it.
    pub(super) fn admit(&mut self, jobs: Vec<SignJob>, now: Instant) -> Result<Vec<SignJob>, Refused> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let (key, deadline) = (Arc::clone(&first.key), first.deadline);
        let wait = self.wait(key.tenant.as_ref(), first.cost);
        if deadline.saturating_duration_since(now) < wait {
            return Err(Refused { because: Because::Deadline, retry_after: wait });
        }
        let until_room = self.waiting.saturating_sub(self.bound()) / saturated(self.limits.workers);
        let refused = |because| Err(Refused { because, retry_after: wait.max(until_room) });
        let request = Request::new(jobs, self.least_load());
        let displaced = match &key.tenant {
            Some(tenant) => match self.make_room(tenant, request.load) {
                Some(displaced) => displaced,
                None if self.waiting < self.bound() => return refused(Because::Depth),
                None => return refused(Because::Wait),
            },
            None if self.own_requests() >= self.limits.depth_max => return refused(Because::Depth),
            None => Vec::new(),
        };
        let id = self.line_of(&key);
        self.change(id, |line| line.push_back(request));
        Ok(displaced)
    }

    /// Gives back a job that was taken and not begun: it is the next of its line.
    pub(super) fn put_back(&mut self, job: SignJob) {
        let id = self.line_of(&job.key);
        let least_load = self.least_load();
        self.change(id, |line| {
            line.turn = line.turn.saturating_sub(job.cost);
            line.push_front(Request::new(vec![job], least_load));
        });
    }

    /// The job whose turn it is. Jobs that are late and jobs whose callers have left cost no turn.
    pub(super) fn take(&mut self, now: Instant) -> Taken {
        let mut taken = Taken::default();
        let least_load = self.least_load();
        while let (None, Some(&(turn, id))) = (&taken.job, self.turns.first()) {
            let job = self.change(id, |line| {
                let job = line.pop_job(least_load)?;
                if !job.answer.is_closed() && now < job.deadline {
                    line.turn += job.cost;
                }
                Some(job)
            });
            match job {
                Some(job) if job.answer.is_closed() => {}
                Some(job) if now >= job.deadline => taken.late.push(job),
                job => {
                    taken.job = job;
                    self.clock = self.clock.max(turn);
                }
            }
        }
        self.forget();
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

    /// Makes room for a request of this load, as far as others are to make it. `None` if there is none for it.
    fn make_room(&mut self, tenant: &TenantId, load: Duration) -> Option<Vec<SignJob>> {
        let bound = self.bound();
        let line = self.line(Some(tenant)).filter(|line| !line.requests.is_empty());
        let with_it = line.map_or(Duration::ZERO, |line| line.load) + load;
        let lines = self.longest.len() + usize::from(line.is_none());
        let mut displaced = Vec::new();
        while self.load >= bound
            && let Some(&(longest, id)) = self.longest.last()
            && longest > with_it
            && self.lines[&id].requests.len() > 1
        {
            displaced.extend(self.change(id, Line::pop_request));
        }
        // Where the longest has but one, nobody is asked to make room for others' shares.
        let in_share = with_it.saturating_mul(saturated(lines)) <= bound && self.requests < self.limits.depth_max;
        (self.load < bound || !displaced.is_empty() || in_share).then_some(displaced)
    }

    /// How much may wait, as load.
    fn bound(&self) -> Duration {
        self.limits.wait_max.saturating_mul(saturated(self.limits.workers))
    }

    /// A request's part of the depth; rounded up, so that as many as may wait reach the bound.
    fn least_load(&self) -> Duration {
        self.bound() / saturated(self.limits.depth_max) + Duration::from_nanos(1)
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
        changed
    }

    /// Forgets the lines without work that the clock has reached; and all once nothing waits: nobody is ahead of anybody then.
    fn forget(&mut self) {
        if self.turns.is_empty() {
            self.clear();
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

impl Line {
    fn push_back(&mut self, request: Request) {
        self.waiting += request.cost;
        self.load += request.load;
        self.requests.push_back(request);
    }

    fn push_front(&mut self, request: Request) {
        self.waiting += request.cost;
        self.load += request.load;
        self.requests.push_front(request);
    }

    /// The oldest job.
    fn pop_job(&mut self, least_load: Duration) -> Option<SignJob> {
        let mut request = self.requests.pop_front()?;
        self.waiting -= request.cost;
        self.load -= request.load;
        let job = request.jobs.pop_front()?;
        if !request.jobs.is_empty() {
            let cost = request.cost - job.cost;
            self.push_front(Request { cost, load: least_load.max(cost), ..request });
        }
        Some(job)
    }

    /// The newest request's jobs.
    fn pop_request(&mut self) -> VecDeque<SignJob> {
        let Some(request) = self.requests.pop_back() else { return VecDeque::new() };
        self.waiting -= request.cost;
        self.load -= request.load;
        request.jobs
    }
}

impl Request {
    fn new(jobs: impl Into<VecDeque<SignJob>>, least_load: Duration) -> Self {
        let jobs = jobs.into();
        let cost = jobs.iter().map(|job| job.cost).sum();
        Self { jobs, cost, load: least_load.max(cost) }
    }
}

const WITH_ITS_LINE: &str = "an id is there as long as its line";

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}
