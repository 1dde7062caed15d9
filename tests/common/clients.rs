use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use keyward::grpc::proto::key_service_client::KeyServiceClient;
use keyward::grpc::proto::signing_service_client::SigningServiceClient;
use keyward::grpc::proto::tenant_service_client::TenantServiceClient;
use keyward::grpc::proto::{
    CreateTenantRequest, RotateSigningKeyRequest, RotateSigningKeyResponse, RotationPolicy, SignJwtRequest,
    SignJwtResponse, Tenant,
};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::{Dial, Server};

/// How long a test goes on asking for a rotation that is refused with a time to try again.
const ROTATION_WAIT_MAX_SECS: u64 = 60;

/// The generated clients on one connection. Cloning shares the connection.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) signing: SigningServiceClient<Channel>,
    pub(crate) keys: KeyServiceClient<Channel>,
    pub(crate) tenants: TenantServiceClient<Channel>,
}

impl Clients {
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::over(Dial::tcp(server.grpc()).connect().await.expect("the announced address accepts connections"))
    }

    /// The same on any connection.
    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            signing: SigningServiceClient::new(channel.clone()),
            keys: KeyServiceClient::new(channel.clone()),
            tenants: TenantServiceClient::new(channel),
        }
    }

    /// CreateTenant with an issuer of the server's choosing.
    pub(crate) async fn create_tenant(&mut self, id: &str, algorithms: &[&str], policy: RotationPolicy) -> Tenant {
        let placed = self.place_tenant(id, "", algorithms, policy).await;
        placed.unwrap_or_else(|status| panic!("{id}: {status:?}"))
    }

    /// The same on a token that is named.
    ///
    /// # Errors
    /// What the server answered.
    pub(crate) async fn place_tenant(
        &mut self,
        id: &str,
        token: &str,
        algorithms: &[&str],
        policy: RotationPolicy,
    ) -> Result<Tenant, Status> {
        let tenant = Tenant {
            id: id.into(),
            token: token.into(),
            algorithms: algorithms.iter().map(ToString::to_string).collect(),
            rotation_policy: Some(policy),
            ..Tenant::default()
        };
        let request = CreateTenantRequest { tenant: Some(tenant) };
        Ok(self.tenants.create_tenant(request).await?.into_inner())
    }

    /// SignJwt with the header's usual type.
    ///
    /// # Errors
    /// What the server answered.
    pub(crate) async fn sign_jwt(
        &mut self,
        tenant: &str,
        algorithm: &str,
        claims_json: Vec<u8>,
    ) -> Result<SignJwtResponse, Status> {
        let request =
            SignJwtRequest { tenant: tenant.into(), algorithm: algorithm.into(), claims_json, r#type: String::new() };
        Ok(self.signing.sign_jwt(request).await?.into_inner())
    }

    /// RotateSigningKey by force.
    pub(crate) async fn force_rotation(&mut self, tenant: &str, algorithm: &str) {
        let request = RotateSigningKeyRequest {
            tenant: tenant.into(),
            algorithm: algorithm.into(),
            force: true,
            ..RotateSigningKeyRequest::default()
        };
        self.keys.rotate_signing_key(request).await.expect("rotated");
    }

    /// RotateSigningKey without force, again at the time that each refusal names until it is granted.
    pub(crate) async fn rotate_when_allowed(&mut self, tenant: &str, algorithm: &str) -> RotateSigningKeyResponse {
        let request = RotateSigningKeyRequest {
            tenant: tenant.into(),
            algorithm: algorithm.into(),
            ..RotateSigningKeyRequest::default()
        };
        let deadline = Instant::now() + Duration::from_secs(ROTATION_WAIT_MAX_SECS);
        loop {
            let status = match self.keys.rotate_signing_key(request.clone()).await {
                Ok(answer) => return answer.into_inner(),
                Err(status) => status,
            };
            let delay = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
            let delay = delay.unwrap_or_else(|| panic!("refused without a time to try again: {status:?}"));
            assert!(Instant::now() + delay < deadline, "not in {ROTATION_WAIT_MAX_SECS} s: {status:?}");
            tokio::time::sleep(delay).await;
        }
    }
}

/// The quickest rotation: allowed 1 s after the one before. JWTs may live an hour, so that no key retires by itself during a
/// test.
pub(crate) fn short_policy() -> RotationPolicy {
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    RotationPolicy {
        max_token_ttl: secs(3600),
        jwks_max_age: secs(1),
        clock_skew: secs(0),
        publish_lead: secs(1),
        rotation_period: secs(0),
        destroy_delay: secs(3600),
        auto_revoke: Some(true),
    }
}

/// The quickest that replicas may have: their clocks, and what they do to reach the others, need room.
pub(crate) fn shared_policy() -> RotationPolicy {
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    RotationPolicy { clock_skew: secs(3), publish_lead: secs(4), ..short_policy() }
}

/// The claims of a JWT that lives this long from now.
pub(crate) fn claims(issuer: &str, life_secs: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = serde_json::json!({ "iss": issuer, "sub": "user-1", "iat": now, "exp": now + life_secs });
    claims.to_string().into_bytes()
}

/// Verifies a JWT by ES256 as those do who have fetched these keys.
pub(crate) fn verify(jwt: &str, jwks: &JwkSet) {
    let kid = jsonwebtoken::decode_header(jwt).expect("a JWT").kid.expect("it names its key");
    let key = DecodingKey::from_jwk(jwks.find(&kid).expect("it is published")).expect("a key");
    jsonwebtoken::decode::<serde_json::Value>(jwt, &key, &Validation::new(Algorithm::ES256)).expect("it verifies");
}
