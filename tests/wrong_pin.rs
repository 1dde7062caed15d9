//! A wrong PIN is tried once, whatever is started again (R14).
//!
//! That the token is not asked shows by this: behind Keyward's back it is given the very PIN that it refused, and would take it.

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::http::get;
use common::{Clients, Installation, claims, short_policy, token_user};
use keyward::grpc::proto::{CreateTenantRequest, Tenant};
use tonic::Code;

/// The PIN that the token refuses at first.
const OTHER: &str = "0815-other";

#[test]
fn a_wrong_pin_is_tried_once_whatever_is_started_again() {
    if let Some(new) = token_user::order() {
        let old = std::env::var("KEYWARD_TEST_PIN").expect("a child has it");
        return token_user::session().set_pin(&old.into(), &new.into()).expect("the PIN is changed");
    }
    let installation = Installation::prepare();
    let refused_file = installation.dir().join("token-pin-refused");
    let right = fs::read_to_string(installation.pin_file()).expect("a PIN");

    // 1. The configuration has a wrong PIN, and the first command finds out.
    fs::write(installation.pin_file(), OTHER).expect("written");
    says(
        &run(installation.command("check")),
        &["the token refused the PIN", "token.pin_refused_file", "token-pin-refused"],
    );
    assert!(refused_file.exists());

    // 2. The token would take it now. Nobody asks.
    token_user::have(&installation, "a_wrong_pin_is_tried_once_whatever_is_started_again", &right, OTHER);
    for verb in ["check", "serve", "accept-store", "serve", "init"] {
        says(&run(installation.command(verb)), &["the token refused this PIN before", "remove the file"]);
    }

    // 3. The way out, as it was told.
    fs::remove_file(&refused_file).expect("it was there");
    let checked = run(installation.command("check"));
    assert!(checked.status.success(), "{}", text(&checked));
}

/// Twenty restarts are what a supervisor makes of a minute.
const RESTARTS: usize = 20;

#[test]
fn restarts_with_a_wrong_pin_log_in_once_in_all() {
    for isolation in ["thread", "process"] {
        let (installation, faults) = Installation::prepare().with_faults();
        let installation = installation.set("token.isolation", &format!("{isolation:?}"));
        let right = fs::read_to_string(installation.pin_file()).expect("a PIN");
        fs::write(installation.pin_file(), OTHER).expect("written");
        let serve = || installation.command("serve");
        // Some at once, as replicas of one installation may be started. SoftHSM does not show its token to all of them.
        let at_once: Vec<_> = (0..4).map(|_| serve().stderr(Stdio::piped()).spawn().expect("it starts")).collect();
        for child in at_once {
            let output = child.wait_with_output().expect("it ends");
            assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        }
        (4..RESTARTS).for_each(|_| assert_eq!(run(serve()).status.code(), Some(1)));
        says(&run(serve()), &["the token refused this PIN before"]);
        assert_eq!(faults.calls("C_Login"), 1, "{isolation}");

        fs::write(installation.pin_file(), right).expect("written");
        drop(installation.serve());
        assert!(faults.calls("C_Login") > 1, "the module counts");
    }
}

