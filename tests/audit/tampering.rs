//! Records that are edited, dropped, swapped, inserted, cut off and written anew: `verify` names the first bad one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward::audit::{Bad, Findings, Keeper, OnFailure, Settings, Signing, Walk, evidence, verify_calls};
use keyward::domain::{Caller, Event, Timestamp};
use keyward::tlog::{Checkpoint, Log, Record, Tip};
use tokio_util::sync::CancellationToken;

use super::keys::{Records, ServiceKey};

/// A log of calls with checkpoints of 10, 20 and 30 records, and 5 more records.
struct Scene {
    dir: tempfile::TempDir,
    key: Arc<ServiceKey>,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().expect("a directory"), key: Arc::new(ServiceKey::new()) };
        for round in 0..4 {
            scene.session(if round < 3 { 10 } else { 5 }, round < 3).await;
        }
        scene
    }

    async fn session(&self, calls: usize, checkpoint: bool) {
        let settings = Settings {
            directory: self.dir.path().to_owned(),
            signing: Signing::Durable,
            on_failure: OnFailure::Refuse,
        };
        let keeper = Keeper::open(&settings, &self.key.public(), Duration::from_secs(3600)).expect("opened");
        for number in 0..calls {
            keeper.logs().calls().record(event(&number.to_string())).await.expect("recorded");
        }
        if checkpoint {
            let end = CancellationToken::new();
            end.cancel();
            keeper.run(self.key.clone(), Arc::new(Records::default()), end).await;
        } else {
            keeper.logs().calls().close().await;
        }
    }

    fn segment(&self) -> PathBuf {
        self.dir.path().join(format!("calls-{:020}.jsonl", 0))
    }

    fn text(&self) -> String {
        fs::read_to_string(self.segment()).expect("read")
    }

    /// Puts other lines in place of the log's, the head first; record `i` is line `i + 1`.
    fn edit(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines: Vec<_> = self.text().lines().map(ToOwned::to_owned).collect();
        change(&mut lines);
        fs::write(self.segment(), lines.join("\n") + "\n").expect("edited");
    }

    fn verify(&self, elsewhere: &[&Path]) -> Findings {
        let key = self.key.log_key();
        let (mut known, problem) = evidence::beside(self.dir.path(), Log::Calls, &key).expect("read");
        for path in elsewhere {
            let (more, problem) = evidence::elsewhere(path, &key).expect("read");
            assert_eq!(problem, None);
            known.extend(more);
        }
        verify_calls(self.dir.path(), &key.origin(Log::Calls), Walk::new(Log::Calls, known, problem)).expect("read")
    }

    fn first_bad(&self) -> u64 {
        match self.verify(&[]).bad {
            Some(Bad::Record { index, .. }) => index,
            other => panic!("{other:?}"),
        }
    }
}

fn event(detail: &str) -> Event {
    Event { detail: detail.to_owned(), ..Event::new(Timestamp::now(), "sign", &Caller::timer()) }
}

#[tokio::test]
async fn an_untouched_log_is_good() {
    let findings = Scene::new().await.verify(&[]);
    assert_eq!(findings.bad, None);
    assert_eq!((findings.first, findings.size, findings.segments), (0, 35, 1));
    assert_eq!((findings.checkpoints, findings.confirmed), (3, Some(30)));
}

