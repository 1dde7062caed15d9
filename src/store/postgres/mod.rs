//! The store of several replicas: a PostgreSQL database.
//!
//! Changes are made one after the other, whichever replica makes them: each transaction begins by locking the one row of `meta`.
//! So the administration log has one end, and a look at other rows within a transaction still holds when it commits.

mod error;
mod news;
mod rows;
mod writing;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _, SqlSafeStr as _, query};

use self::error::{migrate_error, store_error};
use self::news::News;
use self::writing::{CHANGES_KEPT, Writing};
use super::sql::read::one;
use super::sql::{
    Database, Guard, LogReader, Reads, Replicas, Restored, Row, SqlStore, Statement, Transaction, tip_text,
};
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
const SESSION: [(&str, &str); 6] = [
    // Of what concerns nobody, such as a table that is there already, the driver would tell the log.
    ("client_min_messages", "warning"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
];

/// Where the database is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `postgres://user@host:port/database`, with the parameters of libpq: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`. No password.
    pub url: String,
    /// What the database asks for, if it asks for one.
    pub password: Option<SecretString>,
    /// Connections that are open at most.
    pub connections_max: u32,
}

/// Whether a store is in the database.
///
/// # Errors
/// [`StoreError::Refused`] if the database cannot be used; [`StoreError::Unavailable`] if it does not answer.
pub async fn is_taken(settings: &Settings) -> Result<bool, StoreError> {
    let mut connection = connect(settings).await?;
    let is_there = is_there(&mut connection).await;
    connection.close().await.ok();
    is_there
}

/// Makes a store in the database for the token of `binding`, and an empty memory of it at `witness`. A crash leaves no store or a
/// whole one.
///
/// # Errors
/// [`StoreError::Refused`] if there is one already (it is left as it is), or the database cannot be used;
/// [`StoreError::Unavailable`] if it does not answer.
pub async fn create(settings: &Settings, binding: &TokenBinding, witness: &Path) -> Result<(), StoreError> {
    let mut connection = connect(settings).await?;
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

/// Opens the store for a replica that has not seen it, which remembers it from now on.
///
/// # Errors
/// As [`open`], and [`StoreError::Refused`] if the replica has a memory of a store already.
pub async fn join(settings: &Settings, guard: Guard) -> Result<SqlStore, StoreError> {
    let server = Server::connect(settings).await?;
    Witness::create(&guard.witness)?;
    SqlStore::new(server, guard.seals, Witness::open(&guard.witness)?).await
}

/// Compares the store with what was seen of it; with `accept`, also makes it hold as it is, and appends that event.
///
/// # Errors
/// As [`open`], [`StoreError::Unsealed`], and [`StoreError::Refused`] while replicas serve. A crash leaves the store as it was or as
/// it is to be; the same call again finishes the memory of it.
pub async fn restore(settings: &Settings, guard: Guard, accept: Option<Event>) -> Result<Restored, StoreError> {
    let server = Server::connect(settings).await?;
    if accept.is_some() {
        server.is_alone().await?;
    }
    SqlStore::restore(server, guard, accept).await
}

/// The administration log of the store in the database.
///
/// # Errors
/// As [`is_taken`], and [`StoreError::Refused`] if there is no store.
pub async fn read_log(settings: &Settings) -> Result<LogReader, StoreError> {
    Ok(LogReader::new(Server::connect_to_any(settings).await?))
}

/// The database, and connections to it.
#[derive(Debug)]
struct Server {
    pool: PgPool,
    /// What this replica is called, as long as it runs.
    replica: String,
    /// Once somebody wants to hear.
    news: OnceLock<News>,
}

impl Server {
    /// With the schema up to date.
    async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let server = Self::connect_to_any(settings).await?;
        migrate(&mut *server.pool.acquire().await.map_err(store_error)?).await?;
        Ok(server)
    }

    /// With the schema as it is.
    async fn connect_to_any(settings: &Settings) -> Result<Self, StoreError> {
        let pool: PoolOptions<Postgres> =
            PoolOptions::new().max_connections(settings.connections_max.max(1)).acquire_timeout(CONNECTION_WAIT_MAX);
        let pool = pool.connect_with(options(settings)?).await.map_err(store_error)?;
        let mut connection = pool.acquire().await.map_err(store_error)?;
        if !is_there(&mut connection).await? {
            return Err(StoreError::Refused(
                "there is no store in the database; make one with `keyward init`".to_owned(),
            ));
        }
        drop(connection);
        Ok(Self { pool, replica: new_replica(), news: OnceLock::new() })
    }
}

