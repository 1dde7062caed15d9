//! One line, and the requests in it.

use std::collections::VecDeque;
use std::time::Duration;

use super::SignJob;
use crate::domain::TenantId;

/// Those of one owner who wait.
#[derive(Debug)]
pub(super) struct Line {
    /// `None`: the service's own.
    pub(super) tenant: Option<TenantId>,
    /// First come, first served.
    pub(super) requests: VecDeque<Request>,
    /// How much token time it has had.
    pub(super) turn: Duration,
    /// Token time that waits.
    pub(super) waiting: Duration,
    /// How much of the bounds its requests take.
    pub(super) load: Duration,
}

/// Jobs that came together: all are signed, or none is of use.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) jobs: VecDeque<SignJob>,
    cost: Duration,
    pub(super) load: Duration,
}

impl Line {
    pub(super) fn push_back(&mut self, request: Request) {
        self.waiting += request.cost;
        self.load += request.load;
        self.requests.push_back(request);
    }

    pub(super) fn push_front(&mut self, request: Request) {
        self.waiting += request.cost;
        self.load += request.load;
        self.requests.push_front(request);
    }

    pub(super) fn pop_front(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.waiting -= request.cost;
        self.load -= request.load;
        Some(request)
    }

    /// The oldest job.
    pub(super) fn pop_job(&mut self, least_load: Duration) -> Option<SignJob> {
        let mut request = self.pop_front()?;
        let job = request.jobs.pop_front()?;
        if !request.jobs.is_empty() {
            let cost = request.cost - job.cost;
            self.push_front(Request { cost, load: least_load.max(cost), ..request });
        }
        Some(job)
    }

    /// What a job of the newest request costs.
    pub(super) fn newest_cost(&self) -> Option<Duration> {
        Some(self.requests.back()?.jobs.front()?.cost)
    }

    /// The newest request's jobs.
    pub(super) fn pop_request(&mut self) -> VecDeque<SignJob> {
        let Some(request) = self.requests.pop_back() else { return VecDeque::new() };
        self.waiting -= request.cost;
        self.load -= request.load;
        request.jobs
    }
}

impl Request {
    pub(super) fn new(jobs: impl Into<VecDeque<SignJob>>, least_load: Duration) -> Self {
        let jobs = jobs.into();
        let cost = jobs.iter().map(|job| job.cost).sum();
        Self { jobs, cost, load: least_load.max(cost) }
    }
}
