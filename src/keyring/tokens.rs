//! The tokens of a service: the home token, which has the service key, and those that stand beside it (decision 0024).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::generate::bounded;
use super::{Attended, Canary, Error, Keyrings, TokenHealth, Violation, new_object};
use crate::domain::{Caller, Event, Tenant, TokenName};
use crate::store::{Change, StoreError, TokenBinding, TokenRecord};
use crate::token::{ArrivingToken, Token, TokenError};

/// How often a token is looked for that was never seen.
const MEET_EVERY: Duration = Duration::from_secs(1);

/// The tokens, by name. Whoever signs holds its own one: nothing here is asked for a signature.
pub struct Tokens {
    configured: BTreeMap<TokenName, Arc<Attended>>,
    /// Those on which tenants are placed and that the configuration does not have: no more than there are in records.
    strays: Mutex<BTreeMap<TokenName, Arc<Attended>>>,
    /// Told when one of them stands in another way.
    news: watch::Sender<()>,
}

impl Tokens {
    /// The home token and others; nothing is known of them yet.
    pub fn new(home: Arc<dyn Token>, further: impl IntoIterator<Item = (TokenName, Arc<dyn Token>)>) -> Arc<Self> {
        let news = watch::Sender::new(());
        let all = std::iter::once((TokenName::default(), home)).chain(further);
        let attended = |(name, token): (TokenName, _)| {
            let attended = Attended::new(name.clone(), token, news.clone());
            (name, Arc::new(attended))
        };
        Arc::new(Self { configured: all.map(attended).collect(), strays: Mutex::default(), news })
    }

    /// The token that has the service key.
    #[must_use]
    pub fn home(&self) -> &Arc<Attended> {
        self.configured.get(&TokenName::default()).expect("it was made with one")
    }

    /// Those of the configuration, by name.
    pub fn configured(&self) -> impl Iterator<Item = &Arc<Attended>> {
        self.configured.values()
    }

    /// The token that a tenant is placed on. One that is not in the configuration is down, and says so.
    #[must_use]
    pub fn of(&self, tenant: &Tenant) -> Arc<Attended> {
        if let Some(token) = self.configured.get(&tenant.token) {
            return Arc::clone(token);
        }
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        let stray = strays.entry(tenant.token.clone()).or_insert_with_key(|name| {
            let reason = format!("tenants are placed on it, and there is no [tokens.{name}] in the configuration");
            let reason = TokenError::Unavailable(reason);
            let stray = Attended::new(name.clone(), Arc::new(ArrivingToken::never(reason.clone())), self.news.clone());
            stray.see_failure(&reason);
            Arc::new(stray)
        });
        Arc::clone(stray)
    }

    /// How each of them stands; `None` before its canary was asked.
    #[must_use]
    pub fn health(&self) -> BTreeMap<TokenName, Option<TokenHealth>> {
        let strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.configured.iter().chain(strays.iter());
        all.map(|(name, token)| (name.clone(), token.health())).collect()
    }

    /// Told whenever one of them stands in another way.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Sees that tenants can be placed on this token.
    pub(super) fn check(&self, name: &TokenName) -> Result<(), Violation> {
        if self.configured.contains_key(name) {
            return Ok(());
        }
        let names: Vec<&str> = self.configured.keys().map(TokenName::as_str).collect();
        Err(Violation {
            field: "tenant.token".to_owned(),
            problem: format!("must be a token of the configuration: {}", names.join(", ")),
        })
    }
}

impl Keyrings {
    /// Attends a token beside the home token until `shutdown`. The first time that it is seen it gets its canary, and its name means
    /// it alone from then on.
    pub async fn attend_further(&self, token: &Attended, shutdown: CancellationToken) {
        loop {
            let Some(met) = shutdown.run_until_cancelled(self.meet(token)).await else { return };
            match met {
                Ok(canary) => return token.attend(&canary, shutdown).await,
                Err(error) => token.see_failure(&error),
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(MEET_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// The canary of a token, made if the token was never seen.
    async fn meet(&self, token: &Attended) -> Result<Canary, TokenError> {
        let stored = |error: StoreError| TokenError::Unavailable(format!("the store: {error}"));
        let known = self.store.tokens().await.map_err(stored)?.remove(token.name().as_str());
        let known = known.transpose().map_err(|problem| stored(StoreError::Untrusted(problem)))?;
        if let Some(TokenRecord { canary, public: Some(public), .. }) = known {
            return Canary::new(canary, public).map_err(|bad| TokenError::Mismatch(bad.to_string()));
        }
        // 1. The intent: which token the name means, and under which id its canary will be. A crash from here on leaves at most that
        //    id on the token, and the next start takes it up.
        let record = match known {
            Some(record) => record,
            None => {
                let identity = bounded(token.unattended().probe()).await?;
                let binding = TokenBinding { serial: identity.serial, label: identity.label };
                let name = token.name().clone();
                let record = TokenRecord { name, binding, canary: new_object(), public: None };
                self.note(&record, "bind_token").await.map_err(stored)?;
                record
            }
        };
        // 2. The key.
        let canary = Canary::make(token.unattended(), record.canary).await?;
        // 3. Its public half.
        let complete = TokenRecord { public: Some(canary.public().clone()), ..record };
        self.note(&complete, "publish_canary").await.map_err(stored)?;
        Ok(canary)
    }

    async fn note(&self, record: &TokenRecord, action: &'static str) -> Result<(), StoreError> {
        let TokenRecord { name, binding, canary, .. } = record;
        let detail = format!("token {name}, serial {}, label {}, object {canary}", binding.serial, binding.label);
        let event = Event { detail, ..Event::new(self.clock.now(), action, &Caller::timer()) };
        self.commit(&Change { token: Some(record.clone()), events: vec![event], ..Change::default() }).await
    }

    /// Refuses what would ask the tenant's token in the end, while that one is down.
    pub(super) fn check_token(&self, tenant: &Tenant) -> Result<(), Error> {
        Ok(self.tokens.of(tenant).admit()?)
    }
}
