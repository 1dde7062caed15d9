use std::collections::BTreeSet;

use proptest::prelude::*;

use super::report::{Account, Accounts, Expected, Kind, Report};
use crate::domain::{Algorithm, Generated, KeyState, Keyring, Kid, ObjectId, Protection, TenantId, Timestamp};
use crate::token::{ObjectKind, TokenObject};

/// What a world's row is, and what was done to it past Keyward.
#[derive(Clone, Copy, Debug)]
struct Row {
    expected: Expected,
    harm: u8,
}

/// What stands on the token besides the rows' objects.
#[derive(Clone, Copy, Debug)]
enum Other {
    /// An orphan: a private key, a pair, or a pair of which a half was cut off before it had a label.
    Orphan(u8),
    /// Somebody else's, with an id of some length.
    Foreign(usize),
}

fn row() -> impl Strategy<Value = Row> {
    let expected = prop::sample::select(vec![Expected::Pair, Expected::Secret, Expected::Anything, Expected::Nothing]);
    // Four of six are as they should be.
    (expected, prop::sample::select(vec![0, 0, 0, 0, 1, 2, 3])).prop_map(|(expected, harm)| Row { expected, harm })
}

fn other() -> impl Strategy<Value = Other> {
    prop_oneof![(0..3_u8).prop_map(Other::Orphan), (0..20_usize).prop_map(Other::Foreign)]
}

