#![allow(dead_code, reason = "tests/jwt_abuse.rs uses a part of it")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::common::{Authority, Clients, Dial, Identity, Installation, Issuer, Server, short_policy};

/// How long a record may take to be in the file, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

pub(crate) const ISSUER: &str = "https://issuer.example/";
pub(crate) const AUDIENCE: &str = "keyward";

/// A Keyward whose callers must prove who they are, and its tenants `acme` and `b2b`.
pub(crate) struct Stand {
    pub(crate) server: Server,
    pub(crate) installation: Installation,
    pub(crate) authority: Authority,
    pub(crate) issuer: Issuer,
}

impl Stand {
    /// With client certificates; `jwts`: JWTs too, and then a certificate is not needed.
    pub(crate) async fn open(jwts: bool) -> Self {
        Self::prepared(jwts, |_, installation| installation).await
    }

    pub(crate) async fn prepared(jwts: bool, prepare: impl FnOnce(&Authority, Installation) -> Installation) -> Self {
        let (authority, issuer) = (Authority::new(), Issuer::new());
        let installation = Installation::prepare()
            .with_grpc_tls(&authority.issue("server"), Some(&authority))
            .set("grpc.auth", r#""required""#)
            .grant("uri:spiffe://example.com/admin", &["admin"])
            .grant("uri:spiffe://example.com/issuer", &["issuer:acme"])
            .grant("uri:spiffe://example.com/operator", &["operator:acme"])
            .grant("dns:auditor.example.com", &["auditor"]);
        let installation = if jwts { with_jwts(installation, &issuer) } else { installation };
        let installation = prepare(&authority, installation);
        let server = installation.serve();
        let stand = Self { server, installation, authority, issuer };
        let mut admin = stand.clients_of("admin", "URI:spiffe://example.com/admin").await;
        for tenant in ["acme", "b2b"] {
            admin.create_tenant(tenant, &["ES256"], short_policy()).await;
        }
        stand
    }

    pub(crate) fn dial(&self, client: Option<&Identity>) -> Dial {
        Dial::tls(self.server.grpc(), &self.authority, client)
    }

    /// The clients with a certificate, or without.
    pub(crate) async fn clients(&self, client: Option<&Identity>) -> Clients {
        Clients::over(self.dial(client).connect().await.expect("a connection"))
    }

    /// The clients with a new certificate of these names.
    pub(crate) async fn clients_of(&self, name: &str, alternative_names: &str) -> Clients {
        self.clients(Some(&self.authority.client(name, alternative_names))).await
    }

    /// A JWT of the issuer with this scope.
    pub(crate) fn jwt(&self, scope: &str) -> String {
        self.issuer.jwt(&claims(scope))
    }

    /// The first record in the log of calls that is as wanted, as soon as it is there.
    pub(crate) fn record(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        record(&self.installation, what, wanted)
    }
}

/// JWTs as proofs, of this issuer.
pub(crate) fn with_jwts(installation: Installation, issuer: &Issuer) -> Installation {
    fs::write(installation.dir().join("issuer.json"), issuer.jwks().to_string()).expect("the JWKS is written");
    installation
        .set("grpc.jwt.issuer", &format!("{ISSUER:?}"))
        .set("grpc.jwt.audience", &format!("{AUDIENCE:?}"))
        .set("grpc.jwt.jwks_file", r#""issuer.json""#)
}

/// Claims that nobody has anything against.
pub(crate) fn claims(scope: &str) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    json!({"iss": ISSUER, "sub": "caller-1", "aud": AUDIENCE, "scope": scope, "exp": now + 600})
}

pub(crate) fn record(installation: &Installation, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let records = records(installation);
        if let Some(record) = records.iter().find(|record| wanted(record)) {
            return record.clone();
        }
        assert!(Instant::now() < deadline, "no record in {WAIT_MAX:?}: {what}; there are {records:#?}");
        std::thread::sleep(POLL);
    }
}

/// Every record in the log of calls.
pub(crate) fn records(installation: &Installation) -> Vec<Value> {
    let directory = fs::read_dir(installation.dir().join("audit")).expect("the log's directory");
    let names = directory.map(|entry| entry.expect("an entry").path());
    let segments = names.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let mut records = Vec::new();
    for segment in segments {
        let text = fs::read_to_string(segment).expect("a segment in UTF-8");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.extend(lines.filter(|record| record["method"].is_string()));
    }
    records
}

/// The reason in ErrorInfo.
pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}
