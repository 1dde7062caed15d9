//! What every store keeps to, whatever database it stands on.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use keyward::domain::{Algorithm, Revision, Tenant, Timestamp, after};
use keyward::store::{Change, Store, StoreError, TenantRecord, TenantRevisions};
use tokio::task::JoinSet;

use crate::samples::{
    all, binding, changed, event, full_tenant, generated, id, keyring, now, of_keyring, of_tenant, revisions, tenant,
    told,
};

/// A database to hold the contract against.
pub(crate) trait Harness: Sized + Send + Sync {
    /// A new, empty store that nobody else uses, made for the token of [`binding`].
    async fn fresh() -> Self;

    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// The same store, closed and opened again.
    async fn reopened(self) -> Self;
}

/// How many callers meet in the tests of concurrency.
const CROWD: u8 = 50;

pub(crate) async fn a_new_store_is_empty_and_knows_its_token<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    assert_eq!(all(&*store).await, []);
    assert_eq!(revisions(&*store).await, []);
    assert_eq!(told(&*store, 10).await, []);
    assert_eq!(store.load(&id("acme")).await.unwrap(), None);
    assert_eq!(store.binding().await.unwrap(), binding());
}

pub(crate) async fn what_is_committed_is_loaded<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let (plain, full) = (tenant("plain"), full_tenant("full"));
    store.commit(&of_tenant(plain.clone())).await.unwrap();
    let keyrings = vec![keyring("full", Algorithm::ES256), keyring("full", Algorithm::EdDSA)];
    let change = Change { tenant: Some(full.clone()), keyrings: keyrings.clone(), ..Change::default() };
    store.commit(&change).await.unwrap();

    let plain = TenantRecord { tenant: plain, keyrings: vec![] };
    let full = TenantRecord { tenant: full, keyrings };
    assert_eq!(store.load(&id("plain")).await.unwrap(), Some(plain.clone()));
    assert_eq!(store.load(&id("full")).await.unwrap(), Some(full.clone()));
    assert_eq!(store.load(&id("other")).await.unwrap(), None);
    assert_eq!(all(&*store).await, [full, plain]);
}

pub(crate) async fn tenants_come_in_order_of_id_and_keyrings_of_algorithm<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    // Bytes, not a language: a collation may ignore the hyphen, or put digits last.
    let names = ["b", "a-b", "ab", "a", "0", "a-c", "a0"];
    for name in names {
        let keyrings = Algorithm::ALL.into_iter().rev().map(|algorithm| keyring(name, algorithm)).collect();
        let change = Change { tenant: Some(tenant(name)), keyrings, ..Change::default() };
        store.commit(&change).await.unwrap();
    }
    let mut expected = names;
    expected.sort_unstable();
    let records = all(&*store).await;
    assert!(records.iter().map(|record| record.tenant.id.as_str()).eq(expected));
    for record in &records {
        assert!(record.keyrings.iter().map(|keyring| keyring.algorithm).eq(Algorithm::ALL));
        assert_eq!(store.load(&record.tenant.id).await.unwrap().as_ref(), Some(record));
    }
}

pub(crate) async fn revisions_are_those_of_the_records<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let rs256 = keyring("acme", Algorithm::RS256);
    let keyrings = vec![keyring("acme", Algorithm::ES256), rs256.clone()];
    let change = Change { tenant: Some(tenant("acme")), keyrings, ..Change::default() };
    store.commit(&change).await.unwrap();
    store.commit(&of_tenant(tenant("bare"))).await.unwrap();
    store.commit(&of_tenant(changed(tenant("acme")))).await.unwrap();
    let published = rs256.publish(generated(1), now());
    store.commit(&of_keyring(published.clone())).await.unwrap();
    store.commit(&of_keyring(published.abandon(None, now()))).await.unwrap();

    let acme = vec![(Algorithm::RS256, Revision::new(3)), (Algorithm::ES256, Revision::new(1))];
    let expected = [
        TenantRevisions { tenant: id("acme"), revision: Revision::new(2), keyrings: acme },
        TenantRevisions { tenant: id("bare"), revision: Revision::new(1), keyrings: vec![] },
    ];
    assert_eq!(revisions(&*store).await, expected);
}

