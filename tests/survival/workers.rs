//! What becomes of worker processes, and of those who share them.

use std::fs;
use std::time::{Duration, Instant};

use cryptoki::object::{Attribute, ObjectClass};
use keyward::grpc::proto::batch_sign_input::Input;
use keyward::grpc::proto::signing_service_client::SigningServiceClient;
use keyward::grpc::proto::{
    BatchSignInput, BatchSignRequest, GetCurrentKeyRequest, KeyState, ListSigningKeysRequest, RotateSigningKeyRequest,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::load::{Load, Refusal};
use super::stand::{Isolation, PATIENCE, POLL, Stand, TENANT, until};
use crate::common::{Clients, Installation, Server, short_policy, token_user};

const DEADLINE: Duration = Duration::from_secs(10);

/// Workers of whom each takes this long for a signature, so that what they sign tells how many of them work.
const WORKERS: usize = 8;
const SLOW_SIGNING: &str = "C_Sign delay 50ms";
/// How long is counted.
const COUNTED: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_key_is_missing_takes_no_worker_from_others() {
    if let Some(cka_id) = token_user::order() {
        let id = (0..cka_id.len()).step_by(2).map(|at| u8::from_str_radix(&cka_id[at..at + 2], 16).expect("hex"));
        let key = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(id.collect())];
        let session = token_user::session();
        let found = session.find_objects(&key).expect("a search");
        return session.destroy_object(found[0]).expect("it is destroyed");
    }
    let workers = WORKERS.to_string();
    let mut stand = Stand::with(Isolation::Process, &["ES256"], |it| it.set("token.workers", &workers)).await;
    let issuer = stand.clients.create_tenant("lost", &["ES256"], short_policy()).await.issuer;
    let current = GetCurrentKeyRequest { tenant: "lost".into(), algorithm: String::new() };
    let key = stand.clients.signing.get_current_key(current).await.expect("its key").into_inner().key.expect("a key");
    let pin = fs::read_to_string(stand.installation.pin_file()).expect("the PIN");
    let test = "workers::a_tenant_whose_key_is_missing_takes_no_worker_from_others";
    token_user::have(&stand.installation, test, &pin, &key.protection.expect("it is on the token").cka_id);

    stand.faults.set(SLOW_SIGNING);
    let load = Load::start(&stand, "ES256", 2 * WORKERS, DEADLINE).await;
    let alone = signed_in(&load, COUNTED).await;
    let lost = Load::start_for(&stand, "lost", &issuer, "ES256", WORKERS, DEADLINE).await;
    let beside = signed_in(&load, COUNTED).await;
    load.end().await;
    let refused = lost.end().await;
    println!("{alone} signatures alone, {beside} beside {} calls with a key that is missing", refused.len());
    let away = refused.iter().filter(|answer| answer.result.as_ref().is_err_and(Refusal::is_unavailable)).count();
    // Others may find the queue full.
    assert!(away > 20 && refused.iter().all(|answer| answer.result.is_err()), "{away} of {}", refused.len());
    let log = stand.server.log();
    assert!(
        log.iter().any(|line| line.contains("of tenant lost")),
        "the log names whose key it is that fails: {log:?}"
    );
    // A call with a key that is missing takes a worker a search; a worker that rests after one is lost for 200 ms.
    assert!(4 * beside > 3 * alone, "{alone} alone, {beside} beside");
}

/// A small HSM takes a tenth of a second for what software does in a fifth of a millisecond, which is the first estimate.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_slower_than_anybody_thought_signs() {
    let stand = Stand::new(Isolation::Process, &["ES256"]).await;
    stand.faults.set(SLOW_SIGNING);
    let load = Load::start(&stand, "ES256", 4, DEADLINE).await;
    let begun = Instant::now();
    let took = load.signed(begun, 100).await - begun;
    let refused = load.end().await.into_iter().filter(|answer| answer.result.is_err()).count();
    println!("100 signatures of 100 ms on two workers took {took:?}; {refused} calls were refused");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(refused <= 2, "{refused}");
    assert_eq!(stand.replaced("hung"), 0.0);
}

async fn signed_in(load: &Load, time: Duration) -> usize {
    let begun = Instant::now();
    tokio::time::sleep(time).await;
    load.since(begun).iter().filter(|answer| answer.result.is_ok()).count()
}

