//! Resource servers that build the key from the JWKS's `x5c` (RFC 7517 section 4.7), as the JWKS documentation of others
//! describes it: with openssl, and with Node's X509Certificate under jwks-rsa. Through a rotation.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use common::{Clients, Installation, Server, claims, http, read_lines, short_policy, tools};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

const TENANT: &str = "certified";
const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];
const JWT_LIFE_SECS: u64 = 3600;
/// How long the interpreter may take for an answer, its start included.
const VERDICT_WAIT_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn openssl_and_node_verify_jwts_by_certificates_through_a_rotation() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let issuer = keyward.create_tenant(TENANT, &ALGORITHMS, short_policy()).await.issuer;
    let mut verifiers = Verifiers::start(&server);

    // 1. Each verifies a JWT of each algorithm, and now holds the JWKS; a changed JWT is refused.
    let mut signed_before = BTreeMap::new();
    for algorithm in ALGORITHMS {
        let jwt = sign(&mut keyward, algorithm, &issuer).await;
        verifiers.accept(algorithm, &jwt);
        verifiers.refuse(algorithm, &with_another_subject(&jwt));
        signed_before.insert(algorithm, jwt);
    }

    // 2. After the rotation, the certificate that was next before it verifies what the new key signs.
    let mut signed_after = BTreeMap::new();
    for algorithm in ALGORITHMS {
        keyward.rotate_when_allowed(TENANT, algorithm).await;
        let jwt = sign(&mut keyward, algorithm, &issuer).await;
        assert_ne!(kid(&jwt), kid(&signed_before[algorithm]), "{algorithm}: another key signs");
        verifiers.accept(algorithm, &jwt);
        signed_after.insert(algorithm, jwt);
    }

    // 3. In the JWKS of after the rotation, the replaced key has its certificate still, and no key has another's.
    verifiers.refetch();
    for algorithm in ALGORITHMS {
        verifiers.accept(algorithm, &signed_before[algorithm]);
        verifiers.accept(algorithm, &signed_after[algorithm]);
        verifiers.refuse(algorithm, &with_kid_of(&signed_before[algorithm], &signed_after[algorithm]));
    }
}

async fn sign(keyward: &mut Clients, algorithm: &str, issuer: &str) -> String {
    let answer = keyward.sign_jwt(TENANT, algorithm, claims(issuer, JWT_LIFE_SECS)).await;
    answer.unwrap_or_else(|status| panic!("{algorithm}: {status:?}")).jwt
}

/// What both ways of verifying have of the JWKS: openssl the set as it was fetched, Node its own.
struct Verifiers {
    jwks_uri: String,
    jwks: Value,
    node: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    refetch: bool,
    folder: TempDir,
}

/// What one Node client said of one JWT.
#[derive(Debug, Deserialize)]
struct Verdict {
    valid: bool,
    error: Option<String>,
}

impl Verifiers {
    fn start(server: &Server) -> Self {
        let jwks_uri = server.jwks_uri(TENANT);
        let jwks = http::get(&jwks_uri).json();
        let mut command = tools::node("x5c.mjs");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let requests = node.stdin.take().expect("stdin is piped");
        let answers = read_lines(node.stdout.take().expect("stdout is piped"));
        let folder = tempfile::tempdir().expect("a temporary directory");
        Self { jwks_uri, jwks, node, requests, answers, refetch: false, folder }
    }

    fn refetch(&mut self) {
        self.jwks = http::get(&self.jwks_uri).json();
        self.refetch = true;
    }

    fn accept(&mut self, algorithm: &str, jwt: &str) {
        for (client, verdict) in self.verdicts(algorithm, jwt) {
            assert!(verdict.valid, "{client} refuses {algorithm}: {verdict:?}");
        }
        let said = self.openssl(algorithm, jwt);
        assert!(said.status.success(), "openssl refuses {algorithm}: {said:?}");
    }

    fn refuse(&mut self, algorithm: &str, jwt: &str) {
        for (client, verdict) in self.verdicts(algorithm, jwt) {
            let error = verdict.error.unwrap_or_default();
            assert!(!verdict.valid && error == "Error: the signature is wrong", "{client}, {algorithm}: {error}");
        }
        let said = self.openssl(algorithm, jwt);
        let text = String::from_utf8_lossy(&[said.stdout.clone(), said.stderr.clone()].concat()).into_owned();
        assert!(!said.status.success() && text.contains("erification"), "openssl, {algorithm}: {said:?}");
    }

