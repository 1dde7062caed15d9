//! The replicas, and what befalls them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyward::grpc::proto::{KeyState, ListSigningKeysRequest, SigningKey};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::task::block_in_place;

use crate::common::postgresql::{self, Database};
use crate::common::proxy::{AtCommit, Proxy, Way};
use crate::common::{Clients, Installation, Server, http};
use crate::load::{TENANTS, Told};

/// How old the view of a replica may be that signs: some faults last longer, most do not.
pub(crate) const SNAPSHOT_MAX_AGE: Duration = Duration::from_secs(3);

/// When all is well again, for everything to come to rest: what a dead replica left is taken up after two minutes.
const REST_MAX: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(20);

/// How long a commit is waited for that a fault is for: each replica probes its store every two seconds.
const COMMIT_MAX: Duration = Duration::from_secs(3);

pub(crate) struct Cluster {
    database: Database,
    server: Arc<postgresql::Server>,
    replicas: Vec<Replica>,
    pub(crate) doors: Arc<Doors>,
    counts: BTreeMap<&'static str, usize>,
}

struct Replica {
    installation: Installation,
    proxy: Proxy,
    server: Option<Server>,
}

/// Where the replicas are reached now.
pub(crate) struct Doors(RwLock<Vec<Option<Door>>>);

#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) clients: Clients,
    pub(crate) jwks: BTreeMap<String, String>,
}

/// What everything has come to.
pub(crate) struct End {
    /// What the administration log tells of rotations, in its order.
    pub(crate) rotations: Vec<Rotation>,
    /// The tenants that there are, of those that came and went.
    pub(crate) tenants: BTreeSet<String>,
    /// Problems of the whole, each with its words.
    pub(crate) problems: Vec<String>,
    /// How long it took to come to rest.
    pub(crate) rested_after: Duration,
}

pub(crate) struct Rotation {
    pub(crate) tenant: String,
    pub(crate) kid: String,
    pub(crate) detail: String,
}

impl Doors {
    pub(crate) fn of(&self, replica: usize) -> Option<Door> {
        self.0.read().expect("nobody panics")[replica].clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.read().expect("nobody panics").len()
    }

    fn set(&self, replica: usize, door: Option<Door>) {
        self.0.write().expect("nobody panics")[replica] = door;
    }
}

impl Cluster {
    pub(crate) async fn start(replicas: usize) -> Self {
        let server = postgresql::Server::start();
        let database = server.database();
        let mut made: Vec<Replica> = Vec::new();
        for _ in 0..replicas {
            let proxy = Proxy::to(database.folder());
            let url = database.url_at(proxy.folder());
            let installation = match made.first() {
                None => {
                    let first = Installation::bare().set("limits.manual_rotations_per_day", "1000");
                    let millis = SNAPSHOT_MAX_AGE.as_millis().to_string();
                    first.set("signing.snapshot_max_age_ms", &millis).with_database(&url).init()
                }
                Some(first) => first.installation.replica().set("store.url", &format!("{url:?}")).join(),
            };
            made.push(Replica { installation, proxy, server: None });
        }
        let doors = Arc::new(Doors(RwLock::new(vec![None; replicas])));
        let mut cluster = Self { database, server, replicas: made, doors, counts: BTreeMap::new() };
        for replica in 0..replicas {
            cluster.open(replica).await;
        }
        cluster
    }

    /// Starts a replica, and tells where it is.
    async fn open(&mut self, replica: usize) {
        let server = block_in_place(|| self.replicas[replica].installation.serve());
        let clients = Clients::connect(&server).await;
        let jwks = TENANTS.map(|tenant| (tenant.to_owned(), server.jwks_uri(tenant))).into();
        self.doors.set(replica, Some(Door { clients, jwks }));
        self.replicas[replica].server = Some(server);
    }

    /// One of everything that can happen, and its end.
    pub(crate) async fn fault(&mut self, dice: &mut Dice) {
        let one = dice.below(self.replicas.len());
        let another = (one + 1 + dice.below(self.replicas.len() - 1)) % self.replicas.len();
        // A view that is too old is one thing, a stumble another.
        let (stumble, long) =
            (Duration::from_millis(dice.next() % 600), SNAPSHOT_MAX_AGE + Duration::from_millis(dice.next() % 1000));
        let lasting = if dice.below(6) == 0 { long } else { stumble };
        let kind = match dice.below(12) {
            0 | 1 => {
                self.kill(one);
                tokio::time::sleep(stumble).await;
                self.open(one).await;
                "kill -9"
            }
            2 | 3 => {
                self.signal(one, Signal::STOP);
                tokio::time::sleep(lasting).await;
                self.signal(one, Signal::CONT);
                "SIGSTOP"
            }
            4 => {
                self.signal(one, Signal::STOP);
                self.kill(another);
                self.open(another).await;
                self.signal(one, Signal::CONT);
                "kill -9 beside SIGSTOP"
            }
            5 => {
                block_in_place(|| self.server.restart());
                "database restarted"
            }
            6 => {
                block_in_place(|| self.server.kill_and_start_again());
                "database killed"
            }
            7 => {
                self.wait_for_commit(one, AtCommit::CutAfter).await;
                block_in_place(|| self.server.kill_and_start_again());
                "database killed at a commit"
            }
            8 => {
                let what = if dice.below(2) == 0 { AtCommit::CutBefore } else { AtCommit::CutAfter };
                self.wait_for_commit(one, what).await;
                "connection cut at a commit"
            }
            kind => {
                let (way, kind) = [
                    (Way::Cut, "connections cut"),
                    (Way::Still, "connections that stand still"),
                    (Way::WithoutNews, "NOTIFY lost"),
                ][kind - 9];
                self.replicas[one].proxy.set(way);
                tokio::time::sleep(lasting).await;
                self.replicas[one].proxy.set(Way::Open);
                kind
            }
        };
        *self.counts.entry(kind).or_default() += 1;
    }

