//! The store of several replicas: a PostgreSQL database.
//!
//! Changes are made one after the other, whichever replica makes them: each transaction begins by locking the one row of `meta`.
//! So the administration log has one end, and a look at other rows within a transaction still holds when it commits.

mod error;
mod rows;
mod writing;

use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, SqlSafeStr as _, query};

use self::error::{migrate_error, store_error};
use self::writing::Writing;
use super::sql::{Database, Guard, Reads, Restored, Row, SqlStore, Statement, Transaction, tip_text};
use super::witness::Witness;
use super::{Changes, Moment, StoreError, TokenBinding};
use crate::domain::Event;
use crate::tlog::Tip;

/// How long a call waits for a connection, a new one included: less than the callers' deadlines.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the server is told of each connection.
///
/// A statement that takes longer has a caller who has gone. Another replica's transaction takes milliseconds, so whoever waits for
/// seconds should rather hear that the store is busy. A replica that stops in the middle of a transaction, in a debugger or for
/// want of memory, must not keep the others from changing anything. And a commit that is acknowledged survives a crash,
/// whatever the server's configuration says of others' commits.
const SESSION: [(&str, &str); 5] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
];

/// Where the database is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`, with the parameters of libpq: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`.
    pub url: SecretString,
    /// Connections that are open at most.
    pub connections_max: u32,
}

/// Makes a store in the database for the token of `binding`, and an empty memory of it at `witness`. A crash leaves no store or a
/// whole one.
///
/// # Errors
/// [`StoreError::Refused`] if there is one already (it is left as it is), or the database cannot be used;
/// [`StoreError::Unavailable`] if it does not answer.
pub async fn create(settings: &Settings, binding: &TokenBinding, witness: &std::path::Path) -> Result<(), StoreError> {
    let mut connection = options(settings)?.connect().await.map_err(store_error)?;
    if is_there(&mut connection).await? {
        return Err(StoreError::Refused(
            "the database holds a store already, which is left as it is; name another database".to_owned(),
        ));
    }
    Witness::create(witness)?;
    migrate(&mut connection).await?;
    // A store is there once it has this row. Of two who make one, one is told so.
    let made = query(
        "insert into meta (single, token_serial, token_label, log_tip, probes) values (1, $1, $2, $3, 0) \
         on conflict do nothing",
    );
    let made = made.bind(&binding.serial).bind(&binding.label).bind(tip_text(&Tip::default()));
    let made = made.execute(&mut connection).await.map_err(store_error)?;
    connection.close().await.ok();
    if made.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Refused("somebody else made a store in this database at the same time; use that one".to_owned()))
}

/// Opens the store in the database, and brings its schema up to date; replicas that start at the same time wait for one of them to
/// do so.
///
/// # Errors
/// [`StoreError::Refused`] if there is none or no memory of it, or if a newer version of Keyward made it;
/// [`StoreError::Unavailable`] if the database does not answer.
pub async fn open(settings: &Settings, guard: Guard) -> Result<SqlStore, StoreError> {
    let witness = Witness::open(&guard.witness)?;
    SqlStore::new(Server::connect(settings).await?, guard.seals, witness).await
}

/// Compares the store with what was seen of it; with `accept`, also makes it hold as it is, and appends that event.
///
/// # Errors
/// As [`open`], and [`StoreError::Unsealed`]. A crash leaves the store as it was or as it is to be; the same call again finishes
/// the memory of it.
pub async fn restore(settings: &Settings, guard: Guard, accept: Option<Event>) -> Result<Restored, StoreError> {
    SqlStore::restore(Server::connect(settings).await?, guard, accept).await
}

/// The database, and connections to it.
#[derive(Debug)]
struct Server {
    pool: PgPool,
}

impl Server {
    async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let pool: PoolOptions<Postgres> =
            PoolOptions::new().max_connections(settings.connections_max.max(1)).acquire_timeout(CONNECTION_WAIT_MAX);
        let pool = pool.connect_with(options(settings)?).await.map_err(store_error)?;
        let mut connection = pool.acquire().await.map_err(store_error)?;
        if !is_there(&mut connection).await? {
            return Err(StoreError::Refused(
                "there is no store in the database; make one with `keyward init`".to_owned(),
            ));
        }
        migrate(&mut connection).await?;
        drop(connection);
        Ok(Self { pool })
    }
}

#[async_trait]
impl Reads for Server {
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all(&self.pool, statement).await
    }

    async fn check_log(&self) -> Result<(), StoreError> {
        let tables = query(
            "select 1 from pg_class where oid = to_regclass('audit_event') and relkind = 'r' and not exists \
             (select 1 from pg_attribute where attrelid = pg_class.oid and attgenerated <> '')",
        );
        match tables.fetch_optional(&self.pool).await.map_err(store_error)? {
            Some(_) => Ok(()),
            None => Err(StoreError::Damaged("audit_event is not the table that Keyward makes".to_owned())),
        }
    }
}

#[async_trait]
impl Database for Server {
    async fn transaction(&self) -> Result<Box<dyn Transaction>, StoreError> {
        Ok(Box::new(Writing::new(self.pool.acquire().await.map_err(store_error)?)))
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        // Any may be: others write, too.
        Ok(Changes { until: since.unwrap_or_default(), tenants: None })
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

fn options(settings: &Settings) -> Result<PgConnectOptions, StoreError> {
    let url = settings.url.expose_secret();
    let is_ours = url.starts_with("postgres://") || url.starts_with("postgresql://");
    // What the parser says could name the password.
    let options: Option<PgConnectOptions> = is_ours.then(|| url.parse().ok()).flatten();
    let options = options.ok_or_else(|| {
        StoreError::Refused("the store's url is not of the form postgres://user@host:port/database".to_owned())
    })?;
    // The driver would log every statement; what goes wrong is logged where it is handled.
    Ok(options.application_name("keyward").options(SESSION).disable_statement_logging())
}

async fn is_there(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let table = query("select 1 where to_regclass('meta') is not null and to_regclass('keyring') is not null");
    if table.fetch_optional(&mut *connection).await.map_err(store_error)?.is_none() {
        return Ok(false);
    }
    let row = query("select 1 from meta").fetch_optional(connection).await.map_err(store_error)?;
    Ok(row.is_some())
}

/// Under a lock of the database: replicas may start at the same time.
async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let statements = include_str!("../../../migrations/postgres/0001_store.sql").into_sql_str();
    let migration = Migration::new(1, "store".into(), MigrationType::Simple, statements, false);
    Migrator::with_migrations(vec![migration]).run_direct(None, connection, false).await.map_err(migrate_error)
}
