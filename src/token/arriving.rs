use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;

use super::{
    Found, KeyRef, KeySpec, Pkcs11Token, SignInput, Support, Token, TokenConfig, TokenError, TokenIdentity, TokenKey,
    TokenObject,
};
use crate::domain::{Algorithm, ObjectId};

/// A token that is opened beside what runs already: one that is away, hangs or refuses takes nothing from the others. Until it is
/// open, and if it cannot be opened, every verb says why.
pub struct ArrivingToken(Arc<Shared>);

#[derive(Default)]
struct Shared {
    opened: OnceLock<Result<Pkcs11Token, TokenError>>,
    /// Nobody uses it any more.
    closed: Mutex<bool>,
    news: Condvar,
}

impl ArrivingToken {
    /// Begins to open the token, on a thread of its own and in the runtime of the caller. Its serial number is known.
    #[must_use]
    pub fn attach(config: TokenConfig) -> Self {
        let shared = Arc::<Shared>::default();
        let (opening, runtime) = (Arc::clone(&shared), Handle::try_current());
        let spawned = thread::Builder::new().name(format!("token-open-{}", config.name)).spawn(move || {
            let _inside = runtime.as_ref().map(Handle::enter);
            opening.open(Pkcs11Token::attach(config));
        });
        if let Err(error) = spawned {
            shared.open(Err(TokenError::Unavailable(format!("no thread for the token: {error}"))));
        }
        Self(shared)
    }

    /// A token that does not come, for this reason.
    #[must_use]
    pub fn never(reason: TokenError) -> Self {
        let shared = Shared::default();
        shared.open(Err(reason));
        Self(Arc::new(shared))
    }

    /// Waits until it is open or known not to come. Blocks until then, or for so long.
    pub fn wait(&self, wait_max: Duration) {
        let until = Instant::now() + wait_max;
        let mut closed = self.0.lock();
        while self.0.opened.get().is_none() && !*closed && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            closed = self.0.news.wait_timeout(closed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Pkcs11Token::close`]; one that is not open yet is closed when it is.
    pub fn close(&self) {
        *self.0.lock() = true;
        self.0.news.notify_all();
        if let Some(Ok(token)) = self.0.opened.get() {
            token.close();
        }
    }

    fn token(&self) -> Result<&Pkcs11Token, TokenError> {
        match self.0.opened.get() {
            Some(opened) => opened.as_ref().map_err(Clone::clone),
            None => Err(TokenError::Unavailable("it is being opened".to_owned())),
        }
    }
}

impl Shared {
    fn open(&self, opened: Result<Pkcs11Token, TokenError>) {
        let opened = self.opened.get_or_init(|| opened);
        let closed = self.lock();
        self.news.notify_all();
        if let (true, Ok(token)) = (*closed, opened) {
            token.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Token for ArrivingToken {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        self.token()?.generate(object, spec).await
    }

    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
        self.token()?.find(object, algorithm).await
    }

    async fn sign(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, TokenError> {
        self.token()?.sign(key, inputs, deadline).await
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.token()?.destroy(object).await
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        self.token()?.list().await
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        self.token()?.mechanisms().await
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        self.token()?.probe().await
    }
}
