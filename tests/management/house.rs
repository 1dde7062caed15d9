use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use keyward::grpc::proto::{CreateTenantRequest, RotateSigningKeyRequest, RotationPolicy, Tenant};
use serde_json::{Value, json};

use crate::common::http::{Answer, send};
use crate::common::{Clients, Installation, Issuer, Server, short_policy};
use crate::described::Description;

pub(crate) const ISSUER: &str = "https://issuer.example/";
pub(crate) const DOMAIN: &str = "login.example.com";

/// Every scope that there is.
pub(crate) const ALL_SCOPES: &str = "read:signing_keys create:signing_keys update:signing_keys \
                                     read:custom_signing_keys create:custom_signing_keys update:custom_signing_keys \
                                     delete:custom_signing_keys";

/// A Keyward with the Management API on plain HTTP, the issuer that it believes, and the tenants `acme` (ES256 and EdDSA,
/// with a domain of its own) and `b2b` (ES256).
pub(crate) struct House {
    pub(crate) installation: Installation,
    pub(crate) server: Server,
    pub(crate) clients: Clients,
    pub(crate) issuer: Issuer,
    pub(crate) description: Description,
}

/// The Management API's section of a configuration, with this issuer's JWKS.
pub(crate) fn with_management(installation: Installation, issuer: &Issuer) -> Installation {
    fs::write(installation.dir().join("jwks.json"), issuer.jwks().to_string()).expect("the JWKS is written");
    installation
        .set("management.listen", r#""127.0.0.1:0""#)
        .set("management.issuer", &format!("{ISSUER:?}"))
        .set("management.jwks_file", r#""jwks.json""#)
        .set("limits.manual_rotations_per_day", "3")
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::open_with(short_policy()).await
    }

    pub(crate) async fn open_with(policy: RotationPolicy) -> Self {
        let issuer = Issuer::new();
        let installation = with_management(Installation::prepare(), &issuer);
        let server = installation.serve();
        let mut clients = Clients::connect(&server).await;
        let tenant = Tenant {
            id: "acme".into(),
            custom_domain: DOMAIN.into(),
            algorithms: vec!["ES256".into(), "EdDSA".into()],
            rotation_policy: Some(policy),
            ..Tenant::default()
        };
        clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
        clients.create_tenant("b2b", &["ES256"], policy).await;
        Self { installation, server, clients, issuer, description: Description::read() }
    }

    /// The audience of a tenant's API on the canonical path.
    pub(crate) fn audience(&self, tenant: &str) -> String {
        format!("{}/{tenant}/api/v2/", self.server.management())
    }

    /// The claims of a JWT for a tenant that nobody has anything against.
    pub(crate) fn claims(&self, tenant: &str, scope: &str) -> Value {
        json!({"iss": ISSUER, "sub": "ops", "aud": self.audience(tenant), "scope": scope, "exp": now() + 600})
    }

    pub(crate) fn jwt(&self, tenant: &str, scope: &str) -> String {
        self.issuer.jwt(&self.claims(tenant, scope))
    }

    /// A call of a tenant's API with a JWT, held against the description.
    pub(crate) fn call(&mut self, method: &str, tenant: &str, path: &str, jwt: &str) -> Answer {
        let url = format!("{}/{tenant}/api/v2{path}", self.server.management());
        let answer = send(method, &url, &[("authorization", &format!("Bearer {jwt}"))]);
        self.description.hold(method, path, &answer);
        answer
    }

    /// The same with every scope.
    pub(crate) fn call_as_admin(&mut self, method: &str, tenant: &str, path: &str) -> Answer {
        let jwt = self.jwt(tenant, ALL_SCOPES);
        self.call(method, tenant, path, &jwt)
    }

    /// The list of a tenant's keys.
    pub(crate) fn keys(&mut self, tenant: &str) -> Vec<Value> {
        let answer = self.call_as_admin("GET", tenant, "/keys/signing");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Rotates by gRPC, whatever the lead.
    pub(crate) async fn force_rotation(&mut self, tenant: &str) {
        let request =
            RotateSigningKeyRequest { tenant: tenant.into(), force: true, ..RotateSigningKeyRequest::default() };
        self.clients.keys.rotate_signing_key(request).await.expect("rotated");
    }
}

/// The kid of the key with this flag.
pub(crate) fn kid_that_is(flag: &str, keys: &[Value]) -> String {
    let mut found = keys.iter().filter(|key| key[flag] == true);
    let kid = found.next().unwrap_or_else(|| panic!("no key is {flag}: {keys:?}"))["kid"].as_str();
    assert!(found.next().is_none() || flag == "previous", "more than one key is {flag}: {keys:?}");
    kid.expect("a kid").to_owned()
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
