//! Replicas are replaced one by one, by others of another version.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use crate::common::http::get;
use crate::common::{Clients, Installation, Server, claims, said, verify};
use crate::stand::{POLL, Stand, TENANT, policy, published};

/// No call fails that is repeated at another replica, and rotations go on between old and new. The old ones are of the same version,
/// unless `KEYWARD_TEST_OLD_BINARY` names an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_upgraded_one_by_one_and_no_call_is_lost() {
    let mut stand = Stand::with(3, |installation| installation.set("limits.manual_rotations_per_day", "100"));
    let old = std::env::var_os("KEYWARD_TEST_OLD_BINARY");
    if let Some(old) = &old {
        stand.servers.clear();
        for installation in &stand.installations {
            stand.servers.push(Server::start(of_binary(installation, Command::new(old))));
        }
    }
    let doors = Arc::new(RwLock::new(stand.clients().await));
    let mut first = stand.clients().await.remove(0);
    let issuer = first.create_tenant(TENANT, &["ES256"], policy()).await.issuer;
    stand.wait_for(&published(&stand.servers[0]));

    let stop = Arc::new(AtomicBool::new(false));
    let signers: Vec<_> = (0..3)
        .map(|number| tokio::spawn(sign(number, Arc::clone(&doors), issuer.clone(), Arc::clone(&stop))))
        .collect();
    let mut kids = Vec::new();
    for replica in 0..3 {
        let server = stand.servers.remove(replica);
        assert!(server.terminate().success(), "it leaves in order");
        stand.servers.insert(replica, Installation::serve(&stand.installations[replica]));
        let mut clients = Clients::connect(&stand.servers[replica]).await;
        doors.write().expect("nobody panics")[replica] = clients.clone();
        // By the new one, while old ones serve, and the other way round.
        kids.push(clients.rotate_when_allowed(TENANT, "ES256").await.current.expect("a key").kid);
        let mut another = doors.read().expect("nobody panics")[(replica + 1) % 3].clone();
        kids.push(another.rotate_when_allowed(TENANT, "ES256").await.current.expect("a key").kid);
    }
    stop.store(true, Ordering::Relaxed);
    let mut signed = BTreeSet::new();
    for signer in signers {
        let jwts = signer.await.expect("no call was lost");
        verify(jwts.last().expect("it signed"), &get(&stand.servers[0].jwks_uri(TENANT)).json());
        for jwt in &jwts {
            signed.insert(jsonwebtoken::decode_header(jwt).expect("a JWT").kid.expect("a kid"));
        }
        println!("{} JWTs", jwts.len());
    }
    // Perhaps the end came before the last one signed.
    assert!(kids[..kids.len() - 1].iter().all(|kid| signed.contains(kid)), "{signed:?} and not {kids:?}");
    stand.wait_for(&published(&stand.servers[0]));
}

/// One of an earlier version is not started on what a newer one has made of the tables; those that run go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_is_not_started_on_newer_tables() {
    let stand = Stand::of(1);
    let mut client = Clients::connect(&stand.servers[0]).await;
    client.create_tenant(TENANT, &["ES256"], policy()).await;
    stand.database.psql(
        "insert into _sqlx_migrations select 1000, 'of a later version', installed_on, success, checksum, execution_time \
         from _sqlx_migrations where version = 1",
    );
    let (succeeds, text) = said(stand.installations[0].replica().command("join"));
    assert!(
        !succeeds && text.contains("newer version of Keyward (its schema has version 1000); use that version"),
        "{text}"
    );
    client.force_rotation(TENANT, "ES256").await;
}

fn of_binary(installation: &Installation, mut command: Command) -> Command {
    let ours = installation.command("serve");
    command.args(ours.get_args()).arg("--announce");
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// One call after the other, each repeated at the next replica where one does not answer.
async fn sign(number: usize, doors: Arc<RwLock<Vec<Clients>>>, issuer: String, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut jwts = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut refused = Vec::new();
        while refused.len() < 3 {
            let mut door = doors.read().expect("nobody panics")[(number + refused.len()) % 3].clone();
            match door.sign_jwt(TENANT, "ES256", claims(&issuer, 60)).await {
                Ok(answer) => {
                    jwts.push(answer.jwt);
                    break;
                }
                Err(status) => refused.push(status),
            }
        }
        assert!(refused.len() < 3, "no replica signs: {refused:?}");
        tokio::time::sleep(POLL / 4).await;
    }
    jwts
}
