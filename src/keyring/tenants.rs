//! Tenants: who may have keys at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rotate::GENERATION_PAUSE;
use super::{Error, Keyrings, Violation, new_object};
use crate::domain::{
    Algorithm, Caller, Domain, Event, Issuer, Keyring, Revision, RotationPolicy, Tenant, TenantId, Timestamp,
    TokenName, WebUrl, after,
};
use crate::store::{Change, StoreError, TenantRecord};
use crate::token::Token as _;

/// How often a call looks that waits for what another replica makes.
const OTHERS_LOOK: Duration = Duration::from_millis(50);

/// A tenant that somebody wants to have.
#[derive(Clone, Debug)]
pub struct TenantSpec {
    /// Its name.
    pub id: TenantId,
    /// Its issuer; `None`: its address under the canonical base URL.
    pub issuer: Option<Issuer>,
    /// The token that its keys are to be on.
    pub token: TokenName,
    /// A domain of its own.
    pub custom_domain: Option<Domain>,
    /// Where its SAML identity provider takes requests.
    pub saml_sso_url: Option<WebUrl>,
    /// Its algorithms.
    pub algorithms: Vec<Algorithm>,
    /// The algorithm of calls that name none; `None`: the first one.
    pub default_algorithm: Option<Algorithm>,
    /// How its keys rotate.
    pub policy: RotationPolicy,
}

/// Some of the tenants.
#[derive(Debug)]
pub struct TenantPage {
    /// The tenants, ordered by id.
    pub tenants: Vec<Tenant>,
    /// The last id of this page, if there are more.
    pub next: Option<TenantId>,
}

