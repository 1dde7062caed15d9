//! What is particular to the store in a PostgreSQL database, and to several replicas on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::domain::{Algorithm, Revision, Tenant, after};
use keyward::store::postgres::Settings;
use keyward::store::{Change, Changes, Damage, Guard, Restored, SqlStore, Store, StoreError, TenantRecord, postgres};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::contract::{Harness, left_after};
use crate::postgresql::{Database, Server};
use crate::samples::{all, binding, changed, event, id, keyring, now, of_tenant, tenant, told};
use crate::seals::guard;

/// A database of its own, and the replica that has it open.
pub(crate) struct Postgres {
    store: Arc<SqlStore>,
    database: Database,
    directory: TempDir,
}

impl Harness for Postgres {
    async fn fresh() -> Self {
        Self::on(Database::fresh()).await
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopened(self) -> Self {
        self.store.close().await;
        let store = Arc::new(open(&self.database, &self.directory).await.unwrap());
        Self { store, ..self }
    }
}

impl Postgres {
    async fn on(database: Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        create(&database, &directory).await.unwrap();
        Self { store: Arc::new(open(&database, &directory).await.unwrap()), database, directory }
    }

    /// Another replica on the same database, with a memory of its own that begins with what this one's holds now.
    async fn replica(&self) -> (SqlStore, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(guard_in(&self.directory).witness, guard_in(&directory).witness).unwrap();
        (open(&self.database, &directory).await.unwrap(), directory)
    }
}

fn settings(url: String) -> Settings {
    Settings { url, password: None, connections_max: 4 }
}

/// A guard with the witness in this directory.
fn guard_in(directory: &TempDir) -> Guard {
    guard(&directory.path().join("store"))
}

fn names(damaged: &[Damage]) -> Vec<&str> {
    damaged.iter().map(|damage| damage.tenant.as_str()).collect()
}

/// With the witness in this directory.
async fn create(database: &Database, directory: &TempDir) -> Result<(), StoreError> {
    postgres::create(&settings(database.url()), &binding(), &guard_in(directory).witness).await
}

async fn open(database: &Database, directory: &TempDir) -> Result<SqlStore, StoreError> {
    postgres::open(&settings(database.url()), guard_in(directory)).await
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    match outcome {
        Err(StoreError::Refused(text)) => text,
        other => panic!("not refused, but: {other:?}"),
    }
}

fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_database_without_a_store_is_refused_and_stays_empty() {
    let (database, directory) = (Database::fresh(), tempfile::tempdir().unwrap());
    memory_of_an_empty_store(&directory).await;
    let text = refusal(open(&database, &directory).await);
    assert!(text.contains("keyward init"), "{text}");
    assert_eq!(database.psql("select count(*) from pg_class where relnamespace = 'public'::regnamespace"), "0");
}

/// A memory of an empty store, as a replica has that was set up before.
async fn memory_of_an_empty_store(directory: &TempDir) {
    create(&Database::fresh(), directory).await.unwrap();
}

#[tokio::test]
async fn init_replaces_nothing() {
    let harness = Postgres::fresh().await;
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let text = refusal(create(&harness.database, &tempfile::tempdir().unwrap()).await);
    assert!(text.contains("already"), "{text}");
    assert_eq!(all(&*harness.store).await.len(), 1);
}

#[tokio::test]
async fn of_many_who_make_the_store_at_once_one_does() {
    let database = Arc::new(Database::fresh());
    let mut makers = JoinSet::new();
    for _ in 0..8 {
        let database = Arc::clone(&database);
        makers.spawn(async move {
            let directory = tempfile::tempdir().unwrap();
            (create(&database, &directory).await, directory)
        });
    }
    let (made, refused): (Vec<_>, Vec<_>) = makers.join_all().await.into_iter().partition(|(made, _)| made.is_ok());
    assert_eq!((made.len(), refused.len()), (1, 7));
    refused.into_iter().for_each(|(outcome, _)| drop(refusal(outcome)));
    open(&database, &made[0].1).await.unwrap().probe().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_init_leaves_no_store_or_a_whole_one() {
    let mut finished = false;
    // Each step to the server is some polls; the last of so many is behind the last of them.
    for polls in (0..).step_by(7) {
        let (database, directory) = (Database::fresh(), tempfile::tempdir().unwrap());
        finished = left_after(polls, create(&database, &directory)).await.is_some();
        // The server may be about to do what it was asked last: whoever comes next waits for it, or is told of the store.
        match create(&database, &directory).await {
            Ok(()) => assert!(!finished),
            Err(StoreError::Refused(_)) => {}
            Err(other) => panic!("{other}"),
        }
        let store = open(&database, &directory).await.unwrap();
        assert_eq!(store.binding().await.unwrap(), binding());
        if finished {
            break;
        }
    }
    assert!(finished);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let harness = Postgres::fresh().await;
    harness.database.psql(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
         values (9999, 'later', true, '', 0)",
    );
    harness.store.close().await;
    let text = refusal(open(&harness.database, &harness.directory).await);
    assert!(text.contains("newer version") && text.contains("9999"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_an_address_is_refused_without_a_word_of_it() {
    for url in ["", "keyward", "https://s3cret@db/", "postgres://s3cret@db:port/x"] {
        let witness = tempfile::tempdir().unwrap();
        let outcome = postgres::create(&settings(url.to_owned()), &binding(), &witness.path().join("witness")).await;
        let text = refusal(outcome);
        assert!(text.contains("url") && !text.contains("s3cret"), "{text}");
    }
}

/// Replicas change the store in turn: each sees what the others made of it, and loses no change to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_store() {
    let harness = Postgres::fresh().await;
    let mut replicas = vec![];
    for _ in 0..3 {
        replicas.push(harness.replica().await);
    }
    let mut makers = JoinSet::new();
    for (number, (store, directory)) in replicas.into_iter().enumerate() {
        makers.spawn(async move {
            for turn in 0..10 {
                let name = format!("tenant-{number}-{turn}");
                let (keyrings, events) = (vec![keyring(&name, Algorithm::ES256)], vec![event("create", &name)]);
                let change = Change { tenant: Some(tenant(&name)), keyrings, events, ..Change::default() };
                store.commit(&change).await.unwrap();
            }
            (store, directory)
        });
    }
    let replicas = makers.join_all().await;
    for (store, _) in &replicas {
        assert_eq!(all(store).await.len(), 30);
        assert_eq!(told(store, 100).await.len(), 30, "one log, whoever writes it");
        store.probe().await.unwrap();
    }
}

/// What one replica removed, the others believe to be removed; what somebody took out of the database they do not.
#[tokio::test]
async fn a_removal_is_believed_and_a_theft_is_not() {
    let harness = Postgres::fresh().await;
    let (store, database) = (&harness.store, &harness.database);
    for name in ["removed", "again", "stolen"] {
        store.commit(&of_tenant(tenant(name))).await.unwrap();
    }
    let (other, _directory) = harness.replica().await;
    assert_eq!(all(&other).await.len(), 3);
    for name in ["removed", "again"] {
        store.commit(&Change { remove: Some((id(name), Revision::FIRST)), ..Change::default() }).await.unwrap();
    }
    let later = Tenant { create_time: after(now(), Duration::from_secs(1)), ..tenant("again") };
    store.commit(&of_tenant(later.clone())).await.unwrap();
    database.psql("delete from tenant where id = 'stolen'");

    assert_eq!(other.load(&id("removed")).await.unwrap(), None);
    assert_eq!(other.load(&id("again")).await.unwrap().unwrap().tenant, later);
    assert!(matches!(other.load(&id("stolen")).await, Err(StoreError::Untrusted(_))));
    let revisions = other.revisions().await.unwrap();
    assert_eq!(names(&revisions.damaged), ["stolen"]);

    // The removal of an earlier tenant says nothing of a later one, nor that of one tenant of another.
    database.psql("delete from tenant where id = 'again'");
    database.psql("insert into removal select 'stolen', create_time, seal from removal where tenant = 'removed'");
    let loaded = other.load_all().await.unwrap();
    assert_eq!(names(&loaded.damaged), ["again", "stolen"]);
}

/// A replica that was stopped in the middle of a transaction, or an operator's shell, keeps nobody waiting for long.
#[tokio::test]
async fn whoever_holds_the_lock_makes_changes_unavailable_and_reads_go_on() {
    let harness = Postgres::fresh().await;
    let mut shell = harness.database.shell();
    shell.ask("begin; select 1 from meta for update;");
    let begun = Instant::now();
    assert_unavailable(harness.store.commit(&of_tenant(tenant("acme"))).await);
    assert!(begun.elapsed() < Duration::from_secs(5), "it is told soon");
    assert_eq!(all(&*harness.store).await, []);
    shell.ask("rollback;");
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
}

/// An acknowledged change survives the server's being killed, and the store finds its way back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_that_was_acknowledged() {
    let server = Server::start();
    let harness = Postgres::on(server.database()).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let store = Arc::clone(&harness.store);
        let writer = tokio::spawn(async move {
            let mut made = Vec::new();
            for number in 0.. {
                let name = format!("tenant-{round}-{number}");
                let events = vec![event("create", &name)];
                match store.commit(&Change { events, ..of_tenant(tenant(&name)) }).await {
                    Ok(()) => made.push(id(&name)),
                    Err(StoreError::Unavailable(_)) => return made,
                    Err(other) => panic!("{other}"),
                }
            }
            unreachable!("the server is killed")
        });
        let wanted = harness.store.log_tip().await.unwrap().size() + 5;
        while harness.store.log_tip().await.unwrap().size() < wanted {
            tokio::task::yield_now().await;
        }
        server.kill_and_start_again();
        acknowledged.extend(writer.await.unwrap());
        let there = all(&*harness.store).await;
        for tenant in &acknowledged {
            assert!(there.iter().any(|record| record.tenant.id == *tenant), "{tenant} was acknowledged");
        }
        // The change of which nobody knows was made with its event, or not at all.
        assert_eq!(told(&*harness.store, 1000).await.len(), there.len());
        harness.store.probe().await.unwrap();
    }
}

/// R10: whoever may sign from what was before a change is waited for, and for no longer than that; nobody else is.
#[tokio::test]
async fn a_change_is_taken_up_when_nobody_may_sign_from_before() {
    let harness = Postgres::fresh().await;
    let one = &harness.store;
    let ((other, _memory), long) = (harness.replica().await, Duration::from_secs(3600));
    one.commit(&of_tenant(tenant("first"))).await.unwrap();
    let before = other.changes(None).await.unwrap().until;
    assert!(!other.lease(before, long).await.unwrap(), "nobody knew of it");
    assert!(other.lease(before, long).await.unwrap());
    assert!(one.all_have_taken_up(before).await.unwrap());

    one.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let after = one.changes(Some(before)).await.unwrap();
    assert_eq!(after.tenants, Some([id("acme")].into()));
    assert!(!one.all_have_taken_up(after.until).await.unwrap());
    assert!(other.all_have_taken_up(after.until).await.unwrap(), "none waits for itself");
    assert!(other.lease(after.until, long).await.unwrap());
    assert!(one.all_have_taken_up(after.until).await.unwrap());

    // It has closed, so that it signs no more.
    one.commit(&of_tenant(tenant("other"))).await.unwrap();
    let later = one.changes(Some(after.until)).await.unwrap().until;
    assert!(!one.all_have_taken_up(later).await.unwrap());
    other.close().await;
    assert!(one.all_have_taken_up(later).await.unwrap());

    // It stopped, and its time is over.
    let (stopped, _memory) = harness.replica().await;
    stopped.lease(before, Duration::from_millis(1)).await.unwrap();
    while !one.all_have_taken_up(later).await.unwrap() {
        tokio::task::yield_now().await;
    }
    assert!(!stopped.lease(later, long).await.unwrap(), "nobody waited for it meanwhile");
}

/// What a replica missed is told by tenant, and as anything where it missed too much to tell.
#[tokio::test]
async fn changes_are_told_by_tenant() {
    let harness = Postgres::fresh().await;
    let store = &harness.store;
    let start = store.changes(None).await.unwrap();
    assert_eq!(start.tenants, None);
    assert_eq!(store.changes(Some(start.until)).await.unwrap().tenants, Some([].into()));
    for name in ["acme", "other"] {
        store.commit(&of_tenant(tenant(name))).await.unwrap();
    }
    // Neither is a change of any tenant.
    store.commit(&Change { events: vec![event("probe", "acme")], ..Change::default() }).await.unwrap();
    store.probe().await.unwrap();
    // Nothing is kept of the change before the first one: any may be.
    assert_eq!(store.changes(Some(start.until)).await.unwrap().tenants, None);
    let earlier = store.changes(None).await.unwrap();
    store.commit(&of_tenant(changed(tenant("acme")))).await.unwrap();
    let later = store.changes(Some(earlier.until)).await.unwrap();
    assert_eq!(later.tenants, Some([id("acme")].into()));
    assert_ne!(earlier.until, later.until);
    assert_eq!(store.changes(Some(later.until)).await.unwrap(), Changes { tenants: Some([].into()), ..later });
    harness.database.psql("update meta set changes = changes + 5000");
    assert_eq!(store.changes(Some(later.until)).await.unwrap().tenants, None);
    harness.database.psql("update meta set changes = 0");
    assert_eq!(store.changes(Some(later.until)).await.unwrap().tenants, None, "an older database was put back");
    // One that took over without the last change, and made others.
    harness.database.psql("update meta set changes = 1, change_name = 0; delete from change where number > 1");
    for name in ["new", "newer"] {
        store.commit(&of_tenant(tenant(name))).await.unwrap();
    }
    assert_eq!(store.changes(Some(later.until)).await.unwrap().tenants, None, "its numbers are those of others");
}

/// A backup that was put back is told of, and holds once it is accepted: for the replica that did so at once, and for others that
/// begin their memory anew.
#[tokio::test]
async fn an_older_state_holds_once_it_is_accepted() {
    let harness = Postgres::fresh().await;
    let (store, database) = (&harness.store, &harness.database);
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    database.psql("create table backup as select * from tenant");
    store.commit(&of_tenant(changed(tenant("acme")))).await.unwrap();
    store.commit(&of_tenant(tenant("since"))).await.unwrap();
    store.close().await;
    database.psql("delete from tenant; insert into tenant select * from backup");

    let settings_of_it = settings(database.url());
    let restore = |accept| postgres::restore(&settings_of_it, guard_in(&harness.directory), accept);
    let told = restore(None).await.unwrap();
    assert_eq!((told.older.clone(), told.missing.clone()), (vec![id("acme")], vec![id("since")]));
    // Not under a replica that serves.
    let (serving, _memory) = harness.replica().await;
    serving.lease(serving.changes(None).await.unwrap().until, Duration::from_secs(3600)).await.unwrap();
    let text = refusal(restore(Some(event("accept_store", "acme"))).await);
    assert!(text.starts_with("1 replicas serve"), "{text}");
    serving.close().await;
    let accepted = restore(Some(event("accept_store", "acme"))).await.unwrap();
    assert_eq!(accepted, told);
    let reopened = open(database, &harness.directory).await.unwrap();
    let tenants = |store: Vec<TenantRecord>| store.into_iter().map(|record| record.tenant.id).collect::<Vec<_>>();
    assert_eq!(tenants(all(&reopened).await), [id("acme")]);
    // A second time there is nothing to tell.
    reopened.close().await;
    assert_eq!(restore(None).await.unwrap(), Restored { log: (1, 1), ..Restored::default() });
    let anew = tempfile::tempdir().unwrap();
    let other = postgres::join(&settings_of_it, guard_in(&anew)).await.unwrap();
    assert_eq!(tenants(all(&other).await), [id("acme")]);
}

/// A tenant that was removed before a replica joined is not believed there either, if somebody puts it back.
#[tokio::test]
async fn what_was_removed_before_a_replica_joined_cannot_be_put_back() {
    let harness = Postgres::fresh().await;
    let (store, database) = (&harness.store, &harness.database);
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    database.psql("create table backup as select * from tenant");
    store.commit(&Change { remove: Some((id("acme"), Revision::FIRST)), ..Change::default() }).await.unwrap();
    let anew = tempfile::tempdir().unwrap();
    let other = postgres::join(&settings(database.url()), guard_in(&anew)).await.unwrap();
    assert_eq!(all(&other).await, []);
    database.psql("insert into tenant select * from backup");
    assert!(matches!(other.load(&id("acme")).await, Err(StoreError::Untrusted(_))));
    let loaded = other.load_all().await.unwrap();
    assert_eq!(names(&loaded.damaged), ["acme"]);
}

/// Of two replicas that remove a tenant, the one that comes second knows no less that it is gone.
#[tokio::test]
async fn who_comes_second_to_remove_a_tenant_remembers_it_too() {
    let harness = Postgres::fresh().await;
    let (store, database) = (&harness.store, &harness.database);
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    database.psql("create table backup as select * from tenant");
    let (other, _directory) = harness.replica().await;
    assert_eq!(all(&other).await.len(), 1);
    let removal = Change { remove: Some((id("acme"), Revision::FIRST)), ..Change::default() };
    store.commit(&removal).await.unwrap();
    assert!(matches!(other.commit(&removal).await, Err(StoreError::Conflict)));
    assert_eq!(other.load(&id("acme")).await.unwrap(), None);
    database.psql("insert into tenant select * from backup");
    assert!(matches!(other.load(&id("acme")).await, Err(StoreError::Untrusted(_))));
}

/// Reads go on while changes wait for one another, and for somebody who holds them all up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_wait_keep_no_reader_waiting_for_long() {
    let harness = Postgres::fresh().await;
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let mut shell = harness.database.shell();
    shell.ask("begin; select 1 from meta for update;");
    let mut waiting = JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&harness.store);
        waiting.spawn(async move { store.commit(&of_tenant(tenant(&format!("tenant-{number}")))).await });
    }
    while harness.database.psql("select count(*) from pg_locks where not granted") == "0" {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    assert_eq!(all(&*harness.store).await.len(), 1);
    // One change may stand before it, for as long as it waits for the lock.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    shell.ask("rollback;");
    let made = waiting.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(all(&*harness.store).await.len(), 1 + made);
}
