//! The fault module between cryptoki and SoftHSM: each fault that docs/fault-module.md promises, shown.
//!
//! A module is initialised once in a process, and finds its rules in the environment. So each test runs itself again as a
//! child with a token of its own, and judges the child by its exit.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Faults, Installation};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

/// Tells a child where its token is.
const HOME: &str = "KEYWARD_TEST_FAULTS_HOME";
/// DER of secp256r1 (RFC 5480 section 2.1.1.1).
const P_256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const SIGSEGV: i32 = 11;
const SIGABRT: i32 = 6;

/// A token with the fault module before it, for children.
struct Home {
    installation: Installation,
    faults: Faults,
}

impl Home {
    fn new() -> Self {
        let installation = Installation::bare();
        let faults = Faults::new(installation.dir());
        Self { installation, faults }
    }

    /// Begins `test` in a child.
    fn child(&self, test: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("a test has a file"));
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(HOME, self.installation.dir()).env("SOFTHSM2_CONF", self.installation.softhsm_conf());
        command.envs(self.faults.environment());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a test starts")
    }

    fn run(&self, test: &str) -> Output {
        self.child(test).wait_with_output().expect("a child can be waited for")
    }
}

/// A child's view of it.
struct Stand {
    faults: Faults,
    pkcs11: Pkcs11,
    slot: Slot,
    pin: AuthPin,
}

impl Stand {
    /// `None` in the parent.
    fn of_child() -> Option<Self> {
        let home = PathBuf::from(std::env::var_os(HOME)?);
        let pkcs11 = Pkcs11::new(Faults::module()).expect("the fault module is loaded");
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("SoftHSM is initialised");
        let slot = pkcs11.get_slots_with_initialized_token().expect("slots")[0];
        let pin = fs::read_to_string(home.join("pin")).expect("the PIN").into();
        Some(Self { faults: Faults::at(&home), pkcs11, slot, pin })
    }

    fn session(&self) -> Session {
        self.pkcs11.open_rw_session(self.slot).expect("a session")
    }

    fn logged_in(&self) -> Session {
        let session = self.session();
        session.login(UserType::User, Some(&self.pin)).expect("logged in");
        session
    }

    /// A session that is logged in, and the halves of a key pair.
    fn with_key(&self) -> (Session, ObjectHandle, ObjectHandle) {
        let session = self.logged_in();
        let (public, private) = generate(&session).expect("a key pair");
        (session, public, private)
    }
}

/// Runs `body` in a child, and passes if it did.
fn alone(test: &str, body: impl FnOnce(&Stand)) {
    if let Some(stand) = Stand::of_child() {
        return body(&stand);
    }
    passed(test, &Home::new().run(test));
}

fn passed(test: &str, child: &Output) {
    let said = String::from_utf8_lossy(&child.stdout);
    // Without a look at the count, a mistyped `test` would pass by running nothing.
    let well = child.status.success() && said.contains("1 passed");
    assert!(well, "{test}: {}\n{said}{}", child.status, String::from_utf8_lossy(&child.stderr));
}

fn generate(session: &Session) -> Result<(ObjectHandle, ObjectHandle), Error> {
    let public = [Attribute::Token(true), Attribute::Private(false), Attribute::EcParams(P_256.to_vec())];
    let private = [Attribute::Token(true), Attribute::Private(true), Attribute::Sign(true)];
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.sign(&Mechanism::Ecdsa, key, &[7; 32])
}

fn is_valid(session: &Session, key: ObjectHandle, signature: &[u8]) -> bool {
    session.verify(&Mechanism::Ecdsa, key, &[7; 32], signature).is_ok()
}

fn value<T>(result: Result<T, Error>) -> Option<RvError> {
    match result {
        Ok(_) => None,
        Err(Error::Pkcs11(value, _)) => Some(value),
        Err(other) => panic!("not a return value: {other}"),
    }
}

/// Mappings of this process.
fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("Linux tells them").lines().count()
}

/// Which of so many calls of C_SignInit fail.
fn failing(session: &Session, key: ObjectHandle, calls: usize) -> Vec<usize> {
    (1..=calls).filter(|_| sign(session, key).is_err()).collect()
}

