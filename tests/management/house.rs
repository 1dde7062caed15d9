use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyward::grpc::proto::{
    CreateTenantRequest, RotateSigningKeyRequest, RotationPolicy, SignRequest, Tenant, sign_request,
};
use serde_json::{Value, json};

use crate::common::http::{Answer, send, send_body};
use crate::common::{Authority, Clients, Identity, Installation, Issuer, Server, short_policy};
use crate::described::Description;

/// How long a test goes on asking for a rotation that is refused with a time to try again.
const ROTATION_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long something may take that happens by itself, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

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

/// The same on TLS. The files are copies, which a test can change.
pub(crate) fn with_identity(installation: Installation, identity: &Identity) -> Installation {
    put_identity(&installation, identity);
    installation.set("management.certificate_file", r#""server.pem""#).set("management.key_file", r#""server.key""#)
}

pub(crate) fn put_identity(installation: &Installation, identity: &Identity) {
    for (from, to) in [(&identity.certificate, "server.pem"), (&identity.key, "server.key")] {
        fs::copy(from, installation.dir().join(to)).expect("it is copied");
    }
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::open_with(short_policy()).await
    }

    pub(crate) async fn open_with(policy: RotationPolicy) -> Self {
        let issuer = Issuer::new();
        let installation = with_management(Installation::prepare(), &issuer);
        Self::serve(installation, issuer, policy).await
    }

    /// The same over TLS, with a certificate of this authority.
    pub(crate) async fn open_with_tls(authority: &Authority) -> Self {
        let issuer = Issuer::new();
        let installation = with_management(Installation::prepare(), &issuer);
        let installation = with_identity(installation, &authority.issue("first"));
        Self::serve(installation, issuer, short_policy()).await
    }

    pub(crate) async fn serve(installation: Installation, issuer: Issuer, policy: RotationPolicy) -> Self {
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

    /// What Auth0's client is given as its domain.
    pub(crate) fn domain(&self, tenant: &str) -> String {
        let host = self.server.management().strip_prefix("https://").expect("a listener with TLS");
        format!("{host}/{tenant}")
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

    /// Where a path of a tenant's API is.
    pub(crate) fn url(&self, tenant: &str, path: &str) -> String {
        format!("{}/{tenant}/api/v2{path}", self.server.management())
    }

    /// A call of a tenant's API with a JWT, held against the description.
    pub(crate) fn call(&mut self, method: &str, tenant: &str, path: &str, jwt: &str) -> Answer {
        let url = self.url(tenant, path);
        let answer = send(method, &url, &[("authorization", &format!("Bearer {jwt}"))]);
        self.description.hold(method, path, &answer);
        answer
    }

    /// The same with every scope.
    pub(crate) fn call_as_admin(&mut self, method: &str, tenant: &str, path: &str) -> Answer {
        let jwt = self.jwt(tenant, ALL_SCOPES);
        self.call(method, tenant, path, &jwt)
    }

    /// A call with a body and every scope.
    pub(crate) fn put(&mut self, tenant: &str, path: &str, body: &[u8]) -> Answer {
        let url = format!("{}/{tenant}/api/v2{path}", self.server.management());
        let bearer = format!("Bearer {}", self.jwt(tenant, ALL_SCOPES));
        let answer = send_body("PUT", &url, &[("authorization", &bearer), ("content-type", "application/json")], body);
        self.description.hold("PUT", path, &answer);
        answer
    }

    /// Rotates by this API, again after each 409's Retry-After until the answer is another.
    pub(crate) async fn rotate_when_allowed(&mut self, tenant: &str, path: &str) -> Answer {
        let deadline = Instant::now() + ROTATION_WAIT_MAX;
        loop {
            let answer = self.call_as_admin("POST", tenant, path);
            if answer.status != 409 {
                return answer;
            }
            let wait = Duration::from_secs(answer.header("retry-after").parse().expect("a time to try again"));
            assert!(Instant::now() + wait < deadline, "not in {ROTATION_WAIT_MAX:?}: {answer:?}");
            tokio::time::sleep(wait).await;
        }
    }

    /// The list of a tenant's keys.
    pub(crate) fn keys(&mut self, tenant: &str) -> Vec<Value> {
        let answer = self.call_as_admin("GET", tenant, "/keys/signing");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Sign: a signature by a tenant's key over whatever octets.
    pub(crate) async fn sign(&mut self, tenant: &str, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let request = SignRequest {
            tenant: tenant.into(),
            algorithm: algorithm.into(),
            input: Some(sign_request::Input::Message(message.to_vec())),
            ..SignRequest::default()
        };
        self.clients.signing.sign(request).await.expect("signed").into_inner().signature
    }

    /// Rotates by gRPC, whatever the lead.
    pub(crate) async fn force_rotation(&mut self, tenant: &str) {
        self.force_rotations(tenant, 1, false).await;
    }

    /// Rotates so many times by gRPC, and revokes each replaced key or not.
    pub(crate) async fn force_rotations(&mut self, tenant: &str, count: usize, revoke_replaced: bool) {
        for _ in 0..count {
            let request =
                RotateSigningKeyRequest { tenant: tenant.into(), force: true, revoke_replaced, ..Default::default() };
            self.clients.keys.rotate_signing_key(request).await.expect("rotated");
        }
    }
}

/// 401 with a challenge that says the JWT is not believed.
pub(crate) fn assert_refused(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.starts_with(r#"Bearer realm="keyward", error="invalid_token", error_description=""#),
        "{challenge}"
    );
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

/// Waits until something has happened by itself.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < deadline, "not in {WAIT_MAX:?}: {what}");
        std::thread::sleep(POLL);
    }
}
