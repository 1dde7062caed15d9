//! Which token a tenant is on: said once, kept for life, and told to nobody else.

use keyward::grpc::proto::{
    DeleteTenantRequest, GetTenantRequest, ListTenantsRequest, RotateSigningKeyRequest, Tenant, UpdateTenantRequest,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::stand::{ACME, GLOBEX, POLL, Stand, WEST, down, is_away, is_ready, issuer, two_tokens, up, wrong_field};
use crate::common::{Clients, Dial, claims, short_policy};

/// Callers of a token that signs one at a time, slowly.
const CALLERS: usize = 8;
const CALLS: usize = 5;

/// What the configuration says of a further token here.
const SECTION: [&str; 4] = ["module", "label", "serial", "pin_file"];

/// The value of a key in a configuration.
fn value_in(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    value.unwrap_or_else(|| panic!("{key} in {text}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_token_is_one_of_the_configuration_and_stays() {
    let installation = two_tokens().init();
    let mut stand = Stand::new(&installation).await;
    let names = |tenants: Vec<Tenant>| tenants.into_iter().map(|tenant| (tenant.id, tenant.token)).collect::<Vec<_>>();
    let listed = stand.clients.tenants.list_tenants(ListTenantsRequest::default()).await.expect("listed").into_inner();
    let placed = [(ACME, "home"), (GLOBEX, WEST)].map(|(tenant, token)| (tenant.to_owned(), token.to_owned()));
    assert_eq!(names(listed.tenants), placed);

    for unknown in ["east", "home2"] {
        let (field, problem) =
            wrong_field(stand.clients.place_tenant("new", unknown, &["ES256"], short_policy()).await);
        assert_eq!(field, "tenant.token");
        assert!(problem.contains("home, west"), "{problem}");
    }
    for wrong in ["West", "west.example", "-", &"w".repeat(64)] {
        let (field, _) = wrong_field(stand.clients.place_tenant("new", wrong, &["ES256"], short_policy()).await);
        assert_eq!(field, "tenant.token", "{wrong}");
    }
    // Made a moment ago, and asked for again: there is one tenant, on one token.
    let again = stand.clients.place_tenant(GLOBEX, "home", &["ES256"], short_policy()).await.expect_err("it is there");
    assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
    let update = UpdateTenantRequest {
        tenant: Some(Tenant { id: GLOBEX.into(), token: "home".into(), ..Tenant::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["token".into()] }),
    };
    let (field, problem) = wrong_field(stand.clients.tenants.update_tenant(update).await);
    assert_eq!(field, "tenant.token");
    assert!(problem.contains("cannot be changed"), "{problem}");
    let globex = stand.clients.tenants.get_tenant(GetTenantRequest { id: GLOBEX.into() }).await.expect("it is there");
    assert_eq!(globex.into_inner().token, WEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_means_one_token_for_ever() {
    let installation = two_tokens().init();
    let stand = Stand::new(&installation).await;
    assert!(stand.server.terminate().success());
    // Another token, which takes the name in the configuration.
    let other = installation.with_token("other");
    let text = std::fs::read_to_string(other.config_file()).expect("a configuration");
    let value = |key: &str| value_in(&text, key);
    let (bound, serial) = (value("west.serial"), value("other.serial"));
    let swapped = other.set("tokens.west.serial", &serial).set("tokens.west.label", r#""other""#);
    let swapped = swapped.set("tokens.west.pin_file", r#""pin-other""#);
    let swapped = SECTION.iter().fold(swapped, |it, key| it.without(&format!("tokens.other.{key}")));
    let refused = swapped.command("serve").output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    for words in ["tokens.west.serial", "this name means the token of serial", bound.trim_matches('"')] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
}

/// Under a new name its tenants would have no token, and their keys no account: an operator could destroy them as orphans.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_keeps_its_name() {
    let installation = two_tokens().init();
    let stand = Stand::new(&installation).await;
    assert!(stand.server.terminate().success());
    let text = std::fs::read_to_string(installation.config_file()).expect("a configuration");
    let renamed = SECTION.iter().fold(installation, |it, key| {
        let value = value_in(&text, &format!("{WEST}.{key}"));
        it.without(&format!("tokens.{WEST}.{key}")).set(&format!("tokens.east.{key}"), &value)
    });
    for verb in ["serve", "reconcile"] {
        let refused = renamed.command(verb).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{verb}: {said}");
        for words in ["tokens.east.serial", "has the name west already", "call this section tokens.west"] {
            assert!(said.contains(words), "{verb}: {words:?} is not in {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_configured_no_more_is_away_and_nothing_else() {
    let installation = two_tokens().init();
    let mut stand = Stand::new(&installation).await;
    let jwks = stand.jwks(GLOBEX);
    assert!(stand.server.terminate().success());
    let installation = SECTION.iter().fold(installation, |it, key| it.without(&format!("tokens.{WEST}.{key}")));
    stand = Stand::again(&installation).await;
    stand.until("the home token is up", |readyz| up(readyz, "home") && down(readyz, WEST) && is_ready(readyz)).await;
    let (status, readyz) = stand.readyz();
    let problem = readyz["tokens"][WEST]["problem"].as_str().expect("words");
    assert_eq!(status, 200);
    assert!(problem.contains("there is no [tokens.west] in the configuration"), "{problem}");
    let log = stand.server.log().join("\n");
    assert!(log.contains("there is no [tokens.west] in the configuration"), "{log}");
    stand.sign(ACME).await.expect("signed");
    stand.rotate(ACME).await.expect("rotated");
    assert_eq!(stand.jwks(GLOBEX), jwks);
    is_away(stand.sign(GLOBEX).await);
    is_away(stand.rotate(GLOBEX).await);
    // A key that must go goes: with it the HSM may have been stolen.
    let stolen = jwks["keys"][0]["kid"].as_str().expect("the current one comes first").to_owned();
    let revoke = RotateSigningKeyRequest {
        tenant: GLOBEX.into(),
        algorithm: "ES256".into(),
        request_id: "stolen".into(),
        force: true,
        revoke_replaced: true,
        ..RotateSigningKeyRequest::default()
    };
    stand.clients.keys.rotate_signing_key(revoke).await.expect("rotated");
    assert!(!stand.jwks(GLOBEX).to_string().contains(&stolen), "it is published no more");
    // What asks no token is done: nothing is published any more, and the keys are destroyed when their token is back.
    let delete = DeleteTenantRequest { id: GLOBEX.into(), confirm_id: GLOBEX.into() };
    stand.clients.tenants.delete_tenant(delete).await.expect("deleted");
    assert!(stand.server.terminate().success());
}

/// R15: who has the store and not the service key cannot have a tenant's signatures asked of another token.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_moved_to_another_token_is_not_believed() {
    let installation = two_tokens().init();
    let stand = Stand::new(&installation).await;
    assert!(stand.server.terminate().success());
    let options = SqliteConnectOptions::new().filename(installation.dir().join("store.sqlite"));
    let mut store = options.connect().await.expect("the store");
    let moved = "update tenant set document = json_remove(document, '$.token') where id = 'globex'";
    assert_eq!(sqlx::query(moved).execute(&mut store).await.expect("edited").rows_affected(), 1);
    // Nor can he have a name mean another token: that record is sealed, too.
    let bound = "update token set document = json_set(document, '$.label', 'home')";
    assert_eq!(sqlx::query(bound).execute(&mut store).await.expect("edited").rows_affected(), 1);
    store.close().await.expect("closed");

    let mut stand = Stand::again(&installation).await;
    stand.until("it is told", |readyz| readyz["quarantined"][GLOBEX].is_string() && down(readyz, WEST)).await;
    let (_, readyz) = stand.readyz();
    assert!(readyz["tokens"][WEST]["problem"].as_str().expect("words").contains("did not seal"), "{readyz}");
    assert_eq!(stand.sign(GLOBEX).await.expect_err("quarantined").code(), Code::FailedPrecondition);
    stand.sign(ACME).await.expect("the other is believed");
}

/// Each token has its own workers and its own line: a flood on one fills no other's.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_on_one_token_fills_no_others_queue() {
    let (installation, faults) = two_tokens().with_faults_on(WEST);
    let installation = installation
        .set(&format!("tokens.{WEST}.workers"), "1")
        .set(&format!("tokens.{WEST}.queue_depth_max"), "1")
        .init();
    let mut stand = Stand::new(&installation).await;
    faults.set("C_Sign delay 100ms");
    let flood = (0..CALLERS).map(|_| {
        let (server, issuer) = (stand.server.grpc().to_owned(), issuer(GLOBEX));
        tokio::spawn(async move {
            let channel = Dial::tcp(&server).connect().await.expect("it is there");
            let mut clients = Clients::over(channel);
            let mut full = 0;
            for _ in 0..CALLS {
                if let Err(status) = clients.sign_jwt(GLOBEX, "", claims(&issuer, 600)).await {
                    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
                    assert_eq!(reason, "TOKEN_QUEUE_FULL", "{status:?}");
                    full += 1;
                    tokio::time::sleep(POLL).await;
                }
            }
            full
        })
    });
    let flood: Vec<_> = flood.collect();
    let mut signed = 0;
    while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
        stand.sign(ACME).await.unwrap_or_else(|status| panic!("after {signed}: {status:?}"));
        signed += 1;
    }
    let mut full = 0;
    for caller in flood {
        full += caller.await.expect("it did not panic");
    }
    assert!(full > 0 && signed > 10, "{full} refused on the one, {signed} signed on the other");
}
