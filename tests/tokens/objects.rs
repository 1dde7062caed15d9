//! What stands on which token, and what accounts for it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType};
use keyward::grpc::proto::ListSigningKeysRequest;
use serde_json::Value;

use super::stand::{ACME, GLOBEX, PATIENCE, POLL, Stand, WEST, down, two_tokens, up};
use crate::common::{Installation, token_user};

/// The label of the home token.
const HOME_LABEL: &str = "keyward";

#[test]
fn a_tenants_keys_are_on_its_token_alone() {
    if let Some(order) = token_user::order() {
        return obey(&order);
    }
    let test = "objects::a_tenants_keys_are_on_its_token_alone";
    let installation = two_tokens().set("limits.manual_rotations_per_day", "100").init();
    let runtime = runtime();
    let (acme, globex) = runtime.block_on(async {
        let mut stand = Stand::new(&installation).await;
        let both = (keys(&mut stand, ACME, HOME_LABEL).await, keys(&mut stand, GLOBEX, WEST).await);
        stand.rotate(GLOBEX).await.expect("rotated");
        stand.sign(GLOBEX).await.expect("signed");
        assert!(stand.server.terminate().success());
        both
    });
    let (home, west) = (ids(&installation, test, HOME_LABEL), ids(&installation, test, WEST));
    assert!(acme.is_subset(&home) && acme.is_disjoint(&west), "{acme:?} {home:?} {west:?}");
    assert!(globex.is_subset(&west) && globex.is_disjoint(&home), "{globex:?} {home:?} {west:?}");
    // Two keys and the service key; two, one of the rotation, and the canary.
    assert_eq!((home.len(), west.len()), (3, 4));

    // The same keys and the same canary at the next start, and each has its account.
    runtime.block_on(async {
        let mut stand = Stand::again(&installation).await;
        stand.until_signed(GLOBEX).await;
        stand.until("both are up", |readyz| up(readyz, "home") && up(readyz, WEST)).await;
        assert!(stand.server.terminate().success());
    });
    assert_eq!(ids(&installation, test, WEST), west);
    let (code, said) = reconcile(&installation, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("findings: 0; objects on the tokens: 14, not Keyward's: 0; ids in the store: 7"), "{said}");

    // Somebody makes a pair on the one token under the id of a key on the other: it is an orphan where it stands.
    let id = acme.first().expect("a key");
    have(&installation, test, WEST, &format!("make {WEST} {id}"));
    let (code, said) = reconcile(&installation, &[]);
    assert_eq!(code, Some(3), "{said}");
    let line = format!("orphan {id}: 1 private key, 1 public key on token west, and no row accounts for it");
    assert!(said.contains(&line), "{said}");
    assert!(said.contains("findings: 1;"), "{said}");
    let (_, json) = reconcile(&installation, &["--json"]);
    let json: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(json["findings"][0]["token"], WEST, "{json}");
    let (code, said) = reconcile(&installation, &["--destroy", id]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((ids(&installation, test, HOME_LABEL), ids(&installation, test, WEST)), (home, west));
    // What a row needs stays, the canary's too.
    let canary = canary(&installation, &runtime);
    let (code, said) = reconcile(&installation, &["--destroy", &canary]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is accounted for: the canary key"), "{said}");

    // One that is away is told, and the other is looked at.
    let installation = installation.set(&format!("tokens.{WEST}.module"), r#""/nowhere.so""#);
    let (code, said) = reconcile(&installation, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("away west: it was not looked at: ") && said.contains("findings: 0;"), "{said}");
}

/// R6: the canary's intent is in the store before the token is asked, and what became of it is found out at the next start.
#[test]
fn a_first_sight_that_is_broken_off_is_taken_up_again() {
    if let Some(order) = token_user::order() {
        return obey(&order);
    }
    let test = "objects::a_first_sight_that_is_broken_off_is_taken_up_again";
    for fault in ["C_GenerateKeyPair answer CKR_DEVICE_ERROR", "C_GenerateKeyPair after hang"] {
        let (installation, faults) = two_tokens().with_faults_on(WEST);
        let installation = installation.init();
        let runtime = runtime();
        faults.set(fault);
        runtime.block_on(async {
            let stand = Stand::again(&installation).await;
            let limit = Instant::now() + PATIENCE;
            while faults.fired(0) == 0 {
                assert!(Instant::now() < limit, "{fault}: no key is asked for");
                tokio::time::sleep(POLL).await;
            }
            if !fault.contains("hang") {
                stand.until("it is down", |readyz| down(readyz, WEST)).await;
            }
            stand.server.kill();
        });
        let intended = canary(&installation, &runtime);
        faults.clear();
        runtime.block_on(async {
            let stand = Stand::new(&installation).await;
            assert!(stand.server.terminate().success());
        });
        assert_eq!(canary(&installation, &runtime), intended, "{fault}");
        assert!(ids(&installation, test, WEST).contains(&intended), "{fault}");
        let (code, said) = reconcile(&installation, &[]);
        assert_eq!(code, Some(0), "{fault}: {said}");
    }
}

/// Does something to a token as somebody who has the PIN and is not Keyward: `list LABEL` or `make LABEL ID`.
fn obey(order: &str) {
    let words: Vec<&str> = order.split(' ').collect();
    match *words.as_slice() {
        ["list", label] => {
            let session = token_user::session_on(label);
            for object in session.find_objects(&[]).expect("a search") {
                let attributes = session.get_attributes(object, &[AttributeType::Id]).expect("its id");
                if let [Attribute::Id(id)] = attributes.as_slice() {
                    let hex: String = id.iter().map(|octet| format!("{octet:02x}")).collect();
                    println!("id {hex}");
                }
            }
        }
        ["make", label, id] => {
            let session = token_user::session_on(label);
            let octets = u128::from_str_radix(id, 16).expect("an id").to_be_bytes().to_vec();
            let mut named = vec![Attribute::Token(true), Attribute::Id(octets)];
            named.push(Attribute::Label(format!("keyward {id}").into_bytes()));
            let mut public = named.clone();
            // P-256 (RFC 5480 section 2.1.1.1).
            public.push(Attribute::EcParams(vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]));
            session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &named).expect("a pair");
        }
        _ => panic!("no order: {order}"),
    }
}

/// The ids of all objects on a token.
fn ids(installation: &Installation, test: &str, label: &str) -> BTreeSet<String> {
    let said = have(installation, test, label, &format!("list {label}"));
    said.lines().filter_map(|line| line.trim().strip_prefix("id ")).map(ToOwned::to_owned).collect()
}

fn have(installation: &Installation, test: &str, label: &str, order: &str) -> String {
    let pin =
        if label == HOME_LABEL { installation.pin_file() } else { installation.dir().join(format!("pin-{label}")) };
    token_user::have(installation, test, &fs::read_to_string(pin).expect("a PIN"), order)
}

/// CKA_ID of a tenant's keys, which say which token they are on.
async fn keys(stand: &mut Stand, tenant: &str, label: &str) -> BTreeSet<String> {
    let request = ListSigningKeysRequest { tenant: tenant.into(), ..ListSigningKeysRequest::default() };
    let keys = stand.clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys;
    let protections = keys.into_iter().map(|key| key.protection.expect("it is shown"));
    let ids = protections.map(|protection| {
        assert_eq!(protection.token_label, label);
        protection.cka_id
    });
    ids.collect()
}

/// The id of the canary, as the store records it.
fn canary(installation: &Installation, runtime: &tokio::runtime::Runtime) -> String {
    use sqlx::{ConnectOptions as _, Row as _};
    let path = installation.dir().join("store.sqlite");
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut store = options.connect().await.expect("the store");
        let select = "select document ->> 'canary' as canary from token where name = 'west'";
        let row = sqlx::query(select).fetch_one(&mut store).await.expect("a row");
        sqlx::Connection::close(store).await.expect("closed");
        row.get("canary")
    })
}

/// The exit code of `keyward reconcile`, and all that it said.
fn reconcile(installation: &Installation, arguments: &[&str]) -> (Option<i32>, String) {
    let output = installation.command("reconcile").args(arguments).output().expect("the command runs");
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    (output.status.code(), said)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}
