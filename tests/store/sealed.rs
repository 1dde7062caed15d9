//! R15: what somebody who edits the store's file can do: keep a record out, and nothing else.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use keyward::domain::{Algorithm, Caller, Event, Generated, KeyState, Tenant, after};
use keyward::store::{Change, Guard, SqlStore, Store as _, StoreError, TenantRecord, sqlite};
use sqlx::{Executor as _, raw_sql};
use tempfile::TempDir;

use crate::samples::{
    all, changed, event, full_tenant, generated, id, keyring, now, of_keyring, of_tenant, tenant, told,
};
use crate::seals::{Word, guard, witness_of};
use crate::sqlite::{create, open, shell};

/// A store with the tenants `acme` and `other`, closed.
struct Place {
    directory: TempDir,
}

impl Place {
    async fn prepare() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        create(&place.path()).await.unwrap();
        let store = place.open().await;
        for name in ["acme", "other"] {
            let keyrings = vec![keyring(name, Algorithm::ES256), keyring(name, Algorithm::EdDSA)];
            let events = vec![event("create_tenant", name)];
            let change = Change { tenant: Some(full_tenant(name)), keyrings, events, ..Change::default() };
            store.commit(&change).await.unwrap();
        }
        store.close().await;
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    async fn open(&self) -> SqlStore {
        open(&self.path()).await.unwrap()
    }

    /// Runs SQL on the closed store, as somebody does who has got hold of the file.
    async fn edit(&self, sql: &'static str) {
        shell(&self.path()).await.execute(raw_sql(sql)).await.unwrap();
    }

    /// A change of `acme`: its record and its ES256 keyring.
    async fn change_acme(&self) {
        let store = self.open().await;
        let TenantRecord { tenant, keyrings } = store.load(&id("acme")).await.unwrap().unwrap();
        let rotated = keyrings[0].publish(generated(9), now());
        let change = Change { tenant: Some(changed(tenant)), keyrings: vec![rotated], ..Change::default() };
        store.commit(&Change { events: vec![event("rotate", "acme")], ..change }).await.unwrap();
        store.close().await;
    }

    /// Who is believed, and what is said of who is not.
    async fn believed(&self) -> (Vec<String>, Vec<String>) {
        let store = self.open().await;
        let loaded = store.load_all().await.unwrap();
        for damage in &loaded.damaged {
            let alone = store.load(&damage.tenant.parse().unwrap()).await;
            assert!(matches!(alone, Err(StoreError::Untrusted(_))), "{alone:?}");
        }
        store.close().await;
        let names = loaded.records.iter().map(|record| record.tenant.id.to_string()).collect();
        (names, loaded.damaged.into_iter().map(|damage| damage.problem).collect())
    }

