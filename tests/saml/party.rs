//! The example as a process, and those who rely on what it issues: xmlsec1 and pysaml2.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use keyward::grpc::proto::{CreateTenantRequest, KeyState, ListSigningKeysRequest, Tenant};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Clients, Server, http, short_policy, tools};

pub(crate) const TENANT: &str = "idp";
pub(crate) const ISSUER: &str = "https://idp.example.com";
pub(crate) const AUDIENCE: &str = "https://sp.example.com/saml";
pub(crate) const RECIPIENT: &str = "https://sp.example.com/acs";
pub(crate) const REQUEST: &str = "_request-1";
/// Needs escaping in XML, and is not ASCII: both must come out of canonicalisation as they went in.
pub(crate) const SUBJECT: &str = "zoë & <co>";

/// A service that takes the tenant's assertions, with a folder for certificates and documents.
pub(crate) struct RelyingParty {
    pub(crate) server: Server,
    pub(crate) keyward: Clients,
    folder: TempDir,
}

impl RelyingParty {
    pub(crate) async fn new() -> Self {
        let server = Server::dev();
        let mut keyward = Clients::connect(&server).await;
        let tenant = Tenant {
            id: TENANT.into(),
            issuer: ISSUER.into(),
            saml_sso_url: format!("{ISSUER}/sso"),
            algorithms: vec!["RS256".into()],
            rotation_policy: Some(short_policy()),
            ..Tenant::default()
        };
        keyward.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
        Self { server, keyward, folder: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Runs the example.
    pub(crate) fn run(&self, grpc: &str, tenant: &str, options: &[&str]) -> Output {
        let mut command = tools::python_example("saml/sign_assertion.py");
        command.args(["--keyward", grpc, "--tenant", tenant, "--issuer", ISSUER, "--audience", AUDIENCE]);
        command.args(["--recipient", RECIPIENT, "--subject", SUBJECT]);
        command.args(["--in-response-to", REQUEST, "--attribute", "mail=zoe@example.com"]).args(options);
        command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
    }

    pub(crate) fn issue(&self, options: &[&str]) -> String {
        accepted(&self.run(self.server.grpc(), TENANT, options)).to_owned()
    }

    /// The kid of the tenant's one key in this state.
    pub(crate) async fn kid(&self, state: KeyState) -> String {
        let request = ListSigningKeysRequest {
            tenant: TENANT.into(),
            states: vec![state.into()],
            ..ListSigningKeysRequest::default()
        };
        let keys = self.keyward.keys.clone().list_signing_keys(request).await.expect("the tenant's keys").into_inner();
        keys.keys.into_iter().next().unwrap_or_else(|| panic!("no {state:?} key")).kid
    }

    /// What Keyward says of the identity provider now, in a file.
    pub(crate) fn metadata(&self, name: &str) -> PathBuf {
        self.download(name, &format!("/{TENANT}/saml/metadata"))
    }

    /// Whom pysaml2, which trusts this metadata, takes for signed in by this response.
    pub(crate) fn sign_in(&self, metadata: &Path, response: &str) -> Result<String, String> {
        let file = self.folder.path().join("response.xml");
        std::fs::write(&file, response).expect("the response is written");
        let mut script = tools::python("saml_service_provider.py");
        let output = script.args([metadata, &file]).args([AUDIENCE, RECIPIENT, REQUEST]).output();
        let output = output.expect("the script starts");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        if let Some(error) = said["error"].as_str() {
            return Err(error.to_owned());
        }
        assert_eq!((&said["issuer"], &said["attributes"]), (&json!(ISSUER), &json!({"mail": ["zoe@example.com"]})));
        Ok(said["subject"].as_str().expect("a subject").to_owned())
    }

    /// A certificate from the public listener, into a file.
    pub(crate) fn download(&self, name: &str, path: &str) -> PathBuf {
        let answer = http::get(&format!("{}{path}", self.server.public()));
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let file = self.folder.path().join(name);
        std::fs::write(&file, answer.body).expect("the certificate is written");
        file
    }

    /// The current certificate as KeyInfo has it.
    pub(crate) fn current_certificate(&self) -> String {
        let bare = http::get(&format!("{}/{TENANT}/rawpem", self.server.public())).body;
        String::from_utf8(bare).expect("base64").trim().to_owned()
    }

    pub(crate) fn accept(&self, document: &str, certificate: &Path) {
        let (verified, said) = self.verify(document, certificate);
        assert!(verified && said.contains("SignedInfo References (ok/all): 1/1"), "{said}\n{document}");
    }

    pub(crate) fn refuse(&self, document: &str, certificate: &Path, reason: &str) {
        let (verified, said) = self.verify(document, certificate);
        assert!(!verified && said.contains(reason), "not refused for {reason:?}: {said}\n{document}");
    }

    /// Every element and attribute stands where the schemas have it.
    pub(crate) fn assert_valid(&self, document: &str) {
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
pub(crate) fn accepted(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).expect("XML in UTF-8")
}

pub(crate) fn refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "something was issued: {output:?}");
    assert!(said.contains(reason) && !said.contains("Traceback"), "not refused for {reason:?}: {said}");
}
