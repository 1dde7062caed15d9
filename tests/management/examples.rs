//! The commands of docs/management-api.md, as they stand there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Clients, Installation, Issuer, short_policy, tools};
use crate::house::with_management;

/// What the page has its readers call the issuer, and where its server listens.
const ISSUER: &str = "https://issuer.example.com/";
const ADDRESS: &str = "127.0.0.1:8081";

/// What stands for the commands of the page that would bring something from elsewhere, or that a reader gives the tenant time
/// for: its next key must have been published for a second. Each tells its status on standard error.
const STAND_INS: &str = r#"
curl() {
    command curl -sS --noproxy '*' --fail-with-body --retry 8 --retry-all-errors --retry-max-time 60 \
        -w '%{stderr}%{http_code}\n' "$@"
}
npm() { echo "$@" >&2; }
node() {
    tries=0
    until command node "$@"; do tries=$((tries + 1)); [ $tries -lt 60 ]; done
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_s_commands_make_a_jwt_and_call_with_it() {
    let installation = with_management(Installation::bare(), &Issuer::new());
    let dir = installation.dir().to_owned();
    shell(&dir, &["openssl genpkey", "openssl req"].map(block_with).concat());
    let installation = installation
        .set("management.issuer", &format!("{ISSUER:?}"))
        .set("management.jwks_file", r#""issuer-jwks.json""#)
        .set("management.certificate_file", r#""server.pem""#)
        .set("management.key_file", r#""server.key""#)
        .init();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("demo", &["ES256"], short_policy()).await;

    let address = server.management().trim_start_matches("https://").to_owned();
    let run = |blocks: &[&str]| {
        let commands: String = blocks.iter().map(|text| block_with(text)).collect();
        assert!(commands.contains(ADDRESS), "the page has another address");
        shell(&dir, &format!("{STAND_INS}{}", commands.replace(ADDRESS, &address)))
    };
    let [make_jwt, curl] = ["jwt.encode", "curl --cacert"];
    let (said, statuses) = run(&[make_jwt, curl, "KID=", "custom-keys.json $BASE"]);
    let statuses: Vec<&str> = statuses.lines().filter(|line| line.len() == 3 && *line != "409").collect();
    assert_eq!(statuses, ["200", "201", "200", "200", "200", "200", "204"], "{said}");
    assert!(said.contains("mine-1"), "the custom key: {said}");

    // Before the page's commands for Node the test tools stand where npm would put the client.
    let node = tools::node("auth0.mjs");
    let modules = Path::new(node.get_program()).ancestors().nth(2).expect("the test tools").join("node/node_modules");
    std::os::unix::fs::symlink(modules, dir.join("node_modules")).expect("linked");
    let (said, _) = run(&[make_jwt, "npm install"]);
    assert!(said.ends_with(" signs next\n"), "{said}");
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

/// What these commands print on standard output and on standard error, with the Python that has PyJWT and the Node that the
/// test tools have.
fn shell(dir: &Path, script: &str) -> (String, String) {
    let folder = |tool: Command| Path::new(tool.get_program()).parent().expect("a folder").display().to_string();
    let (python, node) = (folder(tools::python("verify.py")), folder(tools::node("auth0.mjs")));
    let path = std::env::var("PATH").expect("PATH is set");
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("PATH", format!("{python}:{node}:{path}"));
    let output = command.output().expect("sh starts");
    let [said, told] = [output.stdout, output.stderr].map(|octets| String::from_utf8_lossy(&octets).into_owned());
    assert!(output.status.success(), "{script}: {said} {told}");
    (said, told)
}