impl Keyrings {
    /// Why there is no tenant of this id to be seen.
    pub(super) fn absent(&self, id: &TenantId) -> Error {
        if self.snapshot().is_quarantined(id) {
            return Error::Quarantined { cause: format!("tenant {id} is quarantined") };
        }
        Error::no_tenant(id)
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn tenant(&self, id: &TenantId) -> Result<Tenant, Error> {
        self.snapshot().tenant(id).map(|view| view.record.tenant.clone()).ok_or_else(|| self.absent(id))
    }

    /// The tenants after `after`, at most `page_size`.
    #[must_use]
    pub fn list_tenants(&self, page_size: usize, after: Option<&TenantId>) -> TenantPage {
        let snapshot = self.snapshot();
        let there = snapshot.after(after).map(|view| &view.record.tenant);
        let shown = there.filter(|tenant| tenant.delete_time.is_none());
        let mut tenants: Vec<&Tenant> = shown.take(page_size + 1).collect();
        let more = tenants.len() > page_size;
        tenants.truncate(page_size);
        let next = tenants.last().filter(|_| more).map(|tenant| tenant.id.clone());
        TenantPage { tenants: tenants.into_iter().cloned().collect(), next }
    }

    /// Makes a tenant and its keys, and answers when each of its keyrings has a current and a next key.
    ///
    /// The same call again, after one that failed in the middle, goes on where that one stopped.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::AlreadyExists`], [`Error::Precondition`] where another replica makes the keys and takes long,
    /// [`Error::Aborted`] where somebody deletes the tenant meanwhile, and those of token and store. After one of the token the
    /// tenant exists and the timer goes on.
    pub async fn create_tenant(self: &Arc<Self>, spec: TenantSpec, caller: &Caller) -> Result<Tenant, Error> {
        let (id, caller) = (spec.id.clone(), caller.clone());
        let made = self.in_turn(&id, |this| async move { this.create_to_the_end(spec, &caller).await }).await?;
        self.when_complete(made).await
    }

    /// Another replica may have been quicker with one of the steps, and make the key that it leads to: then this one looks, as for any
    /// change of another's, until it has all of the keys itself.
    async fn when_complete(&self, made: TenantRecord) -> Result<Tenant, Error> {
        let Tenant { id, create_time, .. } = made.tenant.clone();
        let until = Instant::now() + self.settings.others_wait_max;
        let mut shown = Some(made);
        loop {
            let same = |record: &TenantRecord| {
                let Tenant { create_time: other, delete_time, .. } = &record.tenant;
                *other == create_time && delete_time.is_none() && !record.keyrings.is_empty()
            };
            let Some(record) = shown.filter(same) else {
                return Err(Error::Aborted("the tenant was deleted at this moment".to_owned()));
            };
            if is_complete(&record) {
                return Ok(record.tenant);
            }
            if Instant::now() >= until {
                return Err(Error::Precondition {
                    reason: "KEYS_GENERATING",
                    message: format!(
                        "keys of tenant {id} are being made by another replica; should it have ended, this one makes them two \
                         minutes after it began; the same call again waits for them"
                    ),
                    retry_time: Some(after(self.clock.now(), GENERATION_PAUSE)),
                });
            }
            tokio::time::sleep(OTHERS_LOOK).await;
            shown = self.snapshot().tenant(&id).map(|view| view.record.clone());
        }
    }

    /// Refuses algorithms that the token lacks, before anything is written that would wait for their keys for ever.
    pub(super) async fn check_mechanisms(&self, tenant: &Tenant, new: &[Algorithm]) -> Result<(), Error> {
        let told = self.tokens.of(tenant).mechanisms().await?;
        let lacks = told.iter().filter(|(algorithm, support)| support.is_err() && new.contains(algorithm));
        let lacks: Vec<&str> = lacks.map(|(algorithm, _)| algorithm.name()).collect();
        if lacks.is_empty() {
            return Ok(());
        }
        let lacks = lacks.join(", ");
        let message = format!(
            "tenant.algorithms: the token cannot make keys of {lacks}: leave it out; `keyward check` names what the token lacks"
        );
        Err(Error::Precondition { reason: "TOKEN_MECHANISM", message, retry_time: None })
    }

    async fn create_to_the_end(&self, spec: TenantSpec, caller: &Caller) -> Result<TenantRecord, Error> {
        let now = self.clock.now();
        let tenant = self.new_tenant(spec, now)?;
        self.check_clock_skew(&tenant.policy)?;
        self.check_clock(&tenant)?;
        self.check_mechanisms(&tenant, &tenant.algorithms).await?;
        let keyring = |algorithm: &Algorithm| Keyring::new(tenant.id.clone(), *algorithm, new_object(), now);
        let keyrings: Vec<Keyring> = tenant.algorithms.iter().map(keyring).collect();
        let change = Change {
            tenant: Some(tenant.clone()),
            keyrings: keyrings.clone(),
            events: vec![tenant_event(&tenant, Event::new(now, "create_tenant", caller))],
            ..Change::default()
        };
        let mut record = match self.commit(&change).await {
            Ok(()) => {
                let mut record = TenantRecord { tenant: tenant.clone(), keyrings: Vec::new() };
                keyrings.iter().for_each(|keyring| self.claim_new(&record, keyring));
                record.keyrings = keyrings;
                self.publish(&record)?;
                record
            }
            Err(StoreError::Taken { field: "id" }) => self.unfinished(&tenant).await?,
            Err(error) => return Err(error.into()),
        };
        self.drive_all(&mut record, caller).await?;
        Ok(record)
    }

    async fn drive_all(&self, record: &mut TenantRecord, caller: &Caller) -> Result<(), Error> {
        let algorithms: Vec<Algorithm> = record.keyrings.iter().map(|keyring| keyring.algorithm).collect();
        for algorithm in algorithms {
            self.drive(record, algorithm, caller).await?;
        }
        Ok(())
    }

    /// The tenant of the same wish, if an earlier call made it and could not finish its keys.
    async fn unfinished(&self, wanted: &Tenant) -> Result<TenantRecord, Error> {
        let taken = |text: &str| Err(Error::AlreadyExists(format!("id {} {text}", wanted.id)));
        let Some(record) = self.store.load(&wanted.id).await? else {
            return Err(Error::Aborted("the tenant of this id was removed at this moment; retry".to_owned()));
        };
        if record.tenant.delete_time.is_some() {
            return taken("belongs to a tenant that is being deleted; it is free once its keys are destroyed");
        }
        let same =
            Tenant { create_time: record.tenant.create_time, revision: record.tenant.revision, ..wanted.clone() }
                == record.tenant;
        if is_complete(&record) || !same {
            return taken("is taken by a tenant that is there; GetTenant shows it");
        }
        Ok(record)
    }

    fn new_tenant(&self, spec: TenantSpec, now: Timestamp) -> Result<Tenant, Error> {
        let mut problems = Vec::new();
        let algorithms = checked_algorithms(&spec.algorithms).unwrap_or_else(|violation| {
            problems.push(violation);
            Vec::new()
        });
        let mut problem = |field: &str, problem: &str| {
            problems.push(Violation { field: field.to_owned(), problem: problem.to_owned() });
        };
        let default_algorithm = spec.default_algorithm.or(spec.algorithms.first().copied()).unwrap_or(Algorithm::RS256);
        if !spec.algorithms.is_empty() && !spec.algorithms.contains(&default_algorithm) {
            problem("tenant.default_algorithm", "must be one of algorithms");
        }
        if let Err(violation) = self.tokens.check(&spec.token) {
            problem(&violation.field, &violation.problem);
        }
        let issuer = spec.issuer.map_or_else(|| format!("{}/{}", self.settings.base_url, spec.id).try_into(), Ok);
        let issuer = issuer.inspect_err(|_| {
            problem("tenant.issuer", "must be set: the public base URL of this service makes no valid issuer");
        });
        if let Err(found) = spec.policy.check() {
            for found in found {
                problem(&format!("tenant.rotation_policy.{}", found.field), &found.problem);
            }
        }
        let (Ok(issuer), true) = (issuer, problems.is_empty()) else { return Err(Error::Invalid(problems)) };
        Ok(Tenant {
            id: spec.id,
            issuer,
            token: spec.token,
            custom_domain: spec.custom_domain,
            saml_sso_url: spec.saml_sso_url,
            algorithms,
            default_algorithm,
            policy: spec.policy,
            custom_keys: Vec::new(),
            policy_floor: None,
            create_time: now,
            delete_time: None,
            revision: Revision::FIRST,
        })
    }

    /// Revokes every key of a tenant at once; the timer destroys them after `destroy_delay`, and then the tenant is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Aborted`], and those of the store.
    pub async fn delete_tenant(self: &Arc<Self>, id: TenantId, caller: &Caller) -> Result<(), Error> {
        let (tenant, caller) = (id.clone(), caller.clone());
        self.in_turn(&tenant, |this| async move { this.delete_to_the_end(&id, &caller).await }).await
    }

    async fn delete_to_the_end(&self, id: &TenantId, caller: &Caller) -> Result<(), Error> {
        let mut record = self.load(id).await?;
        self.check_clock(&record.tenant)?;
        let now = self.clock.now();
        let mut tenant = record.tenant.clone();
        tenant.delete_time = Some(now);
        tenant.revision = tenant.revision.next();
        // The domain is free for another tenant at once: nothing is served on it any more.
        tenant.custom_domain = None;
        let closed: Vec<Keyring> = record.keyrings.iter().map(|keyring| keyring.close(now)).collect();
        let events = vec![tenant_event(&tenant, Event::new(now, "delete_tenant", caller))];
        let change = Change { tenant: Some(tenant.clone()), keyrings: closed.clone(), events, ..Change::default() };
        self.commit(&change).await?;
        record = TenantRecord { tenant, keyrings: closed };
        self.publish(&record)?;
        if let Err(error) = self.end(&mut record, caller).await {
            tracing::warn!(tenant = %id, error = error.for_log(), "deleted; its keys are destroyed by the timer");
        }
        Ok(())
    }

    /// Brings a tenant that is being deleted as far as it goes, and removes it once nothing of it is left on the token.
    pub(super) async fn end(&self, record: &mut TenantRecord, caller: &Caller) -> Result<(), Error> {
        self.drive_all(record, caller).await?;
        let now = self.clock.now();
        if !record.keyrings.iter().all(|keyring| self.is_ended(keyring, &record.tenant, now)) {
            return Ok(());
        }
        let tenant = &record.tenant;
        let change = Change {
            remove: Some((tenant.id.clone(), tenant.revision)),
            events: vec![tenant_event(tenant, Event::new(now, "remove_tenant", caller))],
            ..Change::default()
        };
        match self.commit(&change).await {
            Ok(()) => self.published.withdraw(&tenant.id),
            // Another replica removed it: to be remembered, too.
            Err(StoreError::Conflict) => self.reload(&tenant.id).await?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Whether each keyring that a tenant was made with signs, and had its next key: so it stays, whatever is rotated. What joined later
/// has its keys at its own time.
fn is_complete(record: &TenantRecord) -> bool {
    let mut first =
        record.keyrings.iter().filter(|keyring| keyring.join_time.is_none() && keyring.close_time.is_none());
    first.all(|keyring| keyring.current().is_some() && keyring.keys.len() > 1)
}

/// A tenant's algorithms in their order, or what is wrong with the list.
pub(super) fn checked_algorithms(wanted: &[Algorithm]) -> Result<Vec<Algorithm>, Violation> {
    let violation = |problem: &str| Violation { field: "tenant.algorithms".to_owned(), problem: problem.to_owned() };
    let mut algorithms = wanted.to_vec();
    algorithms.sort_unstable();
    algorithms.dedup();
    if wanted.is_empty() {
        return Err(violation("must name at least one algorithm, such as RS256"));
    }
    if algorithms.len() < wanted.len() {
        return Err(violation("must name each algorithm once"));
    }
    Ok(algorithms)
}

/// What the audit log tells of a change of a tenant.
pub(super) fn tenant_event(tenant: &Tenant, begun: Event) -> Event {
    Event { tenant: Some(tenant.id.clone()), detail: format!("revision {}", tenant.revision), ..begun }
}
