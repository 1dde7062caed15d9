//! The directions between the rooms, and the one home of each foreign crate (ARCHITECTURE.md).
//!
//! `main -> serve -> grpc, http -> keyring -> token, store -> domain`: no edge points up. It reads the source, so it holds for
//! code under every `cfg`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms that it may use. Beside them stand the modules that begin, run and end a process.
const ROOMS: [(&str, &[&str]); 21] = [
    ("domain", &[]),
    ("files", &[]),
    ("x509", &["domain"]),
    ("jose", &["domain", "x509"]),
    ("saml", &["domain", "x509", "jose"]),
    ("tlog", &["domain", "x509", "jose"]),
    ("token", &["domain", "files"]),
    ("store", &["domain", "files", "tlog"]),
    ("keyring", &["domain", "x509", "jose", "saml", "tlog", "token", "store"]),
    ("grpc", &["domain", "x509", "jose", "tlog", "keyring", "auth", "audit", "serving"]),
    ("auth", &["domain", "x509", "jose", "telemetry", "tls"]),
    ("audit", &["domain", "files", "tlog", "telemetry"]),
    ("telemetry", &[]),
    ("tls", &["x509"]),
    ("serving", &["files", "tls"]),
    ("http", &["domain", "x509", "jose", "keyring", "auth", "audit", "telemetry", "serving"]),
    ("config", &["domain", "files", "audit", "auth", "telemetry", "tls", "token", "store"]),
    ("setup", &["config", "domain", "files", "jose", "keyring", "token", "store", "audit"]),
    (
        "serve",
        &[
            "config",
            "domain",
            "auth",
            "audit",
            "keyring",
            "token",
            "store",
            "serving",
            "telemetry",
            "tls",
            "grpc",
            "http",
        ],
    ),
    ("dev", &["config", "domain", "keyring", "token", "store"]),
    ("main", &["audit", "config", "domain", "store", "tlog", "setup", "serve", "dev", "token"]),
];

/// Crates that one room knows, and no other.
const HOMES: [(&str, &str); 36] = [
    ("arc_swap", "keyring"),
    ("argon2", "token"),
    ("askama", "http"),
    ("aws_lc_rs", "jose"),
    ("clap", "main"),
    ("cms", "x509"),
    ("config", "config"),
    ("crc32c", "grpc"),
    ("cryptoki", "token"),
    ("curve25519_dalek", "jose"),
    ("event_listener", "token"),
    ("h2", "serving"),
    ("http_body", "serving"),
    ("http_body_util", "auth"),
    ("jiff", "domain"),
    ("metrics_exporter_prometheus", "telemetry"),
    ("mimalloc", "main"),
    ("pkcs1", "x509"),
    ("preempt_rt", "token"),
    ("prost", "grpc"),
    ("prost_types", "grpc"),
    ("rmp_serde", "token"),
    ("rpds", "keyring"),
    ("rsa", "jose"),
    ("rustls_native_certs", "tls"),
    ("serde_bytes", "token"),
    ("sha1", "x509"),
    ("sqlx", "store"),
    ("tokio_rustls", "tls"),
    ("tonic", "grpc"),
    ("tonic_health", "grpc"),
    ("tonic_prost", "grpc"),
    ("tonic_reflection", "grpc"),
    ("tonic_types", "grpc"),
    ("tracing_subscriber", "main"),
    ("x509_cert", "x509"),
];

/// Crates that are no room's subject: text, time, errors, secrets, tasks, logging, and the shape of a service.
const SHARED: [&str; 20] = [
    "async_trait",
    // Routers: http and grpc make them, serving serves them.
    "axum",
    "base64",
    "bytes",
    "getrandom",
    "http",
    // HTTP on connections: serving answers, auth asks.
    "hyper",
    "hyper_util",
    "metrics",
    "rustix",
    "secrecy",
    "serde",
    "serde_json",
    "tempfile",
    "thiserror",
    "tokio",
    "tokio_util",
    "tower",
    "tracing",
    "url",
];

#[test]
fn no_room_uses_one_above_it_and_each_crate_has_one_home() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut offences = Vec::new();
    for file in rust_files(&root) {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        let path = file.strip_prefix(&root).expect("found below it").to_str().expect("a path in UTF-8");
        offences.extend(offences_in(path, &text));
    }
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[test]
fn every_dependency_has_a_home_or_is_shared() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("the manifest");
    let lines = manifest.lines().enumerate().skip_while(|(_, line)| *line != "[dependencies]").skip(1);
    let lines = lines.take_while(|(_, line)| !line.starts_with('['));
    let mut known = BTreeSet::from(SHARED);
    known.extend(HOMES.map(|(name, _)| name));
    for (index, line) in lines {
        let Some((name, _)) = line.split_once('=') else { continue };
        let name = name.trim().replace('-', "_");
        let known = known.remove(name.as_str());
        assert!(known, "Cargo.toml:{}: {name} has no home in tests/architecture.rs", index + 1);
    }
    assert!(known.is_empty(), "no dependencies any more: {known:?}");
}

#[test]
fn every_room_is_known() {
    let source = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("src can be read");
    for entry in source {
        let name = entry.expect("an entry of src").file_name().into_string().expect("a name in UTF-8");
        let room = room_of(&name);
        assert!(room == "lib" || allowed(room).is_some(), "src/{name} is no room of tests/architecture.rs");
    }
}