    fn kill(&mut self, replica: usize) {
        self.doors.set(replica, None);
        self.replicas[replica].server.take().expect("it runs").kill();
    }

    fn signal(&self, replica: usize, signal: Signal) {
        let pid = self.replicas[replica].server.as_ref().expect("it runs").pid();
        kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal).expect("it is there");
    }

    async fn wait_for_commit(&self, replica: usize, what: AtCommit) {
        let proxy = &self.replicas[replica].proxy;
        proxy.at_commit(what);
        let begun = Instant::now();
        while !proxy.has_cut() && begun.elapsed() < COMMIT_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.spare_commits();
    }

    pub(crate) fn counts(&self) -> String {
        self.counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
    }

    /// Waits until everything is at rest and the same on all replicas, and looks at it from all sides.
    pub(crate) async fn end(mut self, told: &Told) -> End {
        let begun = Instant::now();
        let mut problems = Vec::new();
        for tenant in TENANTS {
            loop {
                let at_rest = self.is_at_rest(tenant).await;
                let Err(problem) = at_rest else { break };
                if begun.elapsed() > REST_MAX {
                    problems.push(problem);
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
        }
        let rested_after = begun.elapsed();
        let mut tenants = BTreeSet::new();
        for replica in 0..self.replicas.len() {
            let mut clients = self.doors.of(replica).expect("it runs").clients;
            let mut here = BTreeSet::new();
            for id in told.passing.iter().map(|passing| &passing.id) {
                let request = ListSigningKeysRequest { tenant: id.clone(), ..ListSigningKeysRequest::default() };
                if clients.keys.list_signing_keys(request).await.is_ok() {
                    here.insert(id.clone());
                }
            }
            if replica > 0 && here != tenants {
                problems.push(format!("replica {replica} has the tenants {here:?}, and the first {tenants:?}"));
            }
            tenants = here;
        }
        for replica in &mut self.replicas {
            let status = replica.server.take().expect("it runs").terminate();
            if !status.success() {
                problems.push(format!("a replica left with {status}"));
            }
        }
        for Replica { installation, .. } in &self.replicas {
            problems.extend(failed("audit verify", &mut installation.verify_audit()));
        }
        problems.extend(failed("reconcile", &mut self.replicas[0].installation.command("reconcile")));
        let records = self.database.psql("select record from audit_event order by position");
        let records = records.lines().map(|record| serde_json::from_str::<Value>(record).expect("a record"));
        let text = |record: &Value, member: &str| record[member].as_str().unwrap_or_default().to_owned();
        let rotations = records.filter(|record| record["action"] == "rotate").map(|record| Rotation {
            tenant: text(&record, "tenant"),
            kid: text(&record, "kid"),
            detail: text(&record, "detail"),
        });
        End { rotations: rotations.collect(), tenants, problems, rested_after }
    }

    /// Whether all replicas are ready and publish the same, and the keyring has its keys (R2).
    async fn is_at_rest(&self, tenant: &str) -> Result<(), String> {
        let mut seen: Option<Vec<u8>> = None;
        for (number, replica) in self.replicas.iter().enumerate() {
            let server = replica.server.as_ref().expect("it runs");
            let readyz = block_in_place(|| http::get(&format!("{}/readyz", server.ops())));
            if readyz.status != 200 {
                return Err(format!("replica {number} is not ready: {}", String::from_utf8_lossy(&readyz.body)));
            }
            let jwks = block_in_place(|| http::get(&server.jwks_uri(tenant)));
            let same = seen.replace(jwks.body.clone()).is_none_or(|seen| seen == jwks.body);
            if jwks.status != 200 || !same {
                return Err(format!("replica {number} publishes another JWKS of {tenant}: {jwks:?}"));
            }
        }
        let states = [KeyState::Pending, KeyState::Next, KeyState::Current].map(i32::from).to_vec();
        let request = ListSigningKeysRequest { tenant: tenant.to_owned(), states, ..Default::default() };
        let mut clients = self.doors.of(0).expect("it runs").clients;
        let keys =
            clients.keys.list_signing_keys(request).await.map_err(|status| format!("{status:?}"))?.into_inner().keys;
        let count = |state| keys.iter().filter(|key: &&SigningKey| key.state() == state).count();
        match (count(KeyState::Pending), count(KeyState::Next), count(KeyState::Current)) {
            (0, 1, 1) => Ok(()),
            counts => Err(format!("{tenant} has {counts:?} pending, next and current keys")),
        }
    }
}

/// What a command said that did not succeed.
fn failed(what: &str, command: &mut Command) -> Option<String> {
    let output = command.output().expect("it runs");
    let said = || [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    (!output.status.success()).then(|| format!("{what}: {}", said()))
}

/// Chance that can be had again, by its seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn any_seed() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
    }

    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }
}
