//! The certificates of the keys, as openssl and JWKS readers see them.

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::http::{Answer, get, send};
use common::{Clients, Server, short_policy};
use keyward::grpc::proto::{CreateTenantRequest, GetSigningKeyRequest, SigningKey, Tenant};
use serde_json::Value;
use sha1::{Digest as _, Sha1};

const ALGORITHMS: [&str; 10] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];

/// A tenant of each algorithm, so that each is the default of one; its id is the algorithm's name in lower case.
async fn tenants(clients: &mut Clients) {
    for algorithm in ALGORITHMS {
        clients.create_tenant(&algorithm.to_lowercase(), &[algorithm], short_policy()).await;
    }
}

fn base_url(server: &Server, tenant: &str) -> String {
    format!("{}/{tenant}", server.public())
}

fn download(server: &Server, tenant: &str, form: &str) -> Answer {
    let answer = get(&format!("{}/{form}", base_url(server, tenant)));
    assert_eq!(answer.status, 200, "{tenant} {form}: {answer:?}");
    answer
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).expect("text")
}

fn jwks(server: &Server, tenant: &str) -> Vec<Value> {
    let set: Value = get(&server.jwks_uri(tenant)).json();
    set["keys"].as_array().expect("keys").clone()
}

/// What openssl prints of `input`; it must succeed.
fn openssl(arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    child.stdin.take().expect("piped").write_all(input).expect("openssl reads");
    let output = child.wait_with_output().expect("openssl ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {told}");
    String::from_utf8(output.stdout).expect("text")
}

