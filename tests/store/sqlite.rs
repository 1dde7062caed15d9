//! What is particular to the store in a SQLite file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::domain::Algorithm;
use keyward::store::{Change, SqlStore, Store, StoreError, TokenRecord, sqlite};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection, query};
use tempfile::TempDir;

use crate::contract::{Harness, left_after};
use crate::samples::{
    all, binding, changed, event, full_tenant, generated, id, keyring, object, of_tenant, revisions, tenant, token,
    told,
};
use crate::seals::{guard, witness_of};

pub(crate) struct Sqlite {
    store: Arc<SqlStore>,
    directory: TempDir,
}

impl Harness for Sqlite {
    async fn fresh() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        create(&path).await.unwrap();
        Self { store: Arc::new(open(&path).await.unwrap()), directory }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopened(self) -> Self {
        self.store.close().await;
        let store = open(&self.path()).await.unwrap();
        Self { store: Arc::new(store), directory: self.directory }
    }
}

impl Sqlite {
    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    /// The file as an operator's shell opens it, beside the store.
    async fn shell(&self) -> SqliteConnection {
        shell(&self.path()).await
    }
}

/// A store with its witness beside it.
pub(crate) async fn create(path: &Path) -> Result<(), StoreError> {
    sqlite::create(path, &binding(), &witness_of(path)).await
}

pub(crate) async fn open(path: &Path) -> Result<SqlStore, StoreError> {
    sqlite::open(path, guard(path)).await
}

pub(crate) async fn shell(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).connect().await.unwrap()
}