pub(crate) async fn a_record_replaces_its_predecessor_only<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let first = (tenant("acme"), keyring("acme", Algorithm::ES256));
    let second = (changed(first.0.clone()), first.1.publish(generated(1), now()));
    let third = (changed(second.0.clone()), second.1.abandon(None, now()));

    // A successor of nothing.
    assert_conflict(store.commit(&of_tenant(second.0.clone())).await);
    store.commit(&of_tenant(first.0.clone())).await.unwrap();
    assert_conflict(store.commit(&of_keyring(second.1.clone())).await);
    store.commit(&of_keyring(first.1.clone())).await.unwrap();
    // One that skips a revision.
    assert_conflict(store.commit(&of_tenant(third.0.clone())).await);
    assert_conflict(store.commit(&of_keyring(third.1.clone())).await);
    // The successor, and the successor again.
    for record in [&second, &third] {
        store.commit(&of_tenant(record.0.clone())).await.unwrap();
        assert_conflict(store.commit(&of_tenant(record.0.clone())).await);
        store.commit(&of_keyring(record.1.clone())).await.unwrap();
        assert_conflict(store.commit(&of_keyring(record.1.clone())).await);
    }
    // A revision that no record has, nor ever will.
    for revision in [0, u64::MAX] {
        let mut odd = third.clone();
        (odd.0.revision, odd.1.revision) = (Revision::new(revision), Revision::new(revision));
        assert_conflict(store.commit(&of_tenant(odd.0)).await);
        assert_conflict(store.commit(&of_keyring(odd.1)).await);
    }
    let expected = TenantRecord { tenant: third.0, keyrings: vec![third.1] };
    assert_eq!(store.load(&id("acme")).await.unwrap(), Some(expected));
}

pub(crate) async fn of_many_commits_of_one_revision_exactly_one_wins<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let first = keyring("acme", Algorithm::ES256);
    let change = Change { tenant: Some(tenant("acme")), keyrings: vec![first.clone()], ..Change::default() };
    store.commit(&change).await.unwrap();

    let mut crowd = JoinSet::new();
    for number in 0..CROWD {
        let (store, rival) = (Arc::clone(&store), first.publish(generated(number), now()));
        let event = event(&format!("publish {number}"), "acme");
        let change = Change { keyrings: vec![rival.clone()], events: vec![event], ..Change::default() };
        crowd.spawn(async move { (rival, store.commit(&change).await) });
    }
    let mut winners = Vec::new();
    for (rival, outcome) in crowd.join_all().await {
        match outcome {
            Ok(()) => winners.push(rival),
            lost => assert_conflict(lost),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(store.load(&id("acme")).await.unwrap().unwrap().keyrings, winners);
    assert_eq!(told(&*store, 10).await.len(), 1);
}

pub(crate) async fn a_change_is_made_as_a_whole_or_not_at_all<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let before = TenantRecord {
        tenant: tenant("acme"),
        keyrings: vec![keyring("acme", Algorithm::RS256), keyring("acme", Algorithm::ES256)],
    };
    let create = Change {
        tenant: Some(before.tenant.clone()),
        keyrings: before.keyrings.clone(),
        events: vec![event("create", "acme")],
        ..Change::default()
    };
    store.commit(&create).await.unwrap();
    store.commit(&of_tenant(tenant("other"))).await.unwrap();

    // Everything of it would be right but one record, whichever it is.
    let whole = Change {
        tenant: Some(changed(before.tenant.clone())),
        keyrings: before.keyrings.iter().map(|keyring| keyring.publish(generated(1), now())).collect(),
        remove: Some((id("other"), Revision::FIRST)),
        events: vec![event("one", "acme"), event("two", "acme")],
        ..Change::default()
    };
    let stale_tenant = Change { tenant: Some(changed(changed(before.tenant.clone()))), ..whole.clone() };
    let mut stale_keyring = whole.clone();
    stale_keyring.keyrings[1].revision = Revision::new(3);
    let mut new_keyring = whole.clone();
    new_keyring.keyrings.push(keyring("acme", Algorithm::RS256));
    let stale_removal = Change { remove: Some((id("other"), Revision::new(2))), ..whole.clone() };
    for broken in [stale_tenant, stale_keyring, new_keyring, stale_removal] {
        assert_conflict(store.commit(&broken).await);
        assert_eq!(store.load(&id("acme")).await.unwrap().as_ref(), Some(&before));
        assert!(store.load(&id("other")).await.unwrap().is_some());
        assert_eq!(told(&*store, 10).await, [event("create", "acme")]);
    }

    store.commit(&whole).await.unwrap();
    let after = TenantRecord { tenant: whole.tenant.unwrap(), keyrings: whole.keyrings };
    assert_eq!(all(&*store).await, [after]);
    assert_eq!(told(&*store, 2).await, [event("two", "acme"), event("one", "acme")]);
}

