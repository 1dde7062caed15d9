//! The timer: keeps the snapshot young and brings every keyring to rest when its time comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::agenda::Agenda;
use super::skew::TAKEN_UP_WITHIN;
use super::snapshot::TenantView;
use super::{Attended, Error, Keyrings, TokenHealth, TokenState};
use crate::domain::rotation::{Outlook, Plan, outlook, plan};
use crate::domain::{Algorithm, Caller, Keyring, Tenant, TenantId, Timestamp, TokenName};
use crate::store::{Damage, Moment, StoreError, TenantRecord, TenantRevisions};

/// How often the timer looks: what is due is done within about a second, which is shorter than any policy's times.
const TICK: Duration = Duration::from_secs(1);

/// Tenants of one token whose keyrings are brought to rest side by side, so that a slow generation delays no revocation elsewhere.
const TENANTS_AT_ONCE_MAX: usize = 8;

/// How often all revisions are compared, although the store says what changed: it knows of those who ask the database, and not
/// of those who write past it.
const COMPARE_EVERY: Duration = Duration::from_secs(60);

/// First and longest pause after a failure for one tenant: soon enough to go unnoticed, seldom enough not to press a token
/// that is unwell.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Failures of one tenant in a row.
struct Pause {
    /// On which it is placed.
    token: TokenName,
    failures: u32,
    until: Instant,
}

/// Up to when the snapshot agrees with the store.
#[derive(Debug)]
pub(super) struct Known {
    until: Moment,
    /// Up to when nothing older can be released any more.
    taken_up: Moment,
    /// When all revisions were compared last.
    compared: Instant,
}

/// Runs the timer until `shutdown`.
pub async fn tend(keyrings: Arc<Keyrings>, shutdown: CancellationToken) {
    let mut pauses: HashMap<TenantId, Pause> = HashMap::new();
    let mut working: JoinSet<Result<(), Error>> = JoinSet::new();
    let mut busy: HashMap<task::Id, (TenantId, Arc<Attended>)> = HashMap::new();
    let mut looked_at = None;
    let mut agenda = Agenda::default();
    let mut planned = keyrings.now();
    let mut token = keyrings.tokens.news();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = ticks.tick() => {
                let refreshed = keyrings.refresh().await;
                if let Err(error) = refreshed.and(keyrings.look_again(&mut looked_at).await) {
                    tracing::warn!(error = error.for_log(), "the snapshot could not be refreshed");
                }
            }
            () = keyrings.store.changed() => {
                // What goes wrong here goes wrong at the next tick, too, and is told then.
                keyrings.refresh().await.ok();
            }
            _ = token.changed() => {
                // What failed for want of its token, or of the home token's seal, need not wait any longer.
                let health = keyrings.tokens.health();
                let is_recovering = |name: &TokenName| {
                    matches!(health.get(name), Some(Some(TokenHealth { state: TokenState::Recovering, .. })))
                };
                let all = is_recovering(&TokenName::default());
                pauses.retain(|_, pause| !all && !is_recovering(&pause.token));
            }
            Some(done) = working.join_next_with_id() => {
                let (task, result) = match done {
                    Ok((task, result)) => (task, result),
                    Err(panic) => (panic.id(), Err(Error::Internal(format!("a bug: {panic}")))),
                };
                if let Some((tenant, token)) = busy.remove(&task) {
                    note(&mut pauses, tenant, token.name(), result);
                }
            }
        }
        if let Err(error) = keyrings.record_quarantined_keys().await {
            tracing::warn!(error = error.for_log(), "a key in quarantine is not in the administration log yet");
        }
        if keyrings.tokens.home().is_down() {
            // Each step wants a seal, and with it the home token.
            continue;
        }
        let now = keyrings.now();
        keyrings.look_ahead(&mut agenda, now, now < planned);
        planned = now;
        let snapshot = keyrings.snapshot();
        let places = TENANTS_AT_ONCE_MAX * keyrings.tokens.configured().count();
        let mut rested = Vec::new();
        for tenant in agenda.due() {
            if working.len() >= places {
                break;
            }
            let Some(view) = snapshot.view(tenant) else {
                rested.push((tenant.clone(), Outlook::Nothing));
                continue;
            };
            let paused = pauses.get(tenant).is_some_and(|pause| Instant::now() < pause.until);
            let beside = busy.values().filter(|(_, other)| Arc::ptr_eq(other, &view.token)).count();
            if paused || beside >= TENANTS_AT_ONCE_MAX || busy.values().any(|(other, _)| other == tenant) {
                continue;
            }
            match keyrings.outlook(view, now) {
                Outlook::Due if keyrings.can_act(view, now) && keyrings.check_clock(&view.record.tenant).is_ok() => {
                    let (keyrings, id) = (Arc::clone(&keyrings), tenant.clone());
                    let task = working.spawn(async move { keyrings.tend_tenant(&id).await });
                    busy.insert(task.id(), (tenant.clone(), Arc::clone(&view.token)));
                }
                // Until its token is back, or this replica's clock is right.
                Outlook::Due => {}
                later => rested.push((tenant.clone(), later)),
            }
        }
        rested.into_iter().for_each(|(tenant, outlook)| agenda.put(tenant, outlook));
    }
    // A step under way is finished; what is left is taken up at the next start.
    while working.join_next().await.is_some() {}
}

