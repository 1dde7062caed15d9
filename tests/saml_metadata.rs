//! SAML metadata, as relying parties follow it through a rotation: read by pysaml2, verified by xmlsec1.

mod common;

use std::path::Path;
use std::process::Command;

use common::http::{Answer, get, send};
use common::{Clients, Installation, Server, short_policy, tools};
use keyward::grpc::proto::{CreateTenantRequest, RotateSigningKeyRequest, Tenant};
use serde_json::{Value, json};

const DOMAIN: &str = "idp.example.com";
const SSO: &str = "https://idp.example.com/sso?tenant=acme&form=%22a%22";

async fn create(clients: &mut Clients, id: &str, algorithms: &[&str], sso_url: &str) -> Tenant {
    let tenant = Tenant {
        id: id.into(),
        custom_domain: if id == "acme" { DOMAIN.into() } else { String::new() },
        saml_sso_url: sso_url.into(),
        algorithms: algorithms.iter().map(ToString::to_string).collect(),
        rotation_policy: Some(short_policy()),
        ..Tenant::default()
    };
    let request = CreateTenantRequest { tenant: Some(tenant) };
    clients.tenants.create_tenant(request).await.unwrap_or_else(|status| panic!("{id}: {status:?}")).into_inner()
}

fn metadata_url(server: &Server, tenant: &str) -> String {
    format!("{}/{tenant}/saml/metadata", server.public())
}

fn pem(server: &Server, tenant: &str) -> Vec<u8> {
    get(&format!("{}/{tenant}/pem", server.public())).body
}

/// The x5c of each published key of these algorithms, in the order of the JWKS.
fn published(server: &Server, tenant: &str, algorithms: &[&str]) -> Vec<Value> {
    let set: Value = get(&server.jwks_uri(tenant)).json();
    let keys = set["keys"].as_array().expect("keys").iter();
    let wanted = |key: &&Value| algorithms.contains(&key["alg"].as_str().expect("alg"));
    keys.filter(wanted).map(|key| key["x5c"][0].clone()).collect()
}

/// What pysaml2 makes of the metadata, with a certificate of the caller's.
fn read(server: &Server, tenant: &str, entity_id: &str, certificate: &[u8]) -> Value {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), certificate).expect("written");
    let output = tools::python("saml_metadata.py")
        .args([&metadata_url(server, tenant), entity_id])
        .arg(file.path())
        .output()
        .expect("Python starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Whether xmlsec1 finds the enveloped signature to be right under this certificate.
fn xmlsec1_verifies(document: &[u8], certificate: &[u8]) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let (document, certificate) = (file("metadata.xml", document), file("certificate.pem", certificate));
    let verified = |arguments: &[&Path]| {
        Command::new("xmlsec1")
            .args(["--verify", "--id-attr:ID", "urn:oasis:names:tc:SAML:2.0:metadata:EntityDescriptor"])
            .arg("--pubkey-cert-pem")
            .args(arguments)
            .output()
            .expect("xmlsec1 starts")
    };
    verified(&[&certificate, &document]).status.success()
}

