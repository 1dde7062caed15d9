use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::common::http::{get, send};
use crate::common::{Authority, Clients, Installation, Issuer, short_policy};
use crate::house::{ALL_SCOPES, House, ISSUER, now, put_identity, wait_until, with_identity, with_management};

/// GET of a tenant's list by curl, which trusts this authority alone.
fn curl(house: &House, authority: &Path, options: &[&str]) -> Output {
    curl_at(house, "/keys/signing", authority, options)
}

fn curl_at(house: &House, path: &str, authority: &Path, options: &[&str]) -> Output {
    let url = format!("{}/acme/api/v2{path}", house.server.management());
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", "30", "-o", "-", "-w", "\n%{http_version} %{http_code}"]);
    command.arg("--cacert").arg(authority).args(options);
    command.arg("-H").arg(format!("Authorization: Bearer {}", house.jwt("acme", ALL_SCOPES))).arg(url);
    command.output().expect("curl starts")
}

/// What curl says of protocol and status.
fn outcome(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_1_2_or_1_3_and_for_those_who_trust_the_authority() {
    let authority = Authority::new();
    let house = House::open_with_tls(&authority).await;
    let ca = authority.certificate();
    assert!(house.server.management().starts_with("https://127.0.0.1:"));
    assert_eq!(outcome(&curl(&house, &ca, &[])), "2 200");
    assert_eq!(outcome(&curl(&house, &ca, &["--http1.1"])), "1.1 200");
    assert_eq!(outcome(&curl(&house, &ca, &["--tls-max", "1.2"])), "2 200");
    assert_eq!(outcome(&curl(&house, &ca, &["--tlsv1.3"])), "2 200");
    assert!(!curl(&house, &ca, &["--tls-max", "1.1"]).status.success());
    let stranger = Authority::new();
    assert!(!curl(&house, &stranger.certificate(), &[]).status.success());

    // A refusal is heard by a client that is still sending, in HTTP/1.1 and HTTP/2 alike.
    let body = house.installation.dir().join("body");
    for (size, status) in [(11, 400), (200_000, 400), (600_000, 413)] {
        std::fs::write(&body, vec![b'{'; size]).expect("the body is written");
        let data = format!("@{}", body.display());
        for (version, option) in [("2", "--http2"), ("1.1", "--http1.1")] {
            for _ in 0..5 {
                let put = |jwt: &[&str]| {
                    let options = [&["-X", "PUT", "--data-binary", &data, option], jwt].concat();
                    outcome(&curl_at(&house, "/keys/custom-signing", &ca, &options))
                };
                // A second Authorization header is refused before the body is looked at.
                assert_eq!(put(&["-H", "authorization: Bearer x"]), format!("{version} 400"), "{size}");
                assert_eq!(put(&[]), format!("{version} {status}"), "{size}");
            }
        }
    }

    // Clients that say nothing keep nobody out, be they more than there are places (256).
    let address = house.server.management().strip_prefix("https://").expect("an address").to_owned();
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&address).expect("a connection")).collect();
    assert_eq!(outcome(&curl(&house, &ca, &[])), "2 200");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_up_without_a_restart_and_a_bad_one_is_not() {
    let (first, second) = (Authority::new(), Authority::new());
    let house = House::open_with_tls(&first).await;
    // Key and certificate do not belong together, as in the middle of a replacement.
    std::fs::copy(second.issue("second").key, house.installation.dir().join("server.key")).expect("copied");
    wait_until("it is told", || house.server.log().iter().any(|line| line.contains("the old one stays")));
    assert_eq!(outcome(&curl(&house, &first.certificate(), &[])), "2 200");

    put_identity(&house.installation, &second.issue("third"));
    wait_until("the new one is served", || outcome(&curl(&house, &second.certificate(), &[])) == "2 200");
    assert!(!curl(&house, &first.certificate(), &[]).status.success());
}

