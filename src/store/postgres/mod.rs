//! The store of several replicas: a PostgreSQL database.
//!
//! Changes are made one after the other, whichever replica makes them: each transaction begins by locking the one row of `meta`.
//! So the administration log has one end, and a look at other rows within a transaction still holds when it commits.

mod error;
mod founding;
mod news;
mod rows;
mod writing;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _, SqlSafeStr as _, query};

use self::error::{migrate_error, store_error};
pub(super) use self::founding::Founding;
use self::news::News;
use self::writing::{CHANGES_KEPT, Writing};
use super::beside::lock_memory;
use super::sql::read::one;
use super::sql::{
    Database, Guard, LogReader, Reads, Replicas, Restored, Row, SqlStore, Statement, Transaction, tip_text,
};
use super::witness::Witness;
use super::{Changes, Moment, StoreError, TokenBinding};
use crate::domain::{Event, TenantId, Timestamp};
use crate::tlog::Tip;

/// How long a call waits for a connection, a new one included: less than the callers' deadlines.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long to take leave may take: a database that does not answer must not keep a service from ending.
const CLOSE_MAX: Duration = Duration::from_secs(5);

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
    migrate(&mut connection, Within::OwnTransaction).await?;
    let made = rows::prepared(of_token(binding)).execute(&mut connection).await.map_err(store_error)?;
    connection.close().await.ok();
    made_here(made.rows_affected())
}

/// The row with which a store is there.
fn of_token(binding: &TokenBinding) -> Statement {
    let insert = Statement::new(
        "insert into meta (single, token_serial, token_label, log_tip, probes) values (1, $1, $2, $3, 0) \
         on conflict do nothing",
    );
    insert.bind(binding.serial.as_str()).bind(binding.label.as_str()).bind(tip_text(&Tip::default()))
}

/// Of two who make a store, one makes that row, and the other is told so.
fn made_here(rows: u64) -> Result<(), StoreError> {
    if rows == 1 {
        return Ok(());
    }
    Err(StoreError::Refused("somebody else made a store in this database at the same time; use that one".to_owned()))
}

/// Opens the store in the database, and brings its schema up to date; replicas that start at the same time wait for one of them to
/// do so.
///
/// # Errors
/// [`StoreError::Refused`] if there is none or no memory of it, if another process uses that memory, or if a newer version of
/// Keyward made the store; [`StoreError::Unavailable`] if the database does not answer.
pub async fn open(settings: &Settings, guard: Guard) -> Result<SqlStore, StoreError> {
    let memory = lock_memory(&guard.witness)?;
    let witness = Witness::open(&guard.witness)?;
    SqlStore::new(Server::connect(settings, memory).await?, guard.seals, witness).await
}

/// Opens the store for a replica that has not seen it, which remembers it from now on.
///
/// # Errors
/// As [`open`], and [`StoreError::Refused`] if the replica has a memory of a store already.
pub async fn join(settings: &Settings, guard: Guard) -> Result<SqlStore, StoreError> {
    let server = Server::connect(settings, lock_memory(&guard.witness)?).await?;
    Witness::create(&guard.witness)?;
    SqlStore::new(server, guard.seals, Witness::open(&guard.witness)?).await
}

/// Compares the store with what was seen of it; with `accept`, also makes it hold as it is, and appends that event.
///
/// # Errors
/// As [`open`], [`StoreError::Unsealed`], and [`StoreError::Refused`] while replicas serve. A crash leaves the store as it was or as
/// it is to be; the same call again finishes the memory of it.
pub async fn restore(settings: &Settings, guard: Guard, accept: Option<Event>) -> Result<Restored, StoreError> {
    let server = Server::connect(settings, lock_memory(&guard.witness)?).await?;
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
    Ok(LogReader::new(Server::connect_to_any(settings, None).await?))
}

/// The database, and connections to it.
#[derive(Debug)]
struct Server {
    /// For reading, and for what replicas tell each other.
    pool: PgPool,
    /// One connection: changes of this replica wait for each other here, before they wait for others'.
    writer: PgPool,
    /// Keeps other processes from the replica's memory of the store; none, if nothing is remembered.
    memory: Option<File>,
    /// What this replica is called, as long as it runs.
    replica: String,
    /// Until when this replica knows that the others know of its lease.
    leased: Mutex<Option<Instant>>,
    /// Once somebody wants to hear.
    news: OnceLock<News>,
}

