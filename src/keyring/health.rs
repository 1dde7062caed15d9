//! What the readiness page and the health service tell: each part by name.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Keyrings, QuarantinedKey, TokenHealth, TokenState};
use crate::domain::TokenName;
use crate::store::StoreError;

/// How often the store is probed: an orchestrator asks about as often.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How long it may take before it counts as away: far beyond a healthy answer, short enough to be of use.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(2);

/// How each part is; `Err` says what is wrong, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How each token stands, the home token always among them; `None` before its canary was asked.
    pub tokens: BTreeMap<TokenName, Option<TokenHealth>>,
    /// The store can be read and written.
    pub store: Result<(), String>,
    /// The snapshot is young enough to sign from (R10).
    pub snapshot: Result<(), String>,
    /// The clock is near enough to the database's, if replicas share one.
    pub clock: Result<(), String>,
    /// Tenants for which nothing is signed or published, because their records are not to be believed, and why. The others'
    /// service goes on, so this alone makes nobody unready.
    pub quarantined: BTreeMap<String, String>,
    /// Current keys that sign no more, because a signature did not verify (R11). It makes nobody unready either.
    pub quarantined_keys: Vec<QuarantinedKey>,
}

impl Health {
    /// Before the first probe.
    #[must_use]
    pub fn unknown() -> Self {
        let unknown = || Err("not probed yet".to_owned());
        Self {
            tokens: BTreeMap::from([(TokenName::default(), None)]),
            store: unknown(),
            snapshot: unknown(),
            clock: Ok(()),
            quarantined: BTreeMap::new(),
            quarantined_keys: Vec::new(),
        }
    }

    /// What is one for the whole process, by name.
    pub const fn parts(&self) -> [(&'static str, &Result<(), String>); 3] {
        [("store", &self.store), ("snapshot", &self.snapshot), ("clock", &self.clock)]
    }

    /// For each token whether it is asked for signatures; else what is wrong with it.
    pub fn tokens(&self) -> impl Iterator<Item = (&TokenName, Result<(), &str>)> {
        self.tokens.iter().map(|(name, token)| (name, asked(token.as_ref())))
    }

    /// The same of the home token.
    ///
    /// # Errors
    /// It is down, or nothing is known of it.
    pub fn home(&self) -> Result<(), &str> {
        asked(self.tokens.get(&TokenName::default()).and_then(Option::as_ref))
    }

    /// Whether one of them is; else what is wrong with the home token.
    ///
    /// # Errors
    /// All are down, or nothing is known of them.
    pub fn token(&self) -> Result<(), &str> {
        self.tokens().find_map(|(_, token)| token.ok()).map_or_else(|| self.home(), Ok)
    }

    /// Whether signatures can be made, if not for every tenant: the store is not needed for it (R9), and one token is enough.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        self.snapshot.is_ok() && self.clock.is_ok() && self.token().is_ok()
    }

    /// Whether tenants can be served: whoever signs is also to be told what changes.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.can_sign() && self.store.is_ok()
    }

    /// Whether tenants and keys can be changed: each change is sealed on the home token. Those of a tenant need its own, too.
    #[must_use]
    pub fn can_change(&self) -> bool {
        self.is_ready() && self.home().is_ok()
    }
}

fn asked(token: Option<&TokenHealth>) -> Result<(), &str> {
    match token {
        None => Err("not probed yet"),
        Some(TokenHealth { state: TokenState::Down, problem, .. }) => Err(problem),
        Some(TokenHealth { state: TokenState::Up | TokenState::Suspect | TokenState::Recovering, .. }) => Ok(()),
    }
}

impl Keyrings {
    /// Probes store and snapshot until `shutdown`, looks at the tokens, and tells when something changes.
    pub async fn watch_health(&self, tell: watch::Sender<Health>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut token = self.tokens.news();
        let mut store = Health::unknown().store;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => store = self.probe_store().await,
                _ = token.changed() => {}
                () = self.key_quarantine.changed.notified() => {}
            }
            let health = Health {
                tokens: self.tokens.health(),
                store: store.clone(),
                snapshot: self.probe_snapshot(),
                clock: self.probe_clock(),
                quarantined: self.quarantine.list(),
                quarantined_keys: self.key_quarantine.list(&self.snapshot()),
            };
            tell.send_if_modified(|told| {
                let changed = *told != health;
                if changed {
                    log_change(told, &health);
                    *told = health;
                }
                changed
            });
        }
    }

    async fn probe_store(&self) -> Result<(), String> {
        match tokio::time::timeout(PROBE_WAIT_MAX, self.store.probe()).await {
            Ok(result) => result.map_err(|error: StoreError| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PROBE_WAIT_MAX.as_secs())),
        }
    }

    fn probe_snapshot(&self) -> Result<(), String> {
        if self.published.age() <= self.settings.snapshot_max_age {
            return Ok(());
        }
        Err("older than signing.snapshot_max_age_ms; the store does not confirm it".to_owned())
    }
}

/// The tokens' changes are told where they are made.
fn log_change(before: &Health, after: &Health) {
    let parts = before.parts().into_iter().zip(after.parts());
    for (_, (part, after)) in parts.filter(|((_, before), (_, after))| before.is_ok() != after.is_ok()) {
        match after {
            Ok(()) => tracing::info!("the {part} is well"),
            Err(problem) => tracing::error!(problem, "the {part} is not well"),
        }
    }
}