fn refusal<T>(outcome: Result<T, StoreError>) -> String {
    match outcome {
        Err(StoreError::Refused(text)) => text,
        Err(other) => panic!("not refused, but: {other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

fn damage<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    match outcome {
        Err(StoreError::Damaged(text)) => text,
        other => panic!("not damaged, but: {other:?}"),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let harness = Sqlite::fresh().await;
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let names = names(harness.directory.path());
    assert_eq!(
        names,
        ["store.db", "store.db-shm", "store.db-wal", "store.db.lock", "store.witness", "store.witness.lock"]
    );
    for name in names {
        let mode = fs::metadata(harness.directory.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_closed_store_is_one_file_and_its_lock() {
    let harness = Sqlite::fresh().await;
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    harness.store.close().await;
    assert_eq!(names(harness.directory.path()), ["store.db", "store.db.lock", "store.witness", "store.witness.lock"]);
    let outcome = harness.store.commit(&of_tenant(tenant("late"))).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    let outcome = harness.store.load_all().await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_missing_store_is_refused_and_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let text = refusal(open(&path).await);
    assert!(text.contains("keyward init") && text.contains(path.to_str().unwrap()), "{text}");
    assert!(names(directory.path()).is_empty());
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_has_closed() {
    let harness = Sqlite::fresh().await;
    let link = harness.directory.path().join("link.db");
    std::os::unix::fs::symlink(harness.path(), &link).unwrap();
    // The lock is on the open file, so this process is to itself what another one would be.
    for path in [harness.path(), link] {
        let text = refusal(open(&path).await);
        assert!(text.contains("in use") && text.contains("store.db"), "{text}");
    }
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    harness.store.close().await;
    open(&harness.path()).await.unwrap();
}

#[tokio::test]
async fn an_operator_can_read_beside_the_store() {
    let harness = Sqlite::fresh().await;
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let mut shell = harness.shell().await;
    let mut reading = shell.begin().await.unwrap();
    assert_eq!(query("select id from tenant").fetch_all(&mut *reading).await.unwrap().len(), 1);
    harness.store.commit(&of_tenant(changed(tenant("acme")))).await.unwrap();
    harness.store.probe().await.unwrap();
}

#[tokio::test]
async fn an_operator_who_holds_the_lock_makes_the_store_unavailable_for_as_long() {
    let harness = Sqlite::fresh().await;
    let mut shell = harness.shell().await;
    let writing = shell.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let outcome = harness.store.commit(&of_tenant(tenant("acme"))).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    assert_eq!(all(&*harness.store).await, []);
    writing.rollback().await.unwrap();
    harness.store.commit(&of_tenant(tenant("acme"))).await.unwrap();
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_of_the_transaction_leaves_it_whole() {
    let harness = Sqlite::fresh().await;
    let mut shell = harness.shell().await;
    for polls in 1..4 {
        // The lock stops the write at its beginning; the caller is gone before it goes on.
        let writing = shell.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let name = format!("tenant-{polls}");
        let keyrings = vec![keyring(&name, Algorithm::ES256)];
        let events = vec![event("create", &name)];
        let change = Change { tenant: Some(tenant(&name)), keyrings, events, ..Change::default() };
        let store: &dyn Store = &*harness.store;
        let outcome = tokio::select! {
            outcome = left_after(polls, store.commit(&change)) => outcome,
            () = tokio::task::yield_now() => None,
        };
        assert!(outcome.is_none(), "{outcome:?}");
        writing.rollback().await.unwrap();
        harness.store.probe().await.unwrap();
        let record = harness.store.load(&id(&name)).await.unwrap();
        let told = told(&*harness.store, u32::MAX).await;
        let told = told.iter().filter(|event| event.tenant == Some(id(&name))).count();
        match record {
            None => assert_eq!(told, 0),
            Some(record) => assert_eq!((record.keyrings.len(), told), (1, 1)),
        }
    }
}

#[tokio::test]
async fn init_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    for obstacle in ["store.db", "store.db-wal", "store.db-shm", "store.db-journal"] {
        let obstacle = directory.path().join(obstacle);
        fs::write(&obstacle, "mine").unwrap();
        let text = refusal(create(&path).await);
        assert!(text.contains(obstacle.to_str().unwrap()), "{text}");
        assert_eq!(fs::read(&obstacle).unwrap(), b"mine");
        fs::remove_file(&obstacle).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    refusal(create(&path).await);
    fs::remove_file(&path).unwrap();

    create(&path).await.unwrap();
    let store = open(&path).await.unwrap();
    refusal(create(&path).await);
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    store.close().await;
    refusal(create(&path).await);
    let store = open(&path).await.unwrap();
    assert_eq!(all(&store).await.len(), 1);
}

#[tokio::test]
async fn init_needs_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("absent").join("store.db");
    let text = refusal(create(&path).await);
    assert!(text.contains("absent"), "{text}");
}

#[tokio::test]
async fn an_interrupted_init_leaves_no_store_or_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut finished = false;
    for polls in 0.. {
        let path = directory.path().join(format!("store-{polls}.db"));
        finished = left_after(polls, create(&path)).await.is_some();
        if path.exists() {
            // Closing its connections takes the interrupted store a moment, which is no obstacle.
            let store = open(&path).await.unwrap();
            assert_eq!(store.binding().await.unwrap(), binding());
        } else {
            refusal(open(&path).await);
            create(&path).await.unwrap();
        }
        if finished {
            break;
        }
    }
    assert!(finished);
    assert!(names(directory.path()).iter().all(|name| name.starts_with("store-")));
}

#[tokio::test]
async fn a_file_that_init_did_not_make_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    for content in
        [&b""[..], b"SQLite format 3\0", b"not a database, and rather longer than any header would be........"]
    {
        fs::write(&path, content).unwrap();
        let text = damage(open(&path).await);
        assert!(text.contains("store.db"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    // A database of somebody else's, and the beginning of one of ours.
    fs::write(&path, "").unwrap();
    let mut other = shell(&path).await;
    query("create table other (x)").execute(&mut other).await.unwrap();
    damage(open(&path).await);
    query("pragma application_id = 1264941431").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    sqlite::create(&directory.path().join("aside.db"), &binding(), &witness_of(&path)).await.unwrap();
    damage(open(&path).await);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let harness = Sqlite::fresh().await;
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (9999, 'later', true, x'00', 0)";
    query(newer).execute(&mut harness.shell().await).await.unwrap();
    harness.store.close().await;
    let text = refusal(open(&harness.path()).await);
    assert!(text.contains("newer version") && text.contains("9999"), "{text}");
}

/// A store from before there were several tokens opens, with its seals as they were, and can have tokens from then on.
#[tokio::test]
async fn a_store_of_the_first_version_is_brought_up_to_date() {
    let harness = Sqlite::fresh().await;
    let store = harness.store();
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let mut shell = harness.shell().await;
    for table in ["drop table token", "drop table removal", "alter table meta drop column service_key"] {
        query(table).execute(&mut shell).await.unwrap();
    }
    query("delete from _sqlx_migrations where version > 1").execute(&mut shell).await.unwrap();
    let document: String = query("select document from tenant").fetch_one(&mut shell).await.unwrap().get(0);
    assert!(!document.contains("token\":"), "where it is home it is left out, as it was: {document}");
    drop((store, shell));
    let harness = harness.reopened().await;
    let acme = harness.store.load(&id("acme")).await.unwrap().expect("it is believed");
    assert!(acme.tenant.token.is_home());
    assert!(harness.store.tokens().await.unwrap().is_empty());
    harness.store.commit(&Change { token: Some(token("west")), ..Change::default() }).await.unwrap();
    assert_eq!(harness.store.tokens().await.unwrap()["west"], Ok(token("west")));
}

/// What was seen of a token is made once, completed, and believed as long as its seal holds.
#[tokio::test]
async fn a_token_is_recorded_once_and_believed_by_its_seal() {
    let harness = Sqlite::fresh().await;
    let commit =
        async |token: TokenRecord| harness.store.commit(&Change { token: Some(token), ..Change::default() }).await;
    let whole = TokenRecord { public: generated(1).public, ..token("west") };
    assert!(matches!(commit(whole.clone()).await, Err(StoreError::Conflict)), "completed before it was begun");
    commit(token("west")).await.unwrap();
    let other = TokenRecord { canary: object(9), ..token("west") };
    assert!(matches!(commit(other).await, Err(StoreError::Conflict)), "begun twice");
    commit(whole.clone()).await.unwrap();
    commit(token("east")).await.unwrap();
    let tokens = harness.store.tokens().await.unwrap();
    assert_eq!(tokens, [("east".to_owned(), Ok(token("east"))), ("west".to_owned(), Ok(whole))].into());
    for edit in [
        "update token set document = replace(document, 'serial-west', 'serial-else') where name = 'west'",
        "update token set name = 'north' where name = 'east'",
    ] {
        query(edit).execute(&mut harness.shell().await).await.unwrap();
    }
    let tokens = harness.store.tokens().await.unwrap();
    assert!(tokens.values().all(Result::is_err), "{tokens:?}");
}

#[tokio::test]
async fn a_store_without_its_binding_is_damaged() {
    let harness = Sqlite::fresh().await;
    query("delete from meta").execute(&mut harness.shell().await).await.unwrap();
    damage(harness.store.binding().await);
    damage(harness.store.probe().await);
    harness.store.close().await;
    damage(open(&harness.path()).await);
}

#[tokio::test]
async fn a_moved_file_is_read_only_until_it_is_put_back() {
    let harness = Sqlite::fresh().await;
    let store = &harness.store;
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let directory = harness.directory.path();
    for name in ["store.db", "store.db-wal"] {
        let (file, away) = (directory.join(name), directory.join("away"));
        let revision = store.load(&id("acme")).await.unwrap().unwrap().tenant;
        // Moved, and then with another file in its place.
        for _ in 0..2 {
            fs::rename(&file, &away).unwrap();
            for occupant in [None, Some("something else")] {
                if let Some(content) = occupant {
                    fs::write(&file, content).unwrap();
                }
                let outcome = store.commit(&of_tenant(changed(revision.clone()))).await;
                assert!(matches!(&outcome, Err(StoreError::ReadOnly(text)) if text.contains(name)), "{outcome:?}");
                let outcome = store.probe().await;
                assert!(matches!(outcome, Err(StoreError::ReadOnly(_))), "{outcome:?}");
                assert_eq!(store.load(&id("acme")).await.unwrap().unwrap().tenant, revision);
                assert_eq!(revisions(&**store).await.len(), 1);
            }
            fs::rename(&away, &file).unwrap();
        }
        store.probe().await.unwrap();
        store.commit(&of_tenant(changed(revision))).await.unwrap();
    }
    let records = all(&**store).await;
    let harness = harness.reopened().await;
    assert_eq!(all(&*harness.store).await, records);
}

#[tokio::test]
async fn rows_that_do_not_say_what_their_document_says_are_damaged() {
    let acme = "tenant acme";
    let es256 = "keyring acme ES256";
    let damages = [
        ("update tenant set issuer = 'https://evil.example'", acme),
        ("update tenant set custom_domain = null", acme),
        ("update tenant set revision = 2", acme),
        ("update tenant set document = replace(document, '\"revision\":1', '\"revision\":2')", acme),
        ("update tenant set document = replace(document, '\"acme\"', '\"Acme!\"')", acme),
        ("update tenant set document = substr(document, 1, 100)", acme),
        ("update tenant set document = ''", acme),
        ("update keyring set revision = 7", es256),
        ("update keyring set document = replace(document, '\"acme\"', '\"other\"')", es256),
        ("update keyring set document = replace(document, 'ES256', 'ES384')", es256),
        ("update keyring set document = '{}'", es256),
        ("update keyring set algorithm = 'HS1'", "keyring acme HS1"),
        ("update tenant set id = 'ACME'; update keyring set tenant = 'ACME'", "tenant ACME"),
    ];
    for (sql, row) in damages {
        let harness = Sqlite::fresh().await;
        let keyrings = vec![keyring("acme", Algorithm::ES256)];
        let change = Change { tenant: Some(full_tenant("acme")), keyrings, ..Change::default() };
        harness.store.commit(&change).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut harness.shell().await).await.unwrap();
        let loaded = harness.store.load_all().await.unwrap();
        assert_eq!(loaded.records, [], "{sql}");
        assert!(loaded.damaged[0].problem.contains(row), "{sql}: {loaded:?}");
    }
}

#[tokio::test]
async fn a_revision_that_is_none_is_told_with_its_tenant() {
    let harness = Sqlite::fresh().await;
    let keyrings = vec![keyring("acme", Algorithm::ES256)];
    harness.store.commit(&Change { tenant: Some(tenant("acme")), keyrings, ..Change::default() }).await.unwrap();
    harness.store.commit(&of_tenant(tenant("other"))).await.unwrap();
    query("update keyring set algorithm = 'none'").execute(&mut harness.shell().await).await.unwrap();
    let read = harness.store.revisions().await.unwrap();
    assert_eq!(read.tenants.len(), 1);
    assert!(read.damaged[0].problem.contains("keyring acme none"), "{read:?}");
}

#[tokio::test]
async fn what_was_acknowledged_is_on_disk_without_closing() {
    let harness = Sqlite::fresh().await;
    harness.store.commit(&of_tenant(full_tenant("acme"))).await.unwrap();
    // The files as a kill leaves them.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal", "store.witness"] {
        fs::copy(harness.directory.path().join(name), crashed.path().join(name)).unwrap();
    }
    let store = open(&crashed.path().join("store.db")).await.unwrap();
    assert_eq!(all(&store).await, all(&*harness.store).await);
}

#[tokio::test]
async fn overwritten_pages_are_damage_and_never_a_panic() {
    let harness = Sqlite::fresh().await;
    let keyrings = vec![keyring("acme", Algorithm::ES256)];
    harness.store.commit(&Change { tenant: Some(tenant("acme")), keyrings, ..Change::default() }).await.unwrap();
    harness.store.close().await;
    let mut content = fs::read(harness.path()).unwrap();
    // Everything but the header page.
    content[4096..].fill(0xa5);
    fs::write(harness.path(), content).unwrap();
    damage(match open(&harness.path()).await {
        Ok(store) => store.load_all().await,
        Err(error) => Err(error),
    });
}
