//! Grants: a principal on the first line, the names of its roles on those after it. The same names as scopes of a JWT.
#![no_main]

use keyward::auth::methods::{Access, METHODS, RoleKind};
use keyward::auth::{Grants, Roles};
use keyward::domain::Principal;
use libfuzzer_sys::fuzz_target;

/// What callers write as the tenant: three that there may be, one that is a grant's word, and none.
const TENANTS: [&str; 5] = ["acme", "acme2", "b", "*", ""];

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let principal = lines.next().expect("split gives at least one part");
    let names: Vec<String> = lines.map(ToOwned::to_owned).collect();

    if let Ok(parsed) = principal.parse::<Principal>() {
        assert_eq!(parsed.to_string().parse().as_ref(), Ok(&parsed));
    }
    let mut grants = Grants::default();
    if grants.add(principal, &names).is_ok() {
        let held: Vec<&Principal> = grants.principals().collect();
        let [Principal::Uri(_) | Principal::Dns(_) | Principal::CommonName(_) | Principal::Unix(_)] = held[..] else {
            panic!("granted to {held:?}");
        };
        assert_are_exactly(&grants.of(held[0]), &names);
        assert!(grants.add(principal, &names).is_err(), "granted twice");
    }
    assert_are_exactly(&Roles::among_scopes(names.iter().map(String::as_str)), &names);
});

/// The roles allow what their names say, letter for letter, and nothing besides.
fn assert_are_exactly(roles: &Roles, names: &[String]) {
    let has = |name: &str| names.iter().any(|given| given == name);
    for needs in METHODS.iter().filter_map(|method| match method.access {
        Access::Roles(needs) => Some(needs),
        Access::Open | Access::Authenticated => None,
    }) {
        let everywhere = has("admin") || (needs.has(RoleKind::Auditor) && has("auditor"));
        for tenant in TENANTS {
            let of = |kind, word: &str| {
                needs.has(kind)
                    && (has(&format!("{word}:*")) || (!tenant.is_empty() && has(&format!("{word}:{tenant}"))))
            };
            let expected = everywhere || of(RoleKind::Issuer, "issuer") || of(RoleKind::Operator, "operator");
            assert_eq!(roles.allow(needs, tenant), expected, "{names:?} for {tenant}");
        }
    }
}
