//! Callers and verifiers, and what they were told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyward::grpc::proto::{
    DeleteTenantRequest, RevokeSigningKeyRequest, RotateSigningKeyRequest, RotationPolicy, SignJwtResponse,
};
use tokio::task::{JoinHandle, block_in_place};
use tonic::{Code, Status};

use crate::cluster::{Cluster, Dice, Door, Doors};
use crate::common::{claims, http, shared_policy};

/// Tenants that stay; the last one has a schedule.
pub(crate) const TENANTS: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "scheduled"];
const PERIOD_SECS: i64 = 5;

/// Whole seconds, as `exp` has.
const JWT_LIFE_SECS: u64 = 2;

/// What callers wait for an answer; a revocation waits for a replica that stands still.
const SIGN_WAIT_MAX: Duration = Duration::from_secs(2);
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// What is repeated until it has an answer has one by then, whatever fails.
const ANSWERED_MAX: Duration = Duration::from_secs(60);

/// From one call to the next: the token is shared by all, and so are the cores.
const SIGN_PAUSE: Duration = Duration::from_millis(5);
const CHANGE_PAUSE: Duration = Duration::from_millis(200);
const RETRY_PAUSE: Duration = Duration::from_millis(30);

/// A JWT that somebody was given.
pub(crate) struct Signed {
    pub(crate) replica: usize,
    pub(crate) tenant: &'static str,
    pub(crate) kid: String,
    pub(crate) jwt: String,
    pub(crate) asked: Instant,
    pub(crate) received: Instant,
    pub(crate) expires: Instant,
}

/// A rotation that was acknowledged, at last.
pub(crate) struct Rotated {
    pub(crate) tenant: &'static str,
    pub(crate) request_id: String,
    pub(crate) replaced: Option<String>,
    pub(crate) is_revoked: bool,
    pub(crate) acknowledged: Instant,
}

/// A revocation that was acknowledged.
pub(crate) struct Revoked {
    pub(crate) kid: String,
    pub(crate) acknowledged: Instant,
}

/// A tenant that came, and went if that was acknowledged.
pub(crate) struct Passing {
    pub(crate) id: String,
    pub(crate) deleted: bool,
}

/// A JWKS that somebody keeps.
pub(crate) struct Kept {
    pub(crate) tenant: &'static str,
    pub(crate) replica: usize,
    pub(crate) keys: BTreeSet<String>,
    pub(crate) received: Instant,
    /// From when the answer was asked for: on its way it grew old (RFC 9111 section 4.2.3).
    pub(crate) until: Instant,
    pub(crate) body: Arc<[u8]>,
}

#[derive(Default)]
pub(crate) struct Told {
    pub(crate) signed: Vec<Signed>,
    pub(crate) rotated: Vec<Rotated>,
    pub(crate) revoked: Vec<Revoked>,
    pub(crate) passing: Vec<Passing>,
    pub(crate) kept: Vec<Kept>,
    /// Answers that nobody should be given, whatever fails.
    pub(crate) wrong: Vec<String>,
}

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Told>>,
}

/// What each caller has.
#[derive(Clone)]
struct Desk {
    doors: Arc<Doors>,
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    issuers: Arc<Vec<String>>,
}

