//! The two tenants, and JWTs of them: good ones by SignJwt, and others that SignJwt would refuse, by Sign.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use jsonwebtoken::{EncodingKey, Header};
use keyward::grpc::proto::sign_request::Input;
use keyward::grpc::proto::{CreateTenantRequest, GetCurrentKeyRequest, SignRequest, SigningKey, Tenant};
use serde_json::{Value, json};

use crate::common::{Clients, Server, short_policy};

/// The issuer of what clients have.
pub(crate) const OUTSIDE: &str = "outside";
pub(crate) const OUTSIDE_DOMAIN: &str = "id.outside.example";
/// The tenant that signs for the upstream.
pub(crate) const INSIDE: &str = "inside";
pub(crate) const DOMAIN: &str = "login.example.com";
pub(crate) const AUDIENCE: &str = "https://api.example.com";

pub(crate) struct Signers {
    keyward: Clients,
    pub(crate) outside_issuer: String,
}

impl Signers {
    pub(crate) async fn new(server: &Server) -> Self {
        let mut keyward = Clients::connect(server).await;
        let mut outside_issuer = String::new();
        // PS384 is none of the proxy's algorithms, so what it made itself cannot go in again.
        for (id, domain, algorithm) in [(INSIDE, DOMAIN, "PS384"), (OUTSIDE, OUTSIDE_DOMAIN, "ES256")] {
            let tenant = Tenant {
                id: id.into(),
                custom_domain: domain.into(),
                algorithms: vec![algorithm.into()],
                rotation_policy: Some(short_policy()),
                ..Tenant::default()
            };
            let request = CreateTenantRequest { tenant: Some(tenant) };
            outside_issuer = keyward.tenants.create_tenant(request).await.expect("created").into_inner().issuer;
        }
        Self { keyward, outside_issuer }
    }

    /// What the proxy takes.
    pub(crate) fn good_claims(&self) -> Value {
        json!({"iss": self.outside_issuer, "aud": AUDIENCE, "sub": "user-1", "exp": now() + 600})
    }

    /// SignJwt by the outside issuer; `iss` and `aud` are added.
    pub(crate) async fn outside_jwt(&self, claims: &Value) -> String {
        let mut claims = claims.clone();
        claims["iss"] = json!(self.outside_issuer);
        claims["aud"] = json!(AUDIENCE);
        let signed = self.keyward.clone().sign_jwt(OUTSIDE, "", claims.to_string().into_bytes()).await;
        signed.expect("claims that SignJwt takes").jwt
    }

    /// Any header and claims, signed with the tenant's current key (its ES256 key, if it has one). Members that are null are
    /// left out.
    pub(crate) async fn craft(&self, tenant: &str, header: &Value, claims: &Value) -> String {
        let mut claims = claims.clone();
        claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
        let signed = format!("{}.{}", segment(header), segment(&claims));
        let request = SignRequest {
            tenant: tenant.into(),
            algorithm: algorithm(tenant).into(),
            input: Some(Input::Message(signed.clone().into_bytes())),
            ..SignRequest::default()
        };
        let answer = self.keyward.clone().signing.sign(request).await.expect("signed").into_inner();
        format!("{signed}.{}", BASE64URL.encode(answer.signature))
    }

    /// The header that the tenant's current key signs under.
    pub(crate) async fn header(&self, tenant: &str) -> Value {
        let key = self.current_key(tenant).await;
        json!({"alg": key.algorithm, "kid": key.kid, "typ": "JWT"})
    }

    /// The attack on verifiers that take any algorithm (RFC 8725 section 2.1): HMAC, with the public key as the secret.
    pub(crate) async fn hs256_with_the_public_key(&self, claims: &Value) -> String {
        let key = self.current_key(OUTSIDE).await;
        let header = Header { kid: Some(key.kid), ..Header::default() };
        let secret = EncodingKey::from_secret(key.public_key_pem.as_bytes());
        jsonwebtoken::encode(&header, claims, &secret).expect("encoded")
    }

    pub(crate) async fn rotate(&mut self, tenant: &str) {
        self.keyward.rotate_when_allowed(tenant, algorithm(tenant)).await;
    }

    async fn current_key(&self, tenant: &str) -> SigningKey {
        let request = GetCurrentKeyRequest { tenant: tenant.into(), algorithm: algorithm(tenant).into() };
        let answer = self.keyward.clone().signing.get_current_key(request).await.expect("a current key");
        answer.into_inner().key.expect("a current key")
    }
}

/// A JWT's part.
pub(crate) fn segment(value: &Value) -> String {
    BASE64URL.encode(value.to_string())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn algorithm(tenant: &str) -> &'static str {
    if tenant == INSIDE { "PS384" } else { "ES256" }
}