fn assert_valid(server: &Server, tenant: &str, entity_id: &str, algorithms: &[&str]) -> Answer {
    let answer = get(&metadata_url(server, tenant));
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/samlmetadata+xml"));
    assert!(xmlsec1_verifies(&answer.body, &pem(server, tenant)), "{}", String::from_utf8_lossy(&answer.body));
    let read = read(server, tenant, entity_id, &pem(server, tenant));
    assert_eq!(read, json!({"certificates": published(server, tenant, algorithms), "locations": [SSO]}), "{tenant}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn relying_parties_follow_the_metadata_through_a_rotation() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let issuer = create(&mut clients, "acme", &["RS256"], SSO).await.issuer;

    // 1. Current and next are there before anything happens; the signature is the current key's alone.
    let first = assert_valid(&server, "acme", &issuer, &["RS256"]);
    assert_eq!(published(&server, "acme", &["RS256"]).len(), 2);
    let again = get(&metadata_url(&server, "acme"));
    assert_eq!((again.header("etag"), &again.body), (first.header("etag"), &first.body), "signed once");
    assert!(first.header("cache-control").starts_with("public, max-age=1,"));
    let forged = String::from_utf8(first.body.clone()).expect("UTF-8").replace("/sso?", "/oss?");
    assert!(!xmlsec1_verifies(forged.as_bytes(), &pem(&server, "acme")));
    let stranger = read(&server, "acme", &issuer, &pem(&server, "demo"));
    assert!(stranger["error"].is_string(), "{stranger}");

    // 2. After a rotation: the new current key signs, and the previous one's certificate is still named.
    let announced = published(&server, "acme", &["RS256"])[1].clone();
    clients.rotate_when_allowed("acme", "RS256").await;
    assert_valid(&server, "acme", &issuer, &["RS256"]);
    let certificates = published(&server, "acme", &["RS256"]);
    assert_eq!((certificates.len(), &certificates[0]), (3, &announced));

    // 3. Rotated with revocation: the revoked key is named no more.
    let request = RotateSigningKeyRequest {
        tenant: "acme".into(),
        force: true,
        revoke_replaced: true,
        ..RotateSigningKeyRequest::default()
    };
    clients.keys.rotate_signing_key(request).await.expect("rotated");
    assert_valid(&server, "acme", &issuer, &["RS256"]);
    assert!(!published(&server, "acme", &["RS256"]).contains(&announced));

    // 4. The custom domain has metadata of its own name.
    let url = format!("{}/saml/metadata", server.public());
    let own = send("GET", &url, &[("host", DOMAIN)]);
    assert_eq!(own.status, 200);
    assert!(xmlsec1_verifies(&own.body, &pem(&server, "acme")));
    let own = String::from_utf8(own.body).expect("UTF-8");
    assert!(own.contains(&format!("entityID=\"https://{DOMAIN}\"")), "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_signed_with_what_saml_libraries_verify() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    for algorithm in ["RS384", "RS512", "ES256", "ES384", "ES512"] {
        let id = algorithm.to_lowercase();
        let issuer = create(&mut clients, &id, &[algorithm], SSO).await.issuer;
        assert_valid(&server, &id, &issuer, &[algorithm]);
    }
    // The default algorithm is none of them: the first that is signs, and its certificates alone are named.
    let issuer = create(&mut clients, "mixed", &["EdDSA", "RS256", "PS256", "HS256"], SSO).await.issuer;
    let document = get(&metadata_url(&server, "mixed"));
    assert_eq!(document.status, 200, "{document:?}");
    let kid: Value = get(&server.jwks_uri("mixed")).json();
    let kid =
        kid["keys"].as_array().expect("keys").iter().find(|key| key["alg"] == "RS256").expect("one")["kid"].clone();
    let certificate = get(&format!("{}/mixed/pem?kid={}", server.public(), kid.as_str().expect("a kid"))).body;
    let read = read(&server, "mixed", &issuer, &certificate);
    assert_eq!(read["certificates"], json!(published(&server, "mixed", &["RS256"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_address_or_a_key_for_saml_there_is_no_metadata() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    create(&mut clients, "plain", &["RS256"], "").await;
    create(&mut clients, "curves", &["EdDSA", "PS256"], SSO).await;
    for (tenant, words) in [("plain", "saml_sso_url"), ("curves", "RS256 or ES256"), ("nobody", "no tenant")] {
        let answer = get(&metadata_url(&server, tenant));
        assert_eq!(answer.status, 404, "{tenant}");
        let body = String::from_utf8(answer.body).expect("UTF-8");
        assert!(body.contains(words), "{tenant}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_outlives_the_token_and_is_not_made_without_it() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    create(&mut clients, "acme", &["ES256"], SSO).await;
    create(&mut clients, "later", &["ES256"], SSO).await;
    let before = get(&metadata_url(&server, "acme"));
    assert_eq!(before.status, 200);
    let aside = installation.dir().join("aside");
    std::fs::rename(installation.token_dir(), &aside).expect("taken away");
    assert_eq!(get(&metadata_url(&server, "acme")).body, before.body, "signed already");
    let later = get(&metadata_url(&server, "later"));
    assert_eq!((later.status.as_u16(), later.header("retry-after")), (503, "1"));
    assert!(!String::from_utf8_lossy(&later.body).contains("C_"), "R12: {later:?}");
    std::fs::rename(&aside, installation.token_dir()).expect("put back");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while get(&metadata_url(&server, "later")).status != 200 {
        assert!(std::time::Instant::now() < deadline, "the metadata does not come back");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