pub(crate) async fn id_issuer_and_custom_domain_are_of_one_tenant_alone<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let holder = full_tenant("holder");
    store.commit(&of_tenant(holder.clone())).await.unwrap();

    let with_id = full_tenant("holder");
    let mut with_issuer = tenant("second");
    with_issuer.issuer = holder.issuer.clone();
    let mut with_domain = tenant("second");
    with_domain.custom_domain = holder.custom_domain.clone();
    for (rival, expected) in [(with_id, "id"), (with_issuer, "issuer"), (with_domain, "custom_domain")] {
        let change = Change { tenant: Some(rival), events: vec![event("create", "second")], ..Change::default() };
        assert_taken(store.commit(&change).await, expected);
    }
    // A custom domain is an issuer as well: nobody has the other's.
    let mut as_issuer = tenant("second");
    as_issuer.issuer =
        holder.custom_domain.as_ref().map(|domain| format!("https://{domain}").parse().unwrap()).unwrap();
    assert_taken(store.commit(&of_tenant(as_issuer)).await, "issuer");
    let mut plain = tenant("plain");
    plain.issuer = "https://plain.example".parse().unwrap();
    plain.custom_domain = Some("plain.example".parse().unwrap());
    store.commit(&of_tenant(plain.clone())).await.unwrap();
    let mut as_domain = tenant("second");
    as_domain.custom_domain = plain.custom_domain;
    assert_taken(store.commit(&of_tenant(as_domain)).await, "custom_domain");
    let mut rival = tenant("rival");
    rival.issuer = "https://rival.example".parse().unwrap();
    store.commit(&of_tenant(rival)).await.unwrap();
    let mut as_domain = tenant("second");
    as_domain.custom_domain = Some("rival.example".parse().unwrap());
    assert_taken(store.commit(&of_tenant(as_domain)).await, "custom_domain");
    // Who is being deleted keeps no domain from anybody.
    let mut leaving = tenant("leaving");
    leaving.issuer = "https://leaving.example".parse().unwrap();
    leaving.delete_time = Some(now());
    store.commit(&of_tenant(leaving)).await.unwrap();
    let mut heir = tenant("heir");
    heir.custom_domain = Some("leaving.example".parse().unwrap());
    store.commit(&of_tenant(heir)).await.unwrap();
    // An existing tenant cannot move in either; and many may have no custom domain.
    store.commit(&of_tenant(tenant("second"))).await.unwrap();
    store.commit(&of_tenant(tenant("third"))).await.unwrap();
    let mut moved = changed(tenant("second"));
    moved.issuer = holder.issuer.clone();
    assert_taken(store.commit(&of_tenant(moved.clone())).await, "issuer");
    moved.issuer = tenant("second").issuer;
    moved.custom_domain = holder.custom_domain.clone();
    assert_taken(store.commit(&of_tenant(moved)).await, "custom_domain");

    let names: Vec<_> = revisions(&*store).await;
    assert_eq!(names.len(), 7);
    assert!(names.iter().all(|tenant| tenant.revision == Revision::FIRST));
    assert_eq!(told(&*store, 10).await, []);
}

