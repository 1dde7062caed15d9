use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::methods::{Needs, RoleKind};
use crate::domain::TenantId;

/// What one principal may do, made of the names of roles: `issuer:TENANT`, `operator:TENANT`, `auditor` and `admin`. TENANT
/// is a tenant's id, whether there is one yet or not, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    issuer: Tenants,
    operator: Tenants,
    auditor: bool,
    admin: bool,
}

/// Of whom a role is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tenants {
    all: bool,
    some: HashSet<Box<str>>,
}

/// A text that is the name of no role. Names are exact: no other case, no space, nothing before or after.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be issuer:TENANT, operator:TENANT (TENANT is an id, or * for all), auditor or admin")]
pub struct UnknownRole;

impl Roles {
    /// All that there is.
    #[must_use]
    pub fn admin() -> Self {
        Self { admin: true, ..Self::default() }
    }

    /// The roles of these names.
    ///
    /// # Errors
    /// The place of the first text that is the name of no role.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, usize> {
        let mut roles = Self::default();
        for (index, name) in names.into_iter().enumerate() {
            roles.add(name).map_err(|UnknownRole| index)?;
        }
        Ok(roles)
    }

    /// The roles among the scopes of a JWT; others are for other services, and mean nothing here.
    #[must_use]
    pub fn among_scopes<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut roles = Self::default();
        for scope in scopes {
            // What is not a name is not there.
            let _ = roles.add(scope);
        }
        roles
    }

    fn add(&mut self, name: &str) -> Result<(), UnknownRole> {
        match name {
            "auditor" => self.auditor = true,
            "admin" => self.admin = true,
            _ => match name.split_once(':') {
                Some(("issuer", tenant)) => self.issuer.add(tenant)?,
                Some(("operator", tenant)) => self.operator.add(tenant)?,
                _ => return Err(UnknownRole),
            },
        }
        Ok(())
    }

    /// Whether these roles allow what `needs` says, for this tenant: any text, as the caller wrote it, and
    /// empty for a call that is about no one tenant.
    #[must_use]
    pub fn allow(&self, needs: Needs, tenant: &str) -> bool {
        let of_tenant = |kind, tenants: &Tenants| needs.has(kind) && tenants.hold(tenant);
        self.admin
            || of_tenant(RoleKind::Issuer, &self.issuer)
            || of_tenant(RoleKind::Operator, &self.operator)
            || (needs.has(RoleKind::Auditor) && self.auditor)
    }
}

impl Tenants {
    fn add(&mut self, tenant: &str) -> Result<(), UnknownRole> {
        if tenant == "*" {
            self.all = true;
        } else {
            let tenant = TenantId::from_str(tenant).map_err(|_| UnknownRole)?;
            self.some.insert(String::from(tenant).into_boxed_str());
        }
        Ok(())
    }

    fn hold(&self, tenant: &str) -> bool {
        self.all || self.some.contains(tenant)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = Vec::new();
        for (kind, tenants) in [("issuer", &self.issuer), ("operator", &self.operator)] {
            names.extend(tenants.all.then(|| format!("{kind}:*")));
            names.extend(tenants.some.iter().map(|tenant| format!("{kind}:{tenant}")));
        }
        names.extend(self.auditor.then(|| "auditor".to_owned()));
        names.extend(self.admin.then(|| "admin".to_owned()));
        names.sort();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::methods::{Access, METHODS};

    fn allowed(roles: &[&str], method: &str, tenant: &str) -> bool {
        let roles = Roles::named(roles.iter().copied()).expect("names of roles");
        let method = METHODS.iter().find(|row| row.name.ends_with(method)).expect("a method");
        let Access::Roles(needs) = method.access else { panic!("{method:?}") };
        roles.allow(needs, tenant)
    }

    #[test]
    fn a_role_is_of_its_tenant_alone() {
        assert!(allowed(&["issuer:acme"], "/Sign", "acme"));
        for tenant in ["acme2", "acm", "ACME", "*", ""] {
            assert!(!allowed(&["issuer:acme"], "/Sign", tenant), "{tenant:?}");
        }
        assert!(allowed(&["issuer:a", "issuer:b"], "/Sign", "b"));
        assert!(allowed(&["issuer:*"], "/Sign", "no tenant at all"));
        assert!(!allowed(&["issuer:*"], "/ListTenants", ""));
    }

    #[test]
    fn each_role_allows_what_it_is_for() {
        let tenant = "acme";
        for (role, allows, refuses) in [
            (
                "issuer:acme",
                vec!["/SignJwt", "/GetCurrentKey"],
                vec!["/ListSigningKeys", "/RotateSigningKey", "/GetTenant"],
            ),
            (
                "operator:acme",
                vec!["/RotateSigningKey", "/PutCustomSigningKeys", "/GetTenant", "/GetSigningKey", "/GetCurrentKey"],
                vec!["/Sign", "/VerifyJwt", "/CreateTenant", "/UpdateTenant", "/DeleteTenant", "/ListTenants"],
            ),
            (
                "auditor",
                vec!["/ListSigningKeys", "/GetTenant", "/ListTenants", "/GetCurrentKey"],
                vec!["/Sign", "/RotateSigningKey", "/RevokeSigningKey", "/DeleteTenant", "/PutCustomSigningKeys"],
            ),
            ("admin", vec!["/Sign", "/DeleteTenant", "/ListTenants", "/RotateSigningKey"], vec![]),
        ] {
            for method in allows {
                assert!(allowed(&[role], method, tenant), "{role} {method}");
            }
            for method in refuses {
                assert!(!allowed(&[role], method, tenant), "{role} {method}");
            }
        }
    }

    #[test]
    fn names_of_roles_are_exact() {
        for bad in [
            "",
            "Admin",
            "admin ",
            "admin:acme",
            "issuer",
            "issuer:",
            "issuer:ACME",
            "issuer:*x",
            "xissuer:acme",
            "issuer:a:b",
        ] {
            assert_eq!(Roles::named([bad]), Err(0), "{bad}");
            assert_eq!(Roles::among_scopes([bad]), Roles::default(), "{bad}");
        }
        assert_eq!(Roles::named(["auditor", "issuer:a", "x"]), Err(2));
        assert_eq!(Roles::named(["issuer:b", "auditor", "issuer:*"]).unwrap().to_string(), "auditor issuer:* issuer:b");
    }
}