fn note(pauses: &mut HashMap<TenantId, Pause>, tenant: TenantId, token: &TokenName, result: Result<(), Error>) {
    let Err(error) = result else {
        pauses.remove(&tenant);
        return;
    };
    let pause = pauses.entry(tenant.clone()).or_insert_with(|| Pause {
        token: token.clone(),
        failures: 0,
        until: Instant::now(),
    });
    let wait = PAUSE_MIN.saturating_mul(1 << pause.failures.min(16)).min(PAUSE_MAX);
    pause.failures += 1;
    pause.until = Instant::now() + wait;
    tracing::warn!(%tenant, error = error.for_log(), retry_secs = wait.as_secs(), "keys could not be brought to rest");
}

impl Keyrings {
    /// Brings the snapshot up to date with the store.
    ///
    /// A record that is not to be believed takes its tenant out of the snapshot and into quarantine; the others are brought up to
    /// date. What this costs while nothing changes does not grow with the number of tenants, but once a minute.
    ///
    /// # Errors
    /// Of the store. The snapshot is then not confirmed, so that signing ends with `snapshot_max_age` (R10).
    pub async fn refresh(&self) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let asked = Instant::now();
        if let Some(shown) = self.store.clock().await? {
            self.shared_clock.note(shown, asked);
        }
        loop {
            let asked = Instant::now();
            let now = self.catch_up(known.as_ref()).await?;
            // Before anything is signed from it: others wait for those who may sign from what was before a change (R10).
            let lasted = self.store.lease(now.taken_up, self.settings.snapshot_max_age).await?;
            let until = now.until;
            *known = Some(now);
            // What was changed while nobody knew of this replica, nobody waited with for it.
            if lasted || self.store.changes(None).await?.until == until {
                self.published.confirm(asked);
                return Ok(());
            }
        }
    }

    /// How much later than usual the store confirmed the snapshot; `None` where nobody else changes the store.
    #[must_use]
    pub fn late(&self) -> Option<Duration> {
        (!self.settings.sole).then(|| self.published.age().saturating_sub(TAKEN_UP_WITHIN))
    }

    /// Brings the snapshot up to date with the store as it is now.
    async fn catch_up(&self, known: Option<&Known>) -> Result<Known, Error> {
        let asked = Instant::now();
        // Before anything is read: what changes meanwhile is read again.
        let changes = self.store.changes(known.map(|known| known.until)).await?;
        let compared = match (known, changes.tenants) {
            (None, _) => {
                self.load_all().await?;
                self.compare().await?;
                asked
            }
            // Who is in quarantine is looked at each time: an operator waits for him.
            (Some(before), Some(tenants))
                if before.compared.elapsed() < COMPARE_EVERY && self.quarantine.is_empty() =>
            {
                for tenant in &tenants {
                    self.reload(tenant).await?;
                }
                before.compared
            }
            (Some(_), _) => {
                self.compare().await?;
                asked
            }
        };
        // What a request may still hold is from before: it lasts no longer than `sign_wait_max`.
        let taken_up = match known {
            Some(before) if self.published.holds_any() => before.taken_up,
            _ => changes.until,
        };
        Ok(Known { until: changes.until, taken_up, compared })
    }

    /// The first load, in one go.
    async fn load_all(&self) -> Result<(), Error> {
        let loaded = self.store.load_all().await?;
        for record in &loaded.records {
            self.publish_or_quarantine(record)?;
        }
        loaded.damaged.iter().for_each(|damage| self.keep_out(damage));
        Ok(())
    }

    /// Compares the snapshot with the revisions of all tenants, and loads what differs.
    async fn compare(&self) -> Result<(), Error> {
        let stored = self.store.revisions().await?;
        stored.damaged.iter().for_each(|damage| self.keep_out(damage));
        let snapshot = self.snapshot();
        for revisions in &stored.tenants {
            let same = snapshot.view(&revisions.tenant).is_some_and(|view| {
                let keyrings = view.record.keyrings.iter().map(|keyring| (keyring.algorithm, keyring.revision));
                view.record.tenant.revision == revisions.revision && keyrings.eq(revisions.keyrings.iter().copied())
            });
            if !same && !self.quarantine.rests(revisions.tenant.as_str()) {
                self.reload(&revisions.tenant).await?;
            }
        }
        for view in snapshot.all() {
            let id = &view.record.tenant.id;
            if stored.tenants.binary_search_by(|revisions| revisions.tenant.cmp(id)).is_err() {
                self.reload(id).await?;
            }
        }
        let is_there = |name: &str| {
            let by_name = |revisions: &TenantRevisions| revisions.tenant.as_str().cmp(name);
            stored.tenants.binary_search_by(by_name).is_ok()
                || stored.damaged.iter().any(|damage| damage.tenant == name)
        };
        for name in self.quarantine.gone(is_there) {
            self.quarantine.release(&name);
            if let Ok(id) = name.parse() {
                self.published.withdraw(&id);
            }
        }
        Ok(())
    }

    /// Reads one tenant's record again, each time that of another one: an edit that leaves the revision as it is shows by that
    /// alone.
    pub(super) async fn look_again(&self, after: &mut Option<TenantId>) -> Result<(), Error> {
        let snapshot = self.snapshot();
        let next = snapshot.after(after.as_ref()).next().or_else(|| snapshot.all().next());
        let next = next.map(|view| &view.record.tenant.id);
        *after = next.cloned();
        let Some(tenant) = next else { return Ok(()) };
        self.believed(tenant, self.store.load(tenant).await)?;
        Ok(())
    }

    pub(super) async fn reload(&self, tenant: &TenantId) -> Result<(), Error> {
        match self.believed(tenant, self.store.load(tenant).await)? {
            Some(Some(record)) => self.publish_or_quarantine(&record)?,
            Some(None) => {
                self.published.withdraw(tenant);
                self.quarantine.release(tenant.as_str());
            }
            None => {}
        }
        Ok(())
    }

    fn publish_or_quarantine(&self, record: &TenantRecord) -> Result<(), StoreError> {
        self.believed(&record.tenant.id, self.publish(record)).map(drop)
    }

    /// What came of a record; `None` if it is not to be believed, and its tenant is kept out from now on.
    fn believed<T>(&self, tenant: &TenantId, outcome: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match outcome {
            Err(StoreError::Untrusted(problem)) => {
                self.keep_out(&Damage { tenant: tenant.to_string(), problem });
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Signs and publishes nothing for a tenant any more.
    fn keep_out(&self, Damage { tenant, problem }: &Damage) {
        self.quarantine.put(tenant, problem);
        if let Ok(id) = tenant.parse() {
            self.published.quarantine(&id);
        }
    }

    /// Writes down when to look at the tenants that changed, or at all of them, and which are due now.
    fn look_ahead(&self, agenda: &mut Agenda, now: Timestamp, all: bool) {
        let touched = self.published.take_touched();
        let snapshot = self.snapshot();
        if all {
            // The clock was set back: what was planned for an earlier time may not be right any more.
            for view in snapshot.all() {
                agenda.put(view.record.tenant.id.clone(), self.outlook(view, now));
            }
        }
        for tenant in touched {
            let outlook = snapshot.view(&tenant).map_or(Outlook::Nothing, |view| self.outlook(view, now));
            agenda.put(tenant, outlook);
        }
        agenda.wake(now);
    }

    fn outlook(&self, view: &TenantView, now: Timestamp) -> Outlook {
        outlook(&view.record.tenant, &view.record.keyrings, now, |keyring| self.claim(keyring))
    }

    /// Whether something of what is due can be done: not what is to be done on a token that is down.
    fn can_act(&self, view: &TenantView, now: Timestamp) -> bool {
        let (tenant, keyrings) = (&view.record.tenant, &view.record.keyrings);
        let is_possible = |keyring: &Keyring| match plan(keyring, tenant, now, self.claim(keyring)) {
            Plan::Act(action) => !action.asks_token(),
            Plan::Wait(_) | Plan::Ended => false,
        };
        let ended = || keyrings.iter().all(|keyring| self.is_ended(keyring, tenant, now));
        !view.token.is_down() || keyrings.iter().any(is_possible) || (tenant.delete_time.is_some() && ended())
    }

    pub(super) fn is_ended(&self, keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> bool {
        matches!(plan(keyring, tenant, now, self.claim(keyring)), Plan::Ended)
    }

    /// Brings every keyring of one tenant to rest, as the timer does when something of it is due.
    ///
    /// # Errors
    /// Of the token or the store, and [`Error::Limit`]; what was committed until then stays.
    pub async fn tend_tenant(&self, tenant: &TenantId) -> Result<(), Error> {
        let _turn = self.locks.turn(tenant).await?;
        let Some(mut record) = self.store.load(tenant).await? else { return Ok(()) };
        let caller = Caller::timer();
        if record.tenant.delete_time.is_some() {
            return self.end(&mut record, &caller).await;
        }
        let algorithms: Vec<Algorithm> = record.keyrings.iter().map(|keyring| keyring.algorithm).collect();
        let mut failure = Ok(());
        for algorithm in algorithms {
            // One keyring's trouble is not the others'.
            failure = self.drive(&mut record, algorithm, &caller).await.and(failure);
        }
        failure
    }
}
