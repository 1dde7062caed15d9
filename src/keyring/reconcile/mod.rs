//! What is on the token against what the store accounts for. It reports; what it does, an operator has named.
//!
//! Recovery does not need it: what a crash leaves stands under an id that a row names, and the ordinary loop takes it up (R6). It
//! is for what others did past Keyward, and for a store that was put back.

mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use report::{Account, Accounts, Expected, Finding, Kind, Report, Tally};

use super::generate::bounded;
use super::{Keyrings, TokenHealth, TokenState};
use crate::domain::{Event, ObjectId, Timestamp};
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

/// How the token differs from what the store accounts for. It changes nothing, and may be asked while others change keys.
///
/// # Errors
/// Those of token and store.
pub async fn reconcile(token: &dyn Token, store: &dyn Store, service_key: ObjectId) -> Result<Report, ReconcileError> {
    let before = Accounts::of(&store.load_all().await?, service_key);
    let listed = bounded(token.list()).await?;
    let after = Accounts::of(&store.load_all().await?, service_key);
    Ok(before.compare(&listed).and(after.compare(&listed)))
}

/// Destroys the named objects, each of which `report` says no row needs; `event` tells of it. The report without them.
///
/// # Errors
/// [`ReconcileError::Refused`] if one of them is not to be destroyed: then none was. Those of token and store.
pub async fn destroy(
    token: &dyn Token,
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
    for object in objects {
        bounded(token.destroy(*object)).await?;
    }
    // 3. That it is done.
    store.commit(&tell(format!("destroyed objects {named}"))).await?;
    report.findings.retain(|finding| !objects.contains(&finding.object));
    Ok(report)
}

/// Why an object must stay.
fn refusal(report: &Report, object: ObjectId) -> Option<String> {
    if let [tenant, ..] = report.unbelieved.as_slice() {
        return Some(format!("{object} may be of tenant {tenant}, whose record is not believed; restore that first"));
    }
    let finding = report.findings.iter().find(|finding| finding.object == object);
    if matches!(finding, Some(Finding { kind: Kind::Orphan | Kind::Lingering, .. })) {
        return None;
    }
    Some(match report.accounted.get(&object) {
        Some(account) => format!("{object} is accounted for: {account}"),
        None if report.foreign.iter().any(|foreign| foreign.id == object.octets()) => {
            format!("{object} is not Keyward's")
        }
        None => format!("{object} is not on the token"),
    })
}

impl Keyrings {
    /// Tells by log and metric how token and store differ when the service starts, once the token is up. It does not act, and
    /// nobody waits for it.
    pub async fn report_at_start(&self, service_key: ObjectId) {
        let mut token = self.token.watch();
        for _ in 0..TRIES_MAX {
            let is_up =
                |health: &Option<TokenHealth>| matches!(health, Some(TokenHealth { state: TokenState::Up, .. }));
            // However long that takes.
            if token.wait_for(is_up).await.is_err() {
                return;
            }
            match reconcile(&*self.token, &*self.store, service_key).await {
                Ok(report) => return tell(&report),
                Err(error) => tracing::warn!(%error, "token and store could not be compared"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}

fn tell(report: &Report) {
    for kind in Kind::ALL {
        let found = report.findings.iter().filter(|finding| finding.kind == kind).count();
        // Far below where a float becomes inexact.
        metrics::gauge!("keyward_reconcile_findings", "kind" => kind.name()).set(found as f64);
    }
    let (objects, foreign, findings) = (report.objects, report.foreign.len(), report.findings.len());
    if report.is_clean() {
        tracing::info!(objects, foreign, accounts = report.accounted.len(), "token and store agree");
        return;
    }
    for finding in report.findings.iter().take(FINDINGS_LOGGED_MAX) {
        tracing::warn!(kind = finding.kind.name(), "token and store differ: {finding}");
    }
    let unbelieved = report.unbelieved.len();
    tracing::warn!(objects, foreign, findings, unbelieved, "token and store differ; `keyward reconcile` has all of it");
}
