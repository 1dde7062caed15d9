//! The page for people, as a person's browser shows it: Chromium, headless and with scripts off (tests/clients/page.mjs).

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use std::{env, fs};

use common::http::{get, send};
use common::{Clients, Installation, Server, read_lines, tools};
use keyward::grpc::proto::{
    CreateTenantRequest, GetSigningKeyRequest, KeyState, ListSigningKeysRequest, PutCustomSigningKeysRequest,
    RotateSigningKeyRequest, RotationPolicy, SigningKey, Tenant,
};
use serde::Deserialize;
use serde_json::{Value, json};

const DOMAIN: &str = "login.example.com";
/// How long the browser may take for a page, its own start included; the script has shorter limits of its own.
const PAGE_WAIT_MAX_SECS: u64 = 120;
/// Where the script's screenshots go instead of a temporary directory, if it is set.
const SCREENSHOTS: &str = "KEYWARD_SCREENSHOTS";
/// A picture in the documentation is looked at over slow lines too.
const SCREENSHOT_BYTES_MAX: u64 = 200_000;

/// WCAG 2.2, success criterion 1.4.3: the contrast of text.
const CONTRAST_MIN: f64 = 4.5;
/// WCAG 2.2, success criterion 2.5.8: the size of what is tapped, in CSS pixels.
const TARGET_MIN: f64 = 24.0;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_each_key_as_the_api_does_and_follows_a_rotation() {
    let (server, mut clients) = acme(Tenant::default()).await;
    let mut browser = Browser::start();
    rotate(&mut clients, "RS256").await;
    let before = browser.look(&page_of(&server));
    assert_shows(&before, &mut clients).await;
    assert_eq!(before.title, "acme: signing keys");
    assert!(!before.text.contains("SAML"), "the tenant has no saml_sso_url");
    assert_eq!(before.states("RS256"), ["next", "current", "previous"]);
    assert_eq!(before.states("ES256"), ["next", "current"]);

    rotate(&mut clients, "RS256").await;
    let after = browser.look(&page_of(&server));
    assert_shows(&after, &mut clients).await;
    assert_eq!(
        after.states("RS256"),
        ["next", "current", "previous", "previous"],
        "the latest previous key comes first"
    );
    let kids = |seen: &Seen| -> Vec<String> { seen.keyring("RS256").keys.iter().map(Key::kid).collect() };
    assert_eq!(kids(&after)[1..], kids(&before), "each key has moved one place down");
    assert_eq!(before.states("ES256"), after.states("ES256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_shows_how_far_it_is_and_what_comes_when() {
    let policy = RotationPolicy { rotation_period: secs(30 * 86_400), ..policy() };
    let (server, mut clients) = acme(Tenant { rotation_policy: Some(policy), ..Tenant::default() }).await;
    rotate(&mut clients, "ES256").await;
    let seen = Browser::start().look(&page_of(&server));
    let milestones: Vec<Vec<(&str, bool)>> = seen.keyring("ES256").keys.iter().map(Key::milestones).collect();
    assert_eq!(
        milestones,
        [
            [("Published", true), ("May sign", false), ("Retires", false), ("Leaves the JWKS", false)],
            [("Published", true), ("Signs since", true), ("Retires", false), ("Leaves the JWKS", false)],
            [("Published", true), ("Signed from", true), ("Retired", true), ("Leaves the JWKS", false)],
        ]
    );
    for words in [
        "Rotates every 30 d, next on 20",
        "It may in ",
        "Signs now: every new signature is made with this key.",
        "Signs no more. What it signed stays verifiable for 24 h",
        "by schedule",
    ] {
        assert!(seen.keyring("ES256").text.contains(words), "{words}: {}", seen.text);
    }
    for words in ["ECDSA on P-256 with SHA-256", "published 6 min before it may sign", "stays 24 h 6 min after"] {
        assert!(seen.text.contains(words), "{words}: {}", seen.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_read_in_both_schemes_and_on_a_phone() {
    let (server, mut clients) = acme(Tenant::default()).await;
    rotate(&mut clients, "RS256").await;
    let mut browser = Browser::start();
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        for width in [1120, 700, 360] {
            let seen = browser.look_as(&page_of(&server), scheme, width, None);
            let place = format!("{scheme}, {width} px");
            assert!(seen.contrast.ratio >= CONTRAST_MIN, "{place}: {:?}", seen.contrast);
            assert!(seen.scroll_width <= seen.inner_width, "{place}: {} px scroll sideways", seen.scroll_width);
            assert_eq!(seen.inner_width, width, "{place}: the page's own width is the screen's");
            for link in &seen.links {
                assert!(link.height >= TARGET_MIN && link.width >= TARGET_MIN, "{place}: {link:?}");
            }
            backgrounds.push(seen.background);
        }
    }
    assert!(backgrounds[..3].iter().all(|colour| *colour == backgrounds[0]), "{backgrounds:?}");
    assert!(backgrounds[3..].iter().all(|colour| *colour == backgrounds[3]), "{backgrounds:?}");
    assert_ne!(backgrounds[0], backgrounds[3], "light and dark are the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_one_file_in_plain_html_that_a_screen_reader_can_follow() {
    let (server, _clients) = acme(Tenant::default()).await;
    let url = page_of(&server);
    let seen = Browser::start().look(&url);
    assert_eq!(seen.requests, [url.as_str()], "the page asks for something besides itself");
    assert_eq!(seen.lang, "en");
    for element in ["script", "img", "iframe", "form", "object", "link", "svg"] {
        assert!(!seen.elements.iter().any(|name| name == element), "<{element}> is in the page");
    }
    for element in ["main", "header", "nav", "section", "footer", "h1", "ol", "dl", "time"] {
        assert!(seen.elements.iter().any(|name| name == element), "no <{element}>: {:?}", seen.elements);
    }
    assert_eq!(seen.headings[0], (1, "acme".to_owned()));
    assert_eq!(seen.headings.iter().filter(|(level, _)| *level == 1).count(), 1);
    for pair in seen.headings.windows(2) {
        assert!(pair[1].0 <= pair[0].0 + 1, "a level of headings is left out: {:?}", seen.headings);
    }
    assert!(!seen.selects.is_empty() && seen.selects.iter().all(|value| value == "all"), "{:?}", seen.selects);
    assert_eq!(seen.selected, Some(seen.keyring("RS256").keys[0].kid()), "one tap selects the whole kid");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_link_leads_to_what_it_names() {
    let saml_sso_url = "https://sso.example.com/saml?a=1&copy=2".into();
    let (server, mut clients) = acme(Tenant { saml_sso_url, ..Tenant::default() }).await;
    rotate(&mut clients, "ES256").await;
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
async fn secrets_are_on_the_page_without_a_name() {
    let algorithms = vec!["ES256".into(), "HS256".into()];
    let (server, mut clients) = acme(Tenant { algorithms, ..Tenant::default() }).await;
    rotate(&mut clients, "HS256").await;
    let request = ListSigningKeysRequest { tenant: "acme".into(), ..ListSigningKeysRequest::default() };
    let listed = clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys;
    let secrets: Vec<&SigningKey> = listed.iter().filter(|key| key.algorithm == "HS256").collect();
    assert_eq!(secrets.len(), 3);

    let seen = Browser::start().look(&page_of(&server));
    assert_eq!(seen.states("HS256"), ["next", "current", "previous"]);
    assert!(seen.keyring("HS256").text.contains("are secrets and are never published"), "{}", seen.text);
    assert!(seen.keyring("HS256").keys.iter().all(|key| key.codes.is_empty()), "{seen:?}");
    let html = String::from_utf8(get(&page_of(&server)).body).expect("UTF-8");
    for secret in secrets {
        assert!(!html.contains(&secret.kid), "the kid of a secret is on the page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_keys_are_on_the_custom_domain_alone_and_their_names_stay_text() {
    let (server, mut clients) = acme(Tenant::default()).await;
    let jwks: Value = get(server.demo().2).json();
    let keys = jwks["keys"].as_array().expect("keys");
    let point = keys.iter().find(|key| key["kty"] == "EC").expect("a key of the demo tenant");
    let kid = r#"<b>bold</b><script>alert("1")</script>&amp;'x'"#;
    let custom = json!({"kty": "EC", "crv": point["crv"], "x": point["x"], "y": point["y"], "use": "sig", "kid": kid});
    let jwks_json = json!({"keys": [custom]}).to_string();
    let request = PutCustomSigningKeysRequest { tenant: "acme".into(), jwks_json };
    clients.keys.put_custom_signing_keys(request).await.expect("taken");

    let mut browser = Browser::start();
    let seen = browser.look(&on_domain(&server));
    let section = seen.keyring("custom-keys");
    assert!(section.text.contains(kid) && section.text.contains("P-256"), "{}", section.text);
    for element in ["b", "script"] {
        assert!(!seen.elements.iter().any(|name| name == element), "<{element}> came into the page by a kid");
    }
    let phone = browser.look_as(&on_domain(&server), "dark", 360, None);
    assert!(phone.scroll_width <= phone.inner_width, "{} px scroll sideways", phone.scroll_width);
    assert!(phone.contrast.ratio >= CONTRAST_MIN, "{:?}", phone.contrast);
    let canonical = browser.look(&page_of(&server));
    assert!(!canonical.text.contains("ustom keys") && !canonical.text.contains("bold"), "{}", canonical.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_keys_are_being_generated_the_page_says_so_and_is_not_kept() {
    // Keys that take a moment to generate, on whatever machine.
    let installation = Installation::prepare().set("signing.rsa_bits", "4096");
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let creation = tokio::spawn(async move { clients.create_tenant("acme", &["RS256", "PS256"], policy()).await });
    let deadline = Instant::now() + Duration::from_secs(PAGE_WAIT_MAX_SECS);
    let early = loop {
        assert!(Instant::now() < deadline, "no page in {PAGE_WAIT_MAX_SECS} s");
        let answer = get(&page_of(&server));
        if answer.status == 200 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(early.header("cache-control"), "no-store");
    let html = String::from_utf8(early.body).expect("UTF-8");
    assert!(html.contains("Nothing is signed or published until it is there"), "{html}");
    creation.await.expect("created");
    let settled = get(&page_of(&server));
    assert_eq!(settled.header("cache-control"), "public, max-age=10");
    assert!(!String::from_utf8_lossy(&settled.body).contains("Nothing is signed"));
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
async fn what_a_tenant_chooses_stays_text() {
    let issuer = "https://idp.example/a&copy;b'c&lt;i&gt;";
    let (server, _clients) = acme(Tenant { issuer: issuer.into(), ..Tenant::default() }).await;
    let seen = Browser::start().look(&page_of(&server));
    assert!(seen.text.contains(issuer), "{}", seen.text);
    let html = String::from_utf8(get(&page_of(&server)).body).expect("UTF-8");
    assert!(!html.contains("&copy;") && !html.contains("b'c"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_headers_let_nothing_else_in_and_keep_it_shortly() {
    let (server, _clients) = acme(Tenant::default()).await;
    let url = page_of(&server);
    let answer = get(&url);
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert_eq!(answer.header("cache-control"), "public, max-age=10");
    let policy = answer.header("content-security-policy");
    let (before, after) = policy.split_once("'sha256-").expect("a digest of the style");
    assert_eq!(before, "default-src 'none'; style-src ");
    let after = after.split_once('\'').expect("the digest's end").1;
    assert_eq!(after, "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");

    let head = send("HEAD", &url, &[]);
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    for name in ["content-type", "cache-control", "content-security-policy", "referrer-policy"] {
        assert_eq!(head.header(name), answer.header(name), "{name}");
    }
    assert_eq!(send("POST", &url, &[]).status, 405);

    // A page of a tenant whose JWKS may be kept for 3 s is kept no longer.
    let short = RotationPolicy { jwks_max_age: secs(3), ..policy_of_short_times() };
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("short", &["ES256"], short).await;
    assert_eq!(get(&format!("{}/short/", server.public())).header("cache-control"), "public, max-age=3");
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

/// The pictures of docs/page.md. `KEYWARD_SCREENSHOTS=docs/images cargo test --test page pictures` makes them anew.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_small_and_differ_by_scheme_and_width() {
    let scheduled = RotationPolicy { rotation_period: secs(30 * 86_400), ..policy() };
    // One keyring says it all, and keeps the pictures small.
    let wanted = Tenant {
        algorithms: vec!["RS256".into()],
        saml_sso_url: "https://sso.example.com/saml".into(),
        rotation_policy: Some(scheduled),
        ..Tenant::default()
    };
    let installation = Installation::prepare().set("public.base_url", r#""https://keys.example.com""#);
    let server = installation.serve();
    let mut clients = create_acme(&server, wanted).await;
    rotate(&mut clients, "RS256").await;
    let temporary = tempfile::tempdir().expect("a temporary directory");
    // Relative to the repository: tests run there.
    let folder = env::var_os(SCREENSHOTS).map_or(temporary.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&folder).expect("the folder of the pictures");
    let mut browser = Browser::start();
    let mut pictures = Vec::new();
    for (name, scheme, width) in [("light", "light", 1120), ("dark", "dark", 1120), ("phone", "dark", 390)] {
        let file = folder.join(format!("page-{name}.png"));
        browser.look_as(&page_of(&server), scheme, width, Some(&file));
        let octets = fs::read(&file).expect("the picture was written");
        assert!(octets.starts_with(b"\x89PNG"), "{name} is no PNG");
        assert!(octets.len() as u64 <= SCREENSHOT_BYTES_MAX, "{name}: {} octets", octets.len());
        pictures.push(octets);
    }
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2]);
}

/// The page holds what GetSigningKey and its kin say of every published key, and no other key.
async fn assert_shows(seen: &Seen, clients: &mut Clients) {
    let request = ListSigningKeysRequest { tenant: "acme".into(), page_size: 100, ..ListSigningKeysRequest::default() };
    let listed = clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys;
    let published = |key: &&SigningKey| matches!(key.state(), KeyState::Next | KeyState::Current | KeyState::Previous);
    let mut expected: Vec<&SigningKey> = listed.iter().filter(published).collect();
    let shown: Vec<(&str, &Key)> =
        seen.keyrings.iter().flat_map(|ring| ring.keys.iter().map(|key| (ring.algorithm.as_str(), key))).collect();
    assert_eq!(shown.len(), expected.len(), "{}", seen.text);
    for (algorithm, key) in shown {
        let position = expected.iter().position(|known| known.kid == key.kid()).expect("a published kid, shown once");
        let known = expected.swap_remove(position);
        assert_eq!(algorithm, known.algorithm);
        assert_eq!(format!("KEY_STATE_{}", key.state.to_uppercase()), known.state().as_str_name());
        let mut times = vec![known.publish_time];
        match known.state() {
            KeyState::Next => times.push(known.publish_time.map(|time| later(time, 360))),
            KeyState::Current => times.push(known.activate_time),
            _ => times.extend([known.activate_time, known.retire_time, known.revoke_scheduled_time]),
        }
        let names = [known.kid.clone(), known.fingerprint.clone(), sha256_of(&known.certificate_pem)];
        assert_eq!(key.codes, names, "{known:?}");
        let times: Vec<(String, String)> = times.into_iter().map(|time| words(time.expect("a time"))).collect();
        assert_eq!(key.times, times, "{known:?}");
    }
}

/// What openssl prints as the SHA-256 fingerprint of a certificate.
fn sha256_of(pem: &str) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-fingerprint", "-sha256"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl starts");
    child.stdin.take().expect("stdin is piped").write_all(pem.as_bytes()).expect("openssl reads");
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success(), "openssl refuses {pem}");
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.trim().split_once('=').expect("NAME=FINGERPRINT").1.to_owned()
}

/// A time as the page has it: for machines and for people, to the second and in UTC.
fn words(time: prost_types::Timestamp) -> (String, String) {
    let datetime = prost_types::Timestamp { nanos: 0, ..time }.to_string();
    let text = datetime.replace('T', " ").replace('Z', " UTC");
    (datetime, text)
}

fn later(time: prost_types::Timestamp, seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds + seconds, ..time }
}

/// A server with the tenant `acme`: as `wanted`, and otherwise with two algorithms and a domain of its own.
async fn acme(wanted: Tenant) -> (Server, Clients) {
    let server = Server::dev();
    let clients = create_acme(&server, wanted).await;
    (server, clients)
}

async fn create_acme(server: &Server, wanted: Tenant) -> Clients {
    let mut clients = Clients::connect(server).await;
    let both = vec!["RS256".into(), "ES256".into()];
    let tenant = Tenant {
        id: "acme".into(),
        custom_domain: DOMAIN.into(),
        algorithms: if wanted.algorithms.is_empty() { both } else { wanted.algorithms },
        rotation_policy: wanted.rotation_policy.or_else(|| Some(policy())),
        ..wanted
    };
    clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
    clients
}

/// The default times, told, so that the page's can be reckoned from them.
fn policy() -> RotationPolicy {
    RotationPolicy {
        max_token_ttl: secs(86_400),
        jwks_max_age: secs(300),
        clock_skew: secs(60),
        publish_lead: secs(360),
        ..RotationPolicy::default()
    }
}

fn policy_of_short_times() -> RotationPolicy {
    RotationPolicy { publish_lead: secs(9), ..common::short_policy() }
}

fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn page_of(server: &Server) -> String {
    format!("{}/acme/", server.public())
}

/// The page on the custom domain, which the browser looks for on this machine.
fn on_domain(server: &Server) -> String {
    let port = server.public().rsplit_once(':').expect("host and port").1;
    format!("http://{DOMAIN}:{port}/")
}

async fn rotate(clients: &mut Clients, algorithm: &str) {
    let request = RotateSigningKeyRequest {
        tenant: "acme".into(),
        algorithm: algorithm.into(),
        force: true,
        ..RotateSigningKeyRequest::default()
    };
    clients.keys.rotate_signing_key(request).await.expect("rotated");
}

/// Chromium, driven by tests/clients/page.mjs. Its standard error is the test's.
struct Browser {
    script: Child,
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
}

/// What is in the page, as the browser shows it.
#[derive(Debug, Deserialize)]
struct Seen {
    status: u16,
    url: String,
    title: String,
    lang: String,
    text: String,
    headings: Vec<(u8, String)>,
    keyrings: Vec<Ring>,
    links: Vec<Link>,
    elements: Vec<String>,
    contrast: Contrast,
    background: String,
    selects: Vec<String>,
    selected: Option<String>,
    scroll_width: u32,
    inner_width: u32,
    complaints: Vec<String>,
    requests: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Ring {
    algorithm: String,
    text: String,
    keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
struct Key {
    state: String,
    top: f64,
    codes: Vec<String>,
    times: Vec<(String, String)>,
    milestones: Vec<(String, bool)>,
}

#[derive(Debug, Deserialize)]
struct Link {
    href: String,
    width: f64,
    height: f64,
}

/// The text with the lowest contrast.
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "the text is printed where the contrast is too low")]
struct Contrast {
    ratio: f64,
    text: String,
}

impl Seen {
    fn keyring(&self, algorithm: &str) -> &Ring {
        self.keyrings.iter().find(|ring| ring.algorithm == algorithm).unwrap_or_else(|| panic!("{}", self.text))
    }

    /// The states of a keyring from the top of the page down.
    fn states(&self, algorithm: &str) -> Vec<&str> {
        let mut keys: Vec<&Key> = self.keyring(algorithm).keys.iter().collect();
        keys.sort_by(|one, other| one.top.total_cmp(&other.top));
        keys.into_iter().map(|key| key.state.as_str()).collect()
    }
}

impl Key {
    fn kid(&self) -> String {
        self.codes.first().expect("a kid").clone()
    }

    fn milestones(&self) -> Vec<(&str, bool)> {
        self.milestones.iter().map(|(name, reached)| (name.as_str(), *reached)).collect()
    }
}

impl Browser {
    fn start() -> Self {
        let mut command = tools::node("page.mjs");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = script.stdin.take();
        let answers = read_lines(script.stdout.take().expect("stdout is piped"));
        Self { script, requests, answers }
    }

    /// A page as it is on a wide and light screen.
    fn look(&mut self, url: &str) -> Seen {
        self.look_as(url, "light", 1120, None)
    }

    /// A page about which the browser has nothing to complain.
    fn look_as(&mut self, url: &str, scheme: &str, width: u32, screenshot: Option<&Path>) -> Seen {
        let seen = self.ask(url, scheme, width, screenshot);
        assert_eq!(seen.complaints, [""; 0], "{url}");
        seen
    }

    fn ask(&mut self, url: &str, scheme: &str, width: u32, screenshot: Option<&Path>) -> Seen {
        let request = json!({
            "url": url,
            "scheme": scheme,
            "width": width,
            "screenshot": screenshot,
            "domains": {DOMAIN: "127.0.0.1"},
        });
        writeln!(self.requests.as_mut().expect("open until the end"), "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(Duration::from_secs(PAGE_WAIT_MAX_SECS)).expect("the script answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its requests the script closes the browser, whose files then go too.
        drop(self.requests.take());
        while self.answers.recv_timeout(Duration::from_secs(10)).is_ok() {}
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}
