use std::fs;
use std::process::Command;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::common::{Authority, Dial, Identity, Installation, Issuer, short_policy};
use crate::house::{ALL_SCOPES, House, wait_until, with_identity, with_management};

/// Every record in the log of calls.
fn records(house: &House) -> Vec<Value> {
    let names = fs::read_dir(house.installation.dir().join("audit")).expect("the log's directory");
    let paths = names.map(|entry| entry.expect("an entry").path());
    let segments = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let texts: Vec<String> = segments.map(|path| fs::read_to_string(path).expect("a segment")).collect();
    texts.iter().flat_map(|text| text.lines()).filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The status of a call with this certificate, by curl.
fn status(house: &House, authority: &Authority, client: &Identity, method: &str, path: &str, scope: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", "-X", method]);
    command.arg("--cacert").arg(authority.certificate());
    command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
    command.arg("-H").arg(format!("Authorization: Bearer {}", house.jwt("acme", scope)));
    let output = command.arg(house.url("acme", path)).output().expect("curl starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_must_name_somebody_who_is_in_the_record_beside_the_jwt() {
    let (authority, issuer) = (Authority::new(), Issuer::new());
    let installation = with_identity(with_management(Installation::prepare(), &issuer), &authority.issue("server"));
    installation.put("clients.pem", &authority.certificate());
    let installation = installation.set("management.client_ca_file", r#""clients.pem""#);
    let house = House::serve(installation, issuer, short_policy()).await;

    let ops = authority.client("ops", "URI:spiffe://example.com/ops");
    let keys = "/keys/signing";
    assert_eq!(status(&house, &authority, &ops, "GET", keys, ALL_SCOPES), "200");
    assert_eq!(status(&house, &authority, &ops, "GET", keys, "none"), "403");
    let both = serde_json::json!(["uri:spiffe://example.com/ops", "jwt:https://issuer.example/#ops"]);
    wait_until("the denial is recorded with both names", || {
        records(&house).iter().any(|record| record["result"] == "PERMISSION_DENIED" && record["principals"] == both)
    });

    let rotate = "/keys/signing/rotate";
    for (name, alternative_names) in [("nobody", ""), ("two", "URI:spiffe://example.com/a,URI:spiffe://example.com/b")]
    {
        let client = authority.client(name, alternative_names);
        assert_eq!(status(&house, &authority, &client, "POST", rotate, ALL_SCOPES), "401", "{name}");
    }
    wait_until("the refusals are recorded", || {
        let refused = |record: &&Value| record["action"] == "rotate" && record["result"] == "UNAUTHENTICATED";
        records(&house).iter().filter(refused).count() == 2
    });

    // In TLS 1.3 a client hears of it after its handshake.
    let address = house.server.management().trim_start_matches("https://").to_owned();
    let other = Authority::new();
    let stranger = other.client("stranger", "URI:spiffe://example.com/ops");
    if let Ok(mut stream) = Dial::tls(&address, &authority, Some(&stranger)).handshake().await {
        assert!(stream.read(&mut [0; 10]).await.is_err(), "a stranger was let in");
    }
    wait_until("the handshake is recorded", || {
        let details = records(&house);
        let mut handshakes = details.iter().filter(|record| record["method"] == "TLS handshake");
        handshakes.any(|record| record["detail"].as_str().is_some_and(|text| text.starts_with("unknown authority")))
    });
}
