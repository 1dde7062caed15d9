//! What is on the tokens against what the store accounts for. It reports; what it does, an operator has named.
//!
//! Recovery does not need it: what a crash leaves stands under an id that a row names, and the ordinary loop takes it up (R6). It
//! is for what others did past Keyward, and for a store that was put back.

mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use report::{Account, Accounts, Expected, Finding, Foreign, Kind, Own, Report, Tally};

use super::generate::bounded;
use super::{Attended, Keyrings, TokenHealth, TokenState};
use crate::domain::{Event, ObjectId, Timestamp, TokenName};
use crate::store::{Change, Store, StoreError};
use crate::token::{Token, TokenError};

/// Findings that the log has at a start: enough to see what happened, and no flood where a store was put back.
const FINDINGS_LOGGED_MAX: usize = 20;

/// How often a start's report is tried while the token is up, and the pause in between: a list that fails keeps the generation of
/// keys waiting each time.
const TRIES_MAX: u32 = 3;
const RETRY_EVERY: Duration = Duration::from_secs(60);

/// Why token and store were not compared, or nothing was destroyed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The token.
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// What was named must not be destroyed; nothing was.
    #[error("nothing was destroyed: {0}")]
    Refused(String),
}

/// The tokens of a configuration, by name.
pub type ByName = BTreeMap<TokenName, Arc<dyn Token>>;

/// How the tokens differ from what the store accounts for. It changes nothing, and may be asked while others change keys. A token
/// that does not answer is in the report, and so is one that records name and `tokens` does not have; but for the home token.
///
/// # Errors
/// Those of the home token and the store.
pub async fn reconcile(tokens: &ByName, store: &dyn Store, service_key: ObjectId) -> Result<Report, ReconcileError> {
    let mut report = Report::default();
    for (name, token) in tokens {
        match reconcile_one(name, &**token, store, service_key).await {
            Ok(one) => report = report.beside(one),
            Err(error) if name.is_home() => return Err(error),
            Err(error) => drop(report.away.insert(name.clone(), error.to_string())),
        }
    }
    let records = store.load_all().await?.records;
    for name in records.into_iter().map(|record| record.tenant.token).filter(|name| !tokens.contains_key(name)) {
        report
            .away
            .entry(name)
            .or_insert_with(|| "tenants are placed on it, and it is not in the configuration".into());
    }
    Ok(report)
}

async fn reconcile_one(
    name: &TokenName,
    token: &dyn Token,
    store: &dyn Store,
    service_key: ObjectId,
) -> Result<Report, ReconcileError> {
    let accounts = async || {
        let own = own_key(name, store, service_key).await?;
        Ok::<_, ReconcileError>(Accounts::of(&store.load_all().await?, name, own))
    };
    let before = accounts().await?;
    let listed = bounded(token.list()).await?;
    let after = accounts().await?;
    Ok(before.compare(&listed).and(after.compare(&listed)))
}

/// The service's own key on a token; `None` where it was never seen.
async fn own_key(name: &TokenName, store: &dyn Store, service_key: ObjectId) -> Result<Option<Own>, StoreError> {
    if name.is_home() {
        return Ok(Some(Own { object: service_key, state: "service", expected: Expected::Pair }));
    }
    let record = store.tokens().await?.remove(name.as_str()).transpose().map_err(StoreError::Untrusted)?;
    Ok(record.map(|record| {
        let expected = if record.public.is_some() { Expected::Pair } else { Expected::Anything };
        Own { object: record.canary, state: "canary", expected }
    }))
}

/// Destroys the named objects, each of which `report` says no row needs; `event` tells of it. The report without them.
///
/// # Errors
/// [`ReconcileError::Refused`] if one of them is not to be destroyed: then none was. Those of token and store.
pub async fn destroy(
    tokens: &ByName,
    store: &dyn Store,
    mut report: Report,
    objects: &[ObjectId],
    event: &Event,
) -> Result<Report, ReconcileError> {
    let refusals: Vec<String> = objects.iter().filter_map(|object| refusal(&report, *object)).collect();
    if !refusals.is_empty() {
        return Err(ReconcileError::Refused(refusals.join("; ")));
    }
    let named = objects.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let tell = |detail: String| Change {
        events: vec![Event { time: Timestamp::now(), detail, ..event.clone() }],
        ..Change::default()
    };
    // 1. The intent (R6). A crash from here on leaves objects that the next report names again.
    store.commit(&tell(format!("is to destroy objects {named}"))).await?;
    // 2. The effect, which is idempotent.
    let not_needed = |finding: &&Finding| objects.contains(&finding.object) && finding.kind.is_not_needed();
    for finding in report.findings.iter().filter(not_needed) {
        if let Some(token) = tokens.get(&finding.token) {
            bounded(token.destroy(finding.object)).await?;
        }
    }
    // 3. That it is done.
    store.commit(&tell(format!("destroyed objects {named}"))).await?;
    report.findings.retain(|finding| !not_needed(&finding));
    Ok(report)
}

/// Why an object must stay.
fn refusal(report: &Report, object: ObjectId) -> Option<String> {
    if let [tenant, ..] = report.unbelieved.as_slice() {
        return Some(format!("{object} may be of tenant {tenant}, whose record is not believed; restore that first"));
    }
    // It goes where it stands and is not needed; the same id may be needed on another token.
    if report.findings.iter().any(|finding| finding.object == object && finding.kind.is_not_needed()) {
        return None;
    }
    Some(match report.accounted.get(&object) {
        Some(account) => format!("{object} is accounted for: {account}"),
        None if report.foreign.iter().any(|foreign| foreign.object.id == object.octets()) => {
            format!("{object} is not Keyward's")
        }
        None => format!("{object} is not on a token"),
    })
}

impl Keyrings {
    /// Tells by log and metric how a token and the store differ when the service starts, once the token is up. It does not act, and
    /// nobody waits for it.
    pub async fn report_at_start(&self, token: &Attended, service_key: ObjectId) {
        let mut health = token.watch();
        for _ in 0..TRIES_MAX {
            let is_up =
                |health: &Option<TokenHealth>| matches!(health, Some(TokenHealth { state: TokenState::Up, .. }));
            // However long that takes.
            if health.wait_for(is_up).await.is_err() {
                return;
            }
            let name = token.name();
            match reconcile_one(name, token, &*self.store, service_key).await {
                Ok(report) => return tell(name, &report),
                Err(error) => tracing::warn!(token = %name, %error, "token and store could not be compared"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}

fn tell(token: &TokenName, report: &Report) {
    for kind in Kind::ALL {
        let found = report.findings.iter().filter(|finding| finding.kind == kind).count();
        let labels = [("kind", kind.name().to_owned()), ("token", token.to_string())];
        // Far below where a float becomes inexact.
        metrics::gauge!("keyward_reconcile_findings", &labels).set(found as f64);
    }
    let (objects, foreign, findings) = (report.objects, report.foreign.len(), report.findings.len());
    if report.is_clean() {
        tracing::info!(%token, objects, foreign, accounts = report.accounted.len(), "token and store agree");
        return;
    }
    for finding in report.findings.iter().take(FINDINGS_LOGGED_MAX) {
        tracing::warn!(kind = finding.kind.name(), "token and store differ: {finding}");
    }
    let unbelieved = report.unbelieved.len();
    tracing::warn!(%token, objects, foreign, findings, unbelieved, "token and store differ; `keyward reconcile` has all of it");
}
