//! Somebody edits the store (R15): it is noticed at the next load, by a running server and by one that starts; nothing wrong is
//! signed or published, and the other tenants go on.

mod common;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use common::http::{Answer, get, send};
use common::{Clients, Installation, Server, claims, short_policy};
use keyward::grpc::proto::{CreateTenantRequest, Tenant};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Row as _, SqliteConnection};
use tonic::Code;
use tonic_types::StatusExt as _;

/// How long an edit may go unnoticed by a running server: one record is read again each second.
const NOTICE_WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// An installation with the tenants `acme`, which has been rotated so that it has keys in every state, and `other`.
struct Scene {
    installation: Installation,
    /// The issuer of each tenant.
    issuers: [String; 2],
}

const TENANTS: [&str; 2] = ["acme", "other"];

/// The domain of `acme`.
const DOMAIN: &str = "login.acme.example";

impl Scene {
    async fn prepare() -> Self {
        let installation = Installation::prepare();
        let server = installation.serve();
        let mut clients = Clients::connect(&server).await;
        let mut issuers = Vec::new();
        for tenant in TENANTS {
            let custom_domain = if tenant == "acme" { DOMAIN.to_owned() } else { String::new() };
            let algorithms = vec!["ES256".to_owned()];
            let rotation_policy = Some(short_policy());
            let tenant =
                Tenant { id: tenant.to_owned(), custom_domain, algorithms, rotation_policy, ..Tenant::default() };
            let created = clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await;
            issuers.push(created.expect("created").into_inner().issuer);
        }
        clients.force_rotation("acme", "ES256").await;
        let (_, jwks) = jwks(&server, "acme");
        let previous = kid_in(&jwks, "previous");
        clients.force_rotation("acme", "ES256").await;
        let revoke = keyward::grpc::proto::RevokeSigningKeyRequest { tenant: "acme".to_owned(), kid: previous };
        clients.keys.revoke_signing_key(revoke).await.expect("revoked");
        assert!(server.terminate().success());
        Self { installation, issuers: issuers.try_into().expect("two") }
    }

    fn store(&self) -> PathBuf {
        self.installation.dir().join("store.sqlite")
    }

    async fn shell(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.store()).foreign_keys(false).connect().await.expect("the store")
    }

    /// The document of `acme`'s record in a table.
    async fn document(&self, table: &'static str) -> Value {
        let column = if table == "tenant" { "id" } else { "tenant" };
        let select = format!("select document from {table} where {column} = 'acme'");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_one(&mut self.shell().await).await.expect("a row");
        serde_json::from_str(row.get("document")).expect("JSON")
    }

    /// Puts an edited document in its place, as somebody who knows how: with a higher revision, in the columns too.
    async fn forge(&self, table: &'static str, edit: impl FnOnce(&mut Value)) {
        let mut document = self.document(table).await;
        edit(&mut document);
        let revision = document["revision"].as_i64().expect("a number") + 1;
        document["revision"] = revision.into();
        let column = if table == "tenant" { "id" } else { "tenant" };
        let update = format!("update {table} set document = ?1, revision = ?2 where {column} = 'acme'");
        let update = sqlx::query(sqlx::AssertSqlSafe(update)).bind(document.to_string()).bind(revision);
        update.execute(&mut self.shell().await).await.expect("edited");
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut self.shell().await).await.expect("edited");
    }

    /// Makes the edit under a running server, and then starts another on what it left: both notice, and `acme` alone is out of
    /// service.
    async fn is_noticed(&self, edit: impl AsyncFnOnce(&Self)) {
        let server = self.installation.serve();
        let good = jwks(&server, "acme");
        assert_eq!(good.0, 200);
        assert_eq!(on_domain(&server).status, 200);
        edit(self).await;
        let deadline = Instant::now() + NOTICE_WAIT_MAX;
        loop {
            let now = jwks(&server, "acme");
            if now.0 != 200 {
                break;
            }
            assert_eq!(now, good, "something else was published");
            assert!(Instant::now() < deadline, "nobody noticed");
            thread::sleep(POLL);
        }
        assert_eq!(on_domain(&server).status, 503, "so that caches go on with what they have");
        self.acme_alone_is_out(&server).await;
        assert!(server.terminate().success());
        let server = self.installation.serve();
        self.acme_alone_is_out(&server).await;
    }

    async fn acme_alone_is_out(&self, server: &Server) {
        let (status, _) = jwks(server, "acme");
        assert_eq!(status, 503, "so that caches go on with what they have");
        let mut clients = Clients::connect(server).await;
        let refused =
            clients.sign_jwt("acme", "", claims(&self.issuers[0], 60)).await.expect_err("it is in quarantine");
        let reason = refused.get_details_error_info().expect("ErrorInfo").reason;
        assert_eq!((refused.code(), reason.as_str()), (Code::FailedPrecondition, "TENANT_QUARANTINED"), "{refused:?}");
        assert!(refused.message().contains("operator"), "{refused:?}");
        let rotation =
            keyward::grpc::proto::RotateSigningKeyRequest { tenant: "acme".to_owned(), ..Default::default() };
        let refused = clients.keys.rotate_signing_key(rotation).await.expect_err("it is in quarantine");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");

        self.other_goes_on(server).await;
        let readyz = wait_for(server, |readyz| readyz["quarantined"]["acme"].is_string());
        assert_eq!(readyz["quarantined"].as_object().expect("an object").len(), 1, "{readyz}");
        assert_eq!(readyz["status"], "ready", "the other tenants' service goes on: {readyz}");
        let metrics = String::from_utf8(get(&format!("{}/metrics", server.ops())).body).expect("text");
        assert!(metrics.lines().any(|line| line == "keyward_tenants_quarantined 1"), "{metrics}");
        let told = server
            .log()
            .iter()
            .any(|line| line.contains("ERROR") && line.contains("quarantined") && line.contains("acme"));
        assert!(told, "the log does not name the tenant");
    }

    async fn other_goes_on(&self, server: &Server) {
        assert_eq!(jwks(server, "other").0, 200);
        let mut clients = Clients::connect(server).await;
        clients.sign_jwt("other", "", claims(&self.issuers[1], 60)).await.expect("the other tenant's keys sign");
        clients.force_rotation("other", "ES256").await;
    }
}

