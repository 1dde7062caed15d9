//! What is signed and listed as it was asked for: signatures in each format, checksums both ways, lists in pages of each size.

mod common;

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Clients, Server, kept, short_policy};
use keyward::grpc::proto::{
    BatchSignInput, BatchSignRequest, GetCurrentKeyRequest, ListSigningKeysRequest, ListTenantsRequest, SignRequest,
    SignatureFormat, batch_sign_input, sign_request,
};
use serde_json::Value;

/// What is signed; no log line may hold it.
const PAYLOAD: &str = "payload-5b20c4";

#[tokio::test(flavor = "multi_thread")]
async fn signatures_verify_in_each_format_and_with_checksums_both_ways() {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, EcdsaVerificationAlgorithm, UnparsedPublicKey,
    };
    let server = Server::dev_that_tells_more();
    let mut clients = Clients::connect(&server).await;
    let before = kept::rows(&server).await;
    let request = GetCurrentKeyRequest { tenant: "demo".into(), algorithm: "ES256".into() };
    let key = clients.signing.get_current_key(request).await.expect("a key").into_inner().key.expect("a key");
    let public = point_of(&server, &key.kid);
    let formats: [(SignatureFormat, &'static EcdsaVerificationAlgorithm); 3] = [
        (SignatureFormat::Unspecified, &ECDSA_P256_SHA256_FIXED),
        (SignatureFormat::Raw, &ECDSA_P256_SHA256_FIXED),
        (SignatureFormat::Der, &ECDSA_P256_SHA256_ASN1),
    ];
    let verifies = |algorithm: &'static EcdsaVerificationAlgorithm, signature: &[u8]| {
        UnparsedPublicKey::new(algorithm, &public).verify(PAYLOAD.as_bytes(), signature).is_ok()
    };
    for (format, algorithm) in formats {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, PAYLOAD.as_bytes()).as_ref().to_vec();
        for input in [sign_request::Input::Message(PAYLOAD.into()), sign_request::Input::Digest(digest.clone())] {
            let (sign_request::Input::Message(octets) | sign_request::Input::Digest(octets)) = &input;
            let input_crc32c = Some(crc32c::crc32c(octets));
            let request = SignRequest {
                tenant: "demo".into(),
                algorithm: "ES256".into(),
                kid: key.kid.clone(),
                input: Some(input),
                signature_format: format.into(),
                input_crc32c,
            };
            let signed = clients.signing.sign(request).await.expect("signed").into_inner();
            assert!(verifies(algorithm, &signed.signature), "{format:?}");
            assert!(signed.verified_input_crc32c);
            assert_eq!(signed.signature_crc32c, crc32c::crc32c(&signed.signature));
            assert_eq!((signed.kid, signed.algorithm.as_str()), (key.kid.clone(), "ES256"));
        }
        let request = BatchSignRequest {
            tenant: "demo".into(),
            algorithm: "ES256".into(),
            kid: String::new(),
            inputs: vec![BatchSignInput { input: Some(batch_sign_input::Input::Message(PAYLOAD.into())) }; 256],
            signature_format: format.into(),
        };
        let signed = clients.signing.batch_sign(request).await.expect("256 are signed").into_inner();
        assert_eq!((signed.signatures.len(), &signed.kid), (256, &key.kid));
        assert!(signed.signatures.iter().all(|signature| verifies(algorithm, signature)), "{format:?}");
    }
    let input = Some(sign_request::Input::Message(PAYLOAD.into()));
    let request = SignRequest { tenant: "demo".into(), input, ..SignRequest::default() };
    let signed = clients.signing.sign(request).await.expect("signed").into_inner();
    assert!(!signed.verified_input_crc32c, "no checksum was sent");
    assert_eq!(kept::rows(&server).await, before, "signing leaves no trace in the store");
    kept::is_not_logged(&server, PAYLOAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_by_page_every_item_comes_once() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let all = ListSigningKeysRequest { tenant: "demo".into(), ..ListSigningKeysRequest::default() };
    let whole = clients.keys.list_signing_keys(all.clone()).await.expect("a list").into_inner();
    assert_eq!(whole.next_page_token, "");
    let whole: Vec<String> = whole.keys.into_iter().map(|key| key.kid).collect();
    assert_eq!(whole.len(), 6);
    for page_size in [1, 2, 4, 6, 1000] {
        let (mut kids, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListSigningKeysRequest { page_size, page_token, ..all.clone() };
            let page = clients.keys.list_signing_keys(request).await.expect("a page").into_inner();
            assert!(page.keys.len() <= usize::try_from(page_size).expect("small") && kids.len() <= whole.len());
            kids.extend(page.keys.into_iter().map(|key| key.kid));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(kids, whole, "in pages of {page_size}");
    }
    for id in ["acme", "b2b", "zeta", "1st"] {
        clients.create_tenant(id, &["EdDSA"], short_policy()).await;
    }
    for page_size in [1, 2, 5] {
        let (mut ids, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListTenantsRequest { page_size, page_token };
            let page = clients.tenants.list_tenants(request).await.expect("a page").into_inner();
            ids.extend(page.tenants.into_iter().map(|tenant| tenant.id));
            page_token = page.next_page_token;
            if page_token.is_empty() || ids.len() > 5 {
                break;
            }
        }
        assert_eq!(ids, ["1st", "acme", "b2b", "demo", "zeta"], "in pages of {page_size}");
    }
    let mut kids = BTreeSet::new();
    for tenant in ["1st", "acme", "b2b", "demo", "zeta"] {
        let request = ListSigningKeysRequest { tenant: tenant.into(), ..ListSigningKeysRequest::default() };
        let page = clients.keys.list_signing_keys(request).await.expect("a list").into_inner();
        assert!(page.keys.into_iter().all(|key| key.tenant == tenant && kids.insert(key.kid)), "a key of two tenants");
    }
}

/// The uncompressed point of a P-256 key in the JWKS (SEC 1 section 2.3.3).
fn point_of(server: &Server, kid: &str) -> Vec<u8> {
    let jwks: Value = common::http::get(server.demo().2).json();
    let keys = jwks["keys"].as_array().expect("keys");
    let key = keys.iter().find(|key| key["kid"] == kid).expect("the current key is published");
    let coordinate = |name: &str| {
        let text = key[name].as_str().expect("a coordinate");
        URL_SAFE_NO_PAD.decode(text).expect("base64url")
    };
    [vec![4], coordinate("x"), coordinate("y")].concat()
}
