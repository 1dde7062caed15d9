//! The documentation against the repository: tests that it names are there, and so are the files that it links to.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Installation;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files of this kind in a folder; below it too if `deep`.
fn files(folder: &Path, extension: &str, deep: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() && deep {
            found.extend(files(&path, extension, deep));
        } else if path.extension().is_some_and(|other| other == extension) {
            found.push(path);
        }
    }
    found
}

/// What stands in the text between `open` and the next `close`, again and again.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[test]
fn every_test_that_proves_a_feature_is_there() {
    let table = read(&root().join("docs/auth0.md"));
    let code = table.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> =
        code.filter_map(|code| code.split_once("::")).filter(|(file, _)| *file != "file").collect();
    assert!(named.len() > 30, "the table names its tests: {named:?}");
    for (file, test) in named {
        let (one, folder) = (root().join(format!("tests/{file}.rs")), root().join("tests").join(file));
        let sources = if one.exists() { vec![one] } else { files(&folder, "rs", true) };
        let there = sources.iter().any(|source| read(source).contains(&format!("fn {test}(")));
        assert!(there, "docs/auth0.md names {file}::{test}, which is not there");
    }
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut pages = files(root(), "md", false);
    pages.extend(files(&root().join("docs"), "md", true));
    pages.extend(files(&root().join("examples"), "md", true));
    pages.extend(files(&root().join("deploy"), "md", true));
    for page in pages {
        let text = read(&page);
        for target in between(&text, "](", ")").filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let path = target.split('#').next().expect("split gives at least one part");
            let linked = page.parent().expect("a page is in a folder").join(path);
            assert!(linked.exists(), "{}: {target} leads nowhere", page.display());
        }
    }
}

#[test]
fn certificates_made_as_the_operations_page_says_are_taken() {
    let page = read(&root().join("docs/operations.md"));
    let section = page.split("## Making certificates").nth(1).expect("the section");
    let block = |kind| between(section, kind, "```").next().expect("a block of it");
    let installation = Installation::prepare();
    let directory = installation.dir().join("tls");
    fs::create_dir(&directory).expect("a new directory");
    fs::write(directory.join("ca.cnf"), block("```ini\n")).expect("written");
    let output = Command::new("sh").args(["-e", "-c", block("```sh\n")]).current_dir(&directory).output();
    let output = output.expect("sh starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let installation = installation
        .set("grpc.auth", r#""required""#)
        .set("grpc.certificate_file", r#""tls/server.pem""#)
        .set("grpc.key_file", r#""tls/server.key""#)
        .set("grpc.client_ca_file", r#""tls/ca.pem""#)
        .set("grpc.crl_file", r#""tls/crl.pem""#)
        .grant("uri:spiffe://example.com/login", &["issuer:acme"]);
    let output = installation.command("check").output().expect("keyward starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_metric_stands_in_the_table_of_metrics() {
    let sources: String = files(&root().join("src"), "rs", true).iter().map(|path| read(path)).collect();
    let page = read(&root().join("docs/operations.md"));
    let is_name = |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let counted: BTreeSet<&str> = between(&sources, "\"keyward_", "\"").filter(is_name).collect();
    let told: BTreeSet<&str> = between(&page, "| `keyward_", "`").filter(is_name).collect();
    assert!(counted.len() > 10, "the sources count: {counted:?}");
    assert_eq!(counted, told, "keyward_*, counted and told");
}
