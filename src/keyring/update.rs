//! Changes of a tenant, its algorithms included.

use std::sync::Arc;

use super::tenants::{checked_algorithms, tenant_event};
use super::{Error, Keyrings, Violation, new_object};
use crate::domain::{
    Algorithm, Caller, Domain, Event, Issuer, Keyring, Revision, RotationPolicy, Tenant, TenantId, Timestamp, WebUrl,
};
use crate::store::{Change, TenantRecord};

/// What to change of a tenant. `None`: leave it as it is.
#[derive(Clone, Debug, Default)]
pub struct TenantUpdate {
    /// A new issuer.
    pub issuer: Option<Issuer>,
    /// A new domain, or none.
    pub custom_domain: Option<Option<Domain>>,
    /// A new SAML address, or none.
    pub saml_sso_url: Option<Option<WebUrl>>,
    /// The algorithms: one that is new gets keys, one that is left out is retired.
    pub algorithms: Option<Vec<Algorithm>>,
    /// A new default among its algorithms.
    pub default_algorithm: Option<Algorithm>,
    /// A new policy.
    pub policy: Option<RotationPolicy>,
}

impl Keyrings {
    /// Changes a tenant of revision `expected`.
    ///
    /// The keys of a new algorithm are published at once and sign after `publish_lead` (R3); those of a retired one sign no
    /// more and stay published for as long as something that they signed may be in use (R4).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], [`Error::Aborted`] if the tenant has another revision,
    /// [`Error::AlreadyExists`], [`Error::Precondition`] for a default algorithm without a current key or a new one that the token
    /// lacks, and those of the store. A token that does not generate the keys of a new algorithm is no error: the timer goes on.
    pub async fn update_tenant(
        self: &Arc<Self>,
        id: TenantId,
        expected: Revision,
        update: TenantUpdate,
        caller: &Caller,
    ) -> Result<Tenant, Error> {
        let (tenant, caller) = (id.clone(), caller.clone());
        self.in_turn(&tenant, |this| async move { this.update_to_the_end(&id, expected, update, &caller).await }).await
    }

    async fn update_to_the_end(
        &self,
        id: &TenantId,
        expected: Revision,
        update: TenantUpdate,
        caller: &Caller,
    ) -> Result<Tenant, Error> {
        let mut record = self.load(id).await?;
        if record.tenant.revision != expected {
            let message = format!("tenant.revision is {} by now; read the tenant again", record.tenant.revision);
            return Err(Error::Aborted(message));
        }
        let now = self.clock.now();
        if let Some(policy) = &update.policy {
            self.check_clock_skew(policy)?;
        }
        let tenant = updated(&record, update, now)?;
        // With what it will allow: to raise that may be the way out.
        self.check_clock(&tenant)?;
        let new = tenant.algorithms.iter().filter(|algorithm| !record.tenant.algorithms.contains(algorithm));
        let new: Vec<Algorithm> = new.copied().collect();
        if !new.is_empty() {
            self.check_mechanisms(&tenant, &new).await?;
        }
        let keyrings = self.rekeyed(&record, &tenant, now);
        let mut events = vec![tenant_event(&tenant, Event::new(now, "update_tenant", caller))];
        events.extend(algorithm_events(&record.tenant, &tenant, now, caller));
        let change = Change { tenant: Some(tenant.clone()), keyrings: keyrings.clone(), events, ..Change::default() };
        self.commit(&change).await?;
        record.tenant = tenant;
        for keyring in keyrings {
            self.claim_new(&record, &keyring);
            record.keyrings.retain(|other| other.algorithm != keyring.algorithm);
            record.keyrings.push(keyring);
        }
        record.keyrings.sort_by_key(|keyring| keyring.algorithm);
        self.publish(&record)?;
        for algorithm in record.tenant.algorithms.clone() {
            if let Err(error) = self.drive(&mut record, algorithm, caller).await {
                tracing::warn!(tenant = %id, %algorithm, error = error.for_log(), "changed; its keys are left to the timer");
            }
        }
        Ok(record.tenant)
    }