#[test]
fn without_rules_all_is_as_it_is_and_counted() {
    alone("without_rules_all_is_as_it_is_and_counted", |stand| {
        let (session, public, private) = stand.with_key();
        assert!(is_valid(&session, public, &sign(&session, private).expect("signed")));
        assert_eq!(stand.faults.calls("C_Login"), 1);
        assert_eq!(stand.faults.calls("C_GenerateKeyPair"), 1);
        // Once for the length of the signature.
        assert_eq!((stand.faults.calls("C_SignInit"), stand.faults.calls("C_Sign")), (1, 2));
        assert_eq!(stand.faults.calls("C_Logout"), 0);
    });
}

#[test]
fn who_looks_at_the_counts_again_and_again_leaves_nothing_behind() {
    alone("who_looks_at_the_counts_again_and_again_leaves_nothing_behind", |stand| {
        let session = stand.logged_in();
        stand.faults.set("C_GetSessionInfo after delay 1us");
        let before = mappings();
        for _ in 0..200 {
            session.get_session_info().expect("told");
            stand.faults.set("C_GetSessionInfo after delay 1us");
            assert_eq!(stand.faults.fired(0), 0);
        }
        assert!(mappings() < before + 50, "{} mappings, {before} before", mappings());
    });
}

#[test]
fn any_function_answers_any_value() {
    alone("any_function_answers_any_value", |stand| {
        let (session, _, private) = stand.with_key();
        stand
            .faults
            .set("C_SignInit answer CKR_DEVICE_REMOVED\nC_OpenSession answer 0x80000001\nC_FindObjects answer 6");
        assert_eq!(value(sign(&session, private)), Some(RvError::DeviceRemoved));
        assert_eq!(value(stand.pkcs11.open_ro_session(stand.slot)), Some(RvError::VendorDefined(0x8000_0001)));
        assert_eq!(value(session.find_objects(&[])), Some(RvError::FunctionFailed));
        assert_eq!([0, 1, 2].map(|rule| stand.faults.fired(rule)), [1, 1, 1]);
        stand.faults.set("* answer CKR_TOKEN_NOT_PRESENT");
        assert_eq!(value(session.get_session_info()), Some(RvError::TokenNotPresent));
        assert_eq!(value(stand.pkcs11.get_all_slots()), Some(RvError::TokenNotPresent));
        stand.faults.clear();
        sign(&session, private).expect("the rules are gone");
    });
}

#[test]
fn a_rule_says_which_calls() {
    alone("a_rule_says_which_calls", |stand| {
        let (session, _, private) = stand.with_key();
        for (when, calls) in [
            ("once", vec![1]),
            ("3 times", vec![1, 2, 3]),
            ("every 4", vec![4, 8, 12]),
            ("skip 10", vec![11, 12]),
            ("skip 2 every 4 2 times", vec![6, 10]),
            ("for 0s", vec![]),
            ("", (1..=12).collect()),
        ] {
            stand.faults.set(&format!("C_SignInit answer CKR_GENERAL_ERROR {when}"));
            let numbers = (1..=12).filter(|_| sign(&session, private).is_err());
            assert_eq!(numbers.collect::<Vec<_>>(), calls, "{when}");
            assert_eq!(stand.faults.fired(0), calls.len() as u64, "{when}");
        }
        stand.faults.set("C_SignInit answer CKR_GENERAL_ERROR share 10%");
        let share = failing(&session, private, 1000);
        assert!((70..=130).contains(&share.len()), "{} of 1000", share.len());
        stand.faults.set("C_SignInit answer CKR_GENERAL_ERROR share 10%");
        assert_eq!(failing(&session, private, 1000), share, "the same in each run");
    });
}

