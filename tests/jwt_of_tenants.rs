//! JWTs that Keyward signed itself, for a tenant whose keys stand in the issuer's JWKS: they are proofs of nothing, whatever
//! becomes of the tenant.

#[path = "access/stand.rs"]
mod stand;

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::http::get;
use common::{Clients, Dial, Installation, Issuer, Server, short_policy};
use keyward::grpc::proto::{
    CreateTenantRequest, DeleteTenantRequest, ListTenantsRequest, RotationPolicy, SignJwtRequest, Tenant,
};
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use stand::{ISSUER, claims, reason, with_jwts};
use tonic::{Code, Request, Status};

/// How long something may take that happens by itself, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

fn bearing<T>(jwt: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {jwt}").parse().expect("ASCII"));
    request
}

async fn call(server: &Server, jwt: &str) -> Result<(), Status> {
    let mut clients = Clients::over(Dial::tcp(server.grpc()).connect().await.expect("a connection"));
    clients.tenants.list_tenants(bearing(jwt, ListTenantsRequest::default())).await.map(drop)
}

async fn assert_refused(server: &Server, jwt: &str) {
    let status = call(server, jwt).await.expect_err("it is a tenant's");
    assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "JWT_REFUSED"), "{status:?}");
}

async fn create(clients: &mut Clients, admin: &str, policy: RotationPolicy) -> Result<(), Status> {
    let tenant = Tenant {
        id: "acme".into(),
        issuer: ISSUER.into(),
        algorithms: vec!["ES256".into()],
        rotation_policy: Some(policy),
        ..Tenant::default()
    };
    clients.tenants.create_tenant(bearing(admin, CreateTenantRequest { tenant: Some(tenant) })).await.map(drop)
}

/// A server that believes an issuer in whose JWKS a tenant's keys stand, and a JWT of the tenant's with an administrator's scope.
async fn served(policy: RotationPolicy) -> (Installation, Server, Issuer, String) {
    let issuer = Issuer::new();
    let installation = with_jwts(Installation::prepare(), &issuer).set("grpc.auth", r#""required""#);
    let server = installation.serve();
    let mut clients = Clients::over(Dial::tcp(server.grpc()).connect().await.expect("a connection"));
    create(&mut clients, &issuer.jwt(&claims("admin")), policy).await.expect("created");
    let claims_json = claims("admin").to_string().into_bytes();
    let sign = SignJwtRequest { tenant: "acme".into(), claims_json, ..SignJwtRequest::default() };
    let own = clients.signing.sign_jwt(bearing(&issuer.jwt(&claims("issuer:acme")), sign)).await;
    let own = own.expect("signed").into_inner().jwt;

    let mut keys = get(&server.jwks_uri("acme")).json::<Value>()["keys"].as_array().expect("keys").clone();
    // So that it is seen when the file has been read.
    let second = Issuer::new();
    let mut second_jwk = second.jwk();
    second_jwk["kid"] = json!("issuer-2");
    keys.extend([issuer.jwk(), second_jwk]);
    fs::write(installation.dir().join("issuer.json"), json!({ "keys": keys }).to_string()).expect("it is written");
    let by_second = second.jwt_with(&json!({"alg": "ES256", "kid": "issuer-2"}), &claims("admin"));
    let deadline = Instant::now() + WAIT_MAX;
    while call(&server, &by_second).await.is_err() {
        assert!(Instant::now() < deadline, "the JWKS is not read again");
        tokio::time::sleep(POLL).await;
    }
    assert_refused(&server, &own).await;
    (installation, server, issuer, own)
}

fn is_quarantined(server: &Server) -> bool {
    !get(&format!("{}/readyz", server.ops())).json::<Value>()["quarantined"]["acme"].is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwt_of_a_tenant_in_quarantine_is_no_proof() {
    let (installation, server, issuer, own) = served(short_policy()).await;
    let store = SqliteConnectOptions::new().filename(installation.dir().join("store.sqlite")).foreign_keys(false);
    let mut store = store.connect().await.expect("the store");
    let edit =
        r#"update tenant set document = replace(document, '"id":"acme"', '"id":"acme" '), revision = revision + 1"#;
    sqlx::raw_sql(edit).execute(&mut store).await.expect("edited");
    let deadline = Instant::now() + WAIT_MAX;
    while !is_quarantined(&server) {
        assert_refused(&server, &own).await;
        assert!(Instant::now() < deadline, "nobody noticed");
        tokio::time::sleep(POLL).await;
    }
    for _ in 0..3 {
        assert_refused(&server, &own).await;
    }
    assert!(server.terminate().success());

    // To this one the tenant's keys are not known: what may be one of them is not believed, and the issuer's own are.
    let server = installation.serve();
    let status = call(&server, &own).await.expect_err("it may be a tenant's");
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "TENANT_QUARANTINED"), "{status:?}");
    call(&server, &issuer.jwt(&claims("admin"))).await.expect("the issuer's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwt_of_a_tenant_that_was_deleted_is_no_proof() {
    let at_once = RotationPolicy { destroy_delay: Some(prost_types::Duration::default()), ..short_policy() };
    let (_installation, server, issuer, own) = served(at_once).await;
    let admin = issuer.jwt(&claims("admin"));
    let mut clients = Clients::over(Dial::tcp(server.grpc()).connect().await.expect("a connection"));
    let delete = DeleteTenantRequest { id: "acme".into(), confirm_id: "acme".into() };
    clients.tenants.delete_tenant(bearing(&admin, delete)).await.expect("deleted");
    // The id is free when nothing is left of the tenant.
    let deadline = Instant::now() + WAIT_MAX;
    while let Err(status) = create(&mut clients, &admin, short_policy()).await {
        assert_refused(&server, &own).await;
        assert!(Instant::now() < deadline, "something is left of it: {status:?}");
        tokio::time::sleep(POLL).await;
    }
    assert_refused(&server, &own).await;
}