async fn signing_key(clients: &mut Clients, tenant: &str, kid: &Value) -> SigningKey {
    let kid = kid.as_str().expect("a kid").to_owned();
    let request = GetSigningKeyRequest { tenant: tenant.into(), kid };
    clients.keys.get_signing_key(request).await.expect("the key").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_accepts_the_certificate_of_every_algorithm() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    tenants(&mut clients).await;
    for algorithm in ALGORITHMS {
        let tenant = algorithm.to_lowercase();
        let pem = text(&download(&server, &tenant, "pem"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &pem).expect("written");
        let path = file.path().to_str().expect("a path");

        // 1. It is what it should be, and it is signed by its own key.
        let shown = openssl(&["x509", "-noout", "-text"], pem.as_bytes());
        for wanted in [
            "Version: 3",
            "Issuer: CN = 127.0.0.1",
            "Subject: CN = 127.0.0.1",
            "X509v3 Subject Key Identifier",
            "CA:FALSE",
            "Digital Signature",
            "Not After : Dec 31 23:59:59 9999 GMT",
        ] {
            assert!(shown.contains(wanted), "{algorithm}: no {wanted:?} in {shown}");
        }
        let verified = openssl(&["verify", "-check_ss_sig", "-x509_strict", "-CAfile", path, path], b"");
        assert!(verified.trim_end().ends_with(": OK"), "{algorithm}: {verified}");

        // 2. Each form holds the same certificate.
        let der = download(&server, &tenant, "cer").body;
        assert_eq!(openssl(&["x509", "-outform", "PEM"], pem.as_bytes()), pem, "{algorithm}");
        assert_eq!(STANDARD.decode(download(&server, &tenant, "rawpem").body).expect("base64"), der, "{algorithm}");
        let bag = openssl(&["pkcs7", "-print_certs"], &download(&server, &tenant, "pb7").body);
        assert!(bag.contains(pem.trim_end()), "{algorithm}: {bag}");
        let fingerprint = text(&download(&server, &tenant, "fingerprint"));
        let named = openssl(&["x509", "-noout", "-fingerprint", "-sha1"], pem.as_bytes());
        assert_eq!(named.trim_end().split_once('=').expect("name=value").1, fingerprint, "{algorithm}");

        // 3. The JWKS and the API tell of the same one.
        let keys = jwks(&server, &tenant);
        let current = &keys[0];
        assert_eq!(current["x5c"], serde_json::json!([STANDARD.encode(&der)]), "{algorithm}");
        assert_eq!(current["x5t"], URL_SAFE_NO_PAD.encode(Sha1::digest(&der)), "{algorithm}");
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
        assert_eq!(current["x5t#S256"], URL_SAFE_NO_PAD.encode(sha256), "{algorithm}");
        let key = signing_key(&mut clients, &tenant, &current["kid"]).await;
        assert_eq!((&key.certificate_pem, &key.fingerprint), (&pem, &fingerprint));
        assert_eq!(key.thumbprint, fingerprint.replace(':', ""));
        assert_eq!(key.pkcs7_pem.as_bytes(), download(&server, &tenant, "pb7").body);
        let public = openssl(&["x509", "-noout", "-pubkey"], pem.as_bytes());
        assert_eq!(key.public_key_pem, public, "{algorithm}");

        // 4. The next key's is there before it signs, and is another one.
        let next = &keys[1];
        let kid = next["kid"].as_str().expect("a kid");
        let of_next = download(&server, &tenant, &format!("cer?kid={kid}")).body;
        assert_eq!(next["x5c"], serde_json::json!([STANDARD.encode(&of_next)]));
        assert_ne!(of_next, der);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_say_what_they_are_and_how_the_file_is_called() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let domain = format!("{}.example.com", ["a"; 60].concat());
    let tenant = Tenant {
        id: "acme".into(),
        custom_domain: domain.clone(),
        algorithms: vec!["ES256".into(), "HS256".into()],
        rotation_policy: Some(short_policy()),
        ..Tenant::default()
    };
    clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
    let forms = [
        ("cer", "application/pkix-cert", "attachment; filename=\"acme.cer\""),
        ("pem", "application/pem-certificate-chain", "attachment; filename=\"acme.pem\""),
        ("rawpem", "text/plain", ""),
        ("pb7", "application/x-pkcs7-certificates", "attachment; filename=\"acme.pb7\""),
        ("fingerprint", "text/plain", ""),
    ];
    for (form, content_type, disposition) in forms {
        let answer = download(&server, "acme", form);
        assert_eq!((answer.header("content-type"), answer.header("content-disposition")), (content_type, disposition));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let url = format!("{}/{form}", base_url(&server, "acme"));
        assert_eq!(send("GET", &url, &[("if-none-match", answer.header("etag"))]).status, 304, "{form}");
        let on_domain = send("GET", &format!("{}/{form}", server.public()), &[("host", &domain)]);
        assert_eq!((on_domain.status.as_u16(), &on_domain.body), (200, &answer.body), "{form} on the custom domain");
    }
    // A domain that is too long for a common name gives way to the tenant's id.
    let shown = openssl(&["x509", "-noout", "-subject"], &download(&server, "acme", "pem").body);
    assert_eq!(shown.trim_end(), "subject=CN = acme");

    // Only published keys' certificates are there, and a secret has none.
    let kid = jwks(&server, "acme")[0]["kid"].as_str().expect("a kid").to_owned();
    let named = download(&server, "acme", &format!("pem?kid={kid}"));
    assert_eq!(named.header("content-disposition"), format!("attachment; filename=\"acme-{kid}.pem\""));
    let other = jwks(&server, "demo")[0]["kid"].as_str().expect("a kid").to_owned();
    for path in
        [format!("acme/pem?kid={other}"), "acme/pem?kid=".into(), "acme/pem?kid=%22%0d".into(), "nobody/pem".into()]
    {
        let answer = get(&format!("{}/{path}", server.public()));
        assert_eq!(answer.status, 404, "{path}");
    }
    clients.create_tenant("secret", &["HS256"], short_policy()).await;
    let answer = get(&format!("{}/pem", base_url(&server, "secret")));
    assert_eq!(answer.status, 404);
    assert!(text(&answer).contains("HS256 has none"), "{}", text(&answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_follows_a_rotation() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256"], short_policy()).await;
    let before = download(&server, "acme", "cer").body;
    let next = jwks(&server, "acme")[1]["x5c"][0].as_str().expect("x5c").to_owned();
    clients.rotate_when_allowed("acme", "ES256").await;
    let after = download(&server, "acme", "cer").body;
    assert_eq!(STANDARD.encode(&after), next, "the certificate that was announced");
    assert_ne!(after, before);
}
