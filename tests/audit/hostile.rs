//! Logs that somebody else wrote into: the commands come to an end, name what is wrong, and show the rest.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use keyward::grpc::proto::Log;

use super::common::{Installation, keyward};
use super::service::{auditor, edit_store, events, sign, start, text};

/// For a command that reads a few records, or refuses to.
const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An installation with some records in both logs, which nobody serves now.
async fn stopped() -> Installation {
    let installation = Installation::prepare();
    let (server, mut clients) = start(&installation).await;
    for number in 0..5 {
        sign(&mut clients, &number.to_string()).await.expect("signed");
    }
    drop(clients);
    assert!(server.terminate().success());
    installation
}

/// `keyward audit`, which comes to its end by itself.
fn audit(installation: &Installation, arguments: &[&str]) -> Output {
    let mut command = keyward();
    command.args(["audit", arguments[0], "--config"]).arg(installation.config_file()).args(&arguments[1..]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("keyward starts");
    let deadline = Instant::now() + WAIT_MAX;
    while child.try_wait().expect("a child can be waited for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("killed");
            panic!("{arguments:?} does not end");
        }
        thread::sleep(LOOK_EVERY);
    }
    child.wait_with_output().expect("its output")
}

fn assert_refused(installation: &Installation, told: &str) {
    let output = audit(installation, &["verify"]);
    let said = text(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(told), "{told}: {said}");
}

#[tokio::test]
async fn a_store_that_somebody_else_made_is_read_to_an_end() {
    let installation = stopped().await;
    let store = installation.dir().join("store.sqlite");
    let whole = fs::read(&store).expect("read");
    let far = "with recursive n(i) as (select 0 union all select i + 1 from n where i < 1999) \
               insert into audit_event select 4611686018427387904 + i, null, '{}' from n";
    let endless = "alter table audit_event rename to hidden; create view audit_event as \
                   with recursive n(i) as (select 0 union all select i + 1 from n) \
                   select i as position, null as tenant, '{}' as record from n";
    for (edit, told) in [(far, "is no record"), (endless, "audit_event is not the table that Keyward makes")] {
        edit_store(&store, edit).await;
        assert_refused(&installation, told);
        fs::write(&store, &whole).expect("put back");
    }
    assert!(audit(&installation, &["verify"]).status.success());
}

#[tokio::test]
async fn what_stands_beside_a_record_is_held_against_it() {
    let installation = stopped().await;
    let store = installation.dir().join("store.sqlite");
    let other = "update audit_event set tenant = 'other' where position = 0";
    edit_store(&store, other).await;
    assert_refused(&installation, "BAD: record 0: its row is filed under another tenant than it tells of");
    let listed = audit(&installation, &["list"]);
    assert!(!listed.status.success() && text(&listed).contains("tenant=acme"), "{}", text(&listed));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("record 0: its row is filed under another tenant"));

    edit_store(&store, "update audit_event set record = 'nonsense' where position = 1").await;
    assert_refused(&installation, "BAD: record 1 is no record");
    let listed = audit(&installation, &["list", "--json"]);
    assert!(text(&listed).contains(r#"{"index":0,"#) && text(&listed).contains(r#"{"index":2,"#), "{}", text(&listed));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("record 1: it is no record"), "{listed:?}");

    // Auditors see the rest of a page, and which are bad.
    let server = installation.serve();
    let page = events(&mut auditor(&server).await, Log::Administration, "", 2).await;
    let bad: Vec<_> = page.iter().filter(|event| !event.problem.is_empty()).collect();
    assert_eq!(bad.iter().map(|event| event.index).collect::<Vec<_>>(), [1, 0], "{page:?}");
    assert!(page.iter().any(|event| event.index == 2 && event.problem.is_empty() && !event.action.is_empty()));
    let filtered = events(&mut auditor(&server).await, Log::Administration, "other", 2).await;
    assert!(filtered.iter().any(|event| event.index == 0 && event.problem.contains("another tenant")), "{filtered:?}");
}

#[tokio::test]
async fn bad_lines_of_both_files_are_told_of_and_the_others_listed() {
    let installation = stopped().await;
    let segment = installation.dir().join(format!("audit/calls-{:020}.jsonl", 0));
    let checkpoints = installation.dir().join("audit/checkpoints-calls.jsonl");
    let lines = fs::read_to_string(&segment).expect("read");
    let edit = |bad: &[usize]| {
        let line = |(number, line)| if bad.contains(&number) { "nonsense" } else { line };
        let text: Vec<_> = lines.lines().enumerate().map(line).collect();
        fs::write(&segment, text.join("\n") + "\n").expect("edited");
    };
    // Line 0 is the head. In the middle, and the last one, which no record after it gives a number.
    edit(&[3, 5]);
    fs::write(&checkpoints, "nonsense\n".to_owned() + &fs::read_to_string(&checkpoints).expect("read"))
        .expect("edited");
    assert_refused(&installation, "calls: BAD: record 2 is no record");
    assert_refused(&installation, "checkpoints-calls.jsonl, line 1: it is no checkpoint");
    for more in [&[][..], &["--from", "0"], &["--tenant", "acme"]] {
        let listed = audit(&installation, &[&["list", "--log", "calls"], more].concat());
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert!(said.contains("record 2: it is no record") && said.contains("record 4: it is no record"), "{said}");
        assert_eq!(text(&listed).lines().count(), 3, "{more:?}: {}", text(&listed));
    }
    // A record that says that it is the first does not hide those before it.
    let text_of_first = lines.lines().nth(1).expect("a record");
    fs::write(&segment, format!("{lines}{text_of_first}\n")).expect("edited");
    let listed = audit(&installation, &["list", "--log", "calls", "--limit", "3"]);
    assert_eq!(text(&listed).lines().count(), 3, "{}", text(&listed));
}

#[tokio::test]
async fn files_without_lines_and_without_an_end_are_refused() {
    let installation = stopped().await;
    let directory = installation.dir().join("audit");
    let segment = directory.join(format!("calls-{:020}.jsonl", 0));
    let checkpoints = directory.join("checkpoints-calls.jsonl");
    // 100 GB of nothing, which take no room on the disk.
    let stretch = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).expect("there");
        file.set_len(100 << 30).expect("stretched");
    };
    for (path, told) in
        [(&segment, "calls: BAD: record 5 cannot be read: a line of more than"), (&checkpoints, "a line of more than")]
    {
        let whole = fs::read(path).expect("read");
        stretch(path);
        assert_refused(&installation, told);
        assert!(audit(&installation, &["list", "--log", "calls"]).status.success() == (path == &checkpoints));
        let refused = installation.command("serve").output().expect("keyward runs");
        assert!(!refused.status.success(), "it serves");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("a line of more than"), "{refused:?}");
        fs::write(path, whole).expect("put back");
    }
    let pipe = directory.join(format!("calls-{:020}.jsonl", 5));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    assert_refused(&installation, "calls-00000000000000000005.jsonl: it is no regular file");
    assert!(!audit(&installation, &["list", "--log", "calls"]).status.success());
    fs::remove_file(&pipe).expect("removed");
    assert!(audit(&installation, &["verify"]).status.success());
}