impl Load {
    /// Makes the tenants, and lets everybody begin.
    pub(crate) async fn begin(cluster: &Cluster, seed: u64) -> Self {
        let (stop, signed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut first = cluster.doors.of(0).expect("it runs").clients;
        let mut issuers = Vec::new();
        for tenant in TENANTS {
            issuers.push(first.create_tenant(tenant, &["ES256"], policy(tenant)).await.issuer);
        }
        let (doors, issuers) = (Arc::clone(&cluster.doors), Arc::new(issuers));
        let desk = Desk { doors, stop: Arc::clone(&stop), signed: Arc::clone(&signed), issuers };
        // Everybody finds the tenants everywhere.
        for replica in 0..desk.doors.count() {
            let door = desk.doors.of(replica).expect("it runs");
            while !block_in_place(|| door.jwks.values().all(|uri| http::get(uri).status == 200)) {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        let mut callers = Vec::new();
        for replica in 0..desk.doors.count() {
            callers.push(tokio::spawn(desk.clone().sign(replica)));
        }
        for number in 0..3 {
            callers.push(tokio::spawn(desk.clone().change(number, Dice::of(seed.wrapping_add(number)))));
        }
        callers.push(tokio::spawn(desk.clone().make_and_delete(Dice::of(!seed))));
        for tenant in TENANTS {
            let desk = desk.clone();
            let mut dice = Dice::of(seed.rotate_left(32) ^ tenant.len() as u64);
            callers.push(tokio::task::spawn_blocking(move || desk.keep(tenant, &mut dice)));
        }
        Self { stop, signed, callers }
    }

    /// Waits until somebody is given a signature that was asked for from now on.
    pub(crate) async fn is_going_on(&self) {
        let begun = Instant::now();
        // Those under way are counted soon, by one of each replica at most.
        let before = self.signed.load(Ordering::Relaxed) + 3;
        while self.signed.load(Ordering::Relaxed) <= before {
            assert!(begun.elapsed() < ANSWERED_MAX, "nobody signs any more");
            assert!(self.callers.iter().all(|caller| !caller.is_finished()), "a caller gave up");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for caller in self.callers {
            let told = caller.await.expect("no caller panics");
            all.signed.extend(told.signed);
            all.rotated.extend(told.rotated);
            all.revoked.extend(told.revoked);
            all.passing.extend(told.passing);
            all.kept.extend(told.kept);
            all.wrong.extend(told.wrong);
        }
        all
    }
}

/// Quick to rotate, to retire and to destroy.
fn policy(tenant: &str) -> RotationPolicy {
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let period = if tenant == "scheduled" { PERIOD_SECS } else { 0 };
    RotationPolicy {
        max_token_ttl: secs(JWT_LIFE_SECS.cast_signed()),
        rotation_period: secs(period),
        destroy_delay: secs(1),
        ..shared_policy()
    }
}

/// What replicas may answer while something fails: nothing is known of what was asked for.
fn is_unknown(status: &Status) -> bool {
    // Unknown and Cancelled are the client's own words for a connection that ended.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        || (status.code() == Code::Unknown && status.message().contains("transport"))
        || (status.code() == Code::Internal && status.message().contains("h2 protocol error"))
}

async fn within<T>(wait_max: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = || Err(Status::deadline_exceeded("the caller waits no longer"));
    tokio::time::timeout(wait_max, call).await.unwrap_or_else(|_| late())
}

impl Desk {
    fn is_open(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// One call after the other to one replica.
    async fn sign(self, replica: usize) -> Told {
        let mut told = Told::default();
        for turn in 0.. {
            if !self.is_open() {
                break;
            }
            let which = turn % TENANTS.len();
            let Some(mut door) = self.doors.of(replica) else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            // `exp` is a whole second; the clock that only goes on is read first, so that the end is not taken for later.
            let asked = Instant::now();
            let since_second = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
            let expires = asked + Duration::from_secs(JWT_LIFE_SECS) - Duration::from_nanos(since_second.into());
            let claims = claims(&self.issuers[which], JWT_LIFE_SECS);
            match within(SIGN_WAIT_MAX, door.clients.sign_jwt(TENANTS[which], "ES256", claims)).await {
                Ok(SignJwtResponse { jwt, kid, .. }) => {
                    self.signed.fetch_add(1, Ordering::Relaxed);
                    let (tenant, received) = (TENANTS[which], Instant::now());
                    told.signed.push(Signed { replica, tenant, kid, jwt, asked, received, expires });
                    tokio::time::sleep(SIGN_PAUSE).await;
                }
                Err(status) if is_unknown(&status) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(status) => {
                    told.wrong.push(format!("SignJwt at replica {replica}: {status:?}"));
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        told
    }

    /// Asks one replica after the other until one of them answers.
    async fn until_answered<T, F: Future<Output = Result<T, Status>>>(
        &self,
        dice: &mut Dice,
        what: &str,
        call: impl Fn(Door) -> F,
    ) -> (Result<T, Status>, bool) {
        let (begun, mut again) = (Instant::now(), false);
        loop {
            assert!(begun.elapsed() < ANSWERED_MAX, "{what} has no answer");
            if let Some(door) = self.doors.of(dice.below(self.doors.count())) {
                match within(CHANGE_WAIT_MAX, call(door)).await {
                    Err(status) if is_unknown(&status) => again = true,
                    // Another change came first, and this one was not made.
                    Err(status) if status.code() == Code::Aborted => {}
                    answer => return (answer, again),
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Rotates and revokes.
    async fn change(self, caller: u64, mut dice: Dice) -> Told {
        let mut told = Told::default();
        let mut replaced: Vec<(&'static str, String)> = Vec::new();
        for number in 0.. {
            if !self.is_open() {
                break;
            }
            tokio::time::sleep(CHANGE_PAUSE).await;
            if dice.below(5) == 0
                && let Some((tenant, kid)) = replaced.pop()
            {
                let request = RevokeSigningKeyRequest { tenant: tenant.to_owned(), kid: kid.clone() };
                let what = format!("the revocation of {kid}");
                let call = |mut door: Door| {
                    let request = request.clone();
                    async move { door.clients.keys.revoke_signing_key(request).await }
                };
                match self.until_answered(&mut dice, &what, call).await.0 {
                    Ok(_) => told.revoked.push(Revoked { kid, acknowledged: Instant::now() }),
                    // The end of its retention came first.
                    Err(status) if status.code() == Code::FailedPrecondition => {}
                    Err(status) => told.wrong.push(format!("{what}: {status:?}")),
                }
                continue;
            }
            let tenant = TENANTS[dice.below(TENANTS.len())];
            let force = dice.below(3) == 0;
            let request = RotateSigningKeyRequest {
                tenant: tenant.to_owned(),
                algorithm: "ES256".to_owned(),
                request_id: format!("caller-{caller}-{number}"),
                force,
                revoke_replaced: force && dice.below(2) == 0,
                ..RotateSigningKeyRequest::default()
            };
            let what = format!("{request:?}");
            let call = |mut door: Door| {
                let request = request.clone();
                async move { door.clients.keys.rotate_signing_key(request).await }
            };
            match self.until_answered(&mut dice, &what, call).await.0 {
                Ok(answer) => {
                    let previous = answer.into_inner().previous.map(|key| key.kid);
                    let (request_id, is_revoked) = (request.request_id, request.revoke_replaced);
                    if !is_revoked {
                        replaced.extend(previous.clone().map(|kid| (tenant, kid)));
                    }
                    let acknowledged = Instant::now();
                    told.rotated.push(Rotated { tenant, request_id, replaced: previous, is_revoked, acknowledged });
                }
                // Too early, or its next key is being made.
                Err(status) if status.code() == Code::FailedPrecondition => {}
                Err(status) => told.wrong.push(format!("{what}: {status:?}")),
            }
        }
        told
    }

    /// Makes tenants and deletes half of them.
    async fn make_and_delete(self, mut dice: Dice) -> Told {
        let mut told = Told::default();
        for number in 0.. {
            if !self.is_open() {
                break;
            }
            tokio::time::sleep(5 * CHANGE_PAUSE).await;
            let id = format!("passing-{number}");
            let call = |mut door: Door| {
                let id = id.clone();
                async move { door.clients.place_tenant(&id, "", &["EdDSA"], policy(&id)).await }
            };
            match self.until_answered(&mut dice, &id, call).await {
                (Ok(_), _) => {}
                // By the call that nobody was told of.
                (Err(status), true) if status.code() == Code::AlreadyExists => {}
                // It is there; whoever was to make its keys has ended.
                (Err(status), _) if status.message().contains("the same call again waits for them") => {}
                (Err(status), _) => told.wrong.push(format!("the making of {id}: {status:?}")),
            }
            let deleted = dice.below(2) == 0;
            if deleted {
                let request = DeleteTenantRequest { id: id.clone(), confirm_id: id.clone() };
                let call = |mut door: Door| {
                    let request = request.clone();
                    async move { door.clients.tenants.delete_tenant(request).await }
                };
                match self.until_answered(&mut dice, &id, call).await {
                    (Ok(_), _) => {}
                    (Err(status), true) if status.code() == Code::NotFound => {}
                    (Err(status), again) => told.wrong.push(format!("the end of {id}, again {again}: {status:?}")),
                }
            }
            told.passing.push(Passing { id, deleted });
        }
        told
    }

    /// Fetches a tenant's JWKS of any replica, keeps it for as long as it may, and fetches it again.
    fn keep(self, tenant: &'static str, dice: &mut Dice) -> Told {
        let mut told = Told::default();
        while self.is_open() {
            let (replica, asked) = (dice.below(self.doors.count()), Instant::now());
            let door = self.doors.of(replica);
            let answer = door.and_then(|door| http::try_get(&door.jwks[tenant], SIGN_WAIT_MAX));
            let Some(answer) = answer else {
                std::thread::sleep(RETRY_PAUSE);
                continue;
            };
            if answer.status != 200 {
                told.wrong.push(format!("the JWKS of {tenant} at replica {replica}: {answer:?}"));
                continue;
            }
            let max_age = answer.header("cache-control").split(", ").find_map(|part| part.strip_prefix("max-age="));
            let max_age = Duration::from_secs(max_age.expect("it is there").parse().expect("seconds"));
            let (received, until) = (Instant::now(), asked + max_age);
            let keys = answer.kids();
            told.kept.push(Kept { tenant, replica, keys, received, until, body: answer.body.into() });
            std::thread::sleep(until.saturating_duration_since(Instant::now()).max(RETRY_PAUSE));
        }
        told
    }
}
