use keyward::grpc::proto::{
    CreateTenantRequest, ListTenantsRequest, RotateSigningKeyRequest, SignRequest, Tenant, sign_request,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::common::{Authority, Clients, Identity, Validity};
use crate::stand::{Stand, reason};

const SIGN: &str = "/keyward.v1.SigningService/Sign";
const ISSUER_NAME: &str = "URI:spiffe://example.com/issuer";

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_valid_here_is_refused_in_the_handshake_and_that_is_recorded() {
    let mut revoked = None;
    let stand = Stand::prepared(false, |authority, installation| {
        let withdrawn = authority.client("withdrawn", ISSUER_NAME);
        authority.revoke(&withdrawn);
        revoked = Some(withdrawn);
        installation.with_grpc_revocation_list(&authority.revocation_list())
    })
    .await;
    let stranger = Authority::new();
    let expired = stand.authority.client_valid("expired", ISSUER_NAME, Validity::Expired);
    let early = stand.authority.client_valid("early", ISSUER_NAME, Validity::NotYet);
    let cases: [(&str, Option<&Identity>, &str); 5] = [
        ("of an unknown authority", Some(&stranger.client("issuer", ISSUER_NAME)), "authority"),
        ("expired", Some(&expired), "expired"),
        ("not valid yet", Some(&early), "not yet valid"),
        ("revoked", revoked.as_ref(), "revoked"),
        ("none", None, "no certificate"),
    ];
    for (what, identity, word) in cases {
        let status = match stand.dial(identity).connect().await {
            Ok(channel) => sign(&mut Clients::over(channel), "acme").await.expect_err(what),
            // TLS 1.3 tells after the handshake, and sometimes that is soon enough.
            Err(_) => Status::unavailable("no connection"),
        };
        // The client's own words for a connection that ended: no answer of the service's.
        assert!(reason(&status).is_empty(), "{what}: {status:?}");
        let record = stand.record(what, |record| {
            record["method"] == "TLS handshake" && record["detail"].as_str().is_some_and(|detail| detail.contains(word))
        });
        assert_eq!((&record["result"], &record["principals"]), (&json!("UNAUTHENTICATED"), &json!([])), "{what}");
    }
    // The same name in order.
    let mut good = stand.clients_of("good", ISSUER_NAME).await;
    sign(&mut good, "acme").await.expect("signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_nobody_proves_nobody() {
    let stand = Stand::open(false).await;
    for (name, alternative_names) in [
        ("no-names", ""),
        ("address", "IP:127.0.0.1,email:issuer@example.com"),
        ("two-uris", "URI:spiffe://example.com/issuer,URI:spiffe://example.com/admin"),
        ("two-dns", "DNS:auditor.example.com,DNS:b.example.com"),
    ] {
        let mut clients = stand.clients_of(name, alternative_names).await;
        let status = sign(&mut clients, "acme").await.expect_err(name);
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "CERTIFICATE_NAMES_NOBODY"), "{name}");
        assert!(status.message().contains("exactly one") || status.message().contains("must have"), "{status:?}");
    }
    let record = stand.record("somebody without a name", |record| record["result"] == "UNAUTHENTICATED");
    assert_eq!((&record["method"], &record["principals"]), (&json!(SIGN), &json!([])));
    let detail = record["detail"].as_str().expect("a text");
    assert!(detail.starts_with("CERTIFICATE_NAMES_NOBODY from 127.0.0.1:"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_counts_only_where_the_configuration_says_so() {
    let stand = Stand::prepared(false, |_, installation| {
        installation.set("grpc.common_name", "true").grant("cn:old issuer", &["issuer:acme"])
    })
    .await;
    let mut clients = stand.clients_of("old issuer", "").await;
    sign(&mut clients, "acme").await.expect("signed");
    // A name of the better kind goes before.
    let mut clients = stand.clients_of("old issuer", "DNS:somebody.example.com").await;
    let status = sign(&mut clients, "acme").await.expect_err("another principal");
    assert_eq!(status.code(), Code::PermissionDenied);
    stand.record("the other principal", |record| record["principals"] == json!(["dns:somebody.example.com"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_s_issuer_is_told_the_same_whether_there_is_that_tenant() {
    let stand = Stand::open(false).await;
    let mut clients = stand.clients_of("issuer", ISSUER_NAME).await;
    sign(&mut clients, "acme").await.expect("signed");
    let signed = stand.record("a signature", |record| record["action"] == "sign" && record["result"] == "OK");
    assert_eq!(
        (&signed["tenant"], &signed["algorithm"], &signed["method"]),
        (&json!("acme"), &json!("ES256"), &json!(SIGN))
    );
    assert_eq!(signed["principals"], json!(["uri:spiffe://example.com/issuer"]));
    assert!(signed["kid"].is_string());
    // SHA-256 of "message".
    assert_eq!(signed["input_sha256"], json!("q1MKE-RZFJgrefm34_uplM_R8_si9xzqGvvwK0YMbR0"));

    let of_another = sign(&mut clients, "b2b").await.expect_err("another tenant's");
    assert_eq!((of_another.code(), &*reason(&of_another)), (Code::PermissionDenied, "ROLE_MISSING"));
    for nobody in ["nobody", "", "NO TENANT", "*", "acme ", "acme/b2b"] {
        let status = sign(&mut clients, nobody).await.expect_err(nobody);
        let told = |status: &Status| (status.code(), status.message().to_owned(), status.details().to_vec());
        assert_eq!(told(&status), told(&of_another), "{nobody:?}");
    }
    let refused = stand.record("a refusal", |record| record["tenant"] == "b2b");
    assert_eq!((&refused["result"], &refused["detail"]), (&json!("PERMISSION_DENIED"), &json!("ROLE_MISSING")));
    assert_eq!(refused["principals"], json!(["uri:spiffe://example.com/issuer"]));
    assert_eq!(refused["input_sha256"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_makes_no_tenants_and_an_auditor_changes_nothing() {
    let stand = Stand::open(false).await;
    let mut operator = stand.clients_of("operator", "URI:spiffe://example.com/operator").await;
    operator.force_rotation("acme", "ES256").await;
    let wanted = Tenant { id: "acme".into(), algorithms: vec!["ES256".into()], ..Tenant::default() };
    let status =
        operator.tenants.create_tenant(CreateTenantRequest { tenant: Some(wanted) }).await.expect_err("no admin");
    assert_eq!((status.code(), &*reason(&status)), (Code::PermissionDenied, "ROLE_MISSING"));
    assert!(status.message().contains("admin") && !status.message().contains("acme"), "{status:?}");
    let record = stand.record("the refusal", |record| record["action"] == "create_tenant");
    assert_eq!(record["principals"], json!(["uri:spiffe://example.com/operator"]));
    assert_eq!(record["tenant"], "acme");
    assert_eq!(sign(&mut operator, "acme").await.expect_err("no issuer").code(), Code::PermissionDenied);

    let mut auditor = stand.clients_of("auditor", "DNS:Auditor.example.com").await;
    let listed = auditor.tenants.list_tenants(ListTenantsRequest::default()).await;
    assert_eq!(listed.expect("a list").into_inner().tenants.len(), 2);
    let request = RotateSigningKeyRequest { tenant: "acme".into(), ..Default::default() };
    let status = auditor.keys.rotate_signing_key(request).await.expect_err("no operator");
    assert_eq!(status.code(), Code::PermissionDenied);
    // Somebody in order, whom nobody granted anything.
    let mut stranger = stand.clients_of("stranger", "URI:spiffe://example.com/stranger").await;
    let status = stranger.tenants.list_tenants(ListTenantsRequest::default()).await;
    assert_eq!(status.expect_err("no role").code(), Code::PermissionDenied);
}

pub(crate) async fn sign(clients: &mut Clients, tenant: &str) -> Result<(), Status> {
    let input = Some(sign_request::Input::Message(b"message".to_vec()));
    let request = SignRequest { tenant: tenant.into(), input, ..SignRequest::default() };
    clients.signing.sign(request).await.map(drop)
}