#[tokio::test]
async fn an_edited_record_is_named() {
    for index in [0, 8, 9, 10, 20, 29, 33] {
        let scene = Scene::new().await;
        scene.edit(|lines| lines[index + 1] = lines[index + 1].replace(r#""sign""#, r#""read""#));
        assert_eq!(scene.first_bad(), index as u64);
    }
    // What names the record before it is a part of the record.
    for index in [1, 9, 10, 33] {
        let scene = Scene::new().await;
        let wrong = Record::parse(scene.text().lines().nth(1).expect("a record").as_bytes()).expect("a record");
        assert_eq!(wrong.index, 0);
        scene.edit(|lines| {
            let previous = lines[index + 1].split('"').nth(5).expect("previous").to_owned();
            let mut other = previous.clone().into_bytes();
            other[..4].reverse();
            lines[index + 1] = lines[index + 1].replace(&previous, &String::from_utf8(other).expect("base64"));
        });
        assert_eq!(scene.first_bad(), index as u64);
    }
    let scene = Scene::new().await;
    scene.edit(|lines| lines[13] = "{}".to_owned());
    assert_eq!(scene.first_bad(), 12);
}

#[tokio::test]
async fn a_dropped_swapped_or_inserted_record_is_named() {
    for index in [0, 9, 10, 33] {
        let scene = Scene::new().await;
        scene.edit(|lines| drop(lines.remove(index + 1)));
        assert_eq!(scene.first_bad(), index as u64);
        let scene = Scene::new().await;
        scene.edit(|lines| lines.swap(index + 1, index + 2));
        assert_eq!(scene.first_bad(), index as u64);
        let scene = Scene::new().await;
        scene.edit(|lines| lines.insert(index + 1, lines[20].clone()));
        assert_eq!(scene.first_bad(), index as u64);
    }
}

#[tokio::test]
async fn a_log_that_was_cut_off_has_fewer_records_than_a_checkpoint() {
    let scene = Scene::new().await;
    let saved = scene.dir.path().join("saved");
    let checkpoints = scene.dir.path().join("checkpoints-calls.jsonl");
    fs::copy(&checkpoints, &saved).expect("kept elsewhere");
    scene.edit(|lines| lines.truncate(26));
    let truncated = |findings: Findings| match findings.bad {
        Some(Bad::Truncated { size, was, place }) => (size, was, place),
        other => panic!("{other:?}"),
    };
    let (size, was, _) = truncated(scene.verify(&[]));
    assert_eq!((size, was), (25, 30));
    // Whoever cuts off the checkpoints as well is caught by the one that was kept elsewhere.
    let text = fs::read_to_string(&checkpoints).expect("read");
    fs::write(&checkpoints, text.lines().take(2).map(|line| format!("{line}\n")).collect::<String>()).expect("cut");
    assert_eq!(scene.verify(&[]).bad, None);
    let (size, was, place) = truncated(scene.verify(&[&saved]));
    assert_eq!((size, was), (25, 30));
    assert_eq!(place, format!("{}, line 3", saved.display()));
    // So is whoever removes everything, and a single note will do.
    let line: serde_json::Value = serde_json::from_str(text.lines().nth(1).expect("a line")).expect("JSON");
    fs::write(&saved, line["checkpoint"].as_str().expect("a note")).expect("a note");
    fs::remove_file(&checkpoints).expect("removed");
    fs::remove_file(scene.segment()).expect("removed");
    let (size, was, _) = truncated(scene.verify(&[&saved]));
    assert_eq!((size, was), (0, 20));
}

#[tokio::test]
async fn a_log_that_was_written_anew_is_not_that_of_the_next_checkpoint() {
    for (index, expected) in [(3, (0, 9)), (12, (10, 19)), (19, (10, 19)), (20, (20, 29))] {
        let scene = Scene::new().await;
        scene.edit(|lines| {
            let mut tip = Tip::default();
            for (line, text) in lines.iter_mut().enumerate().skip(1) {
                let mut event = Record::parse(text.as_bytes()).expect("a record").event;
                if line == index + 1 {
                    event.detail = "nothing happened".to_owned();
                }
                *text = String::from_utf8(tip.append(&event)).expect("UTF-8");
            }
        });
        match scene.verify(&[]).bad {
            Some(Bad::Rewritten { from, to, .. }) => assert_eq!((from, to), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn checkpoints_of_others_and_edited_ones_are_not_believed() {
    let scene = Scene::new().await;
    let (other, tip) = (ServiceKey::new(), Tip::default());
    let key = other.log_key();
    let checkpoint = Checkpoint::new(key.origin(Log::Calls), &tip);
    let note = checkpoint.note(&key, &other.sign_now(checkpoint.text().as_bytes())).expect("it verifies");
    let file = scene.dir.path().join("note");
    fs::write(&file, note).expect("written");
    let (known, problem) = evidence::elsewhere(&file, &scene.key.log_key()).expect("read");
    assert_eq!(known, []);
    assert!(problem.expect("refused").contains("not signed by this installation's service key"));

    let file = scene.dir.path().join("checkpoints-calls.jsonl");
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, text.replacen(r"\n20\n", r"\n21\n", 1)).expect("edited");
    let bad = scene.verify(&[]).also.join("; ");
    assert!(bad.contains("checkpoints-calls.jsonl, line 2: its signature by the service key does not verify"), "{bad}");
}

#[tokio::test]
async fn a_segment_is_confirmed_by_the_checkpoints_after_it() {
    let scene = Scene::new().await;
    let lines: Vec<_> = scene.text().lines().map(ToOwned::to_owned).collect();
    let mut head: serde_json::Value = serde_json::from_str(&lines[0]).expect("a head");
    // The log as if a segment had begun with record 15, and the one before it had been archived.
    let mut tip = Tip::default();
    lines[1..16].iter().for_each(|line| drop(tip.follow(line.as_bytes()).expect("the next record")));
    head["tip"] = serde_json::to_value(&tip).expect("JSON");
    let second = scene.dir.path().join(format!("calls-{:020}.jsonl", 15));
    let rest = format!("{head}\n{}\n", lines[16..].join("\n"));
    fs::write(&second, &rest).expect("written");
    scene.edit(|lines| lines.truncate(16));
    let whole = scene.verify(&[]);
    assert_eq!((whole.bad, whole.segments, whole.size), (None, 2, 35));
    // The last record of a segment, edited.
    let first = scene.text();
    scene.edit(|lines| lines[15] = lines[15].replace(r#""sign""#, r#""read""#));
    assert_eq!(scene.first_bad(), 14);
    fs::write(scene.segment(), first).expect("put back");
    // The older segment archived: the checkpoint of 20 records confirms where the newer one says that it begins.
    fs::rename(scene.segment(), scene.dir.path().join("archived")).expect("archived");
    let findings = scene.verify(&[]);
    assert_eq!((findings.bad, findings.first, findings.size, findings.confirmed), (None, 15, 35, Some(30)));
    assert!(findings.notes[0].contains("records 0 to 14 are not here"), "{:?}", findings.notes);
    // A head that was made to fit other records.
    let other = rest.replacen(&tip.root().to_string(), &tip.last().expect("a record").to_string(), 1);
    let peaks = head["tip"]["frontier"]["peaks"].as_array().expect("a list");
    let peak = peaks[0].as_str().expect("a hash");
    let other = other.replacen(peak, peaks[1].as_str().expect("a hash"), 1);
    fs::write(&second, other).expect("edited");
    assert!(matches!(scene.verify(&[]).bad, Some(Bad::Rewritten { from: 15, to: 19, .. })));
}
