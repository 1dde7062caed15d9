#![allow(dead_code, reason = "each of two test binaries uses a part of it")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use keyward::grpc::proto::RotateSigningKeyRequest;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tonic::Status;

use crate::common::http::get;
use crate::common::{Clients, Faults, Installation, Server, claims, short_policy};

pub(crate) const TENANT: &str = "acme";
/// What takes longer on a busy machine than any promise is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(5);

/// Where the module runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    Process,
    Thread,
}

/// Waits until this is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < limit, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A server with a tenant, on a token that fails on command.
pub(crate) struct Stand {
    pub(crate) server: Server,
    pub(crate) clients: Clients,
    pub(crate) issuer: String,
    pub(crate) faults: Faults,
    pub(crate) installation: Installation,
    /// Calls of C_Login before the server was started.
    logins_before: u64,
}

impl Stand {
    pub(crate) async fn new(isolation: Isolation, algorithms: &[&str]) -> Self {
        Self::with(isolation, algorithms, |installation| installation).await
    }

    /// The same with more in its configuration.
    pub(crate) async fn with(
        isolation: Isolation,
        algorithms: &[&str],
        configure: impl FnOnce(Installation) -> Installation,
    ) -> Self {
        let (installation, faults) = Installation::bare().with_faults();
        let word = match isolation {
            Isolation::Process => r#""process""#,
            Isolation::Thread => r#""thread""#,
        };
        let installation = installation.set("token.isolation", word).set("limits.manual_rotations_per_day", "10000");
        let installation = configure(installation).init();
        let logins_before = faults.calls("C_Login");
        let server = installation.serve();
        let mut clients = Clients::connect(&server).await;
        let issuer = clients.create_tenant(TENANT, algorithms, short_policy()).await.issuer;
        let mut stand = Self { server, clients, issuer, faults, installation, logins_before };
        stand.until_calm().await;
        stand
    }

    /// A JWT of the tenant's; its kid.
    pub(crate) async fn sign(&mut self, algorithm: &str) -> Result<String, Status> {
        Ok(self.clients.sign_jwt(TENANT, algorithm, claims(&self.issuer, 600)).await?.kid)
    }

    /// RotateSigningKey by force.
    pub(crate) async fn rotate(&mut self, algorithm: &str) -> Result<(), Status> {
        let request = RotateSigningKeyRequest {
            tenant: TENANT.into(),
            algorithm: algorithm.into(),
            force: true,
            ..RotateSigningKeyRequest::default()
        };
        self.clients.keys.rotate_signing_key(request).await.map(drop)
    }

    pub(crate) fn jwks(&self) -> Vec<u8> {
        let answer = get(&self.server.jwks_uri(TENANT));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    pub(crate) fn is_ready(&self) -> bool {
        get(&format!("{}/readyz", self.server.ops())).status == 200
    }

    /// Waits until readyz is content.
    pub(crate) async fn until_calm(&mut self) {
        until("it is ready", || self.is_ready()).await;
    }

    /// Every row of the store but the one that probes write.
    pub(crate) async fn rows(&self) -> String {
        let options = SqliteConnectOptions::new().filename(self.installation.dir().join("store.sqlite"));
        let mut store = options.read_only(true).connect().await.expect("the store");
        let mut rows = String::new();
        for (table, columns) in [
            ("tenant", "id || revision || document || hex(seal)"),
            ("keyring", "tenant || algorithm || revision || document || hex(seal)"),
            ("audit_event", "position || record"),
        ] {
            let select = AssertSqlSafe(format!("select {columns} from {table} order by 1"));
            for row in sqlx::query(select).fetch_all(&mut store).await.expect("rows") {
                writeln!(rows, "{table}: {}", row.get::<String, _>(0)).expect("a String takes all");
            }
        }
        store.close().await.expect("closed");
        rows
    }

    /// Waits until so many processes or anchors have logged in since the server was started.
    pub(crate) async fn logged_in(&self, times: u64) {
        let have = || self.faults.calls("C_Login") >= self.logins_before + times;
        until(&format!("login {times}"), have).await;
    }

    /// How often worker processes were replaced, for this reason.
    pub(crate) fn replaced(&self, how: &str) -> f64 {
        self.server.metric(&format!("keyward_token_workers_replaced_total{{token=\"home\",how=\"{how}\"}}"))
    }
}
