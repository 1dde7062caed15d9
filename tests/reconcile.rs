//! `keyward reconcile` over a real token that others have changed past Keyward.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Clients, Installation, Server, keyward, short_policy, token_user};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use keyward::grpc::proto::ListSigningKeysRequest;
use serde_json::Value;

/// How long a start's report may take, and how often to look for it.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The exit status that says that something differs.
const DIFFERENT: Option<i32> = Some(3);

/// An id that no row names, and one of 16 octets that is somebody else's.
const ORPHAN: &str = "00112233445566778899aabbccddeeff";
const FOREIGN: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";

#[test]
fn every_difference_is_told_and_only_what_nobody_needs_is_destroyed() {
    if let Some(order) = token_user::order() {
        return obey(&order);
    }
    let (installation, keys) = with_tenant();
    let have = |order: &str| {
        let pin = fs::read_to_string(installation.pin_file()).expect("a PIN");
        let test = "every_difference_is_told_and_only_what_nobody_needs_is_destroyed";
        token_user::have(&installation, test, &pin, order);
    };
    let reconcile = |arguments: &[&str]| output(installation.command("reconcile").args(arguments));

    // 1. Nothing differs, also where others have objects of their own.
    have("make foreign");
    let clean = reconcile(&[]);
    assert_eq!(clean.status.code(), Some(0), "{}", said(&clean));
    shows(&clean, "findings: 0; objects on the tokens: 12, not Keyward's: 2; ids in the store: 5");

    // 2. Somebody was there.
    let [missing, half, duplicate] = [("ES256", "current"), ("ES256", "next"), ("EdDSA", "current")]
        .map(|(algorithm, state)| keys[&(algorithm.to_owned(), state.to_owned())].as_str());
    for order in
        ["destroy all", "destroy private", "make pair", "make pair"].iter().zip([missing, half, duplicate, ORPHAN])
    {
        have(&format!("{} {}", order.0, order.1));
    }
    let told = reconcile(&[]);
    assert_eq!(told.status.code(), DIFFERENT, "{}", said(&told));
    for line in [
        format!("missing {missing}: nothing on token home, current key "),
        format!("half {half}: 1 public key on token home, next key "),
        format!("duplicate {duplicate}: 2 private keys, 2 public keys on token home, current key "),
        format!("orphan {ORPHAN}: 1 private key, 1 public key on token home, and no row accounts for it"),
        "findings: 4".to_owned(),
    ] {
        assert_eq!(said(&told).matches(&line).count(), 1, "{line:?} in {}", said(&told));
    }
    let json: Value = serde_json::from_slice(&reconcile(&["--json"]).stdout).expect("JSON");
    assert_eq!((json["findings"].as_array().map(Vec::len), json["objects"].as_u64()), (Some(4), Some(13)));
    assert_eq!((&json["findings"][0]["kind"], &json["findings"][0]["tenant"]), (&"missing".into(), &"acme".into()));
    assert_eq!(json["foreign"].as_array().map(Vec::len), Some(2));

    // 3. What a row needs, what is not Keyward's and what is not there: refused, and the orphan beside it stays.
    let service: Value =
        serde_json::from_slice(&fs::read(installation.dir().join("service-key.json")).expect("it is pinned"))
            .expect("JSON");
    for (object, why) in [
        (duplicate, "is accounted for: current key"),
        (missing, "is accounted for: current key"),
        (half, "is accounted for: next key"),
        (service["cka_id"].as_str().expect("an id"), "is accounted for: the service key"),
        (FOREIGN, "is not Keyward's"),
        ("ffffffffffffffffffffffffffffffff", "is not on a token"),
    ] {
        let refused = reconcile(&["--destroy", ORPHAN, "--destroy", object]);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        shows(&refused, &format!("{object} {why}"));
        shows(&reconcile(&[]), "findings: 4; objects on the tokens: 13");
    }

    // 4. The orphan alone goes, and the log of administration says who did it.
    let destroyed = reconcile(&["--destroy", ORPHAN]);
    assert_eq!(destroyed.status.code(), DIFFERENT, "the other differences stay: {}", said(&destroyed));
    shows(&destroyed, &format!("destroyed {ORPHAN}"));
    shows(&reconcile(&[]), "findings: 3; objects on the tokens: 11, not Keyward's: 2");
    let mut list = keyward();
    let list = output(list.args(["audit", "list", "--config"]).arg(installation.config_file()));
    shows(&list, &format!("method=keyward reconcile detail=is to destroy objects {ORPHAN}"));
    shows(&list, &format!("method=keyward reconcile detail=destroyed objects {ORPHAN}"));
}