/// Status and body of a tenant's JWKS.
fn jwks(server: &Server, tenant: &str) -> (u16, Value) {
    let answer = get(&server.jwks_uri(tenant));
    (answer.status.as_u16(), answer.json())
}

/// The JWKS of `acme` on its own domain.
fn on_domain(server: &Server) -> Answer {
    send("GET", &format!("{}/.well-known/jwks.json", server.public()), &[("host", DOMAIN)])
}

fn kid_in(jwks: &Value, state: &str) -> String {
    let keys = jwks["keys"].as_array().expect("keys");
    let key = keys.iter().find(|key| key["state"] == state).expect("a key in this state");
    key["kid"].as_str().expect("a kid").to_owned()
}

/// What readyz tells once it tells this; it looks every two seconds.
fn wait_for(server: &Server, told: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + NOTICE_WAIT_MAX;
    loop {
        let readyz: Value = get(&format!("{}/readyz", server.ops())).json();
        if told(&readyz) && readyz["checks"]["store"] != "not probed yet" {
            return readyz;
        }
        assert!(Instant::now() < deadline, "readyz tells {readyz}");
        thread::sleep(POLL);
    }
}

/// The key of this state in a keyring's document.
fn key_in<'a>(document: &'a mut Value, state: &str) -> &'a mut Value {
    let keys = document["keys"].as_array_mut().expect("keys");
    keys.iter_mut().find(|key| key["state"] == state).expect("a key in this state")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_public_key() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .forge("keyring", |document| {
                    let foreign = key_in(document, "previous")["public"].clone();
                    key_in(document, "current")["public"] = foreign;
                })
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_added_as_current() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .forge("keyring", |document| {
                    let mut added = key_in(document, "current").clone();
                    key_in(document, "current")["state"] = "previous".into();
                    added["kid"] = "bm90LW9uZS1vZi1vdXJz".into();
                    document["keys"].as_array_mut().expect("keys").push(added);
                })
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_key_added() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .forge("tenant", |document| {
                    document["custom_keys"] = serde_json::json!([{"kty": "EC", "crv": "P-256", "kid": "mine", "use": "sig",
                        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]);
                })
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_made_current_again() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .forge("keyring", |document| {
                    key_in(document, "current")["state"] = "previous".into();
                    let revoked = key_in(document, "revoked");
                    revoked["state"] = "current".into();
                    revoked.as_object_mut().expect("an object").remove("revoke_time");
                })
                .await;
        })
        .await;
}

