use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A certificate authority for one test, made by openssl.
pub(crate) struct Authority {
    dir: TempDir,
}

/// Certificate and key of a server, in PEM.
pub(crate) struct ServerIdentity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("keyward-test-ca-").tempdir().expect("a temporary directory");
        let authority = Self { dir };
        let extensions = "basicConstraints=critical,CA:TRUE";
        openssl(
            authority.dir.path(),
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test authority",
                "-addext",
                extensions,
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ],
        );
        authority
    }

    /// Its own certificate, for clients to trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for `localhost`, 127.0.0.1 and all of example.com, with this common name.
    pub(crate) fn issue(&self, name: &str) -> ServerIdentity {
        let dir = self.dir.path();
        let [key, request, certificate] = ["key", "csr", "pem"].map(|suffix| format!("{name}.{suffix}"));
        let names = format!("{name}.ext");
        fs::write(dir.join(&names), "subjectAltName=DNS:localhost,DNS:*.example.com,IP:127.0.0.1\n").expect("written");
        let subject = format!("/CN={name}");
        openssl(
            dir,
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &request,
            ],
        );
        openssl(
            dir,
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                &names,
                "-out",
                &certificate,
            ],
        );
        ServerIdentity { certificate: dir.join(certificate), key: dir.join(key) }
    }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(dir).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("openssl does not start: {error}"));
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
