use std::collections::HashMap;

use super::Roles;
use crate::domain::Principal;

/// Most principals in one configuration: each is a line that a person wrote.
pub const GRANTS_MAX: usize = 1024;

/// Most roles of one principal: whoever needs more of one kind takes `*`.
pub const ROLES_MAX: usize = 256;

/// Which roles each principal has. Who is not in it has none.
#[derive(Clone, Debug, Default)]
pub struct Grants(HashMap<Principal, Roles>);

/// Why a grant cannot be taken. The text follows a configuration key's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGrant {
    /// Of its principal.
    #[error("{0}")]
    Principal(&'static str),
    /// Of its roles, or the one at this place.
    #[error("{1}")]
    Roles(Option<usize>, String),
}

impl Grants {
    /// Adds what one principal may do.
    ///
    /// # Errors
    /// It is no principal that a connection can prove, or one that has roles already; no roles, too many, or the name of none.
    pub fn add(&mut self, principal: &str, names: &[String]) -> Result<(), BadGrant> {
        let principal = match principal.parse() {
            Ok(Principal::Dns(name)) => Principal::Dns(name.to_ascii_lowercase()),
            Ok(Principal::Jwt { .. }) => {
                let problem = "must not be a JWT's: its roles are the scopes in it, and no others";
                return Err(BadGrant::Principal(problem));
            }
            Ok(principal @ (Principal::Uri(_) | Principal::CommonName(_) | Principal::Unix(_))) => principal,
            Ok(Principal::Anonymous | Principal::Keyward) | Err(_) => {
                return Err(BadGrant::Principal("must be uri:URI, dns:NAME, cn:NAME or unix:UID"));
            }
        };
        if !(1..=ROLES_MAX).contains(&names.len()) {
            return Err(BadGrant::Roles(None, format!("must be 1 to {ROLES_MAX} roles, not {}", names.len())));
        }
        let roles = Roles::named(names.iter().map(String::as_str))
            .map_err(|index| BadGrant::Roles(Some(index), super::UnknownRole.to_string()))?;
        if self.0.contains_key(&principal) {
            return Err(BadGrant::Principal("must not stand twice: put all roles of a principal into one grant"));
        }
        self.0.insert(principal, roles);
        Ok(())
    }

    /// What a principal may do.
    #[must_use]
    pub fn of(&self, principal: &Principal) -> Roles {
        self.0.get(principal).cloned().unwrap_or_default()
    }

    /// Whose grants there are.
    pub fn principals(&self) -> impl Iterator<Item = &Principal> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_of_one_provable_principal_and_names_roles() {
        let mut grants = Grants::default();
        let mut add = |principal: &str, roles: &[&str]| {
            grants.add(principal, &roles.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(add("dns:A.example", &["issuer:acme", "operator:acme"]), Ok(()));
        assert_eq!(add("unix:0", &["admin"]), Ok(()));
        for bad in ["", "acme", "anonymous", "keyward", "jwt:https://a.example#b", "unix:root", "dns:", "dns:a.example"]
        {
            assert!(matches!(add(bad, &["admin"]), Err(BadGrant::Principal(_))), "{bad}");
        }
        assert!(matches!(add("uri:a", &[]), Err(BadGrant::Roles(None, _))));
        assert!(matches!(add("uri:a", &["admin", "root"]), Err(BadGrant::Roles(Some(1), _))));
        assert!(matches!(add("uri:a", &["auditor"; ROLES_MAX + 1]), Err(BadGrant::Roles(None, _))));
        assert_eq!(grants.of(&"dns:a.example".parse().unwrap()).to_string(), "issuer:acme operator:acme");
        assert_eq!(grants.of(&"uri:a".parse().unwrap()), Roles::default());
    }
}
