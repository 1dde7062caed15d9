//! The documentation against the repository: tests that it names are there, and so are the files that it links to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
fn every_metric_stands_in_the_table_of_metrics() {
    let sources: String = files(&root().join("src"), "rs", true).iter().map(|path| read(path)).collect();
    let page = read(&root().join("docs/operations.md"));
    let is_name = |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let counted: BTreeSet<&str> = between(&sources, "\"keyward_", "\"").filter(is_name).collect();
    let told: BTreeSet<&str> = between(&page, "| `keyward_", "`").filter(is_name).collect();
    assert!(counted.len() > 10, "the sources count: {counted:?}");
    assert_eq!(counted, told, "keyward_*, counted and told");
}
