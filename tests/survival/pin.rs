//! A wrong PIN, and a service manager that starts the service again and again.

use std::fs;

use super::stand::{Isolation, TENANT};
use crate::common::{Clients, Faults, Installation, claims, short_policy};

const STARTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn processes_try_a_wrong_pin_once_in_twenty_starts() {
    starts_with_a_wrong_pin(Isolation::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_try_a_wrong_pin_once_in_twenty_starts() {
    starts_with_a_wrong_pin(Isolation::Thread).await;
}

async fn starts_with_a_wrong_pin(isolation: Isolation) {
    let (installation, faults) = Installation::bare().with_faults();
    let word = format!("{:?}", format!("{isolation:?}").to_lowercase());
    let installation = installation.set("token.isolation", &word).init();
    let issuer = serves(&installation, None).await;
    let pin = fs::read(installation.pin_file()).expect("the PIN");

    fs::write(installation.pin_file(), "not-the-pin").expect("written");
    let before = faults.calls("C_Login");
    for start in 1..=STARTS {
        refused_start(&installation, &faults, before + 1, start);
    }

    // Nothing is to be deleted.
    fs::write(installation.pin_file(), &pin).expect("written");
    serves(&installation, Some(issuer)).await;
    assert!(faults.calls("C_Login") > before + 1);
    // The memory of it has gone, too: another wrong PIN is tried, once.
    fs::write(installation.pin_file(), "nor-this-one").expect("written");
    let before = faults.calls("C_Login");
    for start in 1..=2 {
        refused_start(&installation, &faults, before + 1, start);
    }
}

fn refused_start(installation: &Installation, faults: &Faults, logins: u64, start: usize) {
    let output = installation.command("serve").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "start {start}: {said}");
    assert!(said.contains("PIN"), "start {start} does not say why: {said}");
    assert_eq!(faults.calls("C_Login"), logins, "start {start}: {said}");
}

/// The service starts, and signs. The issuer of the tenant, which is made if there is none yet.
async fn serves(installation: &Installation, issuer: Option<String>) -> String {
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let issuer = match issuer {
        Some(issuer) => issuer,
        None => clients.create_tenant(TENANT, &["ES256"], short_policy()).await.issuer,
    };
    clients.sign_jwt(TENANT, "ES256", claims(&issuer, 600)).await.expect("signed");
    assert!(server.terminate().success());
    issuer
}
