//! Checkpoints: what is signed, and what is not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyward::audit::{Checkpoints, Keeper, OnFailure, Settings, Signing};
use keyward::domain::{Caller, Event, Timestamp};
use keyward::tlog::{Checkpoint, Log, Tip, Untrusted};
use keyward::x509;
use tokio_util::sync::CancellationToken;

use super::keys::{Records, ServiceKey};

const EVERY: Duration = Duration::from_secs(3600);

fn settings(directory: &Path) -> Settings {
    Settings { directory: directory.to_owned(), signing: Signing::Async, on_failure: OnFailure::Refuse }
}

fn event(detail: &str) -> Event {
    Event { detail: detail.to_owned(), ..Event::new(Timestamp::now(), "sign", &Caller::timer()) }
}

/// Opens the logs, records some calls, and makes the checkpoints of a service that ends.
async fn session(directory: &Path, key: &Arc<ServiceKey>, records: &Arc<Records>, calls: usize) -> Checkpoints {
    let keeper = Keeper::open(&settings(directory), &key.public(), EVERY).expect("opened");
    let checkpoints = keeper.logs().checkpoints().clone();
    for number in 0..calls {
        keeper.logs().calls().record(event(&number.to_string())).await.expect("recorded");
    }
    let end = CancellationToken::new();
    end.cancel();
    keeper.run(key.clone(), records.clone(), end).await;
    checkpoints
}

fn size_of(checkpoints: &Checkpoints, log: Log) -> u64 {
    checkpoints.latest(log).map_or(0, |signed| signed.checkpoint.size)
}