#[test]
fn a_rule_holds_for_a_time() {
    alone("a_rule_holds_for_a_time", |stand| {
        let (session, _, private) = stand.with_key();
        let begun = Instant::now();
        stand.faults.set("C_SignInit answer CKR_DEVICE_ERROR for 300ms");
        assert_eq!(value(sign(&session, private)), Some(RvError::DeviceError));
        while sign(&session, private).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it never ends");
        }
        // The clock of files ticks every few milliseconds.
        assert!(begun.elapsed() > Duration::from_millis(250), "{:?}", begun.elapsed());
    });
}

#[test]
fn what_failed_may_have_happened() {
    alone("what_failed_may_have_happened", |stand| {
        let session = stand.logged_in();
        stand.faults.set("C_GenerateKeyPair after answer CKR_DEVICE_ERROR once");
        assert_eq!(value(generate(&session)), Some(RvError::DeviceError));
        assert_eq!(session.find_objects(&[]).expect("a search").len(), 2, "the pair was made");
        stand.faults.set("C_GenerateKeyPair answer CKR_DEVICE_ERROR once");
        assert_eq!(value(generate(&session)), Some(RvError::DeviceError));
        assert_eq!(session.find_objects(&[]).expect("a search").len(), 2, "no pair was made");
    });
}

#[test]
fn a_call_hangs_until_the_rules_change() {
    alone("a_call_hangs_until_the_rules_change", |stand| {
        let (session, _, private) = stand.with_key();
        stand.faults.set("C_Sign hang once");
        let hanging = thread::spawn(move || {
            sign(&session, private).expect("it goes on");
            (session, private)
        });
        let limit = Instant::now() + Duration::from_secs(30);
        while stand.faults.fired(0) == 0 {
            assert!(Instant::now() < limit, "C_Sign is not called");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!hanging.is_finished());
        stand.faults.clear();
        let (session, private) = hanging.join().expect("no panic");
        for rule in ["C_Sign hang 200ms once", "C_Sign delay 200000us once", "C_Sign after delay 200ms once"] {
            stand.faults.set(rule);
            let begun = Instant::now();
            sign(&session, private).expect("it goes on");
            assert!(begun.elapsed() >= Duration::from_millis(200), "{rule}: {:?}", begun.elapsed());
        }
    });
}

#[test]
fn signatures_are_wrong_short_or_empty() {
    alone("signatures_are_wrong_short_or_empty", |stand| {
        let (session, public, private) = stand.with_key();
        stand.faults.set("C_Sign flip every 10");
        let wrong: Vec<_> = (1..=40)
            .filter(|_| !is_valid(&session, public, &sign(&session, private).expect("OK is answered")))
            .collect();
        // The calls that ask for a length give no signature, and do not count.
        assert_eq!(wrong, [10, 20, 30, 40]);
        assert_eq!(stand.faults.fired(0), 4);
        for (rule, len) in [("C_Sign shorten", 63), ("C_Sign empty", 0), ("C_Sign flip", 64)] {
            stand.faults.set(rule);
            assert_eq!(sign(&session, private).expect("OK is answered").len(), len, "{rule}");
        }
    });
}

#[test]
fn sessions_are_lost() {
    alone("sessions_are_lost", |stand| {
        let (session, _, private) = stand.with_key();
        let other = stand.session();
        stand.faults.set("C_SignInit lose-sessions once");
        assert_eq!(value(sign(&session, private)), Some(RvError::SessionHandleInvalid));
        assert_eq!(value(sign(&session, private)), Some(RvError::SessionHandleInvalid));
        assert_eq!(value(other.get_session_info()), Some(RvError::SessionHandleInvalid));
        assert_eq!(value(other.close()), Some(RvError::SessionHandleInvalid));
        // A new one is none of them, and the login went with the last.
        let new = stand.session();
        assert_eq!(new.get_session_info().expect("it is known").session_state(), SessionState::RwPublic);
        new.login(UserType::User, Some(&stand.pin)).expect("logged in again");
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
        let private = new.find_objects(&template).expect("a search")[0];
        sign(&new, private).expect("signed");
    });
}

