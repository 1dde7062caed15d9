//! The files of deploy/, with their paths moved into directories of the test's own: the unit, the configurations, the probes.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::http::get;
use common::postgresql::Database;
use common::tools::SOFTHSM_MODULE;
use common::{Authority, Clients, Dial, Installation, Server, claims};
use keyward::grpc::proto::RotationPolicy;

/// How long what one replica does may take to reach the others, on a busy machine.
const REACHES_ALL_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text with each of these replaced; one that is not there is a file that changed without this test.
fn moved(text: String, places: &[(&str, &str)]) -> String {
    places.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    })
}

fn configure(installation: &Installation, text: &str) {
    fs::write(installation.config_file(), text).expect("the configuration is written");
}

fn path(directory: &Path) -> &str {
    directory.to_str().expect("a path in UTF-8")
}

fn succeeds(mut command: Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn systemd_understands_the_unit_and_finds_little_to_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("keyward.service");
    let text = moved(deploy("systemd/keyward.service"), &[("/usr/local/bin/keyward", env!("CARGO_BIN_EXE_keyward"))]);
    fs::write(&unit, text).expect("the unit is written");
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&unit).output();
        let output = output.expect("systemd-analyze runs: `make test` brings what tests need");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
        said
    };
    let said = analyze(&["verify", "--man=no"]);
    // What it does not know it passes over, with a word. Other units of the machine are not this one's concern.
    assert!(!said.contains("keyward.service"), "{said}");
    // In tenths: 1.5 is what is left, for a service with a network and users at its socket.
    analyze(&["security", "--offline=true", "--threshold=20"]);
}

#[test]
fn the_configurations_are_taken() {
    let authority = Authority::new();
    let server = authority.issue("server");
    let list = authority.revocation_list();

    let machine = Installation::bare();
    fs::create_dir(machine.dir().join("tls")).expect("a new directory");
    let files = [("server.pem", &server.certificate), ("server.key", &server.key), ("crl.pem", &list)];
    files.iter().for_each(|(name, file)| machine.put(&format!("tls/{name}"), file));
    machine.put("tls/ca.pem", &authority.certificate());
    configure(&machine, &moved(deploy("systemd/keyward.toml"), &[("/var/lib/keyward", path(machine.dir()))]));
    succeeds(machine.command("check"));

    let pod = Installation::bare();
    let files = [("tls.crt", &server.certificate), ("tls.key", &server.key)];
    files.iter().for_each(|(name, file)| pod.put(name, file));
    pod.put("client-ca.pem", &authority.certificate());
    let places = [("/var/lib/keyward", path(pod.dir())), ("/opt/hsm/lib/libpkcs11.so", SOFTHSM_MODULE)];
    configure(&pod, &moved(deploy("kubernetes/common/keyward.toml"), &places));
    pod.put("token-pin", &pod.pin_file());
    pod.put("store-password", &pod.pin_file());
    succeeds(pod.command("check"));
}

/// What the kubelet and the balancer ask the ops listener.
fn probes() -> BTreeSet<String> {
    let after = |text: String, word: &str, end: &str| -> Vec<String> {
        let rest = text.split(word).skip(1);
        rest.map(|rest| rest.split(end).next().unwrap_or_default().to_owned()).collect()
    };
    let kubelet = after(deploy("kubernetes/replicas/stateful-set.yaml"), "httpGet: { path: ", ",");
    let balancer = after(deploy("compose/haproxy.cfg"), "option httpchk GET ", "\n");
    assert!(kubelet.len() == 3 && balancer.len() == 3, "{kubelet:?}, {balancer:?}");
    kubelet.into_iter().chain(balancer).collect()
}

/// compose.yaml's configuration for one replica; `shared` is what all have.
fn compose(installation: &Installation, shared: &Path, database: &Database) {
    let url = "postgres://keyward@database:5432/keyward?sslrootcert=/shared/tls/ca.pem";
    let places = [
        (url, database.url()),
        ("/shared/token/", format!("{}/", path(shared))),
        ("/shared/service-key/", format!("{}/", path(shared))),
        ("/shared/", format!("{}/", path(shared))),
        ("/var/lib/keyward", path(installation.dir()).to_owned()),
        ("0.0.0.0:50051", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:9090", "127.0.0.1:0".to_owned()),
    ];
    let places: Vec<(&str, &str)> = places.iter().map(|(from, to)| (*from, to.as_str())).collect();
    configure(installation, &moved(deploy("compose/keyward.toml"), &places));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_of_compose_sign_and_publish_and_answer_every_probe() {
    let (authority, database) = (Authority::new(), Database::fresh());
    let first = Installation::bare();
    let shared: PathBuf = first.dir().to_owned();
    fs::create_dir(shared.join("tls")).expect("a new directory");
    let server = authority.issue("server");
    first.put("tls/keyward.pem", &server.certificate);
    first.put("tls/keyward.key", &server.key);
    first.put("tls/ca.pem", &authority.certificate());
    let password = shared.join("database-password");
    fs::write(&password, "asked for by nobody here").expect("written");
    fs::set_permissions(&password, Permissions::from_mode(0o400)).expect("the mode is set");
    compose(&first, &shared, &database);
    let first = first.init();
    let others = [(); 2].map(|()| {
        let replica = first.replica();
        compose(&replica, &shared, &database);
        replica.join()
    });
    let installations: Vec<Installation> = std::iter::once(first).chain(others).collect();
    let servers: Vec<Server> = installations.iter().map(Installation::serve).collect();

    for server in &servers {
        for probe in probes() {
            let (url, begun) = (format!("{}{probe}", server.ops()), Instant::now());
            while get(&url).status != 200 {
                assert!(begun.elapsed() < REACHES_ALL_MAX, "{probe}: {:?}", get(&url));
                std::thread::sleep(POLL);
            }
        }
    }
    // The grants are the file's.
    let admin = authority.client("admin", "URI:spiffe://keyward.test/admin");
    let issuer = authority.client("issuer", "URI:spiffe://keyward.test/issuer");
    let dial = Dial::tls(servers[0].grpc(), &authority, Some(&admin));
    let mut clients = Clients::over(dial.connect().await.expect("connected"));
    let tenant = clients.create_tenant("demo", &["ES256"], RotationPolicy::default()).await;
    assert_eq!(tenant.issuer, "http://localhost:8080/demo");
    for server in &servers {
        let begun = Instant::now();
        // Current and next.
        while published(server).len() < 2 {
            assert!(begun.elapsed() < REACHES_ALL_MAX, "the tenant does not reach {}", server.grpc());
            std::thread::sleep(POLL);
        }
        let dial = Dial::tls(server.grpc(), &authority, Some(&issuer));
        let mut clients = Clients::over(dial.connect().await.expect("connected"));
        let signed = clients.sign_jwt("demo", "ES256", claims(&tenant.issuer, 60)).await.expect("each signs");
        assert!(published(server).contains(&signed.kid), "{} is not published at {}", signed.kid, server.public());
    }
}

/// The kids in the JWKS of the tenant `demo`; none where it is not known yet.
fn published(server: &Server) -> BTreeSet<String> {
    let answer = get(&server.jwks_uri("demo"));
    if answer.status != 200 {
        return BTreeSet::new();
    }
    answer.kids()
}
