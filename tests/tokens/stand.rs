use std::time::{Duration, Instant};

use keyward::grpc::proto::RotateSigningKeyRequest;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::common::http::get;
use crate::common::{Clients, Installation, Server, claims, short_policy};

/// The tenant on the home token, and the one on the other token.
pub(crate) const ACME: &str = "acme";
pub(crate) const GLOBEX: &str = "globex";
/// The other token.
pub(crate) const WEST: &str = "west";

/// What takes longer on a busy machine than any promise is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// What the tenants' issuers begin with, wherever they are served.
const BASE_URL: &str = "https://keys.example";

/// An installation with two tokens, before `keyward init`.
pub(crate) fn two_tokens() -> Installation {
    beside(Installation::bare())
}

/// The other token beside the one that is there.
pub(crate) fn beside(installation: Installation) -> Installation {
    installation.with_token(WEST).set("public.base_url", &format!("{BASE_URL:?}"))
}

/// The issuer of a tenant.
pub(crate) fn issuer(tenant: &str) -> String {
    format!("{BASE_URL}/{tenant}")
}

/// A server with two tokens and a tenant on each.
pub(crate) struct Stand {
    pub(crate) server: Server,
    pub(crate) clients: Clients,
}

impl Stand {
    /// Serves what was not served before, and makes the tenants.
    pub(crate) async fn new(installation: &Installation) -> Self {
        let mut stand = Self::again(installation).await;
        // A token other than the home token is opened beside a service that runs already.
        stand.until("both are up", |readyz| up(readyz, "home") && up(readyz, WEST)).await;
        for (tenant, token) in [(ACME, ""), (GLOBEX, WEST)] {
            let placed = stand.clients.place_tenant(tenant, token, &["ES256"], short_policy()).await;
            placed.unwrap_or_else(|status| panic!("{tenant}: {status:?}"));
        }
        stand
    }

    /// Serves what is there.
    pub(crate) async fn again(installation: &Installation) -> Self {
        let server = installation.serve();
        let clients = Clients::connect(&server).await;
        Self { server, clients }
    }

    /// A JWT of the tenant's; its kid.
    pub(crate) async fn sign(&mut self, tenant: &str) -> Result<String, Status> {
        Ok(self.clients.sign_jwt(tenant, "", claims(&issuer(tenant), 600)).await?.kid)
    }

    pub(crate) async fn rotate(&mut self, tenant: &str) -> Result<(), Status> {
        let request =
            RotateSigningKeyRequest { tenant: tenant.into(), force: true, ..RotateSigningKeyRequest::default() };
        self.clients.keys.rotate_signing_key(request).await.map(drop)
    }

    pub(crate) fn jwks(&self, tenant: &str) -> Value {
        let answer = get(&self.server.jwks_uri(tenant));
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// The status of readyz, and what it says.
    pub(crate) fn readyz(&self) -> (u16, Value) {
        let answer = get(&format!("{}/readyz", self.server.ops()));
        (answer.status.as_u16(), serde_json::from_slice(&answer.body).expect("JSON"))
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let limit = Instant::now() + PATIENCE;
        loop {
            let (_, readyz) = self.readyz();
            if holds(&readyz) {
                return;
            }
            assert!(Instant::now() < limit, "not in {PATIENCE:?}: {what}: {readyz}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Signs until it is done, for what comes back by itself.
    pub(crate) async fn until_signed(&mut self, tenant: &str) -> String {
        let limit = Instant::now() + PATIENCE;
        loop {
            match self.sign(tenant).await {
                Ok(kid) => return kid,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    assert!(Instant::now() < limit, "not in {PATIENCE:?}: {tenant}: {status:?}");
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Whether readyz says that a token is up.
pub(crate) fn up(readyz: &Value, token: &str) -> bool {
    readyz["tokens"][token]["state"] == "up"
}

/// Whether all that the service needs is well; a token that it can do without is no part of it.
pub(crate) fn is_ready(readyz: &Value) -> bool {
    readyz["checks"].as_object().expect("checks").values().all(|check| check == "ok")
}

pub(crate) fn down(readyz: &Value, token: &str) -> bool {
    readyz["tokens"][token]["state"] == "down"
}

/// UNAVAILABLE because of the token, with a time to try again; and nothing of which token.
pub(crate) fn is_away<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("its token is away");
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    assert_eq!((status.code(), reason.as_str()), (Code::Unavailable, "TOKEN_UNAVAILABLE"), "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert!(!status.message().contains(WEST), "{status:?}");
}

/// The field that a request was refused for, and why.
pub(crate) fn wrong_field<T: std::fmt::Debug>(answer: Result<T, Status>) -> (String, String) {
    let status = answer.expect_err("it is wrong");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().expect("the fields").field_violations;
    let [violation] = violations.as_slice() else { panic!("{violations:?}") };
    (violation.field.clone(), violation.description.clone())
}
