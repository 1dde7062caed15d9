//! The log of calls as the faces use it, on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use keyward::audit::{CallLog, OnFailure, OpenError, Settings, Signing};
use keyward::domain::{Caller, Event, Octets, Timestamp};
use keyward::tlog::{Record, Tip};
use serde_json::Value;

const ORIGIN: &str = "keyward/0011223344556677/calls";

fn settings(directory: &Path, signing: Signing) -> Settings {
    Settings { directory: directory.to_owned(), signing, on_failure: OnFailure::Refuse }
}

fn open(directory: &Path, signing: Signing) -> CallLog {
    CallLog::open(&settings(directory, signing), ORIGIN.to_owned(), None).expect("opened")
}

/// A signature over an input whose hash says `number`.
fn signature(number: u64) -> Event {
    let caller = Caller::anonymous("/keyward.v1.SigningService/Sign");
    let mut hash = vec![0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    Event { input_sha256: Some(Octets(hash)), ..Event::new(Timestamp::now(), "sign", &caller) }
}

fn refusal(result: &'static str) -> Event {
    let event = Event::new(Timestamp::now(), "refuse", &Caller::anonymous("/keyward.v1.SigningService/Sign"));
    Event { result: result.into(), ..event }
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is there").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "jsonl")).collect();
    files.sort();
    files
}

/// Every record in the directory, with the chain checked.
fn records(directory: &Path) -> Vec<Record> {
    let mut tip = Tip::default();
    let mut records = Vec::new();
    for file in segments(directory) {
        let text = fs::read_to_string(&file).expect("a segment in UTF-8");
        let mut lines = text.lines();
        let head: Value = serde_json::from_str(lines.next().expect("a head")).expect("a head in JSON");
        assert_eq!(head["origin"], ORIGIN);
        assert_eq!(head["tip"], serde_json::to_value(&tip).expect("JSON"), "{}", file.display());
        records.extend(lines.map(|line| tip.follow(line.as_bytes()).expect("the next record")));
    }
    records
}

#[tokio::test]
async fn what_was_recorded_is_there_after_a_stop_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let directory = dir.path().join("audit");
    for round in 0..3 {
        let log = open(&directory, Signing::Async);
        for number in 0..2000 {
            log.record(signature(round * 2000 + number)).await.expect("recorded");
        }
        log.close().await;
    }
    let records = records(&directory);
    assert_eq!(records.len(), 6000);
    for (index, record) in (0_u64..).zip(&records) {
        assert_eq!(record.index, index);
        assert_eq!(record.event.input_sha256, signature(index).input_sha256);
    }
    assert_eq!(fs::metadata(&directory).expect("there").permissions().mode() & 0o777, 0o700);
    for file in segments(&directory) {
        assert_eq!(fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_durable_record_is_in_the_file_when_its_call_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Durable);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (log, directory) = (log.clone(), dir.path().to_owned());
        calls.spawn(async move {
            log.record(signature(number)).await.expect("recorded");
            let hash = signature(number).input_sha256;
            assert!(records(&directory).iter().any(|record| record.event.input_sha256 == hash), "{number}");
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("no panic");
    }
    assert_eq!(log.tip().await.expect("a tip").size(), 64);
}

#[tokio::test]
async fn off_means_that_refusals_alone_are_recorded() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Off);
    log.record(signature(1)).await.expect("not wanted");
    log.record(refusal("PERMISSION_DENIED")).await.expect("recorded");
    log.record_soon(refusal("UNAUTHENTICATED"));
    log.close().await;
    let results: Vec<_> = records(dir.path()).into_iter().map(|record| record.event.result).collect();
    assert_eq!(results, ["PERMISSION_DENIED", "UNAUTHENTICATED"]);
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_hides_no_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Async);
    for _ in 0..5000 {
        log.record(refusal("UNAUTHENTICATED")).await.expect("recorded or counted");
    }
    log.record(refusal("INTERNAL")).await.expect("recorded");
    log.close().await;
    let records = records(dir.path());
    let of = |result: &str| records.iter().filter(|record| record.event.result == result).count();
    let told: usize = (records.iter().filter(|record| record.event.action == "refusals_not_recorded"))
        .map(|record| record.event.detail.parse::<usize>().expect("a number"))
        .sum();
    assert_eq!(of("UNAUTHENTICATED") + told, 5000);
    assert!((500..1500).contains(&of("UNAUTHENTICATED")), "{}", of("UNAUTHENTICATED"));
    assert_eq!(of("INTERNAL"), 1);
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Durable);
    for number in 0..10 {
        log.record(signature(number)).await.expect("recorded");
    }
    log.close().await;
    let file = &segments(dir.path())[0];
    let whole = fs::read(file).expect("read");
    fs::write(file, [&whole[..], br#"{"index":10,"previous":"#].concat()).expect("torn");
    let log = open(dir.path(), Signing::Durable);
    assert_eq!(fs::read(file).expect("read"), whole);
    log.record(signature(10)).await.expect("recorded");
    assert_eq!(records(dir.path()).len(), 11);
}

#[tokio::test]
async fn one_process_writes_a_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Async);
    let refused = CallLog::open(&settings(dir.path(), Signing::Async), ORIGIN.to_owned(), None).err();
    assert!(matches!(refused, Some(OpenError::InUse(_))), "{refused:?}");
    log.close().await;
    open(dir.path(), Signing::Durable).close().await;
}

#[tokio::test]
async fn a_start_refuses_a_log_that_was_edited_or_that_is_another_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = open(dir.path(), Signing::Durable);
    for number in 0..10 {
        log.record(signature(number)).await.expect("recorded");
    }
    let known = log.tip().await.expect("a tip");
    log.close().await;
    let file = &segments(dir.path())[0];
    let text = fs::read_to_string(file).expect("read");
    let lines: Vec<_> = text.lines().collect();
    let without_a_line = |index: usize| [&lines[..index], &lines[index + 1..]].concat().join("\n") + "\n";
    let refused_of = |text: String, origin: &str| {
        fs::write(file, text).expect("edited");
        let refused = CallLog::open(&settings(dir.path(), Signing::Durable), origin.to_owned(), Some(&known));
        refused.err().expect("refused").to_string()
    };
    let refused = refused_of(text.replace(r#""sign""#, r#""read""#), ORIGIN);
    assert!(refused.contains("record 1: it was written after another record"), "{refused}");
    // Line 0 is the head.
    let refused = refused_of(without_a_line(4), ORIGIN);
    assert!(refused.contains("record 3: it says that it is record 4"), "{refused}");
    let refused = refused_of(without_a_line(10), ORIGIN);
    assert!(refused.contains("it has 9 records, and a checkpoint was signed of 10"), "{refused}");
    let refused = refused_of(text.clone(), "keyward/8899aabbccddeeff/calls");
    assert!(refused.contains("it is of the log keyward/0011223344556677/calls"), "{refused}");
    fs::remove_file(file).expect("removed");
    let refused = CallLog::open(&settings(dir.path(), Signing::Durable), ORIGIN.to_owned(), Some(&known));
    let refused = refused.err().expect("refused").to_string();
    assert!(refused.contains("it has 0 records, and a checkpoint was signed of 10"), "{refused}");
}
