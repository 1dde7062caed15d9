//! The configuration, read as `serve` reads it: from a file, beside the files that it may name. The directory is one in
//! memory, and a text that names files elsewhere is passed over: fuzzing reads nothing of the machine.
#![no_main]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use keyward::config::Config;
use keyward_fuzz::SECRET;
use libfuzzer_sys::{Corpus, fuzz_target};

/// What no input has, unlike [`SECRET`].
const PIN: &str = "8f1d-7c0e-pin";

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let directory = parent.join(format!("keyward-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory of its own");
    let pin = directory.join("pin");
    fs::write(&pin, PIN).expect("a PIN file");
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).expect("its mode");
    let jwks = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    fs::write(directory.join("jwks.json"), jwks).expect("a JWKS");
    directory.join("keyward.toml")
});

fuzz_target!(|text: &str| -> Corpus {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    if !table.values().all(is_here) {
        return Corpus::Reject;
    }
    // The name of a key that is not known is told, so that it can be corrected; a value never is.
    let in_a_name = table.iter().any(|(key, value)| is_in_a_name(key, value));
    fs::write(&*FILE, text).expect("a file in memory");
    match Config::load(&FILE) {
        Ok(config) => {
            assert!(!format!("{config:?}").contains(PIN), "the PIN is shown");
            assert!(
                config
                    .public_base_url
                    .is_none_or(|url| url.bytes().all(|octet| octet.is_ascii_graphic() || octet > 127))
            );
            assert!((1..=256).contains(&config.token.workers));
            assert!((1..=65_536).contains(&config.token.queue_depth_max));
            assert!((1..=60_000).contains(&config.token.queue_wait_max.as_millis()));
            assert!((0.0..=1.0).contains(&config.verify_share));
        }
        Err(problems) => {
            let problems = problems.to_string();
            assert!(problems.lines().count() >= 2, "refused for no reason: {problems}");
            // So is a file that cannot be used.
            let of_a_file = FILE.parent().expect("it is in a directory").display().to_string();
            let mut told = problems.lines().filter(|line| !line.contains(&of_a_file));
            assert!(!problems.contains(PIN), "the PIN is shown");
            assert!(in_a_name || !told.any(|line| line.contains(SECRET)), "{problems}");
        }
    }
    Corpus::Keep
});

/// Whether no text in it is a path that leads elsewhere. What is no TOML names nothing.
fn is_here(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => !text.starts_with('/') && !text.contains("..") && !text.contains('\0'),
        toml::Value::Array(values) => values.iter().all(is_here),
        toml::Value::Table(table) => table.values().all(is_here),
        _ => true,
    }
}

fn is_in_a_name(key: &str, value: &toml::Value) -> bool {
    let below = match value {
        toml::Value::Table(table) => table.iter().any(|(key, value)| is_in_a_name(key, value)),
        _ => false,
    };
    below || key.contains(SECRET)
}