/// As a virtual machine does that is moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stood_still_does_not_take_its_workers_for_hung() {
    let stand = Stand::new(Isolation::Process, &["ES256"]).await;
    let load = Load::start(&stand, "ES256", 4, PATIENCE).await;
    let service = Pid::from_raw(i32::try_from(stand.server.pid()).expect("a pid")).expect("not 0");
    for _ in 0..4 {
        load.signed(Instant::now(), 20).await;
        kill_process(service, Signal::STOP).expect("stopped");
        // Longer than token.call_timeout_ms and four times what a signature takes.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        kill_process(service, Signal::CONT).expect("it goes on");
    }
    load.signed(Instant::now(), 20).await;
    load.end().await;
    assert_eq!(stand.replaced("hung"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_is_away_one_worker_is_tried_for_all() {
    let (installation, faults) = Installation::bare().with_faults();
    let installation = installation.set("token.isolation", r#""process""#).set("token.workers", "32").init();
    faults.set("C_Initialize answer CKR_DEVICE_REMOVED");
    let server = installation.serve();
    let before = faults.fired(0);
    tokio::time::sleep(COUNTED).await;
    let starts = faults.fired(0) - before;
    // One in each pause, which has grown to a second by then, or is about to; and a machine that is slow starts fewer.
    assert!((1..=12).contains(&starts), "{starts} starts in {COUNTED:?}");
    faults.clear();
    let ready = || server.metric(r#"keyward_token_workers_ready{token="home"}"#);
    until("all workers have come", || ready() >= 32.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_a_service_that_is_killed_and_share_nothing_with_what_a_module_starts() {
    let stand = Stand::new(Isolation::Process, &["ES256"]).await;
    stand.logged_in(3).await;
    let pid = stand.server.pid();
    let workers = children(pid);
    assert_eq!(workers.len(), 3, "two that sign, and one for administration");
    for worker in &workers {
        // Root alone sees more of a process that is not dumpable.
        if let Ok(input) = fs::read_link(format!("/proc/{worker}/fd/0")) {
            assert_eq!(input.to_str(), Some("/dev/null"), "what a module starts would keep the socket open");
        }
    }
    stand.faults.set("C_Sign hang");
    let load = Load::start(&stand, "ES256", 2, DEADLINE).await;
    until("C_Sign is called", || stand.faults.fired(0) > 0).await;
    let service = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
    kill_process(service, Signal::KILL).expect("killed");
    have_ended(&workers).await;
    load.end().await;
}

/// R6, also of a key that is made by a worker whose service is gone: the service that is started next waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_made_after_its_service_was_killed_has_its_account() {
    let Stand { server, mut clients, faults, installation, .. } = Stand::new(Isolation::Process, &["ES256"]).await;
    let made = faults.calls("C_GenerateKeyPair");
    faults.set("C_GenerateKeyPair delay 2s once");
    let rotation = RotateSigningKeyRequest { tenant: TENANT.into(), force: true, ..RotateSigningKeyRequest::default() };
    let rotation = tokio::spawn(async move { clients.keys.rotate_signing_key(rotation).await });
    let limit = Instant::now() + PATIENCE;
    while faults.fired(0) == 0 {
        assert!(Instant::now() < limit, "no key is generated");
        tokio::time::sleep(POLL).await;
    }
    let workers = children(server.pid());
    server.kill();
    rotation.await.expect("no panic").expect_err("nobody answers");

    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let next = ListSigningKeysRequest {
        tenant: TENANT.into(),
        states: vec![KeyState::Next.into()],
        ..ListSigningKeysRequest::default()
    };
    while clients.keys.list_signing_keys(next.clone()).await.expect("a list").into_inner().keys.is_empty() {
        assert!(Instant::now() < limit, "there is no next key");
        tokio::time::sleep(POLL).await;
    }
    have_ended(&workers).await;
    assert!(server.terminate().success());
    assert_eq!(faults.calls("C_GenerateKeyPair"), made + 1, "the key that was made is the one that is published");
    let reconciled = installation.command("reconcile").output().expect("it runs");
    assert!(reconciled.status.success(), "{}", String::from_utf8_lossy(&reconciled.stdout));
}

/// A call that arrives does not break off the signature that a token in software computes on the same core (docs/decisions/0031).
#[tokio::test(flavor = "multi_thread")]
async fn the_thread_that_serves_gives_way_while_a_token_computes_much_and_nobody_else_does() {
    for isolation in [r#""process""#, r#""thread""#] {
        let installation = Installation::bare().set("token.isolation", isolation).init();
        let mut serve = installation.command("serve");
        serve.arg("--announce").env("TOKIO_WORKER_THREADS", "1");
        let server = Server::start(serve);
        let mut clients = Clients::connect(&server).await;
        clients.create_tenant(TENANT, &["RS256"], short_policy()).await;

        let sign = |mut signing: SigningServiceClient<Channel>| async move {
            loop {
                let inputs = vec![BatchSignInput { input: Some(Input::Message(vec![7; 32])) }; 16];
                let (tenant, algorithm) = (TENANT.to_owned(), "RS256".to_owned());
                let batch = BatchSignRequest { tenant, algorithm, inputs, ..BatchSignRequest::default() };
                // Refused where the machine is so busy that too much waits.
                if signing.batch_sign(batch).await.is_err() {
                    tokio::time::sleep(POLL).await;
                }
            }
        };
        let mut callers: JoinSet<()> = (0..4).map(|_| sign(clients.signing.clone())).collect();
        let giving_way = |pid: &str| policies(pid).into_iter().filter(|policy| policy == SCHED_BATCH).count();
        let pid = server.pid().to_string();
        until("the thread that serves gives way", || giving_way(&pid) == 1).await;
        // One that is started now is started by a thread that gives way.
        let before = children(server.pid());
        if let Some(worker) = before.first() {
            let worker = Pid::from_raw(worker.parse().expect("a pid")).expect("not 0");
            kill_process(worker, Signal::KILL).expect("it ends");
            until("another worker is started", || children(server.pid()).iter().any(|child| !before.contains(child)))
                .await;
        }
        assert_eq!(children(server.pid()).iter().map(|worker| giving_way(worker)).sum::<usize>(), 0);

        callers.shutdown().await;
        until("it does no more", || giving_way(&pid) == 0).await;
    }
}

/// As proc_pid_stat(5) tells them.
const SCHED_BATCH: &str = "3";

/// How the threads of a process are scheduled.
fn policies(pid: &str) -> Vec<String> {
    let policy = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything: the state is the third field, and the policy the 41st.
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        fields.split_whitespace().nth(41 - 3).unwrap_or_default().to_owned()
    };
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(policy).collect()
}

/// Waits until these processes have ended. One that has is there until its new parent has looked.
async fn have_ended(workers: &[String]) {
    let limit = Instant::now() + PATIENCE;
    for worker in workers {
        let lives = || {
            let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
        };
        while lives() {
            assert!(Instant::now() < limit, "worker {worker} outlives its service");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Those of all its threads.
fn children(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let children = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let all: Vec<String> = threads.flatten().map(children).collect();
    all.iter().flat_map(|some| some.split_whitespace()).map(str::to_owned).collect()
}