pub(crate) async fn a_keyring_exists_once_and_only_with_its_tenant<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    assert_conflict(store.commit(&of_keyring(keyring("acme", Algorithm::ES256))).await);
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    store.commit(&of_keyring(keyring("acme", Algorithm::ES256))).await.unwrap();
    assert_conflict(store.commit(&of_keyring(keyring("acme", Algorithm::ES256))).await);
    store.commit(&of_keyring(keyring("acme", Algorithm::ES384))).await.unwrap();
}

pub(crate) async fn removal_takes_a_tenant_of_the_expected_revision_with_its_keyrings<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    for name in ["acme", "other"] {
        let keyrings = vec![keyring(name, Algorithm::ES256), keyring(name, Algorithm::EdDSA)];
        let change = Change { tenant: Some(tenant(name)), keyrings, ..Change::default() };
        store.commit(&change).await.unwrap();
    }
    store.commit(&of_tenant(changed(tenant("acme")))).await.unwrap();
    let before = all(&*store).await;
    for (name, revision) in [("acme", 1), ("acme", 3), ("nobody", 1)] {
        assert_conflict(store.commit(&removal(name, revision)).await);
        assert_eq!(all(&*store).await, before);
        assert_eq!(told(&*store, 10).await, []);
    }
    store.commit(&removal("acme", 2)).await.unwrap();
    assert_eq!(all(&*store).await, before[1..]);
    assert_eq!(told(&*store, 10).await, [event("delete", "acme")]);
    assert_conflict(store.commit(&removal("acme", 2)).await);
}

pub(crate) async fn what_a_removal_frees_can_be_taken<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let keyrings = vec![keyring("acme", Algorithm::ES256)];
    let made_at = |seconds| {
        let create_time = after(now(), Duration::from_secs(seconds));
        let tenant = Tenant { create_time, ..full_tenant("acme") };
        Change { tenant: Some(tenant), keyrings: keyrings.clone(), ..Change::default() }
    };
    store.commit(&made_at(0)).await.unwrap();
    store.commit(&Change { remove: Some((id("acme"), Revision::FIRST)), ..made_at(1) }).await.unwrap();
    assert_eq!(all(&*store).await.len(), 1);
    store.commit(&removal("acme", 1)).await.unwrap();
    // One that was not made later could not be told from the one that was removed.
    assert!(matches!(store.commit(&made_at(1)).await, Err(StoreError::Refused(_))));
    assert_eq!(all(&*store).await, []);
    store.commit(&made_at(2)).await.unwrap();
    assert_eq!(all(&*store).await.len(), 1);
}

pub(crate) async fn events_are_told_newest_first<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    // By the order of their commits: the clock may have been set back between them.
    let mut first = event("first", "acme");
    first.time = Timestamp::MAX;
    let mut bare = event("second", "acme");
    (bare.algorithm, bare.kid, bare.detail) = (None, None, String::new());
    let events = vec![first.clone(), bare.clone()];
    store.commit(&Change { events, ..Change::default() }).await.unwrap();
    store.commit(&Change { events: vec![event("third", "other")], ..Change::default() }).await.unwrap();
    let newest_first = [event("third", "other"), bare, first];
    assert_eq!(told(&*store, u32::MAX).await, newest_first);
    assert_eq!(told(&*store, 3).await, newest_first);
    assert_eq!(told(&*store, 2).await, newest_first[..2]);
    assert_eq!(told(&*store, 0).await, []);
}

pub(crate) async fn events_stay_when_their_tenant_is_gone<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let create = Change { tenant: Some(tenant("acme")), events: vec![event("create", "acme")], ..Change::default() };
    store.commit(&create).await.unwrap();
    store.commit(&removal("acme", 1)).await.unwrap();
    assert_eq!(told(&*store, 10).await, [event("delete", "acme"), event("create", "acme")]);
}

