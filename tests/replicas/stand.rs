//! Replicas on one database and one token, and what tests ask them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::http::get;
use crate::common::postgresql::Database;
use crate::common::proxy::Proxy;
pub(crate) use crate::common::shared_policy as policy;
use crate::common::{Clients, Installation, Server};

pub(crate) const TENANT: &str = "shared";

/// How long a change may take to reach all replicas: each looks once a second, and a debug build on a busy machine is slow.
pub(crate) const REACHES_ALL_MAX: Duration = Duration::from_secs(20);
pub(crate) const POLL: Duration = Duration::from_millis(20);

pub(crate) fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Replicas, the first of which made the store.
pub(crate) struct Stand {
    pub(crate) installations: Vec<Installation>,
    pub(crate) servers: Vec<Server>,
    pub(crate) database: Database,
}

impl Stand {
    pub(crate) fn of(replicas: usize) -> Self {
        Self::with(replicas, |installation| installation)
    }

    pub(crate) fn with(replicas: usize, settings: fn(Installation) -> Installation) -> Self {
        Self::on(Database::fresh(), replicas, settings)
    }

    pub(crate) fn on(database: Database, replicas: usize, settings: fn(Installation) -> Installation) -> Self {
        let first = settings(Installation::bare().with_database(&database.url())).init();
        Self::of_first(first, database, replicas)
    }

    /// All of them on the same way to the database.
    pub(crate) fn behind(database: Database, proxy: &Proxy, replicas: usize) -> Self {
        let first = Installation::bare().with_database(&database.url_at(proxy.folder())).init();
        Self::of_first(first, database, replicas)
    }

    fn of_first(first: Installation, database: Database, replicas: usize) -> Self {
        let others: Vec<_> = (1..replicas).map(|_| first.replica().join()).collect();
        let installations: Vec<_> = std::iter::once(first).chain(others).collect();
        let servers = installations.iter().map(Installation::serve).collect();
        Self { installations, servers, database }
    }

    pub(crate) async fn clients(&self) -> Vec<Clients> {
        let mut clients = Vec::new();
        for server in &self.servers {
            clients.push(Clients::connect(server).await);
        }
        clients
    }

    /// Waits until all replicas publish these keys of the tenant.
    pub(crate) fn wait_for(&self, kids: &BTreeSet<String>) {
        let begun = Instant::now();
        for server in &self.servers {
            while published(server) != *kids {
                assert!(begun.elapsed() < REACHES_ALL_MAX, "{:?} and not {kids:?}", published(server));
                std::thread::sleep(POLL);
            }
        }
    }
}

/// The kids in the tenant's JWKS; none if there is no such tenant, or its first keys are not there yet.
pub(crate) fn published(server: &Server) -> BTreeSet<String> {
    let answer = get(&server.jwks_uri(TENANT));
    if [404, 503].contains(&answer.status.as_u16()) {
        return BTreeSet::new();
    }
    answer.kids()
}

#[track_caller]
pub(crate) fn until(what: &str, is_so: impl FnMut() -> bool) {
    within(REACHES_ALL_MAX, what, is_so);
}

#[track_caller]
pub(crate) fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "not in {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}