#[test]
fn a_start_tells_what_differs_and_changes_nothing() {
    if let Some(order) = token_user::order() {
        return obey(&order);
    }
    let (installation, _) = with_tenant();
    let pin = fs::read_to_string(installation.pin_file()).expect("a PIN");
    let test = "a_start_tells_what_differs_and_changes_nothing";
    token_user::have(&installation, test, &pin, &format!("make pair {ORPHAN}"));

    let server = installation.serve();
    until_logged(&server, &format!("token and store differ: orphan {ORPHAN}"));
    until_logged(&server, "findings=1");
    assert!((server.metric("keyward_reconcile_findings{kind=\"orphan\",token=\"home\"}") - 1.0).abs() < f64::EPSILON);
    assert!(server.metric("keyward_reconcile_findings{kind=\"missing\",token=\"home\"}").abs() < f64::EPSILON);
    // The store is in use: the command says so, and what to do.
    let busy = output(&mut installation.command("reconcile"));
    assert_eq!(busy.status.code(), Some(1), "{}", said(&busy));
    shows(&busy, "in use by another Keyward process; stop that one first");
    assert!(server.terminate().success());
    shows(&output(&mut installation.command("reconcile")), "findings: 1; objects on the tokens: 12");

    let quiet = installation.set("token.reconcile_at_start", "false");
    let server = quiet.serve();
    assert!(server.terminate().success());
}

/// What is under an id that looks like Keyward's although a record was not believed may be that tenant's, or is.
#[test]
fn nothing_is_destroyed_while_a_record_is_not_believed() {
    if let Some(order) = token_user::order() {
        return obey(&order);
    }
    let edited = "update keyring set document = replace(document, 'current', 'next')";
    for edit in [edited, "delete from keyring; delete from tenant"] {
        let (installation, keys) = with_tenant();
        let pin = fs::read_to_string(installation.pin_file()).expect("a PIN");
        let test = "nothing_is_destroyed_while_a_record_is_not_believed";
        token_user::have(&installation, test, &pin, &format!("make pair {ORPHAN}"));
        edit_store(&installation, edit);
        let told = output(&mut installation.command("reconcile"));
        assert_eq!(told.status.code(), DIFFERENT, "{}", said(&told));
        shows(&told, "unbelieved acme");
        for object in [ORPHAN, &keys[&("ES256".to_owned(), "current".to_owned())]] {
            let refused = output(installation.command("reconcile").args(["--destroy", object]));
            assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
            shows(&refused, "may be of tenant acme, whose record is not believed");
        }
        shows(&output(&mut installation.command("reconcile")), "objects on the tokens: 12");
    }
}

/// An installation that has a tenant with two keyrings, at rest; CKA_ID of each key by algorithm and state.
fn with_tenant() -> (Installation, BTreeMap<(String, String), String>) {
    let installation = Installation::prepare();
    let server = installation.serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listed = runtime.block_on(async {
        let mut clients = Clients::connect(&server).await;
        clients.create_tenant("acme", &["ES256", "EdDSA"], short_policy()).await;
        let request = ListSigningKeysRequest { tenant: "acme".into(), ..ListSigningKeysRequest::default() };
        clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys
    });
    drop(runtime);
    assert!(server.terminate().success());
    let keys = listed.into_iter().map(|key| {
        let state = key.state().as_str_name().trim_start_matches("KEY_STATE_").to_ascii_lowercase();
        ((key.algorithm, state), key.protection.expect("it is shown").cka_id)
    });
    (installation, keys.collect())
}

