use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

/// A certificate authority for one test, made by openssl, with its list of what it revoked.
pub(crate) struct Authority {
    dir: TempDir,
    lists: AtomicUsize,
}

/// Certificate and key of a server or a client, in PEM.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// When a client's certificate is valid.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    Now,
    Expired,
    NotYet,
}

/// The names of a server here, as openssl writes subjectAltName.
const SERVER_NAMES: &str = "DNS:localhost,DNS:*.example.com,IP:127.0.0.1";

/// What `openssl ca` must be told: where it keeps its records, and what it leaves out. Sections are named by who they are for.
const CONFIGURATION: &str = "
[ca]
default_ca = authority
[authority]
database = index.txt
crlnumber = crlnumber
serial = serial
certificate = ca.pem
private_key = ca.key
default_md = sha256
new_certs_dir = .
policy = policy
unique_subject = no
email_in_dn = no
crl_extensions = list
[policy]
commonName = optional
[list]
authorityKeyIdentifier = keyid
";

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("keyward-test-ca-").tempdir().expect("a temporary directory");
        let authority = Self { dir, lists: AtomicUsize::new(0) };
        for (file, text) in [("ca.cnf", CONFIGURATION), ("index.txt", ""), ("crlnumber", "01\n"), ("serial", "01\n")] {
            fs::write(authority.path(file), text).expect("written");
        }
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
                         -keyout ca.key -out ca.pem -subj";
        let name = authority.dir.path().file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        authority.openssl(arguments, &[&format!("/CN={name}")]);
        authority
    }

    /// Its own certificate, for the other side to trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A server's certificate, for `localhost`, 127.0.0.1 and all of example.com, with this common name.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.sign(name, SERVER_NAMES, "serverAuth", Validity::Now)
    }

    /// The same, valid when the test says.
    pub(crate) fn issue_valid(&self, name: &str, validity: Validity) -> Identity {
        self.sign(name, SERVER_NAMES, "serverAuth", validity)
    }

    /// A client's certificate with this common name, and subject alternative names as openssl writes them:
    /// `URI:spiffe://example.com/a,DNS:a.example`; empty: without any.
    pub(crate) fn client(&self, name: &str, alternative_names: &str) -> Identity {
        self.client_valid(name, alternative_names, Validity::Now)
    }

    /// The same, valid when the test says.
    pub(crate) fn client_valid(&self, name: &str, alternative_names: &str, validity: Validity) -> Identity {
        self.sign(name, alternative_names, "clientAuth", validity)
    }

    /// Puts a certificate on the list; [`Authority::revocation_list`] writes the list.
    pub(crate) fn revoke(&self, identity: &Identity) {
        let certificate = identity.certificate.to_str().expect("a path in UTF-8");
        self.openssl("ca -config ca.cnf -batch -revoke", &[certificate]);
    }

    /// Its list as of now (RFC 5280 section 5), in a file of its own, in PEM.
    pub(crate) fn revocation_list(&self) -> PathBuf {
        self.list("-crldays 1")
    }

    /// The same, but a new one has been due for years.
    pub(crate) fn outdated_revocation_list(&self) -> PathBuf {
        self.list("-crl_lastupdate 20000101000000Z -crl_nextupdate 20010101000000Z")
    }

    /// The same, and the next one is due in some seconds.
    pub(crate) fn brief_revocation_list(&self) -> PathBuf {
        self.list("-crlsec 8")
    }

    fn list(&self, times: &str) -> PathBuf {
        let file = format!("list-{}.crl", self.lists.fetch_add(1, Ordering::Relaxed));
        self.openssl(&format!("ca -config ca.cnf -gencrl {times} -out"), &[&file]);
        self.path(&file)
    }

    fn sign(&self, name: &str, alternative_names: &str, usage: &str, validity: Validity) -> Identity {
        let [key, request, certificate, extensions] = ["key", "csr", "pem", "ext"].map(|end| format!("{name}.{end}"));
        let names = if alternative_names.is_empty() {
            String::new()
        } else {
            format!("subjectAltName = {alternative_names}\n")
        };
        let text = format!("basicConstraints = CA:FALSE\nextendedKeyUsage = {usage}\n{names}");
        fs::write(self.path(&extensions), text).expect("written");
        let arguments = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        self.openssl(arguments, &["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &request]);
        let times = match validity {
            Validity::Now => "-days 2",
            Validity::Expired => "-startdate 20000101000000Z -enddate 20010101000000Z",
            Validity::NotYet => "-startdate 20480101000000Z -enddate 20490101000000Z",
        };
        let arguments = format!("ca -config ca.cnf -batch -notext {times}");
        self.openssl(&arguments, &["-extfile", &extensions, "-in", &request, "-out", &certificate]);
        Identity { certificate: self.path(&certificate), key: self.path(&key) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Runs openssl with `arguments`, which are split at spaces, and then `rest`, which are not.
    fn openssl(&self, arguments: &str, rest: &[&str]) {
        openssl(self.dir.path(), &[&arguments.split_whitespace().collect::<Vec<_>>(), rest].concat());
    }
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(dir).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("openssl does not start: {error}"));
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