    /// The keyrings that change with the tenant: each at most once.
    fn rekeyed(&self, record: &TenantRecord, tenant: &Tenant, now: Timestamp) -> Vec<Keyring> {
        let (before, after) = (&record.tenant.algorithms, &tenant.algorithms);
        let rebound = tenant.policy != record.tenant.policy;
        let policy = tenant.binding_policy(now);
        let changed =
            |keyring: &Keyring| match (before.contains(&keyring.algorithm), after.contains(&keyring.algorithm)) {
                (true, false) => Some(keyring.retire(&policy, now, self.clock.latest())),
                (false, true) => Some(keyring.rejoin(new_object(), now)),
                (true, true) | (false, false) => rebound.then(|| keyring.under_new_policy()),
            };
        let new =
            after.iter().filter(|algorithm| record.keyrings.iter().all(|keyring| keyring.algorithm != **algorithm));
        let new = new.map(|algorithm| Keyring::join(tenant.id.clone(), *algorithm, new_object(), now));
        record.keyrings.iter().filter_map(changed).chain(new).collect()
    }
}

/// The tenant as the update leaves it, or what is wrong with the update.
fn updated(record: &TenantRecord, update: TenantUpdate, now: Timestamp) -> Result<Tenant, Error> {
    let mut tenant = record.tenant.clone();
    if let Some(policy) = update.policy {
        policy.check()?;
        tenant = tenant.with_policy(policy, now);
    }
    if let Some(algorithms) = update.algorithms {
        tenant.algorithms =
            checked_algorithms(&algorithms).map_err(|violation: Violation| Error::Invalid(vec![violation]))?;
    }
    if let Some(default) = update.default_algorithm {
        tenant.default_algorithm = default;
    }
    if !tenant.algorithms.contains(&tenant.default_algorithm) {
        return Err(match update.default_algorithm {
            Some(_) => Error::invalid("tenant.default_algorithm", "must be one of algorithms"),
            None => Error::invalid(
                "tenant.algorithms",
                format!(
                    "must keep {}, the default; make another one default_algorithm first",
                    tenant.default_algorithm
                ),
            ),
        });
    }
    if tenant.default_algorithm != record.tenant.default_algorithm {
        has_current(record, &tenant, now)?;
    }
    tenant.issuer = update.issuer.unwrap_or(tenant.issuer);
    tenant.custom_domain = update.custom_domain.unwrap_or(tenant.custom_domain);
    tenant.saml_sso_url = update.saml_sso_url.unwrap_or(tenant.saml_sso_url);
    tenant.revision = tenant.revision.next();
    Ok(tenant)
}

/// Calls that name no algorithm must not fail from one moment to the next: the new default signs already.
fn has_current(record: &TenantRecord, tenant: &Tenant, now: Timestamp) -> Result<(), Error> {
    let algorithm = tenant.default_algorithm;
    let open = |keyring: &&Keyring| keyring.algorithm == algorithm && keyring.close_time.is_none();
    let keyring = record.keyrings.iter().find(open);
    if keyring.is_some_and(|keyring| keyring.current().is_some()) {
        return Ok(());
    }
    let next = keyring.and_then(Keyring::next);
    let retry_time = next.map(|next| Keyring::ready_time(next, &tenant.binding_policy(now)));
    let when = retry_time.map_or_else(
        || "add it to algorithms first, and make it the default once its first key signs".to_owned(),
        |time| format!("its first key signs from {time} on, when it has been published for publish_lead"),
    );
    Err(Error::Precondition {
        reason: "ALGORITHM_NOT_READY",
        message: format!("tenant.default_algorithm {algorithm} has no current key yet: {when}"),
        retry_time,
    })
}

fn algorithm_events(before: &Tenant, after: &Tenant, time: Timestamp, caller: &Caller) -> Vec<Event> {
    let of = |action: &'static str, algorithm: &Algorithm| Event {
        algorithm: Some(*algorithm),
        ..tenant_event(after, Event::new(time, action, caller))
    };
    let only_in = |one: &Tenant, other: &Tenant| -> Vec<Algorithm> {
        one.algorithms.iter().copied().filter(|algorithm| !other.algorithms.contains(algorithm)).collect()
    };
    let added = only_in(after, before);
    let retired = only_in(before, after);
    let added = added.iter().map(|algorithm| of("add_algorithm", algorithm));
    added.chain(retired.iter().map(|algorithm| of("retire_algorithm", algorithm))).collect()
}
