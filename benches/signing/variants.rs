//! The same service with one thing more in each: what safety costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::common::{Authority, Clients, Dial, Identity, Installation, Issuer, Server, short_policy};
use crate::cores::Cores;
use crate::load::Load;

const TENANT: &str = "bench";
const ISSUER: &str = "https://issuer.example/";
const AUDIENCE: &str = "keyward";

/// Longer than any run.
const JWT_LIFE_SECS: u64 = 24 * 60 * 60;
/// More than the server remembers, so that each is verified when its turn comes again.
const JWTS_NEW: usize = 2048;

/// A server of its own, on a token and a store of its own, and clients that it lets in.
pub(crate) struct Variant {
    pub(crate) with: &'static str,
    pub(crate) load: Rc<Load>,
    server: Server,
    installation: Installation,
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
}

/// Without TLS, for everybody, and no signature is recorded.
const BASE: Plan =
    Plan { with: "base: TCP, auth none, audit off", tls: false, grants: false, jwts: Jwts::None, audit: "off" };

/// The base, what changes one thing of it, and what people run. Grants need client certificates, and so come with TLS.
const PLANS: [Plan; 8] = [
    BASE,
    Plan { with: "TLS, client certificates", tls: true, ..BASE },
    Plan { with: "TLS, client certificates, grants", tls: true, grants: true, ..BASE },
    Plan { with: "a JWT on each call, the same", jwts: Jwts::Same, ..BASE },
    Plan { with: "a JWT on each call, a new one", jwts: Jwts::New, ..BASE },
    Plan { with: "audit async", audit: "async", ..BASE },
    Plan { with: "audit durable", audit: "durable", ..BASE },
    Plan { with: "all: TLS, grants, audit async", tls: true, grants: true, jwts: Jwts::None, audit: "async" },
];

/// Which of them the grants alone can be told from: the second has nothing else that the first has not.
pub(crate) const GRANTS_ALONE: [usize; 2] = [1, 2];

/// Who is who in every variant.
struct People {
    authority: Authority,
    server: Identity,
    admin: Identity,
    issuer: Identity,
    jwts: Issuer,
}

impl Variant {
    /// Starts all of them. Those that are not called do next to nothing.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) async fn start_all(cores: &Cores) -> Result<Vec<Self>, String> {
        let authority = Authority::new();
        let people = People {
            server: authority.issue("server"),
            admin: authority.client("admin", "URI:spiffe://example.com/admin"),
            issuer: authority.client("issuer", "URI:spiffe://example.com/issuer"),
            jwts: Issuer::new(),
            authority,
        };
        let mut variants = Vec::new();
        for plan in &PLANS {
            variants.push(plan.start(&people, cores).await?);
        }
        Ok(variants)
    }

    /// Where its token is.
    pub(crate) fn dir(&self) -> &Path {
        self.installation.dir()
    }

    /// What the threads of the server have had of their core so far (proc_pid_schedstat: nanoseconds come first).
    ///
    /// # Errors
    /// The system does not tell.
    pub(crate) fn cpu_time(&self) -> Result<Duration, String> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.server.pid()));
        let tasks = fs::read_dir(&tasks).map_err(|error| format!("{}: {error}", tasks.display()))?;
        // A thread may end between the two looks.
        let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        let nanos: u64 = texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum();
        if nanos == 0 {
            Err("the system does not tell what threads have had of their cores".into())
        } else {
            Ok(Duration::from_nanos(nanos))
        }
    }
}

impl Plan {
    async fn start(&self, people: &People, cores: &Cores) -> Result<Variant, String> {
        let required = self.grants || self.jwts != Jwts::None;
        let auth = if required { r#""required""# } else { r#""none""# };
        let mut installation =
            Installation::bare().set("grpc.auth", auth).set("audit.signing", &format!("{:?}", self.audit));
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
        let server = cores.on_servers(|| installation.serve())?;
        let dial = |client| match self.tls {
            true => Dial::tls(server.grpc(), &people.authority, Some(client)),
            false => Dial::tcp(server.grpc()),
        };
        let issuer = self.tenant(&dial(&people.admin), people).await;
        let count = match self.jwts {
            Jwts::None => 0,
            Jwts::Same => 1,
            Jwts::New => JWTS_NEW,
        };
        let jwts: Vec<String> = (0..count).map(|number| people.jwt(&format!("issuer:{TENANT}"), number)).collect();
        let load = Load::connect(&dial(&people.issuer), TENANT, &issuer, &jwts).await;
        Ok(Variant { with: self.with, load, server, installation })
    }

    /// Makes the tenant, and tells its issuer.
    async fn tenant(&self, dial: &Dial, people: &People) -> String {
        let channel = dial.connect().await.expect("a connection");
        if self.jwts == Jwts::None {
            return Clients::over(channel).create_tenant(TENANT, &["RS256", "ES256"], short_policy()).await.issuer;
        }
        // The harness's own call brings no JWT.
        let bearer = format!("Bearer {}", people.jwt("admin", 0)).parse::<tonic::metadata::MetadataValue<_>>();
        let bearer = bearer.expect("ASCII");
        let tenant = keyward::grpc::proto::Tenant {
            id: TENANT.into(),
            algorithms: vec!["RS256".into(), "ES256".into()],
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
    fn jwt(&self, scope: &str, number: usize) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let exp = now + JWT_LIFE_SECS;
        let claims =
            json!({"iss": ISSUER, "sub": "caller-1", "aud": AUDIENCE, "scope": scope, "exp": exp, "jti": number});
        self.jwts.jwt(&claims)
    }
}