#[test]
fn an_offence_is_told_with_file_and_line() {
    let found = |path, text| offences_in(path, text).join("\n");
    assert_eq!(found("domain/key.rs", "//! Keys.\nuse crate::store::Store;"), "src/domain/key.rs:2: domain uses store");
    assert_eq!(found("grpc/keys.rs", "use crate::{\n    token::{self},\n};"), "src/grpc/keys.rs:2: grpc uses token");
    assert_eq!(found("http/ops.rs", "let a = 1; crate::store::open();"), "src/http/ops.rs:1: http uses store");
    assert_eq!(found("store/a/b.rs", "use super::super::super::jose;"), "src/store/a/b.rs:1: climbs out with super");
    assert_eq!(found("token/mod.rs", "use super::keyring::Error;"), "src/token/mod.rs:1: climbs out with super");
    assert_eq!(found("main.rs", "use keyward::jose::Jws;"), "src/main.rs:1: main uses jose");
    assert_eq!(found("keyring/a.rs", "\nuse sqlx::query;"), "src/keyring/a.rs:2: sqlx is at home in store");
    assert_eq!(found("http/a.rs", "use cryptoki as p11;"), "src/http/a.rs:1: cryptoki is at home in token");
    for fine in
        ["// crate::store", "/// [`crate::store::Store`]", "use crate::domain::{Kid, store};", "super::sqlx::x()"]
    {
        assert_eq!(found("keyring/locks.rs", fine), "");
    }
    assert_eq!(found("jose/a.rs", "mod tests {\n    use super::*;\n}"), "");
}

/// What stands against the rules in one file, each as `src/FILE:LINE: WHAT`.
fn offences_in(path: &str, text: &str) -> Vec<String> {
    let room = room_of(path);
    if room == "lib" {
        return Vec::new();
    }
    let permitted = allowed(room).unwrap_or_default();
    let mut offences = Vec::new();
    let code = without_comments(text);
    let line_of = |position: usize| code[..position].matches('\n').count() + 1;
    for (position, used) in rooms_named(&code) {
        if used != room && allowed(&used).is_some() && !permitted.contains(&used.as_str()) {
            offences.push(format!("src/{path}:{}: {room} uses {used}", line_of(position)));
        }
    }
    // A file directly in src is one step below the crate's root, and each folder adds one; so does an inline test module.
    let is_mod = path.ends_with("/mod.rs") || !path.contains('/');
    let depth = path.matches('/').count() + usize::from(!is_mod);
    for (index, line) in code.lines().enumerate() {
        let climbs = line.matches("super::").count();
        let inner = usize::from(line.starts_with(' '));
        if climbs > 0 && climbs >= depth.max(1) + inner {
            offences.push(format!("src/{path}:{}: climbs out with super", index + 1));
        }
    }
    for (name, home) in HOMES {
        for position in uses_of_crate(&code, name) {
            // A room of the same name as a crate, imported by name.
            let own = allowed(name).is_some() && imports_room(&code, name);
            if room != home && !own {
                offences.push(format!("src/{path}:{}: {name} is at home in {home}", line_of(position)));
            }
        }
    }
    offences
}

fn room_of(path: &str) -> &str {
    let first = path.split('/').next().expect("split gives at least one part");
    first.strip_suffix(".rs").unwrap_or(first)
}

fn allowed(room: &str) -> Option<&'static [&'static str]> {
    ROOMS.into_iter().find(|(name, _)| *name == room).map(|(_, permitted)| permitted)
}

/// The same text with comments blanked, so that positions and lines stay.
fn without_comments(text: &str) -> String {
    let blank = |line: &str| {
        let code = line.find("//").filter(|at| !line[..*at].ends_with(':')).map_or(line, |at| &line[..at]);
        format!("{code}\n")
    };
    text.lines().map(blank).collect()
}

/// Every room that is named by `crate::..` or `keyward::..`, in groups too, with its position.
fn rooms_named(code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    for root in ["crate::", "keyward::"] {
        for (position, _) in code.match_indices(root).filter(|(at, _)| stands_alone(code, *at)) {
            let start = position + root.len();
            if code[start..].starts_with('{') {
                named.extend(first_names_in_group(code, start + 1));
            } else {
                named.push((start, name_at(code, start)));
            }
        }
    }
    named
}

/// The first name of each member of the group that begins at `start`.
fn first_names_in_group(code: &str, start: usize) -> Vec<(usize, String)> {
    let (mut names, mut depth, mut expected) = (Vec::new(), 1, true);
    for (offset, letter) in code[start..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            letter if expected && letter.is_ascii_alphabetic() => {
                names.push((start + offset, name_at(code, start + offset)));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn name_at(code: &str, start: usize) -> String {
    code[start..].chars().take_while(|letter| is_word(*letter)).collect()
}

/// Where a path of this crate begins: `name::..`, `name!`, `use name ..`.
fn uses_of_crate(code: &str, name: &str) -> Vec<usize> {
    let used = |(at, _): &(usize, &str)| {
        let after = &code[at + name.len()..];
        let imported = code[..*at].ends_with("use ") && !after.starts_with(is_word);
        stands_alone(code, *at) && (after.starts_with("::") || imported)
    };
    code.match_indices(name).filter(used).map(|(at, _)| at).collect()
}

fn imports_room(code: &str, name: &str) -> bool {
    rooms_named(code).iter().any(|(_, room)| room == name)
}

/// Whether no name and no path goes on before `at`.
fn stands_alone(code: &str, at: usize) -> bool {
    !code[..at].ends_with(|letter| is_word(letter) || letter == ':' || letter == '"')
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a source directory can be read") {
        let path = entry.expect("an entry of the source directory").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