    fn verdicts(&mut self, algorithm: &str, jwt: &str) -> BTreeMap<String, Verdict> {
        let refetch = std::mem::take(&mut self.refetch);
        let request = json!({"jwks_uri": self.jwks_uri, "algorithm": algorithm, "jwt": jwt, "refetch": refetch});
        writeln!(self.requests, "{request}").expect("the script reads");
        let answer = self.answers.recv_timeout(VERDICT_WAIT_MAX).expect("the script answers");
        let verdicts: BTreeMap<_, _> =
            serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"));
        assert_eq!(verdicts.len(), 2, "{answer}");
        verdicts
    }

    /// openssl alone: the certificate's public key, and the signature with it.
    fn openssl(&self, algorithm: &str, jwt: &str) -> Output {
        let (signed, signature) = jwt.rsplit_once('.').expect("a compact JWT");
        let signature = BASE64URL.decode(signature).expect("base64url");
        let file = |name: &str| self.folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
        let write = |name: &str, octets: &[u8]| fs::write(file(name), octets).expect("written");
        write("certificate.der", &self.certificate(kid(jwt)));
        write("signed", signed.as_bytes());
        write("signature", &signature);

        let extract = ["x509", "-inform", "DER", "-in", &file("certificate.der"), "-noout", "-pubkey"];
        write("public.pem", &openssl(&extract).stdout);
        if algorithm == "EdDSA" {
            let verify = ["pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", &file("public.pem")];
            let input = ["-in", &file("signed"), "-sigfile", &file("signature")];
            return openssl(&[verify.as_slice(), input.as_slice()].concat());
        }
        if algorithm == "ES256" {
            // openssl reads ECDSA-Sig-Value (RFC 3279 section 2.2.3), and writes it from this description.
            let integer = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02X}")).collect::<String>();
            let (r, s) = signature.split_at(signature.len() / 2);
            let value = format!("asn1=SEQUENCE:s\n[s]\nr=INTEGER:0x{}\ns=INTEGER:0x{}\n", integer(r), integer(s));
            write("signature.conf", value.as_bytes());
            let made =
                openssl(&["asn1parse", "-genconf", &file("signature.conf"), "-noout", "-out", &file("signature")]);
            assert!(made.status.success(), "{made:?}");
        }
        openssl(&["dgst", "-sha256", "-verify", &file("public.pem"), "-signature", &file("signature"), &file("signed")])
    }

    /// The DER of the one certificate in the `x5c` of the key with this kid.
    fn certificate(&self, kid: String) -> Vec<u8> {
        let mut keys = self.jwks["keys"].as_array().expect("a JWK set").iter();
        let jwk = keys.find(|jwk| jwk["kid"] == *kid).unwrap_or_else(|| panic!("{kid} is not in the JWKS"));
        let x5c = jwk["x5c"].as_array().unwrap_or_else(|| panic!("no x5c in {jwk}"));
        assert_eq!(x5c.len(), 1, "self-signed: a chain of one");
        // Base64, unlike all else in a JWK (RFC 7517 section 4.7).
        BASE64.decode(x5c[0].as_str().expect("a text")).expect("base64 without line breaks")
    }
}

impl Drop for Verifiers {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).output().expect("openssl is installed")
}

fn kid(jwt: &str) -> String {
    let header: Value = decoded(jwt.split('.').next().expect("a header"));
    header["kid"].as_str().expect("a kid").to_owned()
}

fn decoded(segment: &str) -> Value {
    serde_json::from_slice(&BASE64URL.decode(segment).expect("base64url")).expect("JSON")
}

/// The same header and signature around other claims.
fn with_another_subject(jwt: &str) -> String {
    let segments: Vec<&str> = jwt.split('.').collect();
    let mut claims = decoded(segments[1]);
    claims["sub"] = json!("root");
    format!("{}.{}.{}", segments[0], BASE64URL.encode(claims.to_string()), segments[2])
}

/// The same claims and signature under the header of another JWT.
fn with_kid_of(jwt: &str, other: &str) -> String {
    let (header, _) = other.split_once('.').expect("a compact JWT");
    let (_, rest) = jwt.split_once('.').expect("a compact JWT");
    format!("{header}.{rest}")
}
