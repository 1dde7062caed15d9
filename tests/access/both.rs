use keyward::grpc::proto::{SignRequest, sign_request};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::common::Clients;
use crate::stand::{Stand, claims, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_and_a_jwt_must_both_allow_a_call() {
    let stand = Stand::open(true).await;
    let mut nobody = stand.clients(None).await;
    let mut admin = stand.clients_of("admin2", "URI:spiffe://example.com/admin").await;
    let mut issuer = stand.clients_of("issuer", "URI:spiffe://example.com/issuer").await;
    let mut stranger = stand.clients_of("stranger", "URI:spiffe://example.com/stranger").await;
    let mut nameless = stand.clients_of("nameless", "").await;
    let bearer = |scope: &str| format!("Bearer {}", stand.jwt(scope));

    // Each alone.
    sign(&mut issuer, "acme", None).await.expect("by certificate");
    sign(&mut nobody, "acme", Some(&bearer("openid issuer:acme profile"))).await.expect("by JWT");
    // Together.
    sign(&mut issuer, "acme", Some(&bearer("issuer:acme"))).await.expect("by both");
    let record = stand.record("both", |record| record["principals"].as_array().is_some_and(|all| all.len() == 2));
    assert_eq!(
        record["principals"],
        json!(["uri:spiffe://example.com/issuer", "jwt:https://issuer.example/#caller-1"])
    );
    let denied = [
        ("the JWT is another tenant's", sign(&mut admin, "acme", Some(&bearer("issuer:b2b"))).await),
        ("the certificate is another tenant's", sign(&mut issuer, "b2b", Some(&bearer("issuer:b2b admin"))).await),
        ("the JWT has no role", sign(&mut issuer, "acme", Some(&bearer(""))).await),
        ("the certificate has no role", sign(&mut stranger, "acme", Some(&bearer("admin"))).await),
    ];
    for (what, answer) in denied {
        assert_eq!(answer.expect_err(what).code(), Code::PermissionDenied, "{what}");
    }
    let mut expired = claims("admin");
    expired["exp"] = json!(1_000_000_000);
    let expired = format!("Bearer {}", stand.issuer.jwt(&expired));
    for (what, wanted, answer) in [
        ("a JWT that is over", "JWT_REFUSED", sign(&mut admin, "acme", Some(&expired)).await),
        ("no JWT", "AUTHORIZATION_MALFORMED", sign(&mut admin, "acme", Some("Bearer")).await),
        ("another scheme", "AUTHORIZATION_MALFORMED", sign(&mut admin, "acme", Some("Basic YTpi")).await),
        (
            "two words",
            "AUTHORIZATION_MALFORMED",
            sign(&mut admin, "acme", Some(&format!("{} x", bearer("admin")))).await,
        ),
        ("nothing", "NO_CREDENTIALS", sign(&mut nobody, "acme", None).await),
        ("nobody's certificate", "CERTIFICATE_NAMES_NOBODY", sign(&mut nameless, "acme", Some(&bearer("admin"))).await),
    ] {
        let status = answer.expect_err(what);
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, wanted), "{what}");
    }
    let mut twice = request("acme");
    for _ in 0..2 {
        twice.metadata_mut().append("authorization", bearer("admin").parse().expect("ASCII"));
    }
    let status = nobody.signing.sign(twice).await.expect_err("two of them");
    assert_eq!(reason(&status), "AUTHORIZATION_MALFORMED");
    let refused = stand.record("a JWT that is over", |record| {
        record["detail"].as_str().is_some_and(|detail| detail.starts_with("JWT_REFUSED from "))
    });
    assert_eq!(refused["principals"], json!(["uri:spiffe://example.com/admin"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_s_id_is_in_its_record() {
    let stand = Stand::open(false).await;
    let mut issuer = stand.clients_of("issuer", "URI:spiffe://example.com/issuer").await;
    for id in ["7f1c1f0e-8f0a-4a55-9d2a-6f6f3f0c9b11", "not one id"] {
        let mut request = request("acme");
        request.metadata_mut().insert("x-request-id", id.parse().expect("ASCII"));
        issuer.signing.sign(request).await.expect("signed");
    }
    let mut refused = request("acme");
    refused.metadata_mut().insert("x-request-id", "refused-1".parse().expect("ASCII"));
    refused.metadata_mut().insert("authorization", "Basic eDp5".parse().expect("ASCII"));
    issuer.signing.sign(refused).await.expect_err("it takes no such proof");
    stand.record("a refusal's id", |record| {
        record["result"] == "UNAUTHENTICATED" && record["request_id"] == "refused-1"
    });
    stand.record("the id", |record| record["request_id"] == "7f1c1f0e-8f0a-4a55-9d2a-6f6f3f0c9b11");
    stand.record("no id", |record| record["action"] == "sign" && record.get("request_id").is_none());
}

fn request(tenant: &str) -> Request<SignRequest> {
    let input = Some(sign_request::Input::Message(b"message".to_vec()));
    Request::new(SignRequest { tenant: tenant.into(), input, ..SignRequest::default() })
}

async fn sign(clients: &mut Clients, tenant: &str, authorization: Option<&str>) -> Result<(), Status> {
    let mut request = request(tenant);
    if let Some(authorization) = authorization {
        request.metadata_mut().insert("authorization", authorization.parse().expect("ASCII"));
    }
    clients.signing.sign(request).await.map(drop)
}
