//! The running service: what its logs have, whatever happens to it.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use keyward::grpc::proto::audit_service_client::AuditServiceClient;
use keyward::grpc::proto::{
    AuditEvent, Checkpoint, GetCheckpointRequest, ListAuditEventsRequest, Log, RotateSigningKeyRequest, SignRequest,
    SignResponse, sign_request,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::common::{Clients, Installation, Server, http, keyward, short_policy};

/// For what must come.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn auditor(server: &Server) -> AuditServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).expect("the announced address");
    AuditServiceClient::new(endpoint.connect().await.expect("the announced address accepts connections"))
}

pub(crate) async fn sign(clients: &mut Clients, message: &str) -> Result<SignResponse, Status> {
    let mut request = Request::new(SignRequest {
        tenant: "acme".to_owned(),
        input: Some(sign_request::Input::Message(message.as_bytes().to_vec())),
        ..SignRequest::default()
    });
    request.metadata_mut().insert("x-request-id", message.parse().expect("ASCII"));
    clients.signing.sign(request).await.map(tonic::Response::into_inner)
}

fn sha256(message: &str) -> Vec<u8> {
    digest(&SHA256, message.as_bytes()).as_ref().to_vec()
}

/// A server with the tenant `acme`, which signs with ES256.
pub(crate) async fn start(installation: &Installation) -> (Server, Clients) {
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256"], short_policy()).await;
    (server, clients)
}

/// All events of a log, newest first, page by page.
pub(crate) async fn events(
    auditor: &mut AuditServiceClient<Channel>,
    log: Log,
    tenant: &str,
    page_size: i32,
) -> Vec<AuditEvent> {
    let mut request =
        ListAuditEventsRequest { log: log.into(), tenant: tenant.to_owned(), page_size, ..Default::default() };
    let mut events = Vec::new();
    loop {
        let page = auditor.list_audit_events(request.clone()).await.expect("a page").into_inner();
        assert!(page.events.len() <= usize::try_from(page_size).expect("a size"));
        events.extend(page.events);
        if page.next_page_token.is_empty() {
            return events;
        }
        request.page_token = page.next_page_token;
    }
}

