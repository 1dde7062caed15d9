//! The move of a store out of a SQLite file into a PostgreSQL database.

use std::fs;
use std::path::{Path, PathBuf};

use keyward::domain::{Algorithm, Revision};
use keyward::store::postgres::{self, Settings};
use keyward::store::{Change, Moved, Store, StoreError, Transfer, may_have_moved};
use tempfile::TempDir;

use crate::contract::left_after;
use crate::postgresql::Database;
use crate::samples::{all, binding, event, full_tenant, id, keyring, of_tenant, tenant, token, told};
use crate::seals::{guard, witness_of};
use crate::sqlite::{create, open};

/// More than go into one statement.
const MANY: usize = 600;

fn settings(database: &Database) -> Settings {
    Settings { url: database.url(), password: None, connections_max: 4 }
}

/// A file with a tenant of every kind, a token, a removal and a log.
async fn prepare(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("store.db");
    create(&path).await.unwrap();
    let store = open(&path).await.unwrap();
    store.commit(&Change { token: Some(token("west")), ..Change::default() }).await.unwrap();
    store.commit(&of_tenant(full_tenant("full"))).await.unwrap();
    store.commit(&of_tenant(tenant("gone"))).await.unwrap();
    store.commit(&Change { remove: Some((id("gone"), Revision::FIRST)), ..Change::default() }).await.unwrap();
    let keyrings = Algorithm::ALL.map(|algorithm| keyring("acme", algorithm)).into();
    let events = vec![event("create", "acme"), event("rotate", "acme")];
    let acme = Change { tenant: Some(tenant("acme")), keyrings, events, ..Change::default() };
    store.commit(&acme).await.unwrap();
    store.close().await;
    path
}

async fn carry_out(from: &Path, target: &Settings) -> Result<Moved, StoreError> {
    let transfer = Transfer::open(from, target, guard(from)).await?;
    let moved = transfer.carry_out(event("migrate", "acme")).await;
    transfer.close().await;
    moved
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_many_rows_is_the_same_in_its_database() {
    let (directory, database) = (tempfile::tempdir().unwrap(), Database::fresh());
    let path = prepare(&directory).await;
    let store = open(&path).await.unwrap();
    let events = (0..MANY).map(|_| event("rotate", "acme")).collect();
    store.commit(&Change { events, ..Change::default() }).await.unwrap();
    for number in 0..MANY {
        let name = format!("tenant-{number}");
        let keyrings = vec![keyring(&name, Algorithm::ES256)];
        store.commit(&Change { keyrings, ..of_tenant(tenant(&name)) }).await.unwrap();
    }
    let (records, tokens, log) = (all(&store).await, store.tokens().await.unwrap(), told(&store, u32::MAX).await);
    store.close().await;

    let moved = carry_out(&path, &settings(&database)).await.unwrap();
    assert_eq!(moved, Moved { tenants: MANY + 2, events: MANY as u64 + 3 });
    let target = postgres::open(&settings(&database), guard(&path)).await.unwrap();
    assert_eq!(target.binding().await.unwrap(), binding());
    assert_eq!(all(&target).await, records);
    assert_eq!(target.tokens().await.unwrap(), tokens);
    let log_there = told(&target, u32::MAX).await;
    assert_eq!((&*log_there[0].action, &log_there[1..]), ("migrate", &log[..]));
    target.commit(&of_tenant(tenant("later"))).await.unwrap();
    target.close().await;

    // A replica that begins its memory anew believes all of it.
    let anew = tempfile::tempdir().unwrap();
    let other = postgres::join(&settings(&database), guard(&anew.path().join("store"))).await.unwrap();
    assert_eq!(all(&other).await.len(), MANY + 3);
    assert_eq!(database.psql("select tenant from removal"), "gone");
}

/// The copy is read back before it counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_keeps_something_else_is_left_empty() {
    let (directory, database) = (tempfile::tempdir().unwrap(), Database::fresh());
    let path = prepare(&directory).await;
    for (table, body, told) in [
        ("tenant", "new.issuer = new.issuer || 'x'; return new;", "full: tenant full: its columns"),
        (
            "keyring",
            "if new.algorithm = 'ES256' then return null; end if; return new;",
            "keyring acme ES256: its record is gone",
        ),
        ("audit_event", "new.tenant = 'other'; return new;", "record 0: its row is filed under another tenant"),
        ("audit_event", "return null;", "record 0 is missing"),
        ("token", "return null;", "the copy is not what was copied"),
        ("removal", "return null;", "the copy is not what was copied"),
    ] {
        database.set_trap(table, &format!("trigger trap before insert on {table} for each row"), body);
        let outcome = carry_out(&path, &settings(&database)).await;
        assert!(outcome.as_ref().is_err_and(|error| error.to_string().contains(told)), "{table}: {outcome:?}");
        database.remove_trap();
        assert_eq!(database.psql("select count(*) from pg_class where relnamespace = 'public'::regnamespace"), "0");
        let store = open(&path).await.unwrap();
        store.probe().await.unwrap();
        store.close().await;
    }
    carry_out(&path, &settings(&database)).await.unwrap();
}

/// At whatever moment it ends: what was not moved is moved by the next, and what was moved is there, and whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_move_is_not_done_or_whole() {
    let (kept, database) = (tempfile::tempdir().unwrap(), Database::fresh());
    let target = settings(&database);
    let original = prepare(&kept).await;
    let (mut finished, mut moved_by_the_next) = (false, 0);
    // Each step to the server is some polls; the last of so many is behind the last of them.
    for polls in (0..).step_by(5) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        fs::copy(&original, &path).unwrap();
        fs::copy(witness_of(&original), witness_of(&path)).unwrap();
        {
            let transfer = Transfer::open(&path, &target, guard(&path)).await.unwrap();
            finished = left_after(polls, transfer.carry_out(event("migrate", "acme"))).await.is_some();
            transfer.close().await;
        }
        let in_doubt = may_have_moved(&witness_of(&path), &target).unwrap();
        assert_eq!(open(&path).await.is_err(), in_doubt, "either place is used, and not both");
        let is_there =
            async || may_have_moved(&witness_of(&path), &target).unwrap() && postgres::is_taken(&target).await.unwrap();
        while !is_there().await {
            match carry_out(&path, &target).await {
                Ok(_) => moved_by_the_next += 1,
                // The server was about to do what it was asked last.
                Err(StoreError::Conflict | StoreError::Refused(_)) if in_doubt => {}
                Err(other) => panic!("after {polls} polls: {other}"),
            }
        }
        let store = postgres::open(&target, guard(&path)).await.unwrap();
        store.probe().await.unwrap();
        assert_eq!((all(&store).await.len(), told(&store, u32::MAX).await.len()), (2, 3));
        store.close().await;
        database.psql("drop schema public cascade; create schema public");
        if finished {
            break;
        }
    }
    assert!(finished && moved_by_the_next > 5);
}