#[test]
fn a_note_verifies_with_openssl_and_names_the_key_as_the_format_says() {
    let key = ServiceKey::new();
    let log_key = key.log_key();
    let mut tip = Tip::default();
    let _record = tip.append(&event("a"));
    let checkpoint = Checkpoint::new(log_key.origin(Log::Calls), &tip);
    let note = checkpoint.note(&log_key, &key.sign_now(checkpoint.text().as_bytes())).expect("it verifies");
    let (text, signature) = note.split_once("\n\n").expect("text and signature");
    let [dash, name, signature] = signature.trim_end().split(' ').collect::<Vec<_>>()[..] else { panic!("{note}") };
    assert_eq!((dash, name), ("\u{2014}", &*log_key.origin(Log::Calls)));
    let signature = STANDARD.decode(signature).expect("base64");

    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, octets: &[u8]| {
        fs::write(dir.path().join(name), octets).expect("written");
    };
    file("key.pem", x509::public_key_pem(&key.public()).as_bytes());
    file("text", format!("{text}\n").as_bytes());
    file("signature", &signature[4..]);
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir.path()).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    openssl(&["dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "text"]);
    // The key id: the first octets of the SHA-256 of the key in DER.
    file("key.der", &openssl(&["pkey", "-pubin", "-in", "key.pem", "-outform", "DER"]));
    let hash = openssl(&["dgst", "-sha256", "-binary", "key.der"]);
    assert_eq!(signature[..4], hash[..4]);
    let hex: String = hash[..16].iter().map(|octet| format!("{octet:02x}")).collect();
    assert_eq!(name, format!("keyward/{hex}/calls"));
    let verifier_key = log_key.verifier_key(Log::Calls);
    let der = STANDARD.encode([&[2], &*fs::read(dir.path().join("key.der")).expect("read")].concat());
    assert_eq!(verifier_key, format!("{name}+{}+{der}", &hex[..8]));
}

#[test]
fn a_note_is_believed_as_it_was_signed_and_by_this_key_alone() {
    let (key, other) = (ServiceKey::new(), ServiceKey::new());
    let log_key = key.log_key();
    let mut tip = Tip::default();
    let _record = tip.append(&event("a"));
    let checkpoint = Checkpoint::new(log_key.origin(Log::Administration), &tip);
    let note = checkpoint.note(&log_key, &key.sign_now(checkpoint.text().as_bytes())).expect("it verifies");
    assert_eq!(Checkpoint::verified(&note, &log_key), Ok(checkpoint.clone()));
    // Signatures of others, such as witnesses, are passed over.
    let witnessed = format!("{note}\u{2014} witness.example/1 AAAAAAAA\n");
    assert_eq!(Checkpoint::verified(&witnessed, &log_key), Ok(checkpoint.clone()));

    assert_eq!(checkpoint.note(&log_key, &other.sign_now(checkpoint.text().as_bytes())), None);
    let foreign = Checkpoint::verified(&note, &other.log_key());
    assert_eq!(foreign, Err(Untrusted::Foreign(checkpoint.origin.clone())));
    assert_eq!(Checkpoint::verified(&note.replace("\n1\n", "\n2\n"), &log_key), Err(Untrusted::Signature));
    let renamed = note.replace("administration", "calls");
    assert_eq!(Checkpoint::verified(&renamed, &log_key), Err(Untrusted::Signature));
    for malformed in [
        "",
        "\n\n",
        note.trim_end(),
        &note.replace("\n1\n", "\n01\n"),
        &note.replace("\n1\n", "\n-1\n"),
        &note.replace("\n1\n", "\n1\r\n"),
        &note.replace("\n1\n", "\n1\n\n"),
        &note.replace('\u{2014}', "-"),
        &note.replace("\n\n", "\n"),
        &format!("{note}\n"),
    ] {
        let refused = Checkpoint::verified(malformed, &log_key);
        assert!(matches!(refused, Err(Untrusted::Malformed(_))), "{malformed:?}: {refused:?}");
    }
}

#[tokio::test]
async fn checkpoints_follow_both_logs_from_one_start_to_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let (key, records) = (Arc::new(ServiceKey::new()), Arc::new(Records::default()));
    let checkpoints = session(dir.path(), &key, &records, 0).await;
    assert_eq!(checkpoints.latest(Log::Calls), None);
    for round in 1..4 {
        (0..1500).for_each(|number| records.append(&event(&number.to_string())));
        let checkpoints = session(dir.path(), &key, &records, 20).await;
        assert_eq!(size_of(&checkpoints, Log::Calls), round * 20);
        assert_eq!(size_of(&checkpoints, Log::Administration), round * 1500);
        let kept = Keeper::open(&settings(dir.path()), &key.public(), EVERY).expect("opened");
        assert_eq!(kept.logs().checkpoints().latest(Log::Calls), checkpoints.latest(Log::Calls));
        kept.logs().calls().close().await;
    }
    // A line that a crash tore is written over.
    let file = dir.path().join("checkpoints-calls.jsonl");
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, format!("{text}{{\"checkpoint\":\"key")).expect("torn");
    let checkpoints = session(dir.path(), &key, &records, 1).await;
    assert_eq!(size_of(&checkpoints, Log::Calls), 61);
    assert_eq!(fs::read_to_string(&file).expect("read").lines().count(), 4);
}

#[tokio::test]
async fn nothing_is_signed_that_does_not_go_on_from_the_checkpoint_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let (key, records) = (Arc::new(ServiceKey::new()), Arc::new(Records::default()));
    (0..10).for_each(|number| records.append(&event(&number.to_string())));
    session(dir.path(), &key, &records, 10).await;
    let rewritten = |count: usize| {
        let records = Records::default();
        (0..count).for_each(|number| records.append(&event(&format!("other {number}"))));
        Arc::new(records)
    };
    // A store that was put back, or whose log was written anew, shorter, as long and longer.
    for count in [0, 5, 10, 20] {
        let checkpoints = session(dir.path(), &key, &rewritten(count), 0).await;
        assert_eq!(size_of(&checkpoints, Log::Administration), 10, "{count}");
    }
    // One that was cut off.
    let shorter = Arc::new(Records::default());
    shorter.0.lock().expect("no panic").1 = records.0.lock().expect("no panic").1[..5].to_vec();
    assert_eq!(size_of(&session(dir.path(), &key, &shorter, 0).await, Log::Administration), 10);
    // The right one goes on.
    records.append(&event("10"));
    assert_eq!(size_of(&session(dir.path(), &key, &records, 0).await, Log::Administration), 11);
    // A checkpoint by another key does not open the log.
    let refused = Keeper::open(&settings(dir.path()), &ServiceKey::new().public(), EVERY).err().expect("refused");
    assert!(refused.to_string().contains("not signed by this installation's service key"), "{refused}");
}
