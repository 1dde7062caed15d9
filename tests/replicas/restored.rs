//! Yesterday's database with today's token.

use std::collections::BTreeSet;

use keyward::grpc::proto::{DeleteTenantRequest, RotateSigningKeyRequest, RotationPolicy};
use serde_json::Value;
use tonic::Code;

use crate::common::http::get;
use crate::common::{Clients, Server, claims};
use crate::stand::{REACHES_ALL_MAX, Stand, policy, secs, until, within};

/// It signs and publishes nothing of what was changed since, says what that is, and holds once an operator has said that it shall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yesterdays_database_is_not_believed_before_somebody_accepts_it() {
    // Yesterday's leases are in the backup, and last no longer.
    let mut stand = Stand::with(2, |installation| installation.set("signing.snapshot_max_age_ms", "3000"));
    let mut clients = stand.clients().await;
    let mut issuers = Vec::new();
    // A tenant goes when its keys have gone.
    let soon = RotationPolicy { max_token_ttl: secs(1), destroy_delay: secs(0), ..policy() };
    for (tenant, policy) in [("rotated", policy()), ("deleted", soon), ("untouched", policy())] {
        issuers.push(clients[0].create_tenant(tenant, &["ES256"], policy).await.issuer);
    }
    let yesterday = stand.database.dump();
    let request = RotateSigningKeyRequest {
        tenant: "rotated".to_owned(),
        force: true,
        revoke_replaced: true,
        ..RotateSigningKeyRequest::default()
    };
    let rotated = clients[0].keys.rotate_signing_key(request).await.expect("rotated").into_inner();
    let revoked = rotated.previous.expect("it was replaced").kid;
    let deletion = DeleteTenantRequest { id: "deleted".to_owned(), confirm_id: "deleted".to_owned() };
    clients[1].tenants.delete_tenant(deletion).await.expect("deleted");
    issuers.push(clients[1].create_tenant("new", &["ES256"], policy()).await.issuer);
    // Until a tenant's keys have gone takes many looks.
    within(5 * REACHES_ALL_MAX, "the deleted tenant is gone", || {
        stand.database.psql("select count(*) from tenant where id = 'deleted'") == "0"
    });
    // Both replicas have seen all of it.
    for server in &stand.servers {
        until("it has seen who came and who went", || {
            kids(server, "new").is_some() && kids(server, "deleted").is_none()
        });
        until("it has seen the revocation", || kids(server, "rotated").is_some_and(|kids| !kids.contains(&revoked)));
    }
    for installation in &stand.installations {
        // Its removal, too, which nobody is told of: a line of the witness file.
        let witness = || std::fs::read_to_string(installation.dir().join("store-witness.jsonl")).expect("it is there");
        until("the removal is remembered", || witness().contains(r#""seen":"removed","tenant":"deleted""#));
    }
    stand.servers.drain(..).for_each(|server| assert!(server.terminate().success()));

    stand.database.put_back(&yesterday);
    for installation in &stand.installations {
        let server = installation.serve();
        let mut clients = Clients::connect(&server).await;
        for (tenant, issuer) in ["rotated", "deleted", "untouched", "new"].into_iter().zip(&issuers) {
            let signed = clients.sign_jwt(tenant, "ES256", claims(issuer, 60)).await;
            if tenant == "untouched" {
                signed.expect("nothing of it is older than what was seen");
                assert_eq!(kids(&server, tenant).map(|kids| kids.len()), Some(2));
            } else {
                let refused = signed.expect_err("nobody signs for it");
                assert!([Code::FailedPrecondition, Code::NotFound].contains(&refused.code()), "{tenant}: {refused:?}");
                assert_eq!(kids(&server, tenant), None, "{tenant} is not published");
            }
        }
        until("readiness tells of all three", || quarantined(&server) == ["deleted", "new", "rotated"]);
        assert!(server.terminate().success());
    }

    let (succeeds, text) = output(stand.installations[0].command("accept-store"));
    assert!(succeeds, "{text}");
    for line in [
        "rotated: is older than what was seen",
        "deleted: was deleted since",
        "new: was seen, and is not in the store",
        "nothing was changed; with --confirm the store holds as it is",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(!text.contains("untouched"), "{text}");
    // Each of them has a memory, and a log with its checkpoints.
    for installation in &stand.installations {
        until("yesterday's leases have ended", || {
            let mut confirm = installation.command("accept-store");
            confirm.arg("--confirm");
            let (succeeds, text) = output(confirm);
            // Those of yesterday, until their leases end.
            assert!(succeeds || text.contains("2 replicas serve this store"), "{text}");
            succeeds
        });
    }
    let [first, second] = [0, 1].map(|replica| stand.installations[replica].serve());
    for server in [&first, &second] {
        let mut clients = Clients::connect(server).await;
        for (tenant, issuer) in ["rotated", "untouched"].into_iter().zip([&issuers[0], &issuers[2]]) {
            clients.sign_jwt(tenant, "ES256", claims(issuer, 60)).await.expect("it holds again");
        }
        assert_eq!((kids(server, "deleted"), kids(server, "new")), (None, None));
    }
    assert_eq!(kids(&first, "rotated"), kids(&second, "rotated"));
    for installation in &stand.installations {
        let (agrees, text) = output(installation.verify_audit());
        assert!(agrees, "{text}");
    }
    // What was made since has no account: reconcile names it, and destroys nothing.
    assert!(first.terminate().success() && second.terminate().success());
    let (agrees, text) = output(stand.installations[0].command("reconcile"));
    assert!(!agrees && text.matches("orphan ").count() >= 3, "{text}");
}

/// The tenants that readiness tells of.
fn quarantined(server: &Server) -> Vec<String> {
    let readyz: Value = get(&format!("{}/readyz", server.ops())).json();
    readyz["quarantined"].as_object().expect("tenants").keys().cloned().collect()
}

/// What a server publishes of a tenant, if it does.
fn kids(server: &Server, tenant: &str) -> Option<BTreeSet<String>> {
    let answer = get(&server.jwks_uri(tenant));
    (answer.status == 200).then(|| answer.kids())
}

/// Whether a command succeeds, and all that it prints.
fn output(mut command: std::process::Command) -> (bool, String) {
    let output = command.output().expect("it runs");
    (
        output.status.success(),
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat(),
    )
}