impl Server {
    /// Sees that no replica may sign.
    async fn is_alone(&self) -> Result<(), StoreError> {
        let serving = self.rows(Statement::new("select id from replica where signs_until > now()")).await?.len();
        if serving == 0 {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "{serving} replicas serve this store: stop all of them; one that was killed counts until its lease ends, \
             signing.snapshot_max_age_ms after its last look"
        )))
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
        match rows::answered(tables.fetch_optional(&self.pool)).await? {
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
        let number: i64 = one(self.rows(Statement::new("select changes from meta")).await?)?.get("changes")?;
        let until = Moment { others: number, ..Moment::default() };
        let tenants = match since {
            Some(since) if since == until => Some(BTreeSet::new()),
            // Half of what is kept: the other half may be forgotten while this is read.
            Some(since) if (number - CHANGES_KEPT / 2..number).contains(&since.others) => {
                let rows = Statement::new("select distinct tenant from change where number > $1 and number <= $2");
                let rows = self.rows(rows.bind(since.others).bind(number)).await?;
                // A name that is none: somebody wrote it, and all are looked at.
                rows.iter().map(|row| row.get::<String>("tenant").ok()?.parse().ok()).collect()
            }
            _ => None,
        };
        Ok(Changes { until, tenants })
    }

    fn replicas(&self) -> Option<&dyn Replicas> {
        Some(self)
    }

    async fn close(&self) {
        if let Some(news) = self.news.get() {
            news.stop();
        }
        // It signs no more: nobody need wait for it.
        let leave = query("delete from replica where id = $1").bind(&self.replica).execute(&self.pool).await;
        if let Err(error) = leave {
            tracing::warn!(error = %store_error(error), "a rotation that revokes may wait for this replica, until its lease ends");
        }
        self.pool.close().await;
    }
}

#[async_trait]
impl Replicas for Server {
    async fn changed(&self) {
        self.news.get_or_init(|| News::listen(self.pool.clone())).heard().await;
    }

    async fn lease(&self, taken_up: Moment, life: Duration) -> Result<bool, StoreError> {
        let forget = query("delete from replica where signs_until < now() - interval '1 hour'");
        rows::answered(forget.execute(&self.pool)).await?;
        // By the database's clock, which all replicas share.
        let lease = query(
            "with before as (select signs_until > now() as lasts from replica where id = $1) \
             insert into replica (id, taken_up, signs_until) values ($1, $2, now() + $3 * interval '1 millisecond') \
             on conflict (id) do update set taken_up = excluded.taken_up, signs_until = excluded.signs_until \
             returning coalesce((select lasts from before), false) as lasted",
        );
        let millis = i32::try_from(life.as_millis()).unwrap_or(i32::MAX);
        let lease = lease.bind(&self.replica).bind(taken_up.others).bind(millis);
        rows::answered(lease.fetch_one(&self.pool)).await?.try_get("lasted").map_err(store_error)
    }

    async fn all_have_taken_up(&self, moment: Moment) -> Result<bool, StoreError> {
        let others = Statement::new("select id from replica where id <> $1 and taken_up < $2 and signs_until > now()");
        Ok(self.rows(others.bind(self.replica.as_str()).bind(moment.others)).await?.is_empty())
    }
}

fn new_replica() -> String {
    let mut octets = [0_u8; 16];
    getrandom::fill(&mut octets).expect("the operating system gives random octets");
    octets.map(|octet| format!("{octet:02x}")).concat()
}

async fn connect(settings: &Settings) -> Result<PgConnection, StoreError> {
    let connecting = options(settings)?;
    let connection = tokio::time::timeout(CONNECTION_WAIT_MAX, connecting.connect()).await;
    connection.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(store_error)
}

fn options(settings: &Settings) -> Result<PgConnectOptions, StoreError> {
    let url = &settings.url;
    let is_ours = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let options: Option<PgConnectOptions> = is_ours.then(|| url.parse().ok()).flatten();
    let mut options = options.ok_or_else(|| {
        StoreError::Refused("the store's url is not of the form postgres://user@host:port/database".to_owned())
    })?;
    if let Some(password) = &settings.password {
        options = options.password(password.expose_secret());
    }
    // libpq's own default takes what it gets: whoever stands between could be the database.
    if !url.contains("sslmode=") && !is_local(&options) {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    // The driver would log every statement; what goes wrong is logged where it is handled.
    Ok(options.application_name("keyward").options(SESSION).disable_statement_logging())
}

/// Whether the database is asked through a socket, or on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
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