#[test]
fn the_login_is_lost() {
    alone("the_login_is_lost", |stand| {
        let (session, _, private) = stand.with_key();
        stand.faults.set("C_SignInit lose-login once");
        assert!(sign(&session, private).is_err());
        assert_eq!(session.get_session_info().expect("it is open").session_state(), SessionState::RwPublic);
        assert_eq!(stand.faults.calls("C_Logout"), 0, "nobody asked for it");
    });
}

#[test]
fn sessions_are_few() {
    alone("sessions_are_few", |stand| {
        stand.faults.set("C_OpenSession limit 2");
        let (first, _second) = (stand.session(), stand.session());
        assert_eq!(value(stand.pkcs11.open_ro_session(stand.slot)), Some(RvError::SessionCount));
        first.close().expect("closed");
        stand.session();
    });
}

#[test]
fn no_object_is_shown() {
    alone("no_object_is_shown", |stand| {
        let (session, ..) = stand.with_key();
        stand.faults.set("C_FindObjects show-none");
        assert!(session.find_objects(&[]).expect("OK is answered").is_empty());
        stand.faults.clear();
        assert_eq!(session.find_objects(&[]).expect("a search").len(), 2);
    });
}

#[test]
fn a_crash_is_a_real_one_and_once_is_once_over_all_processes() {
    let test = "a_crash_is_a_real_one_and_once_is_once_over_all_processes";
    if let Some(stand) = Stand::of_child() {
        let (session, _, private) = stand.with_key();
        sign(&session, private).expect("signed");
        return;
    }
    let home = Home::new();
    home.faults.set("C_Sign crash once");
    let crashed = home.run(test);
    assert_eq!(crashed.status.signal(), Some(SIGSEGV), "{crashed:?}");
    passed(test, &home.run(test));
    assert_eq!(home.faults.fired(0), 1);
    // One of the child that crashed, two of the other: the counts are those of both.
    assert_eq!(home.faults.calls("C_Sign"), 3);
    home.faults.set("C_Sign after crash once");
    assert_eq!(home.run(test).status.signal(), Some(SIGSEGV));
}

#[test]
fn processes_share_the_counts_and_the_rules() {
    const CALLS: usize = 500;
    let test = "processes_share_the_counts_and_the_rules";
    if let Some(stand) = Stand::of_child() {
        let session = stand.session();
        let failed = (0..CALLS).filter(|_| session.get_session_info().is_err()).count();
        println!("failed: {failed}.");
        return;
    }
    let home = Home::new();
    home.faults.set("C_GetSessionInfo answer CKR_GENERAL_ERROR every 7 100 times");
    let children: Vec<_> = (0..4).map(|_| home.child(test)).collect();
    let mut failed = 0;
    for child in children {
        let output = child.wait_with_output().expect("a child can be waited for");
        passed(test, &output);
        let said = String::from_utf8(output.stdout).expect("text");
        let count = said.split("failed: ").nth(1).and_then(|rest| rest.split('.').next()).expect("a count");
        failed += count.parse::<u64>().expect("a number");
    }
    assert_eq!((failed, home.faults.fired(0)), (100, 100));
    assert_eq!(home.faults.calls("C_GetSessionInfo"), 4 * CALLS as u64);
}

#[test]
fn a_mistake_in_the_rules_ends_the_process_loudly() {
    let test = "a_mistake_in_the_rules_ends_the_process_loudly";
    if Stand::of_child().is_some() {
        return;
    }
    let home = Home::new();
    let control = home.installation.dir().join("faults");
    let told = |text: &str| {
        let child = home.run(test);
        assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        assert!(said.contains(text), "{said}");
    };
    fs::write(&control, "C_Sign crash once\nC_Sing crash\n").expect("written");
    told("line 2: PKCS#11 v2.40 has no function \"C_Sing\"");
    fs::remove_file(&control).expect("removed");
    told("KEYWARD_FAULTS_CONTROL = ");
}

#[test]
fn the_module_stands_before_a_server() {
    let (installation, faults) = Installation::bare().with_faults();
    let installation = installation.init();
    let before = faults.calls("C_Login");
    assert!(before >= 1, "init logs in");
    let server = installation.serve();
    assert!(faults.calls("C_Login") > before);
    assert!(server.terminate().success());
}