    /// Copies the files of the closed store.
    fn copy(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

/// Holds what was sealed before, and seals nothing: the token is away.
struct Away;

#[async_trait::async_trait]
impl keyward::store::Seals for Away {
    async fn seal(&self, _: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        Err("the token is away".to_owned())
    }

    fn holds(&self, message: &[u8], seal: &[u8]) -> bool {
        Word("sesame").holds(message, seal)
    }
}

#[tokio::test]
async fn an_edited_record_is_not_believed_and_the_others_are() {
    let edits = [
        "update tenant set document = replace(document, '\"max_token_ttl\":', '\"max_token_ttl\":1') where id = 'acme'",
        "update tenant set document = json_set(document, '$.saml_sso_url', 'https://evil.example/') where id = 'acme'",
        "update tenant set seal = x'00' where id = 'acme'",
        "update tenant set seal = (select seal from tenant where id = 'other') where id = 'acme'",
        "update keyring set document = json_set(document, '$.revision', 1) || ' ' where tenant = 'acme'",
        "update keyring set seal = (select seal from keyring where tenant = 'other' and algorithm = 'ES256') \
         where tenant = 'acme' and algorithm = 'ES256'",
        // A row moved here from another tenant, and from another algorithm.
        "update keyring set (document, seal) = (select document, seal from keyring where tenant = 'other' and algorithm = 'ES256') \
         where tenant = 'acme' and algorithm = 'ES256'",
        "update keyring set (document, seal) = (select document, seal from keyring where tenant = 'acme' and algorithm = 'EdDSA') \
         where tenant = 'acme' and algorithm = 'ES256'",
        "insert into keyring select tenant, 'RS256', revision, document, seal from keyring where tenant = 'acme' limit 1",
        // Rows that are gone.
        "delete from keyring where tenant = 'acme' and algorithm = 'EdDSA'",
        "delete from keyring where tenant = 'acme'; delete from tenant where id = 'acme'",
        "update keyring set tenant = 'evil' where tenant = 'acme'; update tenant set id = 'evil' where id = 'acme'",
        // Octets that are no text.
        "update tenant set document = cast(x'ff' as text) || document, revision = revision + 1 where id = 'acme'",
        "update keyring set document = cast(x'ff' as text), revision = revision + 1 where tenant = 'acme'",
    ];
    for edit in edits {
        let place = Place::prepare().await;
        place.edit(edit).await;
        let (believed, problems) = place.believed().await;
        assert_eq!(believed, ["other"], "{edit}");
        assert!(
            !problems.is_empty() && problems.iter().all(|problem| problem.contains("acme") || problem.contains("evil")),
            "{edit}: {problems:?}"
        );
    }
}

#[tokio::test]
async fn an_older_row_is_not_believed_although_its_seal_holds() {
    for table in ["tenant", "keyring"] {
        let place = Place::prepare().await;
        let column = if table == "tenant" { "id" } else { "tenant" };
        let keep = format!("create table kept as select * from {table} where {column} = 'acme'");
        shell(&place.path()).await.execute(raw_sql(sqlx::AssertSqlSafe(keep))).await.unwrap();
        place.change_acme().await;
        assert_eq!(place.believed().await, (vec!["acme".to_owned(), "other".to_owned()], vec![]));
        let put_back = format!(
            "delete from {table} where {column} = 'acme'; insert into {table} select * from kept; drop table kept"
        );
        shell(&place.path()).await.execute(raw_sql(sqlx::AssertSqlSafe(put_back))).await.unwrap();
        let (believed, problems) = place.believed().await;
        assert_eq!(believed, ["other"], "{table}");
        assert!(problems[0].contains("put back to revision 1"), "{problems:?}");
    }
}

#[tokio::test]
async fn an_older_file_is_noticed_and_its_log_grows_no_more() {
    let place = Place::prepare().await;
    let yesterday = place.copy();
    place.change_acme().await;
    fs::write(place.path(), yesterday).unwrap();
    let (believed, problems) = place.believed().await;
    assert_eq!(believed, ["other"]);
    assert!(problems[0].contains("put back"), "{problems:?}");
    let store = place.open().await;
    let outcome = store.commit(&Change { events: vec![event("rotate", "other")], ..Change::default() }).await;
    assert!(matches!(&outcome, Err(StoreError::Damaged(text)) if text.contains("administration log")), "{outcome:?}");
}

#[tokio::test]
async fn a_log_that_was_cut_or_replaced_grows_no_more() {
    let place = Place::prepare().await;
    place.edit("update meta set log_tip = '{\"frontier\":{\"size\":0,\"peaks\":[]}}'; delete from audit_event").await;
    let outcome = place.open().await.commit(&Change { events: vec![event("a", "other")], ..Change::default() }).await;
    assert!(matches!(outcome, Err(StoreError::Damaged(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_deleted_tenant_does_not_come_back() {
    let place = Place::prepare().await;
    place.edit("create table kept as select * from tenant; create table kept_too as select * from keyring").await;
    let store = place.open().await;
    let revision = store.load(&id("acme")).await.unwrap().unwrap().tenant.revision;
    store.commit(&Change { remove: Some((id("acme"), revision)), ..Change::default() }).await.unwrap();
    store.close().await;
    assert_eq!(place.believed().await.0, ["other"]);
    place
        .edit(
            "insert into tenant select * from kept where id = 'acme'; \
             insert into keyring select * from kept_too where tenant = 'acme'",
        )
        .await;
    let (believed, problems) = place.believed().await;
    assert_eq!(believed, ["other"]);
    assert!(problems[0].contains("deleted"), "{problems:?}");

    // Nor do its keyrings, under a new tenant of its name, whatever their revision.
    place.edit("delete from keyring where tenant = 'acme'; delete from tenant where id = 'acme'").await;
    let store = place.open().await;
    let create_time = after(now(), std::time::Duration::from_secs(1));
    let made = Change { tenant: Some(Tenant { create_time, ..tenant("acme") }), ..Change::default() };
    store.commit(&made).await.unwrap();
    store.close().await;
    assert_eq!(place.believed().await.0, ["acme", "other"]);
    place.edit("insert into keyring select * from kept_too where tenant = 'acme'").await;
    assert_eq!(place.believed().await.0, ["other"]);
}

/// The one change that leaves nothing behind to tell of it.
#[tokio::test]
async fn a_crash_between_a_removal_and_its_memory_is_no_theft() {
    let place = Place::prepare().await;
    let store = place.open().await;
    let witness = witness_of(&place.path());
    let revision = store.load(&id("acme")).await.unwrap().unwrap().tenant.revision;
    let remove = Change { remove: Some((id("acme"), revision)), ..Change::default() };
    store.commit(&remove).await.unwrap();
    store.close().await;
    let noted = fs::read_to_string(&witness).unwrap();
    let end = noted.find("[{\"seen\":\"removed\"").expect("the removal was noted");
    fs::write(&witness, &noted[..end]).unwrap();
    assert_eq!(place.believed().await, (vec!["other".to_owned()], vec![]));
    // An id that is free again is used again.
    let create_time = after(now(), std::time::Duration::from_secs(1));
    let made = Change { tenant: Some(Tenant { create_time, ..tenant("acme") }), ..Change::default() };
    let store = place.open().await;
    store.commit(&made).await.unwrap();
    store.close().await;
    assert_eq!(place.believed().await.0, ["acme", "other"]);
    place.edit("delete from tenant where id = 'acme'").await;
    assert_eq!(place.believed().await.0, ["other"]);
    assert!(place.believed().await.1[0].contains("gone"));
}

#[tokio::test]
async fn what_was_seen_is_remembered_over_crashes_and_torn_lines() {
    let place = Place::prepare().await;
    place.change_acme().await;
    let witness = witness_of(&place.path());
    let whole = fs::read(&witness).unwrap();
    let lines = whole.iter().filter(|octet| **octet == b'\n').count();
    assert!(lines >= 2, "what was there at the start, and a change: {lines}");
    // What a crash in the middle of a line leaves behind it.
    for torn in [&b"[{\"seen\":\"tenant\",\"ten"[..], b"\0\0\0\0\0\0ision\":7}]\n", b"\0\0\0\0"] {
        fs::write(&witness, [&whole[..], torn].concat()).unwrap();
        assert_eq!(place.believed().await.0, ["acme", "other"]);
    }
    // A newer store than the memory of it is one that a crash came between.
    let remembered = fs::read(&witness).unwrap();
    place.change_acme().await;
    fs::write(&witness, remembered).unwrap();
    assert_eq!(place.believed().await.0, ["acme", "other"]);
    // A memory that is empty, or broken in the middle, is none.
    let broken = [b"[{}]\n", &whole[..]].concat();
    for lost in [Some(&b""[..]), Some(&broken[..]), None] {
        match lost {
            Some(octets) => fs::write(&witness, octets).unwrap(),
            None => fs::remove_file(&witness).unwrap(),
        }
        let outcome = open(&place.path()).await;
        assert!(matches!(&outcome, Err(StoreError::Refused(text)) if text.contains("accept-store")), "{outcome:?}");
    }
}

#[tokio::test]
async fn nothing_is_changed_that_could_not_be_sealed() {
    let place = Place::prepare().await;
    let guard = Guard { seals: Arc::new(Away), witness: witness_of(&place.path()) };
    let store = sqlite::open(&place.path(), guard).await.unwrap();
    let before = (all(&store).await, told(&store, 10).await);
    let tenant = before.0[0].tenant.clone();
    let outcome = store.commit(&Change { events: vec![event("a", "acme")], ..of_tenant(changed(tenant)) }).await;
    assert!(matches!(outcome, Err(StoreError::Unsealed(_))), "{outcome:?}");
    assert_eq!((all(&store).await, told(&store, 10).await), before);
}

/// A backup that an operator put back on purpose holds after he has said so, and the state that was given up does not come back.
#[tokio::test]
async fn a_restored_store_holds_once_it_is_accepted() {
    let place = Place::prepare().await;
    let yesterday = place.copy();
    let store = place.open().await;
    store.commit(&of_tenant(tenant("late"))).await.unwrap();
    let revision = store.load(&id("other")).await.unwrap().unwrap().tenant.revision;
    store.commit(&Change { remove: Some((id("other"), revision)), ..Change::default() }).await.unwrap();
    store.close().await;
    place.change_acme().await;
    let given_up = place.copy();
    fs::write(place.path(), &yesterday).unwrap();

    let told_only = sqlite::restore(&place.path(), guard(&place.path()), None).await.unwrap();
    assert_eq!(
        (told_only.older, told_only.deleted, told_only.missing),
        (vec![id("acme")], vec![id("other")], vec![id("late")])
    );
    assert_eq!(place.believed().await.0, Vec::<String>::new(), "nothing was changed by looking");

    let accept = Event::new(now(), "accept_store", &Caller::timer());
    sqlite::restore(&place.path(), guard(&place.path()), Some(accept)).await.unwrap();
    assert_eq!(place.believed().await, (vec!["acme".to_owned()], vec![]));
    let store = place.open().await;
    let latest = told(&store, 1).await.remove(0);
    assert_eq!(latest.action, "accept_store");
    assert!(latest.detail.contains("acme"), "{latest:?}");
    store.close().await;
    // It can be changed again, and what was given up stays so.
    place.change_acme().await;
    assert_eq!(place.believed().await.0, ["acme"]);
    fs::write(place.path(), given_up).unwrap();
    assert_eq!(place.believed().await.0, Vec::<String>::new());
}

/// A store whose memory is lost is taken as it is, and what was there before does not come back either.
#[tokio::test]
async fn a_store_is_accepted_without_its_memory() {
    let place = Place::prepare().await;
    place.edit("create table kept as select * from keyring where tenant = 'acme'").await;
    // Its end brings the log of SQLite into the file.
    place.open().await.close().await;
    let yesterday = place.copy();
    place.change_acme().await;
    let given_up = place.copy();
    fs::write(place.path(), yesterday).unwrap();
    fs::remove_file(witness_of(&place.path())).unwrap();
    let unlooked = sqlite::restore(&place.path(), guard(&place.path()), None).await;
    assert!(matches!(unlooked, Err(StoreError::Refused(_))), "{unlooked:?}");

    // One that fails leaves no memory: the next start must not believe what nobody has accepted.
    let accept = || Some(Event::new(now(), "accept_store", &Caller::timer()));
    let away = Guard { seals: Arc::new(Away), witness: witness_of(&place.path()) };
    sqlite::restore(&place.path(), away, accept()).await.unwrap_err();
    assert!(matches!(open(&place.path()).await, Err(StoreError::Refused(_))));

    sqlite::restore(&place.path(), guard(&place.path()), accept()).await.unwrap();
    assert_eq!(place.believed().await.0, ["acme", "other"]);
    let accepted = place.copy();
    fs::write(place.path(), given_up).unwrap();
    assert_eq!(place.believed().await.0, Vec::<String>::new());
    fs::write(place.path(), accepted).unwrap();
    place.edit("delete from keyring where tenant = 'acme'; insert into keyring select * from kept").await;
    assert_eq!(place.believed().await.0, ["other"]);
}

/// A log in which other records stand than those that were seen does not grow, be it longer than it was.
#[tokio::test]
async fn a_rewritten_log_that_grew_is_noticed() {
    let place = Place::prepare().await;
    let mut tip = keyward::tlog::Tip::default();
    let forged: Vec<String> =
        (0..4).map(|_| String::from_utf8(tip.append(&event("nothing", "acme"))).unwrap()).collect();
    let mut shell = shell(&place.path()).await;
    shell.execute(raw_sql("delete from audit_event")).await.unwrap();
    for (position, record) in (0_i64..).zip(forged) {
        let insert = sqlx::query("insert into audit_event (position, tenant, record) values (?1, 'acme', ?2)");
        insert.bind(position).bind(record).execute(&mut shell).await.unwrap();
    }
    let update = sqlx::query("update meta set log_tip = ?1").bind(serde_json::to_string(&tip).unwrap());
    update.execute(&mut shell).await.unwrap();
    drop(shell);
    let store = place.open().await;
    assert!(matches!(store.probe().await, Err(StoreError::Damaged(_))));
    let outcome = store.commit(&Change { events: vec![event("a", "other")], ..Change::default() }).await;
    assert!(matches!(outcome, Err(StoreError::Damaged(_))), "{outcome:?}");
}

/// Documents written and sealed before a member was there are read.
#[tokio::test]
async fn documents_of_an_earlier_version_are_read() {
    let place = Place::prepare().await;
    let store = place.open().await;
    let mut record = store.load(&id("acme")).await.unwrap().unwrap();
    let key = Generated { certificate: None, ..generated(1) };
    let published = record.keyrings[0].publish(key, now());
    store.commit(&of_keyring(published.clone())).await.unwrap();
    let mut bare = changed(record.tenant);
    bare.custom_keys.clear();
    store.commit(&of_tenant(bare.clone())).await.unwrap();
    store.close().await;
    record.keyrings[0] = published;
    record.tenant = bare;

    let seals = Word("sesame");
    let tenant = without(&record.tenant, |document| {
        document.remove("custom_keys").expect("it is there now");
    });
    let keyring = without(&record.keyrings[0], |document| {
        document.remove("join_time").expect("it is there now");
        let key = document["keys"][0].as_object_mut().expect("an object");
        key.remove("certificate").expect("it is there now");
    });
    let created = record.tenant.create_time;
    let seal = async |message: String| {
        keyward::store::Seals::seal(&seals, vec![message.into_bytes()]).await.unwrap().remove(0)
    };
    let tenant_seal = seal(format!("keyward-seal/v1\ntenant\n{tenant}")).await;
    let keyring_seal = seal(format!("keyward-seal/v1\nkeyring\n{created}\n{keyring}")).await;
    let mut shell = shell(&place.path()).await;
    let update = sqlx::query("update tenant set document = ?1, seal = ?2 where id = 'acme'");
    update.bind(tenant).bind(tenant_seal).execute(&mut shell).await.unwrap();
    let update = sqlx::query("update keyring set document = ?1, seal = ?2 where tenant = 'acme' and algorithm = ?3");
    let algorithm = record.keyrings[0].algorithm.to_string();
    update.bind(keyring).bind(keyring_seal).bind(algorithm).execute(&mut shell).await.unwrap();
    // The memory is of other documents: it knows the log alone.
    let remembered = fs::read_to_string(witness_of(&place.path())).unwrap();
    let of_the_log = remembered.rfind("{\"seen\":\"administration\"").expect("it is there");
    let end = of_the_log + remembered[of_the_log..].find(']').expect("an array of peaks") + 1;
    let end = end + remembered[end..].find(']').expect("the end of the line");
    fs::write(witness_of(&place.path()), format!("[{}]\n", &remembered[of_the_log..end])).unwrap();

    let read = place.open().await.load(&id("acme")).await.unwrap().unwrap();
    assert_eq!(read, record);
    assert!(read.keyrings[0].in_state(KeyState::Next).next().is_some());
}

/// The document of a record after an edit.
fn without<T: serde::Serialize>(
    record: &T,
    edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> String {
    let mut document = serde_json::to_value(record).unwrap();
    edit(document.as_object_mut().expect("an object"));
    document.to_string()
}
