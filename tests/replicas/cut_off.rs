//! A replica that does not reach the database, while the others do.

use std::time::Instant;

use crate::common::http::get;
use crate::common::postgresql::Database;
use crate::common::proxy::{Proxy, Way};
use crate::common::{Installation, Server, claims};
use crate::stand::{POLL, REACHES_ALL_MAX, Stand, TENANT, policy, published, secs, until};
use keyward::grpc::proto::RotationPolicy;

/// What caches may do with the tenant's JWKS: max-age in seconds.
fn max_age(server: &Server) -> u64 {
    let answer = get(&server.jwks_uri(TENANT));
    assert_eq!(answer.status, 200, "it goes on serving the JWKS (R10)");
    let value = answer.header("cache-control").to_owned();
    let max_age = value.split(", ").find_map(|part| part.strip_prefix("max-age="));
    max_age.unwrap_or_else(|| panic!("no max-age in {value:?}")).parse().expect("seconds")
}

/// Whether the way ends or nothing comes through it without a word: signing ends with `snapshot_max_age`, caches may keep less and
/// less of what may be old, and all is well when the way is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_signs_no_more_and_lets_caches_keep_less() {
    let database = Database::fresh();
    let proxy = Proxy::to(database.folder());
    let mut stand = Stand::on(database, 2, |installation| installation.set("signing.snapshot_max_age_ms", "3000"));
    stand.servers.pop().expect("the other one").terminate();
    let behind = format!("{:?}", stand.database.url_at(proxy.folder()));
    let installation = stand.installations.pop().expect("the other one").set("store.url", &behind);
    stand.servers.push(Installation::serve(&installation));
    stand.installations.push(installation);
    let mut clients = stand.clients().await;
    let policy = RotationPolicy { jwks_max_age: secs(6), publish_lead: secs(9), ..policy() };
    let tenant = clients[0].create_tenant(TENANT, &["ES256"], policy).await;
    for way in [Way::Cut, Way::Still] {
        stand.wait_for(&published(&stand.servers[0]));
        let other = &stand.servers[1];
        until("its JWKS may be kept for as long as ever", || max_age(other) == 6);
        proxy.set(way);
        until("its JWKS may be kept for less", || max_age(other) < 6);
        until("it is not ready", || get(&format!("{}/readyz", other.ops())).status == 503);
        let begun = Instant::now();
        while let Ok(signed) = clients[1].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await {
            assert!(begun.elapsed() < REACHES_ALL_MAX, "it still signs: {signed:?}");
            tokio::time::sleep(POLL).await;
        }
        until("its JWKS may be kept no more", || max_age(other) == 0);
        // The first one does not wait for it, once its lease has ended.
        clients[0].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("signed");
        clients[0].force_rotation(TENANT, "ES256").await;
        until("the first one's JWKS may be kept for as long as ever", || max_age(&stand.servers[0]) == 6);
        proxy.set(Way::Open);
        until("it is ready again", || get(&format!("{}/readyz", other.ops())).status == 200);
        until("its JWKS may be kept as before", || max_age(other) == 6);
    }
    clients[1].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("signed");
}

/// What the database tells is a courtesy: without it replicas look once a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_that_are_lost_are_found() {
    let database = Database::fresh();
    let proxy = Proxy::to(database.folder());
    proxy.set(Way::WithoutNews);
    let deaf = Stand::behind(database, &proxy, 2);
    let mut clients = deaf.clients().await;
    clients[0].create_tenant(TENANT, &["ES256"], policy()).await;
    deaf.wait_for(&published(&deaf.servers[0]));
    for turn in 0..4 {
        clients[turn % 2].force_rotation(TENANT, "ES256").await;
        deaf.wait_for(&published(&deaf.servers[turn % 2]));
    }
}