fn id(number: usize) -> ObjectId {
    ObjectId::new((number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

fn object(class: ObjectKind, object: ObjectId) -> TokenObject {
    TokenObject { class, id: object.octets().to_vec(), label: format!("keyward {object}") }
}

/// The objects of a row after the harm, and which finding that makes.
fn planted(row: Row, of: ObjectId) -> (Vec<TokenObject>, Option<Kind>) {
    let made = |classes: &[ObjectKind]| classes.iter().map(|class| object(*class, of)).collect::<Vec<_>>();
    use ObjectKind::{Other, PrivateKey, PublicKey, SecretKey};
    let (classes, kind): (&[_], _) = match (row.expected, row.harm) {
        (Expected::Pair, 0) => (&[PrivateKey, PublicKey], None),
        (Expected::Pair, 1) => (&[PublicKey], Some(Kind::Half)),
        (Expected::Pair, 2) => (&[PrivateKey, PublicKey, PublicKey], Some(Kind::Duplicate)),
        (Expected::Secret, 0) => (&[SecretKey], None),
        (Expected::Secret, 1) => (&[Other], Some(Kind::Half)),
        (Expected::Secret, 2) => (&[SecretKey, SecretKey], Some(Kind::Duplicate)),
        (Expected::Pair | Expected::Secret, _) => (&[], Some(Kind::Missing)),
        (Expected::Anything, 0) => (&[], None),
        (Expected::Anything, 1) => (&[PublicKey], None),
        (Expected::Anything, _) => (&[PrivateKey, PublicKey], None),
        (Expected::Nothing, 0) => (&[], None),
        (Expected::Nothing, _) => (&[PrivateKey], Some(Kind::Lingering)),
    };
    (made(classes), kind)
}

fn others(other: Other, number: usize) -> Vec<TokenObject> {
    let of = id(number);
    match other {
        Other::Orphan(0) => vec![object(ObjectKind::PrivateKey, of)],
        Other::Orphan(1) => vec![object(ObjectKind::PrivateKey, of), object(ObjectKind::PublicKey, of)],
        Other::Orphan(_) => vec![
            object(ObjectKind::PublicKey, of),
            TokenObject { label: String::new(), ..object(ObjectKind::Other, of) },
        ],
        // Also 16 octets, as many as ours, with and without a label.
        Other::Foreign(length) => {
            let octets = [of.octets().as_slice(), of.octets()].concat();
            let label = if length % 2 == 0 { "somebody's" } else { "" };
            vec![TokenObject { class: ObjectKind::SecretKey, id: octets[..length].to_vec(), label: label.to_owned() }]
        }
    }
}

fn found(report: &Report) -> Vec<(Kind, ObjectId)> {
    report.findings.iter().map(|finding| (finding.kind, finding.object)).collect()
}

proptest! {
    #[test]
    fn every_planted_difference_is_named_once_and_nothing_else(
        rows in prop::collection::vec(row(), 0..40),
        besides in prop::collection::vec(other(), 0..12),
        turn in any::<prop::sample::Index>(),
    ) {
        let (mut accounts, mut listed) = (Accounts::default(), Vec::new());
        let (mut wanted, mut foreign) = (BTreeSet::new(), 0);
        for (number, row) in rows.iter().enumerate() {
            let account =
                Account { tenant: None, algorithm: Algorithm::ES256, kid: None, state: "current", expected: row.expected };
            accounts.account(id(number), account);
            let (objects, kind) = planted(*row, id(number));
            listed.extend(objects);
            wanted.extend(kind.map(|kind| (kind, id(number))));
        }
        for (number, other) in besides.iter().enumerate() {
            let number = rows.len() + number;
            listed.extend(others(*other, number));
            match other {
                Other::Orphan(_) => drop(wanted.insert((Kind::Orphan, id(number)))),
                Other::Foreign(_) => foreign += 1,
            }
        }
        if !listed.is_empty() {
            let by = turn.index(listed.len());
            listed.rotate_left(by);
        }
        let report = accounts.compare(&listed);
        prop_assert_eq!(report.findings.len(), wanted.len());
        prop_assert_eq!(found(&report).into_iter().collect::<BTreeSet<_>>(), wanted);
        prop_assert_eq!((report.objects, report.foreign.len()), (listed.len(), foreign));
    }
}

#[test]
fn a_keyring_accounts_for_every_id_that_it_names() {
    let now = Timestamp::UNIX_EPOCH;
    let octets = |number: u8| ObjectId::new([number; 16]);
    let protection = Protection {
        token_label: String::new(),
        token_serial: String::new(),
        token_manufacturer: String::new(),
        token_model: String::new(),
        sensitive: true,
        always_sensitive: true,
        extractable: false,
        never_extractable: true,
        local: true,
    };
    let kid: Kid = "A".repeat(43).parse().expect("a kid");
    let generated = Generated { kid, public: None, certificate: None, protection };
    let tenant: TenantId = "acme".parse().expect("a tenant's id");
    for algorithm in [Algorithm::ES256, Algorithm::HS256] {
        let whole = if algorithm.has_public_keys() { Expected::Pair } else { Expected::Secret };
        let keyring = Keyring::new(tenant.clone(), algorithm, octets(1), now);
        let abandoned = keyring.abandon(Some(octets(2)), now);
        let published = abandoned.publish(generated.clone(), now);
        let in_state = |state, destroy_begin_time| {
            let mut keyring = published.clone();
            (keyring.keys[0].state, keyring.keys[0].destroy_begin_time) = (state, destroy_begin_time);
            keyring
        };
        let swept = published.swept(octets(1), now).swept(octets(1), now);
        for (keyring, object, expected) in [
            (keyring, octets(1), Expected::Anything),
            (abandoned.clone(), octets(1), Expected::Anything),
            (abandoned, octets(2), Expected::Anything),
            (swept, octets(1), Expected::Nothing),
            (in_state(KeyState::Next, None), octets(2), whole),
            (in_state(KeyState::Current, None), octets(2), whole),
            (in_state(KeyState::Previous, None), octets(2), whole),
            (in_state(KeyState::Revoked, None), octets(2), whole),
            (in_state(KeyState::Revoked, Some(now)), octets(2), Expected::Anything),
            (in_state(KeyState::Destroyed, Some(now)), octets(2), Expected::Nothing),
        ] {
            let mut accounts = Accounts::default();
            accounts.add_keyring(&keyring);
            let report = accounts.compare(&[]);
            assert_eq!(report.accounted.get(&object).map(|account| account.expected), Some(expected), "{keyring:?}");
        }
    }
}

#[test]
fn what_changes_while_the_token_is_listed_is_no_finding() {
    let account = |state, expected| Account { tenant: None, algorithm: Algorithm::ES256, kid: None, state, expected };
    let accounts = |expected: Option<Expected>| {
        let mut accounts = Accounts::default();
        expected.into_iter().for_each(|expected| accounts.account(id(0), account("any", expected)));
        accounts
    };
    let pair = [object(ObjectKind::PrivateKey, id(0)), object(ObjectKind::PublicKey, id(0))];
    let both = |before, listed: &[TokenObject], after| {
        found(&accounts(before).compare(listed).and(accounts(after).compare(listed)))
    };
    // Generated, published and destroyed in between.
    assert_eq!(both(None, &pair, Some(Expected::Pair)), []);
    assert_eq!(both(Some(Expected::Anything), &[], Some(Expected::Pair)), []);
    assert_eq!(both(Some(Expected::Anything), &pair, Some(Expected::Nothing)), []);
    assert_eq!(both(None, &pair, None), [(Kind::Orphan, id(0))]);
    assert_eq!(both(Some(Expected::Pair), &[], Some(Expected::Pair)), [(Kind::Missing, id(0))]);
}
