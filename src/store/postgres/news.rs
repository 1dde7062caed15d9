//! Changes as the database tells them (LISTEN, NOTIFY): a hint that makes replicas look at once. What is lost, they find by looking
//! once a second.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::store::sql::Statement;

const CHANNEL: &str = "changes";

/// How long to wait until a database is asked again that does not let anybody listen.
const RETRY: Duration = Duration::from_secs(1);

/// Tells all replicas that something has changed, once the transaction is committed.
pub(super) fn tell() -> Statement {
    Statement::new("select pg_notify($1, '')::text").bind(CHANNEL)
}

/// What was heard, until it is dropped.
#[derive(Debug)]
pub(super) struct News {
    heard: Arc<Notify>,
    listening: AbortHandle,
}

impl News {
    /// Listens on a connection of the pool.
    pub(super) fn listen(pool: PgPool) -> Self {
        let heard = Arc::new(Notify::new());
        let listening = tokio::spawn(listen(pool, Arc::clone(&heard))).abort_handle();
        Self { heard, listening }
    }

    /// Returns when something was heard since the last time.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Gives the connection back.
    pub(super) fn stop(&self) {
        self.listening.abort();
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn listen(pool: PgPool, heard: Arc<Notify>) {
    loop {
        if let Err(error) = hear(&pool, &heard).await {
            tracing::debug!(%error, "changes are not told at the moment; they are looked for");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn hear(pool: &PgPool, heard: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // None: the connection was lost and made again, and nobody knows what was told meanwhile.
        listener.try_recv().await?;
        heard.notify_one();
    }
}