impl Server {
    /// With the schema up to date.
    async fn connect(settings: &Settings, memory: File) -> Result<Self, StoreError> {
        let server = Self::connect_to_any(settings, Some(memory)).await?;
        // On a connection of its own: a migration takes as long as it takes, and whoever starts at the same time waits for it.
        let mut connection = patient(settings)?.connect().await.map_err(store_error)?;
        migrate(&mut connection, Within::OwnTransaction).await?;
        connection.close().await.ok();
        Ok(server)
    }

    /// With the schema as it is.
    async fn connect_to_any(settings: &Settings, memory: Option<File>) -> Result<Self, StoreError> {
        let pool = |connections| {
            PoolOptions::<Postgres>::new().max_connections(connections).acquire_timeout(CONNECTION_WAIT_MAX)
        };
        // A pool tries again and again, and says at last that there was no connection, and not why.
        let mut connection = connect(settings).await?;
        let is_there = is_there(&mut connection).await?;
        connection.close().await.ok();
        if !is_there {
            return Err(StoreError::Refused(
                "there is no store in the database; is store.url the right one? For a new store run `keyward init`, for one that is in \
                 a SQLite file `keyward migrate`"
                    .to_owned(),
            ));
        }
        let readers = settings.connections_max.saturating_sub(1).max(1);
        let [readers, writer] =
            [readers, 1].map(|connections| Ok(pool(connections).connect_lazy_with(options(settings)?)));
        let (readers, writer) = (readers?, writer?);
        let (leased, news) = (Mutex::default(), OnceLock::new());
        Ok(Self { pool: readers, writer, memory, replica: new_replica(), leased, news })
    }

    fn lock_leased(&self) -> MutexGuard<'_, Option<Instant>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        rows::all_of(&self.pool, statement).await
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
        Ok(Box::new(Writing::new(self.writer.acquire().await.map_err(store_error)?)))
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        let meta = one(self.rows(Statement::new("select changes, change_name from meta")).await?)?;
        let (number, name): (i64, i64) = (meta.get("changes")?, meta.get("change_name")?);
        let until = Moment { others: number, counting: name.cast_unsigned(), own: 0 };
        let tenants = match since {
            Some(since) if since == until => Some(BTreeSet::new()),
            // Half of what is kept: the other half may be forgotten while this is read.
            Some(since) if (number - CHANGES_KEPT / 2..number).contains(&since.others) => {
                let rows =
                    Statement::new("select number, name, tenant from change where number >= $1 and number <= $2");
                let rows = self.rows(rows.bind(since.others).bind(number)).await?;
                changed_since(since, &rows)
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
        let close = async {
            self.writer.close().await;
            // It signs no more: nobody need wait for it.
            let leave = query("delete from replica where id = $1").bind(&self.replica).execute(&self.pool).await;
            if let Err(error) = leave {
                let error = store_error(error);
                tracing::warn!(%error, "a rotation that revokes may wait for this replica, until its lease ends");
            }
            self.pool.close().await;
        };
        if tokio::time::timeout(CLOSE_MAX, close).await.is_err() {
            tracing::warn!("the database does not answer; its connections are left to it");
        }
        if let Some(Err(error)) = self.memory.as_ref().map(File::unlock) {
            tracing::warn!(%error, "the lock of the store's memory was not released; it ends with this process");
        }
    }
}

#[async_trait]
impl Replicas for Server {
    async fn changed(&self) {
        self.news.get_or_init(|| News::listen(self.pool.clone())).heard().await;
    }

    async fn clock(&self) -> Result<Timestamp, StoreError> {
        let shown = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint as micros";
        let row = one(self.rows(Statement::new(shown)).await?)?;
        Timestamp::from_microsecond(row.get("micros")?)
            .map_err(|error| StoreError::Damaged(format!("its clock: {error}")))
    }

