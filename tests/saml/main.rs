//! The example of docs/saml.md, unchanged, against a real server; xmlsec1 verifies what it issues, as a relying party would:
//! with a certificate that it downloaded before, and with no trust in the one that comes with the document.

#[path = "../common/mod.rs"]
mod common;
mod relay;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Clients, Server, http, short_policy, tools};
use keyward::grpc::proto::ListSigningKeysRequest;
use relay::{Fault, Relay};
use tempfile::TempDir;

const TENANT: &str = "idp";
const ISSUER: &str = "https://idp.example.com";
const AUDIENCE: &str = "https://sp.example.com/saml";
/// Needs escaping in XML, and is not ASCII: both must come out of canonicalisation as they went in.
const SUBJECT: &str = "zoë & <co>";

const FORMS: [&[&str]; 4] =
    [&["--input=digest"], &["--input=message"], &["--input=digest", "--wsfed"], &["--input=message", "--wsfed"]];

#[tokio::test(flavor = "multi_thread")]
async fn each_form_verifies_with_the_downloaded_certificate_and_with_no_other() {
    let party = RelyingParty::new().await;
    let certificate = party.download("cer.pem", &format!("/{TENANT}/pem"));
    let other_tenants = party.download("other.pem", "/demo/pem");

    for form in FORMS {
        let document = party.issue(form);
        party.accept(&document, &certificate);
        let key_info = format!("<ds:X509Certificate>{}</ds:X509Certificate>", party.current_certificate());
        assert!(document.contains(&key_info), "{form:?}: KeyInfo does not have the signing certificate: {document}");
        for value in [ISSUER, AUDIENCE, "zoë &amp; &lt;co&gt;", "InResponseTo=\"_request-1\""] {
            assert!(document.contains(value), "{form:?}: {value} is missing in {document}");
        }
        party.assert_valid(&document);
        let wrapped = document.contains("<t:RequestSecurityTokenResponse ");
        assert_eq!(wrapped, form.contains(&"--wsfed"), "{form:?}: {document}");

        for (from, to) in [("zoë", "zoe"), (AUDIENCE, "https://other.example"), ("Version=\"2.0\"", "Version=\"2.1\"")]
        {
            party.refuse(&document.replace(from, to), &certificate, "data and digest do not match");
        }
        party.refuse(&document, &other_tenants, "signature verification failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_breaks_neither_what_was_issued_before_nor_who_has_the_next_certificate() {
    let mut party = RelyingParty::new().await;
    let before = party.issue(&["--input=digest"]);
    let (old, new) = (party.kid("current").await, party.kid("next").await);
    let new_certificate = party.download("next.pem", &format!("/{TENANT}/pem?kid={new}"));

    party.keyward.rotate_when_allowed(TENANT, "RS256").await;

    let old_certificate = party.download("previous.pem", &format!("/{TENANT}/pem?kid={old}"));
    party.accept(&before, &old_certificate);
    party.refuse(&before, &new_certificate, "signature verification failed");
    let after = party.issue(&["--input=digest"]);
    party.accept(&after, &new_certificate);
    party.refuse(&after, &old_certificate, "signature verification failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_between_certificate_and_signature_makes_it_begin_anew() {
    let party = RelyingParty::new().await;
    let new = party.kid("next").await;
    let certificate = party.download("next.pem", &format!("/{TENANT}/pem?kid={new}"));
    let relay = Relay::start(&party.keyward, Fault::RotateAfterGetCurrentKey).await;

    let issued = party.run(relay.address(), TENANT, &[]);
    let document = accepted(&issued);
    party.accept(document, &certificate);
    assert!(
        document.contains(&party.current_certificate()),
        "KeyInfo has the certificate of the key that signed: {document}"
    );
    assert_eq!(relay.calls(), ["GetCurrentKey", "Sign", "GetCurrentKey", "Sign"], "the first Sign was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_issued_with_a_damaged_signature_or_without_a_key() {
    let party = RelyingParty::new().await;
    let relay = Relay::start(&party.keyward, Fault::DamageSignature).await;
    refused(&party.run(relay.address(), TENANT, &[]), "damaged on its way");

    refused(&party.run(party.server.grpc(), "nobody", &[]), "NOT_FOUND");
    let mut keyward = party.keyward.clone();
    keyward.create_tenant("curves", &["ES256"], short_policy()).await;
    refused(&party.run(party.server.grpc(), "curves", &[]), "algorithm must be one of the tenant's: ES256");
}

/// A service that takes the tenant's assertions, with a folder for certificates and documents.
struct RelyingParty {
    server: Server,
    keyward: Clients,
    folder: TempDir,
}

impl RelyingParty {
    async fn new() -> Self {
        let server = Server::dev();
        let mut keyward = Clients::connect(&server).await;
        keyward.create_tenant(TENANT, &["RS256"], short_policy()).await;
        Self { server, keyward, folder: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Runs the example.
    fn run(&self, grpc: &str, tenant: &str, options: &[&str]) -> Output {
        let mut command = tools::python_example("saml/sign_assertion.py");
        command.args(["--keyward", grpc, "--tenant", tenant, "--issuer", ISSUER, "--audience", AUDIENCE]);
        command.args(["--recipient", "https://sp.example.com/acs", "--subject", SUBJECT]);
        command.args(["--in-response-to", "_request-1", "--attribute", "mail=zoe@example.com"]).args(options);
        command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
    }

    fn issue(&self, options: &[&str]) -> String {
        accepted(&self.run(self.server.grpc(), TENANT, options)).to_owned()
    }

    /// The kid of the tenant's one key in this state, as an operator sees it.
    async fn kid(&self, state: &str) -> String {
        let request = ListSigningKeysRequest { tenant: TENANT.into(), ..ListSigningKeysRequest::default() };
        let keys = self.keyward.keys.clone().list_signing_keys(request).await.expect("the tenant's keys").into_inner();
        let wanted = format!("KEY_STATE_{}", state.to_uppercase());
        let mut keys = keys.keys.into_iter().filter(|key| key.state().as_str_name() == wanted);
        keys.next().unwrap_or_else(|| panic!("no {state} key")).kid
    }

    /// A certificate from the public listener, into a file.
    fn download(&self, name: &str, path: &str) -> PathBuf {
        let answer = http::get(&format!("{}{path}", self.server.public()));
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let file = self.folder.path().join(name);
        std::fs::write(&file, answer.body).expect("the certificate is written");
        file
    }

    /// The current certificate as KeyInfo has it.
    fn current_certificate(&self) -> String {
        let bare = http::get(&format!("{}/{TENANT}/rawpem", self.server.public())).body;
        String::from_utf8(bare).expect("base64").trim().to_owned()
    }

    fn accept(&self, document: &str, certificate: &Path) {
        let (verified, said) = self.verify(document, certificate);
        assert!(verified && said.contains("SignedInfo References (ok/all): 1/1"), "{said}\n{document}");
    }

    fn refuse(&self, document: &str, certificate: &Path, reason: &str) {
        let (verified, said) = self.verify(document, certificate);
        assert!(!verified && said.contains(reason), "not refused for {reason:?}: {said}\n{document}");
    }

    /// Every element and attribute stands where the schemas have it.
    fn assert_valid(&self, document: &str) {
        let file = self.folder.path().join("document.xml");
        std::fs::write(&file, document).expect("the document is written");
        let output = tools::python("saml_schema.py").arg(file).output().expect("the script starts");
        assert!(output.status.success(), "{}\n{document}", String::from_utf8_lossy(&output.stderr));
    }

    /// What xmlsec1 says of the assertion's signature, with this certificate as the one trusted key.
    fn verify(&self, document: &str, certificate: &Path) -> (bool, String) {
        let file = self.folder.path().join("document.xml");
        std::fs::write(&file, document).expect("the document is written");
        let mut xmlsec1 = Command::new("xmlsec1");
        xmlsec1.args(["--verify", "--id-attr:ID", "urn:oasis:names:tc:SAML:2.0:assertion:Assertion"]);
        xmlsec1.arg("--pubkey-cert-pem").args([certificate, &file]);
        let output = xmlsec1.output().expect("xmlsec1 is missing: `make test` brings what tests need");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

/// What the example printed.
fn accepted(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).expect("XML in UTF-8")
}

fn refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "something was issued: {output:?}");
    assert!(said.contains(reason) && !said.contains("Traceback"), "not refused for {reason:?}: {said}");
}