/// The checkpoint of a log once it has this size.
pub(crate) async fn checkpoint(auditor: &mut AuditServiceClient<Channel>, log: Log, size: u64) -> Checkpoint {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let latest = auditor.get_checkpoint(GetCheckpointRequest { log: log.into() }).await;
        match latest.map(tonic::Response::into_inner) {
            Ok(checkpoint) if checkpoint.size >= size => return checkpoint,
            other => assert!(Instant::now() < deadline, "no checkpoint of {size} records: {other:?}"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn audit(installation: &Installation, arguments: &[&str]) -> Output {
    let (verb, arguments) = arguments.split_first().expect("a verb");
    let mut command = keyward();
    // Neither PIN nor token is needed.
    command.args(["audit", verb, "--config"]).arg(installation.config_file()).args(arguments);
    command.output().expect("keyward runs")
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_verifies(installation: &Installation, arguments: &[&str]) {
    let output = audit(installation, &[&["verify"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output));
}

/// The input hashes of the signatures in the files of the log of calls.
fn hashes_in_files(installation: &Installation) -> HashSet<Vec<u8>> {
    let output = audit(installation, &["list", "--log", "calls", "--from", "0", "--limit", "100000", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record = |line: &str| -> keyward::tlog::Record { serde_json::from_str(line).expect("a record") };
    text(&output).lines().map(record).filter_map(|record| record.event.input_sha256).map(|hash| hash.0).collect()
}

#[tokio::test]
async fn events_say_who_did_what_to_which_key_and_how_it_ended() {
    let installation = Installation::prepare().set("audit.checkpoint_secs", "1");
    let (server, mut clients) = start(&installation).await;
    let signed = sign(&mut clients, "a-message").await.expect("signed");
    let mut unknown = SignRequest { tenant: "nobody".to_owned(), ..SignRequest::default() };
    unknown.input = Some(sign_request::Input::Message(b"b".to_vec()));
    assert_eq!(clients.signing.sign(unknown).await.expect_err("refused").code(), Code::NotFound);
    clients.force_rotation("acme", "ES256").await;

    let mut auditor = auditor(&server).await;
    let kept = checkpoint(&mut auditor, Log::Calls, 2).await;
    let mut calls = events(&mut auditor, Log::Calls, "", 1).await;
    let indexes: Vec<_> = calls.iter().map(|event| event.index).collect();
    assert_eq!(indexes, (0..calls.len() as u64).rev().collect::<Vec<_>>());
    // The test asked for a checkpoint before there was one.
    calls.retain(|event| event.action != "get_checkpoint");
    let [refused, event] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((&*event.action, &*event.result), ("sign", "OK"));
    assert_eq!(event.principals, ["anonymous"]);
    assert_eq!(event.method, "/keyward.v1.SigningService/Sign");
    assert_eq!((&*event.tenant, &*event.algorithm, &event.kid), ("acme", "ES256", &signed.kid));
    assert_eq!(event.input_sha256, sha256("a-message"));
    assert_eq!(event.request_id, "a-message");
    assert!(event.time.is_some());
    assert_eq!((&*refused.tenant, &*refused.result), ("nobody", "NOT_FOUND"));

    let administration = events(&mut auditor, Log::Unspecified, "acme", 2).await;
    assert!(administration.iter().any(|event| event.action == "create_tenant"), "{administration:?}");
    let rotated = administration.iter().find(|event| event.action == "rotate").expect("rotated");
    assert_eq!(rotated.method, "/keyward.v1.KeyService/RotateSigningKey");
    assert!(!rotated.kid.is_empty(), "{rotated:?}");
    assert_eq!(events(&mut auditor, Log::Administration, "nobody", 10).await, []);

    // Bounds, and what is no page token here.
    for (page_size, page_token) in [(1001, ""), (-1, ""), (10, "made-up"), (10, "ZXZlbnRzIGNhbGxzIAoxIDAgNw")] {
        let request = ListAuditEventsRequest {
            log: Log::Calls.into(),
            page_size,
            page_token: page_token.to_owned(),
            ..Default::default()
        };
        let refused = auditor.list_audit_events(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{page_size} {page_token}: {refused:?}");
    }
    let request = ListAuditEventsRequest { log: 7, ..Default::default() };
    assert_eq!(auditor.list_audit_events(request).await.expect_err("refused").code(), Code::InvalidArgument);

    // Offline, while the service runs and after.
    let note = installation.dir().join("kept");
    fs::write(&note, &kept.checkpoint).expect("kept elsewhere");
    let note = note.to_str().expect("UTF-8");
    assert_verifies(&installation, &["--checkpoint", note]);
    assert!(kept.origin.starts_with("keyward/") && kept.checkpoint.starts_with(&kept.origin), "{kept:?}");
    assert!(server.terminate().success());
    assert_verifies(&installation, &["--checkpoint", note]);
    let listed = text(&audit(&installation, &["list", "--tenant", "acme", "--limit", "1"]));
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains("tenant=acme"), "{listed}");
}

#[tokio::test]
async fn an_edited_store_is_told_with_the_first_bad_record() {
    let installation = Installation::prepare().set("audit.checkpoint_secs", "1");
    let (server, mut clients) = start(&installation).await;
    clients.force_rotation("acme", "ES256").await;
    let mut auditor = auditor(&server).await;
    let size = events(&mut auditor, Log::Administration, "", 1000).await.len() as u64;
    let kept = checkpoint(&mut auditor, Log::Administration, size).await;
    let note = installation.dir().join("kept");
    fs::write(&note, &kept.checkpoint).expect("kept elsewhere");
    assert!(server.terminate().success());
    assert!(kept.size >= 4, "{kept:?}");
    let store = installation.dir().join("store.sqlite");
    let whole = fs::read(&store).expect("read");
    let last = kept.size - 1;
    let edits = [
        (
            "update audit_event set record = replace(record, 'acme', 'evil') where position = 1".to_owned(),
            "record 1 was changed",
        ),
        ("delete from audit_event where position = 2".to_owned(), "record 2 is missing: record 3 stands in its place"),
        (
            "update audit_event set record = (select record from audit_event where position = 3) where position = 1"
                .to_owned(),
            "record 1 is missing: record 3 stands in its place",
        ),
        (format!("delete from audit_event where position >= {last}"), &format!("records {last} to {last} are gone")),
    ];
    for (edit, told) in edits {
        edit_store(&store, &edit).await;
        let output = audit(&installation, &["verify", "--checkpoint", note.to_str().expect("UTF-8")]);
        assert!(!output.status.success() && text(&output).contains(told), "{edit}: {}", text(&output));
        fs::write(&store, &whole).expect("put back");
    }
    assert_verifies(&installation, &["--checkpoint", note.to_str().expect("UTF-8")]);
}

#[tokio::test]
async fn the_log_of_a_store_that_was_accepted_goes_on() {
    let installation = Installation::prepare().set("audit.checkpoint_secs", "1");
    let (server, _) = start(&installation).await;
    assert!(server.terminate().success());
    let store = installation.dir().join("store.sqlite");
    let backup = fs::read(&store).expect("read");
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    for tenant in ["b", "c", "d"] {
        clients.create_tenant(tenant, &["ES256"], short_policy()).await;
    }
    let mut reader = auditor(&server).await;
    let size = events(&mut reader, Log::Administration, "", 1000).await.len() as u64;
    let given_up = checkpoint(&mut reader, Log::Administration, size).await;
    assert!(server.terminate().success());
    fs::write(&store, &backup).expect("put back");

    // Served without being accepted: operators hear of it once, and at readyz.
    let server = installation.serve();
    let ops = server.ops().to_owned();
    wait_for("a warning", || {
        let ready = http::get(&format!("{ops}/readyz")).body;
        let ready: serde_json::Value = serde_json::from_slice(&ready).expect("JSON");
        let warning = ready["warnings"]["audit.checkpoint_secs"].as_str().unwrap_or_default().to_owned();
        warning.contains("the log of administration")
    })
    .await;
    wait_for("a third failure", || {
        let metrics = http::get(&format!("{ops}/metrics")).body;
        let metrics = String::from_utf8_lossy(&metrics);
        let failures = r#"keyward_audit_checkpoint_failures_total{log="administration"} "#;
        let count = metrics.lines().find_map(|line| line.strip_prefix(failures)?.parse::<u64>().ok());
        count.is_some_and(|count| count >= 3)
    })
    .await;
    let told = server.log().iter().filter(|line| line.contains("no checkpoint of the audit log was made")).count();
    assert_eq!(told, 1, "{:?}", server.log());
    assert!(server.terminate().success());

    let accepted = installation.command("accept-store").arg("--confirm").output().expect("keyward runs");
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    let server = installation.serve();
    let mut reader = auditor(&server).await;
    let size = events(&mut reader, Log::Administration, "", 1000).await.len() as u64;
    let next = checkpoint(&mut reader, Log::Administration, size).await;
    assert!(next.size < given_up.size && next.root_hash != given_up.root_hash, "{next:?}");
    assert!(server.terminate().success());
    let verified = audit(&installation, &["verify"]);
    let said = text(&verified);
    assert!(verified.status.success(), "{said}");
    assert!(said.contains(&format!("a history of {} records was given up", given_up.size)), "{said}");
    // Once more changes nothing: the log goes on from its checkpoints.
    let accepted = installation.command("accept-store").arg("--confirm").output().expect("keyward runs");
    assert!(accepted.status.success() && !text(&accepted).contains("given up"), "{}", text(&accepted));
    assert_verifies(&installation, &[]);
}

async fn wait_for(what: &str, there: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !there() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) async fn edit_store(path: &Path, statement: &str) {
    use sqlx::Connection as _;
    let mut connection = sqlx::SqliteConnection::connect(path.to_str().expect("UTF-8")).await.expect("opened");
    sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.expect("edited");
    connection.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_signature_survives_a_kill_in_durable_mode() {
    let installation = Installation::prepare().set("audit.signing", "\"durable\"");
    let (server, clients) = start(&installation).await;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut load = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let (mut clients, acknowledged) = (clients.clone(), Arc::clone(&acknowledged));
        load.spawn(async move {
            for number in 0.. {
                let message = format!("{caller}-{number}");
                // The server is gone.
                if sign(&mut clients, &message).await.is_err() {
                    return;
                }
                acknowledged.lock().expect("no panic").push(message);
            }
        });
    }
    let deadline = Instant::now() + WAIT_MAX;
    while acknowledged.lock().expect("no panic").len() < 400 {
        assert!(Instant::now() < deadline, "too slow");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    server.kill();
    while load.join_next().await.is_some() {}
    let there = hashes_in_files(&installation);
    let acknowledged = acknowledged.lock().expect("no panic").clone();
    let missing: Vec<_> = acknowledged.iter().filter(|message| !there.contains(&sha256(message))).collect();
    assert!(missing.is_empty(), "{} of {} are not in the log", missing.len(), acknowledged.len());
    // The next start goes on, and what is there holds.
    let server = installation.serve();
    sign(&mut Clients::connect(&server).await, "after").await.expect("signed");
    assert!(server.terminate().success());
    assert!(hashes_in_files(&installation).contains(&sha256("after")));
    assert_verifies(&installation, &[]);
}

#[tokio::test]
async fn a_stop_in_order_loses_nothing_in_async_mode() {
    let installation = Installation::prepare();
    let (server, mut clients) = start(&installation).await;
    for number in 0..200 {
        sign(&mut clients, &number.to_string()).await.expect("signed");
    }
    drop(clients);
    assert!(server.terminate().success());
    let there = hashes_in_files(&installation);
    assert!((0..200).all(|number| there.contains(&sha256(&number.to_string()))), "{}", there.len());
    // The last checkpoint has all of them.
    let verified = audit(&installation, &["verify"]);
    assert!(text(&verified).contains("the last of 200 records"), "{}", text(&verified));
}

/// A server whose files can be kept from growing, as on a disk that is full. The signal that comes with it is ignored, so that
/// writes fail as they do on a full disk.
async fn start_limited(installation: &Installation) -> (Server, Clients, Pid) {
    let serve = installation.command("serve");
    let mut command = Command::new("sh");
    command.arg("-c").arg(r#"trap "" XFSZ; exec "$0" "$@""#).arg(serve.get_program()).args(serve.get_args());
    command.arg("--announce").envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let server = Server::start(command);
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256"], short_policy()).await;
    let pid = Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("not 0");
    (server, clients, pid)
}

fn limit_files(pid: Pid, octets: Option<u64>) {
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: octets, maximum: None }).expect("the limit is set");
}

fn segment_len(installation: &Installation) -> u64 {
    let path = installation.dir().join(format!("audit/calls-{:020}.jsonl", 0));
    fs::metadata(path).expect("a segment").len()
}

/// Signs until it is answered as wanted.
async fn sign_until(clients: &mut Clients, wanted: impl Fn(&Result<SignResponse, Status>) -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let answer = sign(clients, "waiting").await;
        if wanted(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn full_disk(signing: &str) {
    let installation = Installation::prepare().set("audit.signing", signing);
    let (server, mut clients, pid) = start_limited(&installation).await;
    for number in 0..10 {
        sign(&mut clients, &number.to_string()).await.expect("signed");
    }
    // Room for half a record: what is written of it must not stand before the next.
    sign_until(&mut clients, |answer| answer.is_ok() && segment_len_is_settled(&installation)).await;
    limit_files(pid, Some(segment_len(&installation) + 100));
    sign_until(&mut clients, |answer| {
        answer.as_ref().is_err_and(|status| {
            let reason = status.get_details_error_info().map(|info| info.reason);
            status.code() == Code::Unavailable && reason.as_deref() == Some("AUDIT_UNAVAILABLE")
        })
    })
    .await;
    let ops = server.ops().to_owned();
    let warned = || {
        let ready: serde_json::Value = serde_json::from_slice(&http::get(&format!("{ops}/readyz")).body).expect("JSON");
        ready["warnings"]["audit.directory"].as_str() == Some("the log of calls cannot be written; the log says why")
    };
    wait_for("a warning", warned).await;
    // Administration cannot commit, and so does nothing.
    limit_files(pid, Some(0));
    let rotate = RotateSigningKeyRequest { tenant: "acme".to_owned(), force: true, ..Default::default() };
    let refused = clients.keys.rotate_signing_key(rotate).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(server.log().iter().any(|line| line.contains("signing stops until it can")), "{:?}", server.log());
    // It goes on by itself when there is room.
    limit_files(pid, None);
    sign_until(&mut clients, Result::is_ok).await;
    sign(&mut clients, "after").await.expect("signed");
    wait_for("the end of the warning", || !warned()).await;
    assert!(server.terminate().success());
    let there = hashes_in_files(&installation);
    assert!((0..10).all(|number| there.contains(&sha256(&number.to_string()))));
    assert!(there.contains(&sha256("after")));
    assert_verifies(&installation, &[]);
}

/// Whether the file has a record for all that was signed so far: nothing is on its way.
fn segment_len_is_settled(installation: &Installation) -> bool {
    let path = installation.dir().join(format!("audit/calls-{:020}.jsonl", 0));
    fs::read(path).is_ok_and(|octets| octets.ends_with(b"\n"))
}

#[tokio::test]
async fn a_full_disk_stops_signing_until_there_is_room() {
    full_disk("\"async\"").await;
}

#[tokio::test]
async fn a_full_disk_stops_durable_signing_until_there_is_room() {
    full_disk("\"durable\"").await;
}

#[tokio::test]
async fn signing_goes_on_over_a_full_disk_where_the_policy_allows_it() {
    let installation = Installation::prepare().set("audit.signing", "\"durable\"").set("audit.on_failure", "\"allow\"");
    let (server, mut clients, pid) = start_limited(&installation).await;
    sign(&mut clients, "before").await.expect("signed");
    limit_files(pid, Some(segment_len(&installation) + 100));
    for number in 0..50 {
        sign(&mut clients, &number.to_string()).await.expect("signed without a record");
    }
    assert!(server.log().iter().any(|line| line.contains("signing goes on without a record")), "{:?}", server.log());
    let metrics = http::get(&format!("{}/metrics", server.ops())).body;
    assert!(String::from_utf8_lossy(&metrics).contains("keyward_audit_writable 0"));
    limit_files(pid, None);
    sign(&mut clients, "after").await.expect("signed");
    assert!(server.terminate().success());
    // There was room for them in memory, so they are there now.
    let there = hashes_in_files(&installation);
    assert!((0..50).all(|number| there.contains(&sha256(&number.to_string()))));
    assert_verifies(&installation, &[]);
}
