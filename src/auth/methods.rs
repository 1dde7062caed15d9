//! Who may call what: one row for each gRPC method that is served. What has no row is served to nobody.

/// A method, as far as access and audit logs are concerned.
#[derive(Debug)]
pub struct Method {
    /// Its full name, as HTTP/2 has it in `:path`.
    pub name: &'static str,
    /// The word for it in audit logs.
    pub action: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it does.
    pub kind: Kind,
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever reaches the listener.
    Open,
    /// Whoever proves to be somebody.
    Authenticated,
    /// Who has one of these roles.
    Roles(Needs),
}

/// The roles that allow a method; `admin` always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    kinds: &'static [RoleKind],
    /// The same for people: makes a sentence after "needs the role".
    pub words: &'static str,
}

/// A role without its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Signs for a tenant.
    Issuer,
    /// Looks after a tenant's keys.
    Operator,
    /// Reads everything.
    Auditor,
}

/// What a method does, which decides how audit logs keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Signs: kept in the log of calls, whatever comes of it.
    Signature,
    /// Changes something: the store keeps the change, and the log of calls what was refused or failed.
    Change,
    /// Reads: the log of calls keeps what was refused or failed.
    Read,
}

impl Needs {
    /// Whether this role is one of them.
    #[must_use]
    pub fn has(self, kind: RoleKind) -> bool {
        self.kinds.contains(&kind)
    }
}

const ISSUER: Access =
    Access::Roles(Needs { kinds: &[RoleKind::Issuer], words: "issuer of the tenant (issuer:TENANT), or admin" });
const OPERATOR: Access =
    Access::Roles(Needs { kinds: &[RoleKind::Operator], words: "operator of the tenant (operator:TENANT), or admin" });
const READER: Access = Access::Roles(Needs {
    kinds: &[RoleKind::Operator, RoleKind::Auditor],
    words: "operator of the tenant (operator:TENANT), auditor, or admin",
});
/// The current key is what issuers build upon, and a read for all the others.
const ISSUER_OR_READER: Access = Access::Roles(Needs {
    kinds: &[RoleKind::Issuer, RoleKind::Operator, RoleKind::Auditor],
    words: "issuer or operator of the tenant (issuer:TENANT, operator:TENANT), auditor, or admin",
});
const AUDITOR: Access = Access::Roles(Needs { kinds: &[RoleKind::Auditor], words: "auditor, or admin" });
const ADMIN: Access = Access::Roles(Needs { kinds: &[], words: "admin" });

const fn row(name: &'static str, action: &'static str, access: Access, kind: Kind) -> Method {
    Method { name, action, access, kind }
}

/// Every method that is served.
pub static METHODS: [Method; 23] = [
    row("/keyward.v1.SigningService/SignJwt", "sign_jwt", ISSUER, Kind::Signature),
    row("/keyward.v1.SigningService/Sign", "sign", ISSUER, Kind::Signature),
    row("/keyward.v1.SigningService/BatchSign", "batch_sign", ISSUER, Kind::Signature),
    row("/keyward.v1.SigningService/VerifyJwt", "verify_jwt", ISSUER, Kind::Read),
    row("/keyward.v1.SigningService/GetCurrentKey", "get_current_key", ISSUER_OR_READER, Kind::Read),
    row("/keyward.v1.KeyService/ListSigningKeys", "list_signing_keys", READER, Kind::Read),
    row("/keyward.v1.KeyService/GetSigningKey", "get_signing_key", READER, Kind::Read),
    row("/keyward.v1.KeyService/RotateSigningKey", "rotate", OPERATOR, Kind::Change),
    row("/keyward.v1.KeyService/RevokeSigningKey", "revoke", OPERATOR, Kind::Change),
    row("/keyward.v1.KeyService/GetCustomSigningKeys", "get_custom_keys", READER, Kind::Read),
    row("/keyward.v1.KeyService/PutCustomSigningKeys", "put_custom_keys", OPERATOR, Kind::Change),
    row("/keyward.v1.KeyService/DeleteCustomSigningKeys", "delete_custom_keys", OPERATOR, Kind::Change),
    row("/keyward.v1.TenantService/CreateTenant", "create_tenant", ADMIN, Kind::Change),
    row("/keyward.v1.TenantService/GetTenant", "get_tenant", READER, Kind::Read),
    row("/keyward.v1.TenantService/ListTenants", "list_tenants", AUDITOR, Kind::Read),
    row("/keyward.v1.TenantService/UpdateTenant", "update_tenant", ADMIN, Kind::Change),
    row("/keyward.v1.TenantService/DeleteTenant", "delete_tenant", ADMIN, Kind::Change),
    row("/keyward.v1.AuditService/ListAuditEvents", "list_audit_events", AUDITOR, Kind::Read),
    row("/keyward.v1.AuditService/GetCheckpoint", "get_checkpoint", AUDITOR, Kind::Read),
    // Says which service is serving, and nothing of tenants or keys: probes have no credentials.
    row("/grpc.health.v1.Health/Check", "check_health", Access::Open, Kind::Read),
    row("/grpc.health.v1.Health/Watch", "watch_health", Access::Open, Kind::Read),
    row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "reflect", Access::Authenticated, Kind::Read),
    row("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "reflect", Access::Authenticated, Kind::Read),
];

/// The row of the method with this full name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Method> {
    position(name).map(|row| &METHODS[row])
}

/// The same as a place in [`METHODS`].
#[must_use]
pub fn position(name: &str) -> Option<usize> {
    METHODS.iter().position(|method| method.name == name)
}

/// The same while compiling: a method without a row is no program.
///
/// # Panics
/// There is no such row.
#[must_use]
pub const fn row_of(name: &str) -> &'static Method {
    let mut index = 0;
    while index < METHODS.len() {
        if same(METHODS[index].name.as_bytes(), name.as_bytes()) {
            return &METHODS[index];
        }
        index += 1;
    }
    panic!("a method has no row in auth/methods.rs")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}