    async fn lease(&self, taken_up: Moment, life: Duration) -> Result<bool, StoreError> {
        // By the database's clock, which all replicas share. Those who have long gone are forgotten.
        let lease = query(
            "with forgotten as (delete from replica where signs_until < now() - interval '1 hour' and id <> $1), \
             before as (select signs_until > now() as lasts from replica where id = $1) \
             insert into replica (id, taken_up, signs_until) values ($1, $2, now() + $3 * interval '1 millisecond') \
             on conflict (id) do update set taken_up = excluded.taken_up, signs_until = excluded.signs_until \
             returning coalesce((select lasts from before), false) as lasted",
        );
        let millis = i32::try_from(life.as_millis()).unwrap_or(i32::MAX);
        let lease = lease.bind(&self.replica).bind(taken_up.others).bind(millis);
        let sent = Instant::now();
        // Until the answer nobody knows whether it is there.
        let known = self.lock_leased().take();
        let lasted: bool = rows::answered(lease.fetch_one(&self.pool)).await?.try_get("lasted").map_err(store_error)?;
        *self.lock_leased() = Some(sent + life);
        // Others may have seen the one before end while this one was on its way.
        Ok(lasted && known.is_some_and(|until| Instant::now() < until))
    }

    async fn all_have_taken_up(&self, moment: Moment) -> Result<bool, StoreError> {
        let others = Statement::new("select id from replica where id <> $1 and taken_up < $2 and signs_until > now()");
        Ok(self.rows(others.bind(self.replica.as_str()).bind(moment.others)).await?.is_empty())
    }
}

/// The tenants of the changes after this moment. `None` where that cannot be told: the change of that moment is not among these, or
/// a name is none, because somebody else wrote it.
fn changed_since(since: Moment, rows: &[Row]) -> Option<BTreeSet<TenantId>> {
    let mut is_among = false;
    let mut tenants = BTreeSet::new();
    for row in rows {
        let (number, name): (i64, i64) = (row.get("number").ok()?, row.get("name").ok()?);
        if number > since.others {
            tenants.insert(row.get::<String>("tenant").ok()?.parse().ok()?);
        } else {
            is_among |= name.cast_unsigned() == since.counting;
        }
    }
    is_among.then_some(tenants)
}

fn random<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).expect("the operating system gives random octets");
    octets
}

fn new_replica() -> String {
    random::<16>().map(|octet| format!("{octet:02x}")).concat()
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
    if !says(url, "sslmode") && (!is_local(&options) || says(url, "sslrootcert")) {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    // The driver would log every statement; what goes wrong is logged where it is handled.
    Ok(options.application_name("keyward").options(SESSION).disable_statement_logging())
}

/// For what takes as long as it takes.
fn patient(settings: &Settings) -> Result<PgConnectOptions, StoreError> {
    Ok(options(settings)?.options([("statement_timeout", "0"), ("lock_timeout", "0")]))
}

/// Whether both URLs name one database, whoever comes to it and however.
pub(super) fn is_same_database(one: &str, other: &str) -> bool {
    let place = |url: &str| {
        let options: PgConnectOptions = url.parse().ok()?;
        let (host, database) = (options.get_host().to_owned(), options.get_database().map(str::to_owned));
        Some((host, options.get_socket().cloned(), options.get_port(), database))
    };
    one == other || place(one).is_some_and(|one| Some(one) == place(other))
}

/// Whether the URL has this parameter.
fn says(url: &str, parameter: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|pair| pair.split('=').next() == Some(parameter))
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

/// Which transaction the schema is made in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Each step in one of its own.
    OwnTransaction,
    /// All of it in the one that is open on the connection.
    OpenTransaction,
}

/// Under a lock of the database: replicas may start at the same time.
async fn migrate(connection: &mut PgConnection, within: Within) -> Result<(), StoreError> {
    let is_open = within == Within::OpenTransaction;
    let migration = |(version, name, statements): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, statements.into_sql_str(), is_open)
    };
    let migrations = [
        (1, "store", include_str!("../../../migrations/postgres/0001_store.sql")),
        (2, "service key", include_str!("../../../migrations/postgres/0002_service_key.sql")),
    ];
    let migrations: Vec<Migration> = migrations.map(migration).into();
    Migrator::with_migrations(migrations).run_direct(None, connection, false).await.map_err(migrate_error)
}