#[test]
fn what_is_wrong_with_the_section_is_told_at_once_and_by_name() {
    let issuer = Issuer::new();
    let configured = || with_management(Installation::bare(), &issuer);
    let file = |installation: Installation, name: &str, text: &str| {
        std::fs::write(installation.dir().join(name), text).expect("the file is written");
        installation
    };
    let problems = |installation: &Installation| {
        let output = installation.command("check").output().expect("it starts");
        assert!(!output.status.success(), "it was taken");
        String::from_utf8(output.stderr).expect("text")
    };
    let mut told = Vec::new();
    let mut told_of = |installation: Installation, expected: &[&str]| {
        let said = problems(&installation);
        for text in expected {
            assert!(said.contains(text), "{text:?} is not in {said}");
        }
        told.push(said);
    };
    told_of(
        configured()
            .set("management.listen", "\"nowhere\"")
            .set("management.base_url", "\"keys.example.com\"")
            .set("management.issuer", "\"http://issuer.example\"")
            .set("management.jwks_file", "\"nothing.json\"")
            .set("management.certificate_file", "\"server.pem\"")
            .set("management.audience", "\"mine\""),
        &[
            "management.listen must be an IP address and a port",
            "management.base_url must be",
            "management.issuer must be",
            "management.jwks_file cannot be read",
            "management.key_file must be set",
            "management.audience is not a key",
        ],
    );
    told_of(
        configured().set("management.listen", "\"0.0.0.0:0\""),
        &["management.certificate_file must be set", "management.base_url must be set", "loopback"],
    );
    told_of(
        Installation::bare().set("management.listen", "\"127.0.0.1:0\""),
        &["management.issuer must be set", "management.jwks_file must be set"],
    );
    told_of(
        Installation::bare().set("management.issuer", "\"https://issuer.example\""),
        &["management.issuer has no effect unless management.listen is set"],
    );
    for (text, problem) in [
        ("", "must hold a JSON Web Key Set"),
        (r#"{"keys":[]}"#, "must hold a public key"),
        (r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#, "must hold public keys alone: keys[0] has the member k"),
    ] {
        told_of(file(configured(), "jwks.json", text), &[&format!("management.jwks_file {problem}")]);
    }
    let authority = Authority::new();
    let (one, other) = (authority.issue("one"), authority.issue("other"));
    let mixed = with_identity(configured(), &one);
    std::fs::copy(other.key, mixed.dir().join("server.key")).expect("copied");
    told_of(mixed, &["management.certificate_file and its key cannot be used together"]);
    let open = with_identity(configured(), &one);
    std::fs::set_permissions(open.dir().join("server.key"), Permissions::from_mode(0o644)).expect("opened");
    told_of(open, &["management.key_file must not be open to everybody"]);
    for (name, problem) in [
        ("server.pem", "must name a PEM file with the certificate"),
        ("server.key", "must name a PEM file with a private key"),
    ] {
        let broken = file(with_identity(configured(), &one), name, "-----BEGIN c2VjcmV0-----\n");
        told_of(broken, &["management.", problem]);
    }
    assert!(told.iter().all(|said| !said.contains("c2VjcmV0")), "what a file holds is told: {told:?}");
    assert!(with_identity(configured(), &one).command("check").output().expect("it starts").status.success());
}

#[test]
fn it_is_off_unless_it_is_configured() {
    let server = Installation::prepare().serve();
    assert_eq!(server.management(), "");
    for listener in [server.public(), server.ops()] {
        assert_eq!(get(&format!("{listener}/acme/api/v2/keys/signing")).status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_s_url_is_what_jwts_are_for() {
    let issuer = Issuer::new();
    let base_url = "https://keys.example.com/manage";
    let installation = with_management(Installation::prepare(), &issuer);
    let installation = installation.set("management.base_url", &format!("{:?}", format!("{base_url}/")));
    let server = installation.serve();
    Clients::connect(&server).await.create_tenant("acme", &["ES256"], short_policy()).await;
    let status = |base_url: &str| {
        let audience = format!("{base_url}/acme/api/v2/");
        let claims =
            json!({"iss": ISSUER, "sub": "ops", "aud": audience, "scope": "read:signing_keys", "exp": now() + 60});
        let headers = [("authorization", format!("Bearer {}", issuer.jwt(&claims)))];
        let url = format!("{}/acme/api/v2/keys/signing", server.management());
        send("GET", &url, &headers.each_ref().map(|(name, value)| (*name, value.as_str()))).status
    };
    assert_eq!(status(base_url), 200);
    assert_eq!(status(server.management()), 401);
}