/// The same without a forgery: the row of an earlier day, whose seal is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_row_put_back() {
    let scene = Scene::prepare().await;
    scene.run("create table kept as select * from keyring where tenant = 'acme'").await;
    let server = scene.installation.serve();
    Clients::connect(&server).await.force_rotation("acme", "ES256").await;
    assert!(server.terminate().success());
    scene
        .is_noticed(async |scene| {
            scene.run("delete from keyring where tenant = 'acme'; insert into keyring select * from kept").await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loosened_policy() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .forge("tenant", |document| {
                    let ttl = &mut document["policy"]["max_token_ttl"];
                    assert!(!ttl.is_null(), "the member has another name by now");
                    *ttl = (1000 * 86_400_000_u64).into();
                })
                .await;
        })
        .await;
}

/// Without a change of its revision, which a running server compares: it reads each record again from time to time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_that_leaves_the_revision() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .run("update tenant set document = replace(document, '\"acme\"', '\"acme\" ') where id = 'acme'")
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_moved_from_another_tenant() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene
                .run(
                    "update keyring set (document, seal, revision) = \
                     (select document, seal, revision + 100 from keyring where tenant = 'other') where tenant = 'acme'",
                )
                .await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_taken_out() {
    let scene = Scene::prepare().await;
    scene
        .is_noticed(async |scene| {
            scene.run("delete from keyring where tenant = 'acme'; delete from tenant where id = 'acme'").await;
        })
        .await;
}

/// And the way out of it: an operator who has put a backup back on purpose says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yesterdays_file_put_back() {
    let scene = Scene::prepare().await;
    let yesterday = fs::read(scene.store()).expect("a closed store is one file");
    let server = scene.installation.serve();
    Clients::connect(&server).await.force_rotation("acme", "ES256").await;
    let (_, latest) = jwks(&server, "acme");
    assert!(server.terminate().success());

    fs::write(scene.store(), &yesterday).expect("put back");
    let server = scene.installation.serve();
    assert_eq!(jwks(&server, "acme").0, 503);
    let readyz = wait_for(&server, |readyz| readyz["quarantined"]["acme"].is_string());
    assert!(readyz["quarantined"]["acme"].as_str().expect("text").contains("put back"), "{readyz}");
    assert!(readyz["checks"]["store"].as_str().expect("text").contains("administration log"), "{readyz}");
    let mut clients = Clients::connect(&server).await;
    clients.sign_jwt("other", "", claims(&scene.issuers[1], 60)).await.expect("nothing of its was put back");
    // Its log was cut, too: what would be done now could not be told.
    let rotation =
        keyward::grpc::proto::RotateSigningKeyRequest { tenant: "other".to_owned(), force: true, ..Default::default() };
    let refused = clients.keys.rotate_signing_key(rotation).await.expect_err("no event can be recorded");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(server.terminate().success());

    let accept = |confirm: bool| {
        let mut command = scene.installation.command("accept-store");
        if confirm {
            command.arg("--confirm");
        }
        let output = command.output().expect("keyward starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let said = accept(false);
    assert!(said.contains("acme") && said.contains("nothing was changed"), "{said}");
    accept(true);
    let server = scene.installation.serve();
    let (status, published) = jwks(&server, "acme");
    assert_eq!(status, 200);
    assert_ne!(published, latest, "it is yesterday's");
    scene.other_goes_on(&server).await;
    Clients::connect(&server).await.sign_jwt("acme", "", claims(&scene.issuers[0], 60)).await.expect("it signs again");
}

/// A row that somebody put in, and took out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_came_and_went() {
    let scene = Scene::prepare().await;
    let server = scene.installation.serve();
    scene
        .run(
            "insert into tenant (id, revision, issuer, document, seal) \
             select 'bogus', revision, 'https://bogus.example/', document, seal from tenant where id = 'acme'",
        )
        .await;
    wait_for(&server, |readyz| readyz["quarantined"]["bogus"].is_string());
    assert_eq!(jwks(&server, "acme").0, 200);
    scene.run("delete from tenant where id = 'bogus'").await;
    wait_for(&server, |readyz| readyz["quarantined"].as_object().is_some_and(serde_json::Map::is_empty));
    assert_eq!(jwks(&server, "bogus").0, 404);
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("bogus", &["ES256"], short_policy()).await;
    assert_eq!(jwks(&server, "bogus").0, 200);
}