/// Does something to the token as somebody who has the PIN and is not Keyward: `make foreign`, `make pair ID`,
/// `destroy all ID` or `destroy private ID`.
fn obey(order: &str) {
    let session = token_user::session();
    let words: Vec<&str> = order.split(' ').collect();
    let octets = |id: &str| u128::from_str_radix(id, 16).expect("an id").to_be_bytes().to_vec();
    match *words.as_slice() {
        ["make", "foreign"] => {
            let key = [
                Attribute::ValueLen(32.into()),
                Attribute::Token(true),
                Attribute::Id(octets(FOREIGN)),
                Attribute::Label(b"somebody's".to_vec()),
            ];
            session.generate_key(&Mechanism::AesKeyGen, &key).expect("a key");
            let data = [Attribute::Class(ObjectClass::DATA), Attribute::Token(true)];
            session.create_object(&data).expect("an object");
        }
        ["make", "pair", id] => {
            let mut named = vec![Attribute::Token(true), Attribute::Id(octets(id))];
            named.push(Attribute::Label(format!("keyward {id}").into_bytes()));
            let mut public = named.clone();
            // P-256 (RFC 5480 section 2.1.1.1).
            public.push(Attribute::EcParams(vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]));
            session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &named).expect("a pair");
        }
        ["destroy", which, id] => {
            let mut template = vec![Attribute::Id(octets(id))];
            template.extend((which == "private").then_some(Attribute::Class(ObjectClass::PRIVATE_KEY)));
            let found = session.find_objects(&template).expect("a search");
            assert!(!found.is_empty(), "{order}");
            found.into_iter().for_each(|object| session.destroy_object(object).expect("it goes"));
        }
        _ => panic!("no order: {order}"),
    }
}

/// Edits the store, as somebody could who has the file and not the token.
fn edit_store(installation: &Installation, edit: &'static str) {
    use sqlx::ConnectOptions as _;
    let path = installation.dir().join("store.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut connection = options.connect().await.expect("it opens");
        sqlx::raw_sql(edit).execute(&mut connection).await.expect("edited");
        sqlx::Connection::close(connection).await.expect("it closes");
    });
}

/// SoftHSM cannot tell of a token that another process logs in to at that moment, and shows none that it met so at C_Initialize.
#[test]
fn a_token_that_cannot_be_read_for_a_moment_is_looked_at_again() {
    let (installation, faults) = Installation::bare().with_faults();
    let installation = installation.init();
    for (rule, times) in [("C_GetTokenInfo answer CKR_GENERAL_ERROR 10 times", 10), ("C_GetSlotList answer 5 once", 1)]
    {
        faults.set(rule);
        let told = output(&mut installation.command("reconcile"));
        assert!(told.status.success(), "{rule}: {}", said(&told));
        assert_eq!(faults.fired(0), times, "{rule}");
    }
    // What stays as it is has its error, soon.
    faults.set("C_GetTokenInfo answer CKR_GENERAL_ERROR");
    let told = output(&mut installation.command("reconcile"));
    shows(&told, "the token is not available: C_GetTokenInfo: CKR_GENERAL_ERROR");
}

fn until_logged(server: &Server, words: &str) {
    let deadline = Instant::now() + WAIT_MAX;
    while !server.log().iter().any(|line| line.contains(words)) {
        assert!(Instant::now() < deadline, "{words:?} was not logged");
        std::thread::sleep(POLL);
    }
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the command runs")
}

fn shows(output: &Output, words: &str) {
    assert!(said(output).contains(words), "{words:?} is not in: {}", said(output));
}

/// Everything that a command printed.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}
