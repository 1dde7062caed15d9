//! The commands of docs/management-api.md, as they stand there.

use std::fs;
use std::path::Path;
use std::process::Command;

use keyward::grpc::proto::RotateSigningKeyRequest;

use crate::common::{Authority, Clients, Installation, Issuer, short_policy, tools};
use crate::house::{with_identity, with_management};

/// What the page has its readers call the issuer, and where its server listens.
const ISSUER: &str = "https://issuer.example.com/";
const BASE: &str = "https://127.0.0.1:8081/demo";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_s_commands_make_a_jwt_and_call_with_it() {
    let authority = Authority::new();
    let installation = with_management(Installation::bare(), &Issuer::new());
    fs::copy(authority.certificate(), installation.dir().join("ca.pem")).expect("copied");
    let [make_issuer, make_jwt, calls] = ["openssl genpkey", "jwt.encode", "curl --cacert"].map(block_with);
    shell(installation.dir(), &make_issuer);
    let installation = with_identity(installation, &authority.issue("server"))
        .set("management.issuer", &format!("{ISSUER:?}"))
        .set("management.jwks_file", r#""issuer-jwks.json""#)
        .init();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("demo", &["ES256"], short_policy()).await;
    let request = RotateSigningKeyRequest { tenant: "demo".into(), force: true, ..Default::default() };
    let rotated = clients.keys.rotate_signing_key(request).await.expect("rotated").into_inner();
    let kid = rotated.previous.expect("the replaced key").kid;

    let base = format!("{}/demo", server.management());
    assert!(make_jwt.contains(BASE), "the page has another address");
    let jwks = Issuer::new().jwks();
    fs::write(installation.dir().join("custom-keys.json"), jwks.to_string()).expect("written");
    let curl = r#"curl() { command curl -sS --noproxy '*' -o /dev/null -w '%{http_code}\n' "$@"; }"#;
    let script = format!("{curl}\nKID={kid}\n{}\n{calls}", make_jwt.replace(BASE, &base));
    let said = shell(installation.dir(), &script);
    let statuses: Vec<&str> = said.lines().collect();
    assert_eq!(statuses.len(), 4, "{said}");
    assert_eq!((statuses[0], statuses[2], statuses[3]), ("200", "200", "200"), "{said}");
    assert!(["201", "409"].contains(&statuses[1]), "rotated, or too early: {said}");
}

/// The one block of commands on the page that has this text.
fn block_with(text: &str) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/management-api.md"));
    let page = page.expect("the page");
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let found: Vec<&str> = blocks.filter(|block| block.contains(text)).collect();
    assert_eq!(found.len(), 1, "blocks with {text:?}");
    found[0].to_owned()
}

/// What these commands print, with the Python that has PyJWT.
fn shell(dir: &Path, script: &str) -> String {
    let python = tools::python("verify.py");
    let bin = Path::new(python.get_program()).parent().expect("a folder").display().to_string();
    let path = std::env::var("PATH").expect("PATH is set");
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("PATH", format!("{bin}:{path}"));
    let output = command.output().expect("sh starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
