use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::SetupError;
use crate::config::Config;
use crate::domain::TokenName;
use crate::keyring::reconcile::ByName;
use crate::store::{Store, TokenBinding, TokenRecord};
use crate::token::{ArrivingToken, Pkcs11Token, TokenConfig, TokenError};

/// How long a start waits for the tokens beside the home token, together: longer than a login to a network HSM takes. One that
/// hangs holds up nobody for longer, and comes when it comes.
const FURTHER_WAIT_MAX: Duration = Duration::from_secs(5);

/// The tokens of a configuration.
pub struct OpenedTokens {
    /// The home token, which is open or known by its serial number.
    pub home: Arc<Pkcs11Token>,
    /// The others, which may be away.
    further: BTreeMap<TokenName, Arc<ArrivingToken>>,
}

impl OpenedTokens {
    /// The home token, and the others as soon as they come. Blocks until they have come, or for some seconds.
    #[must_use]
    pub fn with_further(home: Arc<Pkcs11Token>, config: &Config) -> Self {
        let attach = |token: &TokenConfig| (token.name.clone(), Arc::new(ArrivingToken::attach(token.clone())));
        let further: BTreeMap<_, _> = config.further_tokens.iter().map(attach).collect();
        let until = Instant::now() + FURTHER_WAIT_MAX;
        for token in further.values() {
            token.wait(until.saturating_duration_since(Instant::now()));
        }
        Self { home, further }
    }

    /// All of them, by name.
    #[must_use]
    pub fn by_name(&self) -> ByName {
        let mut all: ByName = BTreeMap::from([(TokenName::default(), Arc::clone(&self.home) as _)]);
        all.extend(self.further.iter().map(|(name, token)| (name.clone(), Arc::clone(token) as _)));
        all
    }

    /// As [`Pkcs11Token::close`], side by side: one that hangs costs its own seconds alone.
    pub fn close(&self) {
        thread::scope(|scope| {
            self.further.values().for_each(|token| drop(scope.spawn(|| token.close())));
            self.home.close();
        });
    }

    /// Sees that each name means the token that it meant before, and that no two mean the same.
    pub(super) async fn check(&self, config: &Config, store: &dyn Store) -> Result<(), SetupError> {
        let home = store.binding().await?;
        let known = store.tokens().await?;
        for token in &config.further_tokens {
            let TokenConfig { name, label, .. } = token;
            let serial = token.serial.as_deref().unwrap_or_default();
            let refused = |text: String| Err(SetupError::Refused(format!("tokens.{name}.serial is {serial}: {text}")));
            let is_home = |known: &str, name: &str| known == serial && name == label;
            let found = self.home.identity();
            if is_home(&home.serial, &home.label) || is_home(&found.serial, &found.label) {
                return refused(
                    "that is the home token, and one token has one name; leave this section out".to_owned(),
                );
            }
            // Its tenants would be left without a token, and their keys without an account.
            let other = known.iter().find(|(other, record)| {
                *other != name.as_str()
                    && record
                        .as_ref()
                        .is_ok_and(|record| record.binding.serial == serial && record.binding.label == *label)
            });
            if let Some((other, _)) = other {
                return refused(format!(
                    "that token has the name {other} already, and its tenants are placed there; call this section tokens.{other}"
                ));
            }
            // A record that is not believed keeps its token out, later and alone.
            if let Some(Ok(TokenRecord { binding: TokenBinding { serial: bound, .. }, .. })) = known.get(name.as_str())
                && bound != serial
            {
                return refused(format!(
                    "this name means the token of serial {bound}, and the keys of its tenants are there; correct the serial \
                     number, or give the new token a name of its own"
                ));
            }
        }
        Ok(())
    }
}

/// A service with one token.
impl From<Arc<Pkcs11Token>> for OpenedTokens {
    fn from(home: Arc<Pkcs11Token>) -> Self {
        Self { home, further: BTreeMap::new() }
    }
}

/// Opens the tokens that serve the store. One that is away is looked for until it is there: what is published needs no token, and a
/// service that does not start for want of it would publish nothing, nor sign with the others. Blocks on the modules.
///
/// # Errors
/// Those of the home token, if it is there and not as it should be, or if there is no module or no store that names it.
pub async fn open_tokens(config: &Config) -> Result<OpenedTokens, SetupError> {
    let home = open_home(config).await?;
    Ok(OpenedTokens::with_further(home, config))
}

async fn open_home(config: &Config) -> Result<Arc<Pkcs11Token>, SetupError> {
    // A path that leads nowhere is a mistake; a token that is away is not.
    tracing::info!(label = config.token.label, "opening the token");
    let may_come = config.token.module.exists() && config.store.may_be_there();
    match Pkcs11Token::open(config.token.clone()) {
        Err(TokenError::Unavailable(_)) if may_come => {}
        opened => return Ok(Arc::new(opened?)),
    }
    // By serial number, so that no other token of this label is taken for it meanwhile.
    let binding = config.store.read_log().await?.binding().await?;
    let serial = config.token.serial.clone().or(Some(binding.serial));
    Ok(Arc::new(Pkcs11Token::attach(TokenConfig { serial, ..config.token.clone() })?))
}
