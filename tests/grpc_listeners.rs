//! How gRPC is reached: TLS and who is let in by it, and Unix sockets.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::{Authority, Clients, Dial, Identity, Installation, Validity, claims, http, short_policy};
use tonic::Code;

const URI: &str = "URI:spiffe://example.com/issuer";

/// A list that is due in some seconds has been taken up and run out by then.
const RUN_OUT_WAIT_MAX: Duration = Duration::from_secs(40);

/// Makes the tenant `acme` and signs for it.
async fn sign_first(clients: &mut Clients) {
    let tenant = clients.create_tenant("acme", &["ES256"], short_policy()).await;
    clients.sign_jwt("acme", "", claims(&tenant.issuer, 60)).await.expect("signed");
}

/// Whether a client gets as far as an answer.
async fn is_let_in(dial: &Dial) -> bool {
    let Ok(channel) = dial.connect().await else { return false };
    let answer = Clients::over(channel).sign_jwt("nobody", "", b"{}".to_vec()).await;
    match answer.expect_err("there is no such tenant").code() {
        Code::NotFound => true,
        // What clients make of a connection that is closed.
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_certificate_of_the_authority_is_let_in() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let right = authority.client("right", URI);
    let revoked = authority.client("revoked", URI);
    authority.revoke(&revoked);
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("server"), Some(&authority))
        .with_grpc_revocation_list(&authority.revocation_list());
    let server = installation.serve();
    let dial = |client: Option<&Identity>| Dial::tls(server.grpc(), &authority, client);
    sign_first(&mut Clients::over(dial(Some(&right)).connect().await.expect("connected"))).await;

    assert!(is_let_in(&dial(Some(&right))).await);
    assert!(!is_let_in(&dial(None)).await, "without a certificate");
    let wrong = [
        ("revoked", revoked),
        ("of another authority", stranger.client("strange", URI)),
        ("expired", authority.client_valid("old", URI, Validity::Expired)),
        ("not yet valid", authority.client_valid("early", URI, Validity::NotYet)),
        ("a server's", authority.issue("other")),
    ];
    for (what, identity) in &wrong {
        assert!(!is_let_in(&dial(Some(identity))).await, "{what}");
    }
    assert!(!is_let_in(&Dial::tls(server.grpc(), &stranger, Some(&right))).await, "it trusts another authority");
    assert!(!is_let_in(&Dial::tls_1_2(server.grpc(), &authority, Some(&right))).await, "TLS 1.2");
    assert!(!is_let_in(&Dial::tcp(server.grpc())).await, "without TLS");
    assert!(is_let_in(&dial(Some(&right))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_for_those_who_allow_it() {
    let authority = Authority::new();
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("server"), Some(&authority))
        .set("grpc.tls_min_version", r#""1.2""#);
    let server = installation.serve();
    let client = authority.client("client", URI);
    assert!(is_let_in(&Dial::tls_1_2(server.grpc(), &authority, Some(&client))).await);
    assert!(is_let_in(&Dial::tls(server.grpc(), &authority, Some(&client))).await);
    assert!(!is_let_in(&Dial::tls_1_2(server.grpc(), &authority, None)).await, "without a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_that_runs_out_in_use_lets_nobody_in() {
    let authority = Authority::new();
    let client = authority.client("client", URI);
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("server"), Some(&authority))
        .with_grpc_revocation_list(&authority.revocation_list());
    let server = installation.serve();
    let dial = Dial::tls(server.grpc(), &authority, Some(&client));
    assert!(is_let_in(&dial).await);
    installation.put("list.crl", &authority.brief_revocation_list());
    let begun = Instant::now();
    loop {
        let ready = http::get(&format!("{}/readyz", server.ops()));
        let told = ready.json::<serde_json::Value>()["warnings"]["grpc.crl_file"].as_str().map(ToOwned::to_owned);
        if told.as_deref() == Some("is out of date: clients that need it are refused") {
            assert_eq!(ready.status, 200);
            break;
        }
        assert!(begun.elapsed() < RUN_OUT_WAIT_MAX, "{told:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_let_in(&dial).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_for_owner_and_group_and_a_stale_one_is_replaced() {
    let installation = Installation::prepare().set("grpc.unix_socket", r#""keyward.sock""#);
    let socket = installation.dir().join("keyward.sock");
    let server = installation.serve();
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o660);
    sign_first(&mut Clients::over(Dial::unix(&socket).connect().await.expect("connected"))).await;
    assert!(is_let_in(&Dial::tcp(server.grpc())).await, "the address is served as well");

    // Killed: the socket stays, and nobody listens.
    server.kill();
    assert!(socket.exists());
    let server = installation.serve();
    assert!(is_let_in(&Dial::unix(&socket)).await);

    // Somebody else listens there, or it is another thing: neither is touched.
    drop(server);
    fs::remove_file(&socket).expect("removed");
    let other = UnixListener::bind(&socket).expect("bound");
    assert_eq!(refusal(&installation), "another process does");
    drop(other);
    fs::remove_file(&socket).expect("removed");
    fs::write(&socket, "precious").expect("written");
    assert_eq!(refusal(&installation), "there is something else than a socket");
    assert_eq!(fs::read_to_string(&socket).expect("it is there"), "precious");
}

/// Why the server does not start: the end of what it says.
fn refusal(installation: &Installation) -> String {
    let output = installation.command("serve").output().expect("it starts");
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).expect("text");
    said.trim_end().rsplit(": ").next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_files_is_told_at_once_and_by_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let [one, two] = ["one", "two"].map(|name| authority.issue(name));
    let problems = |installation: Installation, expected: &[&str]| {
        let output = installation.command("check").output().expect("it starts");
        assert!(!output.status.success(), "it was taken");
        let said = String::from_utf8(output.stderr).expect("text");
        expected.iter().for_each(|text| assert!(said.contains(text), "{text:?} is not in {said}"));
    };
    let configured = || Installation::bare().with_grpc_tls(&one, Some(&authority));
    let installation = configured();
    installation.put("grpc.key", &two.key);
    problems(installation, &["grpc.certificate_file and its key cannot be used together"]);
    for (certificate, problem) in [
        (authority.issue_valid("expired", Validity::Expired), "has expired"),
        (authority.issue_valid("early", Validity::NotYet), "is not valid yet"),
        (authority.client("client", URI), "is not a server's"),
    ] {
        let installation = Installation::bare().with_grpc_tls(&certificate, Some(&authority));
        problems(installation, &["grpc.certificate_file names a certificate that", problem]);
    }
    problems(
        configured().with_grpc_revocation_list(&authority.outdated_revocation_list()),
        &["grpc.crl_file has a list that is out of date"],
    );
    let installation = configured();
    installation.put("client-ca.pem", &one.key);
    problems(installation, &["grpc.client_ca_file must name a PEM file"]);
    problems(
        configured().with_grpc_revocation_list(&other.revocation_list()).set("grpc.tls_min_version", "1.1"),
        &["grpc.crl_file must have a list of each authority", "grpc.tls_min_version must be"],
    );
    problems(
        Installation::bare().set("grpc.crl_file", r#""list.crl""#).set("grpc.connection_age_max_secs", "0"),
        &[
            "grpc.client_ca_file must be set where grpc.crl_file is",
            "grpc.connection_age_max_secs must be a whole number from 1",
        ],
    );
}
