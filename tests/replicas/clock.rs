//! A replica whose clock is not the others'.

use std::time::Instant;

use keyward::grpc::proto::sign_request::Input;
use keyward::grpc::proto::{
    DeleteTenantRequest, RotateSigningKeyRequest, RotationPolicy, SignRequest, Tenant, UpdateTenantRequest,
};
use serde_json::Value;

use crate::common::http::get;
use crate::common::{Clients, Server, claims};
use crate::stand::{POLL, REACHES_ALL_MAX, Stand, TENANT, policy, published, secs};
use crate::wrong_clock::WrongClock;

fn readyz(server: &Server) -> (u16, Value) {
    let answer = get(&format!("{}/readyz", server.ops()));
    (answer.status.as_u16(), answer.json())
}

fn until_ready(server: &Server, ready: bool) -> Value {
    let begun = Instant::now();
    loop {
        let (status, said) = readyz(server);
        if (status == 200) == ready {
            return said;
        }
        assert!(begun.elapsed() < REACHES_ALL_MAX, "{said}");
        std::thread::sleep(POLL);
    }
}

/// A day ahead, everything would be due; a day behind, nothing. Neither is ready, and neither changes a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_clock_is_off_is_not_ready_and_does_not_rotate() {
    let mut stand = Stand::of(2);
    stand.servers.pop().expect("the other one").terminate();
    let clock = WrongClock::in_folder(stand.installations[1].dir());
    stand.servers.push(clock.serve(&stand.installations[1]));
    let mut clients = stand.clients().await;
    let daily = RotationPolicy { rotation_period: secs(3600), ..policy() };
    let tenant = clients[0].create_tenant(TENANT, &["ES256"], daily).await;
    let keys = published(&stand.servers[0]);
    stand.wait_for(&keys);
    for offset in [86_400, -86_400] {
        clock.set(offset);
        let said = until_ready(&stand.servers[1], false);
        let problem = said["checks"]["clock"].as_str().expect("a problem");
        assert!(problem.contains("this machine's clock is 86") && problem.contains(TENANT), "{problem}");
        assert_eq!((&said["checks"]["store"], &said["checks"]["snapshot"]), (&"ok".into(), &"ok".into()), "{said}");
        let forced = RotateSigningKeyRequest { tenant: TENANT.to_owned(), force: true, ..Default::default() };
        let refused = clients[1].keys.rotate_signing_key(forced).await.expect_err("not with that clock");
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("a clock that agrees with the other replicas'"), "{refused:?}");
        // Nor does it say until when a JWT may live, or from when a tenant is gone; what asks no clock goes on.
        let refused = clients[1].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect_err("no JWT");
        assert!(refused.message().contains("a clock that agrees"), "{refused:?}");
        let deletion = DeleteTenantRequest { id: TENANT.to_owned(), confirm_id: TENANT.to_owned() };
        let refused = clients[1].tenants.delete_tenant(deletion).await.expect_err("not deleted");
        assert!(refused.message().contains("a clock that agrees"), "{refused:?}");
        let octets = SignRequest {
            tenant: TENANT.to_owned(),
            input: Some(Input::Message(b"octets".into())),
            ..SignRequest::default()
        };
        clients[1].signing.sign(octets).await.expect("signed");
        // The other one is well, and publishes what it did.
        assert_eq!(readyz(&stand.servers[0]).0, 200);
        stand.wait_for(&keys);
    }
    // The timer looked more than once meanwhile: each state of readiness is told after a look of its own.
    let rotations = "select count(*) from audit_event where record like '%\"action\":\"rotate\"%'";
    assert_eq!(stand.database.psql(rotations).trim(), "0");
    clock.set(0);
    until_ready(&stand.servers[1], true);
    let rotated = clients[1].rotate_when_allowed(TENANT, "ES256").await;
    assert!(keys.contains(&rotated.current.expect("a key").kid));
    clients[1].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("it signs");
}

/// Where nobody else is, or where there is room, a policy may be as short as it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_leaves_room_for_replicas() {
    let stand = Stand::of(1);
    let mut client = Clients::connect(&stand.servers[0]).await;
    let short = RotationPolicy { clock_skew: secs(2), ..policy() };
    let refused = client.place_tenant(TENANT, "", &["ES256"], short).await.expect_err("there is no room");
    assert!(
        refused.message().contains("clock_skew must be at least 3 s where replicas share the store"),
        "{refused:?}"
    );
    client.create_tenant(TENANT, &["ES256"], policy()).await;
    let update = UpdateTenantRequest {
        tenant: Some(Tenant { id: TENANT.to_owned(), rotation_policy: Some(short), ..Tenant::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["rotation_policy.clock_skew".to_owned()] }),
    };
    let refused = client.tenants.update_tenant(update).await.expect_err("nor afterwards");
    assert!(refused.message().contains("clock_skew must be at least 3 s"), "{refused:?}");
}