pub(crate) async fn an_empty_change_is_made<H: Harness>() {
    H::fresh().await.store().commit(&Change::default()).await.unwrap();
}

pub(crate) async fn what_was_committed_is_there_after_reopening<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let keyrings = vec![keyring("acme", Algorithm::ES256)];
    let events = vec![event("create", "acme")];
    let change = Change { tenant: Some(full_tenant("acme")), keyrings, events, ..Change::default() };
    store.commit(&change).await.unwrap();
    let (records, events) = (all(&*store).await, told(&*store, 10).await);
    drop(store);

    let harness = harness.reopened().await;
    let store = harness.store();
    assert_eq!(all(&*store).await, records);
    assert_eq!(told(&*store, 10).await, events);
    assert_eq!(store.binding().await.unwrap(), binding());
    store.commit(&of_tenant(changed(full_tenant("acme")))).await.unwrap();
}

pub(crate) async fn a_commit_whose_caller_left_is_whole_and_in_nobodys_way<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    let keyrings = vec![keyring("acme", Algorithm::ES256)];
    store.commit(&Change { tenant: Some(tenant("acme")), keyrings, ..Change::default() }).await.unwrap();
    for polls in 0..CROWD {
        let mut record = store.load(&id("acme")).await.unwrap().unwrap();
        let before = (record.clone(), told(&*store, u32::MAX).await.len());
        record.tenant = changed(record.tenant);
        record.keyrings[0] = record.keyrings[0].abandon(None, now());
        let events = vec![event("abandon", "acme")];
        let (tenant, keyrings) = (Some(record.tenant.clone()), record.keyrings.clone());
        // A probe that is under way makes some of the callers leave while they are still waiting for their turn.
        let (other, rival) = (Arc::clone(&store), polls % 2 == 0);
        let rival = tokio::spawn(async move { if rival { other.probe().await } else { Ok(()) } });
        let change = Change { tenant, keyrings, events, ..Change::default() };
        let outcome = left_after(polls.into(), store.commit(&change)).await;
        rival.await.unwrap().unwrap();
        // Writes are made one after the other, so this one comes after whatever the lost one did.
        store.probe().await.unwrap();
        let found = store.load(&id("acme")).await.unwrap().unwrap();
        let found = (found, told(&*store, u32::MAX).await.len());
        let made = (record, before.1 + 1);
        match outcome {
            Some(outcome) => {
                outcome.unwrap();
                assert_eq!(found, made);
            }
            None if found == made => {}
            None => {
                // Not made, not a part of it: and so it can still be made.
                assert_eq!(found, before);
                store.commit(&change).await.unwrap();
            }
        }
    }
}

pub(crate) async fn a_probe_succeeds_and_changes_nothing<H: Harness>() {
    let harness = H::fresh().await;
    let store = harness.store();
    store.commit(&of_tenant(tenant("acme"))).await.unwrap();
    let before = all(&*store).await;
    for _ in 0..3 {
        store.probe().await.unwrap();
    }
    assert_eq!(all(&*store).await, before);
    assert_eq!(told(&*store, 10).await, []);
    assert_eq!(store.binding().await.unwrap(), binding());
}

pub(crate) fn assert_conflict(outcome: Result<(), StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Conflict)), "{outcome:?}");
}

/// Polls a future so many times at most, then drops it as a caller does whose deadline has passed.
pub(crate) async fn left_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

fn assert_taken(outcome: Result<(), StoreError>, expected: &str) {
    assert!(matches!(outcome, Err(StoreError::Taken { field }) if field == expected), "{expected}: {outcome:?}");
}

fn removal(tenant: &str, revision: u64) -> Change {
    let remove = Some((id(tenant), Revision::new(revision)));
    Change { remove, events: vec![event("delete", tenant)], ..Change::default() }
}
