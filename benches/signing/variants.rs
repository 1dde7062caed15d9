//! The same service with one thing more in each, up to the complete one.

use std::fmt;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;
use tokio::task::spawn_blocking;
use ureq::http::StatusCode;

use crate::common::{Authority, Clients, Dial, Identity, Installation, Issuer, Server, http, short_policy};
use crate::cores::Place;
use crate::load::{self, Call, Load, Served};
use crate::processes;
use crate::table::Bench;

const TENANT: &str = "bench";
const ISSUER: &str = "https://issuer.example/";
const AUDIENCE: &str = "keyward";
const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];

/// Longer than any run.
const JWT_LIFE_SECS: u64 = 24 * 60 * 60;
/// More than the server remembers, so that each is verified when its turn comes again.
const JWTS_NEW: usize = 2048;

/// A server of its own, on a token and a store of its own, and clients that it lets in.
pub(crate) struct Variant {
    pub(crate) with: &'static str,
    pub(crate) isolation: Isolation,
    pub(crate) load: Rc<Load>,
    server: Server,
    installation: Installation,
}

/// Where the token's module runs (`token.isolation`).
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Isolation {
    /// The default.
    Process,
    Thread,
}

/// What a server did at full speed.
pub(crate) struct Turn {
    pub(crate) served: Served,
    /// What it had of its core for a signature, in all its processes.
    pub(crate) cpu_us: f64,
}

/// What callers show.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Jwts {
    None,
    Same,
    New,
}

/// What differs.
struct Plan {
    with: &'static str,
    tls: bool,
    grants: bool,
    jwts: Jwts,
    audit: &'static str,
    isolation: Isolation,
}

/// Without TLS, for everybody, no signature is recorded, and the module is in the process that serves.
const BASE: Plan = Plan {
    with: "base: TCP, auth none, audit off, token in a thread",
    tls: false,
    grants: false,
    jwts: Jwts::None,
    audit: "off",
    isolation: Isolation::Thread,
};

/// What a service for other machines runs with: all else is as it is where nothing is set.
const COMPLETE: Plan = Plan {
    with: "all: TLS, grants, audit async, token in a process",
    tls: true,
    grants: true,
    jwts: Jwts::None,
    audit: "async",
    isolation: Isolation::Process,
};

/// The base, what changes one thing of it, and what people run. Grants need client certificates, and so come with TLS.
const PLANS: [Plan; 10] = [
    BASE,
    Plan { with: "token in a process", isolation: Isolation::Process, ..BASE },
    Plan { with: "TLS, client certificates", tls: true, ..BASE },
    Plan { with: "TLS, client certificates, grants", tls: true, grants: true, ..BASE },
    Plan { with: "a JWT on each call, the same", jwts: Jwts::Same, ..BASE },
    Plan { with: "a JWT on each call, a new one", jwts: Jwts::New, ..BASE },
    Plan { with: "audit async", audit: "async", ..BASE },
    Plan { with: "audit durable", audit: "durable", ..BASE },
    Plan { with: "all, but the token in a thread", isolation: Isolation::Thread, ..COMPLETE },
    COMPLETE,
];

/// Which of them the grants alone can be told from: the second has nothing else that the first has not.
pub(crate) const GRANTS_ALONE: [usize; 2] = [2, 3];

/// Who is who in every variant.
struct People {
    authority: Authority,
    server: Identity,
    admin: Identity,
    issuer: Identity,
    jwts: Issuer,
}

impl Isolation {
    pub(crate) const BOTH: [Self; 2] = [Self::Process, Self::Thread];
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Thread => "thread",
        })
    }
}

impl Variant {
    /// Starts all of them. Those that are not called do next to nothing.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn start_all(bench: &Bench) -> Result<Vec<Self>, String> {
        let people = People::new();
        PLANS.iter().map(|plan| plan.start(&people, bench, Place::Server)).collect()
    }

    /// Starts the complete service, on the core or cores of this place.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn start_complete(bench: &Bench, place: Place, isolation: Isolation) -> Result<Self, String> {
        Plan { isolation, ..COMPLETE }.start(&People::new(), bench, place)
    }

    /// Where its token is.
    pub(crate) fn dir(&self) -> &Path {
        self.installation.dir()
    }

    /// What all its processes hold now.
    pub(crate) fn memory_kib(&self) -> u64 {
        processes::memory_kib(self.server.pid())
    }

    /// As many calls as it answers, with so many under way.
    ///
    /// # Errors
    /// What the server answered.
    pub(crate) fn flat_out(&self, bench: &Bench, call: Call, duration: Duration) -> Result<Turn, String> {
        let (served, cpu) = processes::cpu_during(self.server.pid(), || {
            let served = bench.runtime.block_on(self.load.flat_out(call, duration, bench.cores.waiting()));
            served.map_err(|problem| format!("{}: {problem}", self.with))
        })?;
        let cpu_us = cpu.as_secs_f64() * 1e6 / (served.calls as f64 * call.signatures());
        Ok(Turn { served, cpu_us })
    }

    /// Fetches the tenant's JWKS so many times, each over a connection of its own.
    ///
    /// # Errors
    /// It was not answered.
    pub(crate) fn fetch_jwks(&self, times: usize) -> Result<(), String> {
        (0..times).try_for_each(|_| match http::get(&self.server.jwks_uri(TENANT)).status {
            StatusCode::OK => Ok(()),
            status => Err(format!("{}: the JWKS was answered with {status}", self.with)),
        })
    }

    /// Has the server leave in order.
    ///
    /// # Errors
    /// It did not.
    pub(crate) fn leave(self, bench: &Bench) -> Result<(), String> {
        let Self { load, server, installation, .. } = self;
        drop(load);
        // Meanwhile the clients' connections hear of it, and end.
        let left = bench.runtime.block_on(async { spawn_blocking(|| server.terminate()).await });
        let status = left.map_err(|error| error.to_string())?;
        drop(installation);
        status.success().then_some(()).ok_or_else(|| format!("{}: it left with {status}", self.with))
    }
}

