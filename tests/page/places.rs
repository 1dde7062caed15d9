//! Where the page is, and where its links lead.

use keyward::grpc::proto::{GetSigningKeyRequest, Tenant};

use crate::browser::Browser;
use crate::common::http::{get, send};
use crate::timeline::assert_shows;
use crate::{CONTRAST_MIN, DOMAIN, acme, on_domain, page_of};

#[tokio::test(flavor = "multi_thread")]
async fn every_link_leads_to_what_it_names() {
    let saml_sso_url = "https://sso.example.com/saml?a=1&copy=2".into();
    let (server, mut clients) = acme(Tenant { saml_sso_url, ..Tenant::default() }).await;
    clients.force_rotation("acme", "ES256").await;
    let seen = Browser::start().look(&page_of(&server));
    let relative: Vec<&str> = seen.links.iter().map(|link| link.href.as_str()).collect();
    assert!(relative.iter().all(|href| !href.starts_with('/') && !href.contains("//")), "{relative:?}");
    let keys = seen.keyrings.iter().flat_map(|ring| &ring.keys);
    let downloads = keys.flat_map(|key| ["pem", "cer", "pb7"].map(|form| format!("{form}?kid={}", key.kid())));
    let documents = [".well-known/jwks.json", ".well-known/openid-configuration", "saml/metadata"];
    let expected: Vec<String> = documents.map(str::to_owned).into_iter().chain(downloads).collect();
    assert_eq!(relative, expected);
    for href in relative {
        let answer = get(&format!("{}{href}", page_of(&server)));
        assert_eq!(answer.status, 200, "{href}");
        assert!(!answer.header("content-type").starts_with("text/html"), "{href}");
        if let Some(kid) = href.strip_prefix("pem?kid=") {
            let request = GetSigningKeyRequest { tenant: "acme".into(), kid: kid.into() };
            let key = clients.keys.get_signing_key(request).await.expect("a known kid").into_inner();
            assert_eq!(String::from_utf8_lossy(&answer.body), key.certificate_pem, "{kid}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_saml_metadata_no_link_leads_to_it() {
    // XML Signature's libraries do not know EdDSA.
    let saml_sso_url = "https://sso.example.com/saml".into();
    let wanted = Tenant { saml_sso_url, algorithms: vec!["EdDSA".into()], ..Tenant::default() };
    let (server, _clients) = acme(wanted).await;
    assert_eq!(get(&format!("{}saml/metadata", page_of(&server))).status, 404);
    let html = String::from_utf8(get(&page_of(&server)).body).expect("UTF-8");
    assert!(html.contains("EdDSA") && !html.contains("SAML"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_has_the_page_at_its_root_with_its_own_issuer() {
    let (server, mut clients) = acme(Tenant::default()).await;
    let url = on_domain(&server);
    let seen = Browser::start().look(&url);
    assert_shows(&seen, &mut clients).await;
    assert_eq!(seen.requests, [url.as_str()]);
    for words in [format!("https://{DOMAIN}\n"), format!("https://{DOMAIN}/.well-known/jwks.json")] {
        assert!(seen.text.contains(&words), "{words}: {}", seen.text);
    }
    assert!(!seen.text.contains(server.public()), "the canonical issuer has no place here: {}", seen.text);
    assert_eq!(send("GET", &format!("{}/", server.public()), &[("host", "other.example.com")]).status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_slash_it_leads_there_and_without_a_tenant_it_says_so() {
    let (server, _clients) = acme(Tenant::default()).await;
    let answer = get(&format!("{}/acme", server.public()));
    assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "acme/"));
    let mut browser = Browser::start();
    let seen = browser.look(&format!("{}/acme", server.public()));
    assert_eq!((seen.status, seen.url.as_str()), (200, page_of(&server).as_str()), "the browser is led to the page");

    for path in ["/", "/nobody", "/nobody/", "/ACME/", "/%3Cb%3E/"] {
        let url = format!("{}{path}", server.public());
        let answer = get(&url);
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (404, "no-store"), "{path}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'; "), "{path}");
    }
    let seen = browser.ask(&format!("{}/nobody/", server.public()), "dark", 360, None);
    assert_eq!((seen.status, seen.headings), (404, vec![(1, "No tenant here".to_owned())]));
    assert!(seen.contrast.ratio >= CONTRAST_MIN && seen.scroll_width <= seen.inner_width);
}
