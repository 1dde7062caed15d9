//! Each return value that says that something is not well, in each function that signing and rotation need: docs/token-faults.md
//! has what comes of it, and this is what writes it.

#[path = "../common/mod.rs"]
mod common;

mod cells;
#[path = "../survival/stand.rs"]
mod stand;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cells::{Call, Lasting, Outcome, Place};
use common::Installation;
use stand::{Isolation, Stand};
use tokio::task::JoinHandle;

/// If set, the page is written anew and not compared.
const REWRITE: &str = "KEYWARD_REWRITE_DOCS";
/// What the table stands between, and how it begins.
const BEGIN: &str = "<!-- written by tests/token_faults -->\n";
const END: &str = "<!-- to here -->\n";
const HEAD: &str =
    "| call | function | answers | once | for a second | for good |\n| --- | --- | --- | --- | --- | --- |\n";
/// Servers for each function; each has its share of the values.
const SHARDS: usize = 2;
/// So often a fault is tried that may have met nobody, or another than the caller.
const TRIES: usize = 8;

const VALUES: [&str; 14] = [
    "CKR_DEVICE_REMOVED",
    "CKR_DEVICE_ERROR",
    "CKR_TOKEN_NOT_PRESENT",
    "CKR_SESSION_HANDLE_INVALID",
    "CKR_SESSION_CLOSED",
    "CKR_USER_NOT_LOGGED_IN",
    "CKR_OBJECT_HANDLE_INVALID",
    "CKR_KEY_HANDLE_INVALID",
    "CKR_SESSION_COUNT",
    "CKR_OPERATION_ACTIVE",
    "CKR_HOST_MEMORY",
    "CKR_GENERAL_ERROR",
    "CKR_FUNCTION_FAILED",
    "CKR_CRYPTOKI_NOT_INITIALIZED",
];
const LASTING: [Lasting; 3] = [Lasting::Once, Lasting::ASecond, Lasting::ForGood];

/// Sessions, logins and handles are kept: what makes them anew is that they are lost.
const LOST: &str = "C_SignInit lose-sessions once";
const PLACES: [Place; 6] = [
    Place { function: "C_Sign", trigger: "", call: Call::SignJwt },
    Place { function: "C_SignInit", trigger: "", call: Call::SignJwt },
    Place { function: "C_FindObjects", trigger: LOST, call: Call::SignJwt },
    Place { function: "C_Login", trigger: LOST, call: Call::SignJwt },
    Place { function: "C_OpenSession", trigger: LOST, call: Call::SignJwt },
    Place { function: "C_GenerateKeyPair", trigger: "", call: Call::RotateSigningKey },
];

type Row = [Outcome; 3];
/// The lines of one function by the number of the value, and the longest return.
type Rows = (BTreeMap<usize, Row>, Duration);

#[tokio::test(flavor = "multi_thread")]
async fn the_page_tells_what_comes_of_each_return_value_with_processes() {
    holds(Isolation::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_tells_what_comes_of_each_return_value_with_threads() {
    holds(Isolation::Thread).await;
}

/// Measures, and compares with the page: it is the same with processes and with threads.
async fn holds(isolation: Isolation) {
    let measured: Vec<_> = PLACES.into_iter().map(|place| (place, measure(isolation, place))).collect();
    let mut table = String::from(HEAD);
    for (place, rows) in measured {
        let (rows, longest) = rows.await.expect("no server fails");
        println!("{isolation:?}, {}: all was well {longest:?} after a fault at the latest", place.function);
        write_place(&mut table, place, &rows);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/token-faults.md");
    let text = fs::read_to_string(&page).expect("the page");
    let (before, rest) = text.split_once(BEGIN).expect("the page has a table");
    let (committed, after) = rest.split_once(END).expect("the table has an end");
    if std::env::var_os(REWRITE).is_some() {
        fs::write(&page, [before, BEGIN, &table, END, after].concat()).expect("the page is written");
    } else {
        assert_eq!(committed, table, "docs/token-faults.md says otherwise; {REWRITE}=1 writes it anew");
    }
}

/// All values in one function.
fn measure(isolation: Isolation, place: Place) -> JoinHandle<Rows> {
    tokio::spawn(async move {
        let shards = (0..SHARDS).map(|shard| {
            tokio::spawn(async move {
                let one = |it: Installation| it.set("token.workers", "1");
                let mut stand = Stand::with(isolation, &["ES256"], one).await;
                let mut rows = Vec::new();
                for value in (shard..VALUES.len()).step_by(SHARDS) {
                    let (row, returned) = suffer_all(&mut stand, place, VALUES[value]).await;
                    rows.push((value, row, returned));
                }
                rows
            })
        });
        let shards: Vec<_> = shards.collect();
        let (mut rows, mut longest) = (BTreeMap::new(), Duration::ZERO);
        for shard in shards {
            for (value, row, returned) in shard.await.expect("no server fails") {
                rows.insert(value, row);
                longest = longest.max(returned);
            }
        }
        (rows, longest)
    })
}

async fn suffer_all(stand: &mut Stand, place: Place, value: &str) -> (Row, Duration) {
    let mut row = Vec::new();
    let mut longest = Duration::ZERO;
    for lasting in LASTING {
        let (outcome, returned) = suffer(stand, place, value, lasting).await;
        longest = longest.max(returned);
        row.push(outcome);
    }
    (row.try_into().expect("one of each"), longest)
}

/// What comes of it. The service's own calls may meet the one fault before the caller does, and a busy machine may stand still for
/// the second: what is seen twice is so.
async fn suffer(stand: &mut Stand, place: Place, value: &str, lasting: Lasting) -> (Outcome, Duration) {
    let mut seen = stand.suffer(place, value, lasting).await;
    if lasting == Lasting::ForGood || lasting == Lasting::ASecond && seen.0.is_noticed() {
        return seen;
    }
    for _ in 0..TRIES {
        let again = stand.suffer(place, value, lasting).await;
        if again.0 == seen.0 {
            return again;
        }
        seen = again;
    }
    panic!("{value} in {} {lasting:?}: never the same twice in a row, and the last time {}", place.function, seen.0);
}

/// The lines of one function; values with the same outcome share one.
fn write_place(table: &mut String, place: Place, rows: &BTreeMap<usize, Row>) {
    let mut lines: Vec<(&Row, Vec<&str>)> = Vec::new();
    for (value, row) in rows {
        match lines.iter_mut().find(|(other, _)| *other == row) {
            Some((_, values)) => values.push(VALUES[*value]),
            None => lines.push((row, vec![VALUES[*value]])),
        }
    }
    let Place { function, call, .. } = place;
    for ([once, second, good], values) in lines {
        let values = if values.len() == VALUES.len() { "any of the fourteen".to_owned() } else { values.join(", ") };
        writeln!(table, "| {call:?} | {function} | {values} | {once} | {second} | {good} |")
            .expect("a String takes all");
    }
}