impl Plan {
    fn start(&self, people: &People, bench: &Bench, place: Place) -> Result<Variant, String> {
        let required = self.grants || self.jwts != Jwts::None;
        let auth = if required { r#""required""# } else { r#""none""# };
        let mut installation = load::installation()
            .set("grpc.auth", auth)
            .set("audit.signing", &format!("{:?}", self.audit))
            .set("token.isolation", &format!("{:?}", self.isolation.to_string()));
        if self.tls {
            installation = installation.with_grpc_tls(&people.server, Some(&people.authority));
        }
        if self.grants {
            installation = installation
                .grant("uri:spiffe://example.com/admin", &["admin"])
                .grant("uri:spiffe://example.com/issuer", &[&format!("issuer:{TENANT}")]);
        }
        if self.jwts != Jwts::None {
            let jwks = people.jwts.jwks().to_string();
            fs::write(installation.dir().join("issuer.json"), jwks).map_err(|error| error.to_string())?;
            installation = installation
                .set("grpc.jwt.issuer", &format!("{ISSUER:?}"))
                .set("grpc.jwt.audience", &format!("{AUDIENCE:?}"))
                .set("grpc.jwt.jwks_file", r#""issuer.json""#);
        }
        let installation = installation.init();
        let server = bench.cores.within(place, || installation.serve())?;
        let dial = |client| match self.tls {
            true => Dial::tls(server.grpc(), &people.authority, Some(client)),
            false => Dial::tcp(server.grpc()),
        };
        let issuer = bench.runtime.block_on(self.tenant(&dial(&people.admin), people));
        let count = match self.jwts {
            Jwts::None => 0,
            Jwts::Same => 1,
            Jwts::New => JWTS_NEW,
        };
        let jwts: Vec<String> = (0..count).map(|number| people.jwt(&format!("issuer:{TENANT}"), number)).collect();
        let load = bench.runtime.block_on(Load::connect(&dial(&people.issuer), TENANT, &issuer, &jwts));
        Ok(Variant { with: self.with, isolation: self.isolation, load, server, installation })
    }

    /// Makes the tenant, and tells its issuer.
    async fn tenant(&self, dial: &Dial, people: &People) -> String {
        let channel = dial.connect().await.expect("a connection");
        if self.jwts == Jwts::None {
            return Clients::over(channel).create_tenant(TENANT, &ALGORITHMS, short_policy()).await.issuer;
        }
        // The harness's own call brings no JWT.
        let bearer = format!("Bearer {}", people.jwt("admin", 0)).parse::<tonic::metadata::MetadataValue<_>>();
        let bearer = bearer.expect("ASCII");
        let tenant = keyward::grpc::proto::Tenant {
            id: TENANT.into(),
            algorithms: ALGORITHMS.map(str::to_owned).into(),
            rotation_policy: Some(short_policy()),
            ..keyward::grpc::proto::Tenant::default()
        };
        let mut request = tonic::Request::new(keyward::grpc::proto::CreateTenantRequest { tenant: Some(tenant) });
        request.metadata_mut().insert("authorization", bearer);
        let created = Clients::over(channel).tenants.create_tenant(request).await;
        created.unwrap_or_else(|status| panic!("{TENANT}: {status:?}")).into_inner().issuer
    }
}

impl People {
    fn new() -> Self {
        let authority = Authority::new();
        Self {
            server: authority.issue("server"),
            admin: authority.client("admin", "URI:spiffe://example.com/admin"),
            issuer: authority.client("issuer", "URI:spiffe://example.com/issuer"),
            jwts: Issuer::new(),
            authority,
        }
    }

    fn jwt(&self, scope: &str, number: usize) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let exp = now + JWT_LIFE_SECS;
        let claims =
            json!({"iss": ISSUER, "sub": "caller-1", "aud": AUDIENCE, "scope": scope, "exp": exp, "jti": number});
        self.jwts.jwt(&claims)
    }
}