/// Each new worker process would try for itself, if their service did not know.
#[test]
fn where_the_file_cannot_be_written_workers_log_in_once_in_all() {
    const MANY: u64 = 4;
    if let Some(new) = token_user::order() {
        let old = std::env::var("KEYWARD_TEST_PIN").expect("a child has it");
        return token_user::session().set_pin(&old.into(), &new.into()).expect("the PIN is changed");
    }
    let (installation, faults) = Installation::bare().with_faults();
    let directory = installation.dir().join("latch");
    fs::create_dir(&directory).expect("made");
    let installation = installation
        .set("token.isolation", r#""process""#)
        .set("token.workers", &MANY.to_string())
        .set("token.pin_refused_file", r#""latch/refused""#)
        .init();
    let before = faults.calls("C_Login");
    let server = installation.serve();
    let limit = Instant::now() + WAIT_MAX;
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        while !holds() {
            assert!(Instant::now() < limit, "never {what}");
            thread::sleep(POLL);
        }
    };
    // One more for administration.
    until("all workers logged in", &|| faults.calls("C_Login") == before + MANY + 1);
    let right = fs::read_to_string(installation.pin_file()).expect("a PIN");
    let test = "where_the_file_cannot_be_written_workers_log_in_once_in_all";
    token_user::have(&installation, test, &right, OTHER);
    assert!(!directory.join("refused").exists(), "nothing was refused so far");
    fs::remove_dir_all(&directory).expect("removed");
    let before = faults.calls("C_Login");
    faults.set("C_Sign crash");
    until("no worker left", &|| server.metric(r#"keyward_token_workers_ready{token="home"}"#) == 0.0);
    assert_eq!(faults.calls("C_Login") - before, 1, "of {MANY} workers that crashed one tried the PIN");
    drop(server);

    // And no command starts where a refusal would be forgotten.
    for verb in ["check", "serve"] {
        says(&run(installation.command(verb)), &["token.pin_refused_file must be in a directory", "latch"]);
    }
}

/// A worker for administration, and the default's two that sign.
const WORKERS: u64 = 3;
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_a_new_process_is_refused_takes_no_signature_from_those_that_are_logged_in() {
    let (installation, faults) = Installation::bare().with_faults();
    let installation = installation.set("token.isolation", r#""process""#).init();
    let before = faults.calls("C_Login");
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    until("all workers are logged in", || faults.calls("C_Login") == before + WORKERS).await;

    // Administration's process crashes, and the next one may not log in.
    faults.set("C_GenerateKeyPair crash once\nC_Login answer CKR_PIN_INCORRECT");
    let create = |id: &str| {
        let tenant = Tenant { id: id.into(), algorithms: vec!["ES256".into()], ..Tenant::default() };
        CreateTenantRequest { tenant: Some(tenant) }
    };
    clients.tenants.create_tenant(create("one")).await.expect_err("no key is generated");
    until("the PIN is refused", || installation.dir().join("token-pin-refused").exists()).await;
    let refused = clients.tenants.create_tenant(create("two")).await.expect_err("no key is generated");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    clients.sign_jwt("acme", "ES256", claims(&issuer, 600)).await.expect("signed");
    assert_eq!(get(&format!("{}/readyz", server.ops())).status, 200);
    assert!(server.metric(r#"keyward_token_state_changes_total{state="down",token="home"}"#).abs() < f64::EPSILON);
    assert_eq!(faults.calls("C_Login"), before + WORKERS + 1, "once (R14)");
}

#[test]
fn a_corrected_pin_is_tried_and_settles_the_matter() {
    let installation = Installation::prepare();
    let refused_file = installation.dir().join("token-pin-refused");
    let right = fs::read_to_string(installation.pin_file()).expect("a PIN");
    fs::write(installation.pin_file(), OTHER).expect("written");
    says(&run(installation.command("check")), &["the token refused the PIN"]);
    fs::write(installation.pin_file(), right).expect("written");
    let server = installation.serve();
    assert!(!refused_file.exists(), "it is forgotten");
    drop(server);
}

#[test]
fn a_damaged_memory_refuses_and_says_the_way_out() {
    let installation = Installation::prepare();
    let refused_file = installation.dir().join("token-pin-refused");
    fs::write(&refused_file, "{").expect("written");
    says(&run(installation.command("check")), &["cannot be read", "token-pin-refused", "remove the file"]);
    fs::remove_file(&refused_file).expect("it is there");
    assert!(run(installation.command("check")).status.success());
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + WAIT_MAX;
    while !is_so() {
        assert!(Instant::now() < limit, "{what}: not within {WAIT_MAX:?}");
        tokio::time::sleep(POLL).await;
    }
}

fn run(mut command: Command) -> Output {
    command.output().expect("the command runs")
}

/// It failed, and said all of this.
fn says(output: &Output, words: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    words.iter().for_each(|words| assert!(text.contains(words), "{words:?} is not in: {text}"));
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
