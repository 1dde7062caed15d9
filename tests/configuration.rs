//! How a process begins and ends: configuration, `check`, `init`, `serve` and `dev`.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use common::http::get;
use common::{Clients, Installation, Module, Server, claims, short_policy};
use keyward::domain::Algorithm;
use keyward::grpc::proto::{GetCurrentKeyRequest, ListSigningKeysRequest, RotateSigningKeyRequest};
use serde_json::Value;
use tokio::task::JoinSet;

/// How long a command that is to end by itself may take; one that serves instead never ends.
const END_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Runs a command that is to end by itself.
fn ended(mut command: Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let deadline = Instant::now() + END_MAX;
    while child.try_wait().expect("a child can be asked").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("a child can be killed");
            panic!("{command:?} did not end, and said {:?}", child.wait_with_output());
        }
        std::thread::sleep(POLL);
    }
    child.wait_with_output().expect("what it said")
}

/// What a command says that ends with failure.
fn failure(command: Command) -> String {
    let output = ended(command);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success(), "it was taken: {said}");
    assert!(output.stdout.is_empty(), "it printed {:?}", String::from_utf8_lossy(&output.stdout));
    said
}

fn success(command: Command) -> String {
    let output = ended(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Each of these is said, in `check`, `init` and `serve` alike.
fn refused_by_all(installation: &Installation, expected: &[&str]) {
    for verb in ["check", "init", "serve"] {
        let said = failure(installation.command(verb));
        for text in expected {
            assert!(said.contains(text), "keyward {verb} does not say {text:?}: {said}");
        }
    }
    assert!(!installation.dir().join("store.sqlite").exists(), "a refused configuration made a store");
}

fn without_pin_file(installation: &Installation) -> String {
    let text = fs::read_to_string(installation.config_file()).expect("the configuration");
    let text: String =
        text.lines().filter(|line| !line.starts_with("pin_file")).map(|line| format!("{line}\n")).collect();
    fs::write(installation.config_file(), text).expect("the configuration is written");
    fs::read_to_string(installation.pin_file()).expect("the PIN")
}

#[test]
fn a_reader_that_goes_away_ends_a_command_without_a_word() {
    let installation = Installation::prepare();
    let mut command = installation.command("check");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_line_that_is_no_toml_is_named_and_not_shown() {
    let installation = Installation::bare();
    fs::write(installation.config_file(), "[token]\npin = \"hunter2\n").expect("the configuration is written");
    let said = failure(installation.command("check"));
    assert!(said.contains("line 2") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_base_url_that_is_not_for_publication_is_refused() {
    for url in
        ["https://keyward:hunter2@keys.example.com", "https://keyward@keys.example.com", "https://keys.example.com/\\n"]
    {
        let installation = Installation::bare().set("public.base_url", &format!("\"{url}\""));
        let said = failure(installation.command("check"));
        assert!(said.contains("public.base_url must be") && !said.contains("hunter2"), "{url}: {said}");
    }
}

#[test]
fn all_problems_are_told_at_once_each_with_its_key() {
    let installation = Installation::bare()
        .set("grpc.listen", "\"nowhere\"")
        .set("grpc.auth", "\"magic\"")
        .set("grpc.message_bytes_max", "1")
        .set("public.base_url", "\"ftp://a.example\"")
        .set("ops.listen", "\"127.0.0.1\"")
        .set("token.label", "\"\"")
        .set("token.pin_file", "\"nothing\"")
        .set("token.workers", "0")
        .set("token.queue_depth_max", "\"many\"")
        .set("token.queue_wait_max_ms", "0")
        .set("signing.rsa_bits", "1024")
        .set("signing.verify_share", "1.5")
        .set("limits.manual_rotations_per_day", "-1")
        .set("store.pathh", "\"typo\"")
        .set("nonsense.key", "1");
    let problems = [
        "grpc.listen must be an IP address and a port",
        "grpc.auth must be \"required\" or \"none\"",
        "grpc.message_bytes_max must be",
        "public.base_url must be",
        "ops.listen must be",
        "token.label must be set",
        "token.pin_file cannot be read",
        "token.workers must be a whole number from 1",
        "token.queue_depth_max must be",
        "token.queue_wait_max_ms must be",
        "signing.rsa_bits must be",
        "signing.verify_share must be a number from 0 to 1",
        "limits.manual_rotations_per_day must be",
        "store.pathh is not a key",
        "nonsense.key is not a key",
    ];
    refused_by_all(&installation, &problems);
}

#[test]
fn an_empty_or_broken_file_is_told_with_what_is_missing() {
    let installation = Installation::bare();
    fs::write(installation.config_file(), "").expect("the configuration is written");
    let missing = ["grpc.auth", "token.module", "token.label", "token.pin_file", "store.path"];
    refused_by_all(&installation, &missing);
    fs::write(installation.config_file(), "[grpc\nlisten = 1").expect("the configuration is written");
    refused_by_all(&installation, &["keyward.toml", "TOML"]);
    fs::remove_file(installation.config_file()).expect("the configuration is removed");
    refused_by_all(&installation, &["keyward.toml", "cannot be read"]);
}

#[test]
fn grpc_without_authentication_listens_on_loopback_alone() {
    for listen in ["\"0.0.0.0:0\"", "\"[::]:0\"", "\"192.0.2.1:50051\""] {
        refused_by_all(&Installation::bare().set("grpc.listen", listen), &["grpc.listen", "loopback"]);
    }
    success(Installation::bare().set("grpc.listen", "\"[::1]:0\"").command("check"));
}

#[test]
fn a_pin_file_that_others_can_read_is_refused() {
    let installation = Installation::bare();
    let pin = installation.pin_file();
    let set = |mode| fs::set_permissions(&pin, Permissions::from_mode(mode)).expect("the mode is set");
    let is_root = fs::metadata(&pin).expect("it is there").uid() == 0;
    if is_root {
        // So that a group may read it: as systemd and Kubernetes hand a secret to a service.
        set(0o640);
        success(installation.command("check"));
        chown(&pin, Some(65_534), None).expect("root gives away");
    }
    for mode in [0o640, 0o604, 0o660, 0o620] {
        set(mode);
        refused_by_all(&installation, &["token.pin_file", "chmod 600"]);
    }
    fs::set_permissions(installation.pin_file(), Permissions::from_mode(0o400)).expect("the mode is set");
    success(installation.command("check"));
    fs::set_permissions(installation.pin_file(), Permissions::from_mode(0o600)).expect("the mode is set");
    fs::write(installation.pin_file(), "").expect("the PIN file is written");
    refused_by_all(&installation, &["token.pin_file", "empty"]);
}

#[test]
fn the_pin_comes_from_the_environment_where_there_is_no_file() {
    let installation = Installation::bare();
    let with_pin = |verb: &str, pin: &str| {
        let mut command = installation.command(verb);
        command.env("KEYWARD_TOKEN_PIN", pin);
        command
    };
    assert!(failure(with_pin("check", "1234")).contains("must not be set together"));
    let pin = without_pin_file(&installation);
    assert!(failure(installation.command("check")).contains("KEYWARD_TOKEN_PIN"));
    success(with_pin("init", &pin));
    let mut command = with_pin("serve", &pin);
    command.arg("--announce");
    let server = Server::start(command);
    assert_eq!(get(&format!("{}/healthz", server.ops())).status, 200);
    drop(server);
    // The TOML is copied and committed: it is no place for a PIN.
    let said = failure(installation.set("token.pin", &format!("{pin:?}")).command("check"));
    assert!(said.contains("token.pin is not a key") && !said.contains(&pin), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_overrides_the_file_and_is_checked_like_it() {
    let installation = Installation::prepare();
    let with = |key: &str, value: &str| {
        let mut command = installation.command("serve");
        command.arg("--announce").env(key, value);
        command
    };
    assert!(failure(with("KEYWARD__SIGNING__RSA_BITS", "1000")).contains("signing.rsa_bits"));
    assert!(failure(with("KEYWARD__TOKEN__LABLE", "x")).contains("token.lable is not a key"));
    assert!(failure(with("KEYWARD__GRPC__LISTEN", "0.0.0.0:0")).contains("grpc.listen"));
    let server = Server::start(with("KEYWARD__SIGNING__RSA_BITS", "3072"));
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["RS256"], short_policy()).await;
    let jwks: Value = get(&server.jwks_uri("acme")).json();
    let modulus = jwks["keys"][0]["n"].as_str().expect("an RSA key");
    let modulus = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(modulus).expect("base64url");
    assert_eq!(modulus.len() * 8, 3072);
}

#[test]
fn each_token_has_its_own_section_and_no_two_are_one() {
    let installation = Installation::bare().with_token("west");
    // What SoftHSM's module is called by somebody else.
    std::os::unix::fs::symlink(common::tools::SOFTHSM_MODULE, installation.dir().join("module.so")).expect("linked");
    let said = success(installation.command("check"));
    for line in ["token: keyward (serial ", "token west: west (serial "] {
        assert!(said.contains(line), "{line:?} is not in {said}");
    }
    let threads = installation.set("token.isolation", r#""thread""#).set("tokens.west.isolation", r#""thread""#);
    let threads = threads.set("tokens.west.module", r#""module.so""#);
    refused_by_all(&threads, &["tokens.west.isolation must be \"process\"", "[token] has the same module"]);
    success(threads.set("token.isolation", r#""process""#).command("check"));

    let wrong = Installation::bare()
        .set("tokens.home.module", "\"a\"")
        .set("tokens.North.module", "\"a\"")
        .set("tokens.east.label", "\"one\"")
        .set("tokens.east.workers", "0")
        .set("tokens.east.reconcile_at_start", "true")
        .set("tokens.south.module", "\"a\"")
        .set("tokens.south.label", "\"two\"")
        .set("tokens.south.serial", "\"1\"")
        .set("tokens.south.pin_file", "\"pin\"")
        .set("tokens.south.pin_refused_file", "\"token-pin-refused\"")
        .set("tokens.south-2.module", "\"a\"")
        .set("tokens.south-2.label", "\"two\"")
        .set("tokens.south-2.serial", "\"1\"")
        .set("tokens.loose", "1");
    let problems = [
        "tokens.home must have another name: home is the token of [token]",
        "tokens.North has a name that cannot be",
        "tokens.east.module must be set",
        "tokens.east.serial must be set",
        "tokens.east.workers must be a whole number from 1",
        "tokens.east.pin_file must name a file that holds the PIN, or KEYWARD_TOKEN_PIN_EAST be set",
        "tokens.east.reconcile_at_start is not a key",
        "tokens.south.pin_refused_file must not be that of [token]",
        "tokens.south-2.serial must not be that of [tokens.south]",
        "or KEYWARD_TOKEN_PIN_SOUTH_2 be set",
        "tokens.loose is not a key",
    ];
    refused_by_all(&wrong, &problems);
}

/// As docs/tokens.md has it, of the modules that tests have.
#[test]
fn check_tells_what_the_token_can_do() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tokens.md");
    let page = fs::read_to_string(page).expect("the page about tokens");
    for (column, module) in [(2, Module::SoftHsm), (3, Module::Kryoptic)] {
        let said = success(Installation::bare_on(module).command("check"));
        assert!(said.contains("configuration: ok") && said.contains("token: keyward (serial "), "{said}");
        for algorithm in Algorithm::ALL {
            let row = page.lines().find(|line| line.starts_with(&format!("| {algorithm} |"))).expect("a row for each");
            let cell = row.split('|').nth(column).expect("a cell for each module").trim();
            let told = said.lines().find_map(|line| line.trim().strip_prefix(&format!("{algorithm}: ")));
            let told = told.unwrap_or_else(|| panic!("{algorithm} is not in {said}"));
            match cell {
                "ok" => assert_eq!(told, "ok", "{algorithm} on {module:?}"),
                _ => assert!(told.starts_with("the token lacks "), "{algorithm} on {module:?}: {told}, not {cell}"),
            }
        }
    }
    let said = failure(Installation::bare().set("token.label", "\"other\"").command("check"));
    assert!(said.contains("other"), "{said}");
    let said = failure(Installation::bare().set("token.module", "\"/no/module.so\"").command("check"));
    assert!(said.contains("/no/module.so"), "{said}");
}

#[test]
fn serve_refuses_a_missing_store_and_anothers_token() {
    let installation = Installation::bare();
    let said = failure(installation.command("serve"));
    assert!(said.contains("no store") && said.contains("keyward init"), "{said}");
    assert!(!installation.dir().join("store.sqlite").exists());

    let (made, other) = (Installation::prepare(), Installation::bare());
    let mut command = made.command("serve");
    command.env("SOFTHSM2_CONF", other.softhsm_conf()).env("KEYWARD__TOKEN__PIN_FILE", other.pin_file());
    let said = failure(command);
    assert!(said.contains("serial") && said.contains("token.serial"), "{said}");
    drop(made.serve());
}

/// A token may come later; a module or a store that a path does not lead to is a mistake in the configuration.
#[test]
fn serve_waits_for_no_module_and_for_no_token_without_a_store() {
    for isolation in ["thread", "process"] {
        let with = |installation: Installation| installation.set("token.isolation", &format!("{isolation:?}"));
        let installation = with(Installation::prepare()).set("token.module", "\"/no/module.so\"");
        let said = failure(installation.command("serve"));
        assert!(said.contains("/no/module.so"), "{isolation}: {said}");
        let installation = with(Installation::bare()).set("token.label", "\"other\"");
        let said = failure(installation.command("serve"));
        assert!(said.contains("no token has the label \"other\""), "{isolation}: {said}");
    }
}

#[test]
fn a_second_serve_on_the_same_store_is_refused() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let said = failure(installation.command("serve"));
    assert!(said.contains("in use by another Keyward process"), "{said}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while get(&format!("{}/readyz", server.ops())).status != 200 {
        assert!(Instant::now() < deadline, "the first one is not ready any more");
    }
    assert!(server.terminate().success());
    drop(installation.serve());
}

#[test]
fn init_touches_nothing_that_exists() {
    let installation = Installation::prepare();
    let files = ["store.sqlite", "service-key.json"].map(|name| installation.dir().join(name));
    let before = files.each_ref().map(|file| fs::read(file).expect("made by init"));
    let objects = token_objects(&installation);
    let said = failure(installation.command("init"));
    assert!(said.contains("exists already"), "{said}");
    fs::rename(&files[1], installation.dir().join("kept.json")).expect("the pin is moved away");
    let said = failure(installation.command("init"));
    assert!(said.contains("exists already") && said.contains("store.sqlite"), "{said}");
    fs::rename(installation.dir().join("kept.json"), &files[1]).expect("the pin is put back");
    assert_eq!(files.each_ref().map(|file| fs::read(file).expect("still there")), before);
    assert_eq!(token_objects(&installation), objects);
    drop(installation.serve());
}

#[test]
fn init_goes_on_where_it_was_interrupted() {
    // Interrupted before the pin was written: key and store are there.
    let installation = Installation::prepare();
    let (pin, begun) = (installation.dir().join("service-key.json"), installation.dir().join("service-key.begun"));
    let complete: Value = serde_json::from_slice(&fs::read(&pin).expect("the pin")).expect("JSON");
    let objects = token_objects(&installation);
    let intent = serde_json::json!({ "cka_id": complete["cka_id"] }).to_string();
    fs::remove_file(&pin).expect("the pin is taken away");
    fs::write(&begun, &intent).expect("the intent is written");
    success(installation.command("init"));
    let resumed: Value = serde_json::from_slice(&fs::read(&pin).expect("the pin")).expect("JSON");
    assert_eq!(resumed, complete, "another key than the one that was there");
    assert_eq!(token_objects(&installation), objects);
    assert!(!begun.exists());
    drop(installation.serve());

    // Interrupted right after the intent: neither key nor store.
    let installation = Installation::bare();
    fs::write(installation.dir().join("service-key.begun"), &intent).expect("the intent is written");
    success(installation.command("init"));
    let made: Value =
        serde_json::from_slice(&fs::read(installation.dir().join("service-key.json")).expect("the pin")).expect("JSON");
    assert_eq!(made["cka_id"], complete["cka_id"]);
    assert_eq!(token_objects(&installation), 2);
    drop(installation.serve());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_the_calls_under_way_and_loses_nothing_acknowledged() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    let request = RotateSigningKeyRequest { tenant: "acme".into(), force: true, ..RotateSigningKeyRequest::default() };
    let rotated = clients.keys.rotate_signing_key(request).await.expect("rotated").into_inner();
    let mut signing = JoinSet::new();
    for _ in 0..4 {
        let (mut clients, issuer) = (clients.clone(), issuer.clone());
        signing.spawn(async move {
            let mut count = 0_u32;
            while clients.sign_jwt("acme", "", claims(&issuer, 600)).await.is_ok() {
                count += 1;
            }
            count
        });
    }
    let mut creating = clients.clone();
    let many = ["RS256", "RS384", "RS512", "PS256"];
    let creating = tokio::spawn(async move { creating.create_tenant("slow", &many, short_policy()).await });
    let (jwks, deadline) = (server.jwks_uri("slow"), Instant::now() + END_MAX);
    // It is published, still without keys, once it is stored: the call is under way.
    while get(&jwks).status != 200 {
        assert!(Instant::now() < deadline, "the tenant is not stored");
    }
    let left = tokio::task::spawn_blocking(move || server.terminate()).await.expect("it left");
    assert!(left.success(), "{left:?}");
    assert_eq!(creating.await.expect("the call under way was answered").id, "slow");
    assert!(signing.join_all().await.iter().all(|count| *count > 0));

    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let request = GetCurrentKeyRequest { tenant: "acme".into(), algorithm: String::new() };
    let current = clients.signing.get_current_key(request).await.expect("a key").into_inner().key.expect("a key");
    assert_eq!(current.kid, rotated.current.expect("a current key").kid);
    let request = ListSigningKeysRequest { tenant: "slow".into(), ..ListSigningKeysRequest::default() };
    let keys = clients.keys.list_signing_keys(request).await.expect("a list").into_inner().keys;
    assert_eq!(keys.len(), 2 * many.len(), "{keys:?}");
}

#[test]
fn an_ephemeral_dev_server_leaves_nothing_behind() {
    let server = Server::dev();
    let state = Path::new(server.state_dir()).to_owned();
    assert!(state.join("store.sqlite").exists());
    assert_eq!(get(server.demo().2).status, 200);
    assert!(server.terminate().success());
    assert!(!state.exists(), "{} is left", state.display());
}

/// SoftHSM keeps each object in a file of its own.
fn token_objects(installation: &Installation) -> usize {
    let tokens = fs::read_dir(installation.token_dir()).expect("the tokens' directory");
    let objects = tokens.flat_map(|token| fs::read_dir(token.expect("a token").path()).expect("the token's directory"));
    let names = objects.map(|object| object.expect("an object").file_name().into_string().expect("an ASCII name"));
    names.filter(|name| name.ends_with(".object") && name != "token.object").count()
}

#[test]
fn who_may_call_is_checked_at_start_with_all_that_is_wrong() {
    let required = || Installation::bare().set("grpc.auth", r#""required""#);
    refused_by_all(
        &required(),
        &["grpc.auth", "nobody could call", "grpc.client_ca_file", "[grpc.jwt]", "grpc.unix_socket"],
    );
    refused_by_all(
        &Installation::bare().set("grpc.auth", r#""some""#),
        &["grpc.auth must be \"required\" or \"none\""],
    );
    let problems = [
        "grpc.certificate_file must be set",
        "grpc.jwt.issuer must be",
        "grpc.jwt.audience must be set",
        "grpc.jwt.algorithms must be an array",
        "grpc.jwt.jwks_url must be an https URL",
        "grpc.jwt.jwks_cooldown_secs must be a whole number",
        "grpc.jwt.jku is not a key",
        "grants must not name a user (unix:) unless grpc.unix_socket is set",
        "grants must not name certificates (uri:, dns:, cn:) unless grpc.client_ca_file is set",
        "grants[2].principal must be uri:URI, dns:NAME, cn:NAME or unix:UID",
        "grants[3].roles[1] must be issuer:TENANT",
        "grants[4].principal must not stand twice",
        "grants[5].roles must be 1 to 256 roles",
        "grants[6].principal must not be a JWT's",
    ];
    let installation = required()
        .set("grpc.listen", r#""192.0.2.1:50051""#)
        .set("grpc.jwt.issuer", r#""issuer""#)
        .set("grpc.jwt.algorithms", r#"["ES256", "HS256"]"#)
        .set("grpc.jwt.jwks_url", r#""http://issuer.example/jwks.json""#)
        .set("grpc.jwt.jwks_cooldown_secs", "0")
        .set("grpc.jwt.jku", "true")
        .grant("unix:0", &["admin"])
        .grant("uri:a", &["auditor"])
        .grant("root", &["admin"])
        .grant("dns:a.example", &["admin", "root"])
        .grant("uri:a", &["admin"])
        .grant("uri:b", &[])
        .grant("jwt:https://issuer.example/#a", &["admin"]);
    refused_by_all(&installation, &problems);
    refused_by_all(&Installation::bare().set("grpc.jwt", "{}"), &["grpc.jwt must not be an empty section"]);
    let none = Installation::bare().set("grpc.jwt.issuer", r#""https://issuer.example""#).grant("unix:0", &["admin"]);
    refused_by_all(&none, &["grpc.jwt.issuer has no effect while grpc.auth is \"none\"", "grants has no effect"]);
}
