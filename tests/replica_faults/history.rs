//! What was told, held against the rules (shown by number in docs/rotation.md).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use crate::cluster::{End, SNAPSHOT_MAX_AGE};
use crate::load::{Kept, Signed, TENANTS, Told};

/// What a run was, in a line.
pub(crate) fn summary(told: &Told, end: &End) -> String {
    format!(
        "{} JWTs, {} rotations acknowledged of {} made, {} revocations, {} tenants made and {} deleted, {} sets kept; at rest \
         after {:?}",
        told.signed.len(),
        told.rotated.len(),
        end.rotations.len(),
        told.revoked.len() + told.rotated.iter().filter(|rotated| rotated.is_revoked).count(),
        told.passing.len(),
        told.passing.iter().filter(|passing| passing.deleted).count(),
        told.kept.len(),
        end.rested_after,
    )
}

/// Every rule that was broken, with what shows it.
pub(crate) fn broken(told: &Told, end: &End) -> Vec<String> {
    let mut broken: Vec<String> = told.wrong.iter().chain(&end.problems).cloned().collect();
    signatures(told, &mut broken);
    acknowledged(told, end, &mut broken);
    revoked(told, &mut broken);
    published(told, end, &mut broken);
    // One is enough to look at; a thousand hide the others.
    broken.truncate(20);
    broken
}

/// R5: each JWT verifies with the key that its header names.
fn signatures(told: &Told, broken: &mut Vec<String>) {
    let mut keys: HashMap<String, DecodingKey> = HashMap::new();
    for kept in &told.kept {
        if kept.keys.iter().all(|kid| keys.contains_key(kid)) {
            continue;
        }
        let jwks: JwkSet = serde_json::from_slice(&kept.body).expect("a JWKS");
        for jwk in &jwks.keys {
            let kid = jwk.common.key_id.clone().expect("a kid");
            keys.entry(kid).or_insert_with(|| DecodingKey::from_jwk(jwk).expect("a key"));
        }
    }
    let mut validation = Validation::new(Algorithm::ES256);
    validation.validate_exp = false;
    for signed in &told.signed {
        // A key that was current for a moment, by force, may be in no set that somebody happened to fetch.
        let Some(key) = keys.get(&signed.kid) else { continue };
        let header = jsonwebtoken::decode_header(&signed.jwt).expect("a header");
        if header.kid.as_ref() != Some(&signed.kid) {
            broken.push(format!("R5: the answer says {} and the header {:?}", signed.kid, header.kid));
        }
        if let Err(error) = jsonwebtoken::decode::<Value>(&signed.jwt, key, &validation) {
            broken.push(format!("R5: {error}: {}", signed.jwt));
        }
    }
}

/// R2, R7: each acknowledged rotation was made, once, and no key became current twice; tenants are there or gone as was acknowledged.
fn acknowledged(told: &Told, end: &End, broken: &mut Vec<String>) {
    for rotated in &told.rotated {
        let of_request =
            |detail: &str| detail.split(", ").any(|part| part == format!("request_id {}", rotated.request_id));
        let made = end.rotations.iter().filter(|rotation| of_request(&rotation.detail)).count();
        if made != 1 {
            broken.push(format!(
                "R7: {} of {} was acknowledged and made {made} times",
                rotated.request_id, rotated.tenant
            ));
        }
    }
    let mut current = HashSet::new();
    for rotation in &end.rotations {
        if !current.insert(&rotation.kid) {
            broken.push(format!("R2: {} of {} became current twice", rotation.kid, rotation.tenant));
        }
    }
    for passing in &told.passing {
        if end.tenants.contains(&passing.id) == passing.deleted {
            broken.push(format!("{} was acknowledged, deleted: {}, and is not so", passing.id, passing.deleted));
        }
    }
}

/// R10: nobody who asks after a revocation was acknowledged is given a signature with that key; and with a key that was replaced nobody
/// is, once every view from before is too old.
fn revoked(told: &Told, broken: &mut Vec<String>) {
    let mut ended: BTreeMap<&str, (Instant, &str)> = BTreeMap::new();
    let mut end = |kid, at: Instant, why| {
        let known = ended.entry(kid).or_insert((at, why));
        if at < known.0 {
            *known = (at, why);
        }
    };
    for revoked in &told.revoked {
        end(revoked.kid.as_str(), revoked.acknowledged, "was revoked");
    }
    for rotated in &told.rotated {
        let Some(kid) = &rotated.replaced else { continue };
        if rotated.is_revoked {
            end(kid, rotated.acknowledged, "was replaced and revoked");
        } else {
            end(kid, rotated.acknowledged + SNAPSHOT_MAX_AGE, "was replaced");
        }
    }
    for signed in &told.signed {
        if let Some((at, why)) = ended.get(signed.kid.as_str())
            && signed.asked > *at
        {
            let late = signed.asked - *at;
            broken.push(format!(
                "R10: replica {} signed with {}, which {why}, {late:?} later",
                signed.replica, signed.kid
            ));
        }
    }
}

/// R3 and R4: who keeps a set for as long as he may knows each key that signs meanwhile, from the arrival of a JWT to its `exp`; but
/// for a key that signed by force, and one that was revoked.
fn published(told: &Told, end: &End, broken: &mut Vec<String>) {
    let forced: BTreeSet<&str> = end
        .rotations
        .iter()
        .filter(|rotation| rotation.detail.contains("forced"))
        .map(|rotation| rotation.kid.as_str())
        .collect();
    let revoked: BTreeSet<&str> = told
        .revoked
        .iter()
        .map(|revoked| revoked.kid.as_str())
        .chain(
            told.rotated.iter().filter(|rotated| rotated.is_revoked).filter_map(|rotated| rotated.replaced.as_deref()),
        )
        .collect();
    for tenant in TENANTS {
        let mut kept: Vec<&Kept> = told.kept.iter().filter(|kept| kept.tenant == tenant).collect();
        kept.sort_by_key(|kept| kept.received);
        let mut check = |signed: &Signed, at: Instant, when: &str| {
            let next = kept.partition_point(|kept| kept.received <= at);
            let Some(in_force) = next.checked_sub(1).map(|index| kept[index]).filter(|kept| at < kept.until) else {
                return;
            };
            if !in_force.keys.contains(&signed.kid) {
                let age = at - in_force.received;
                broken.push(format!(
                    "R3, R4: a JWT of {tenant} by {} of replica {} is unknown {when} to who keeps the set of replica {} since {age:?}",
                    signed.kid, signed.replica, in_force.replica
                ));
            }
        };
        for signed in told.signed.iter().filter(|signed| signed.tenant == tenant) {
            if !forced.contains(signed.kid.as_str()) && !revoked.contains(signed.kid.as_str()) {
                check(signed, signed.received, "when it arrives");
                check(signed, signed.expires - Duration::from_millis(1), "when it expires");
            }
        }
    }
}
