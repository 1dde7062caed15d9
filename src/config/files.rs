use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::Reader;
use super::watched::{Fault, Watched, WatchedFile};
use crate::tls::{File, Files, Identity, Terms, Unusable};

impl Reader {
    /// Certificate and key of the listener of this section, and where they are set, the authorities of its clients and what
    /// these revoked. `None` where there is no certificate, and then `needed` says whether that is a problem.
    pub(super) fn identity(&mut self, section: &str, terms: Terms, needed: bool) -> Option<Arc<Watched<Identity>>> {
        let key_of = |file: File| format!("{section}.{}", name(file));
        let mut files = Vec::new();
        for file in [File::Certificate, File::Key, File::ClientCa, File::RevocationLists] {
            if let Some(path) = self.file(&key_of(file)) {
                files.push((file, path));
            }
        }
        let has = |wanted: File| files.iter().any(|(file, _)| *file == wanted);
        if files.is_empty() {
            if needed {
                let problem = format!(
                    "must be set, with {}: without TLS, {section}.listen must be a loopback address",
                    key_of(File::Key)
                );
                self.problem(&key_of(File::Certificate), problem);
            }
            return None;
        }
        let mut whole = true;
        for (file, needs) in [
            (File::Key, File::Certificate),
            (File::Certificate, File::Key),
            (File::ClientCa, File::Certificate),
            (File::RevocationLists, File::ClientCa),
        ] {
            if has(file) && !has(needs) {
                self.problem(&key_of(needs), format!("must be set where {} is", key_of(file)));
                whole = false;
            }
        }
        // A group may read it, as Debian's ssl-cert does; a file that is not there is told below.
        if let Some((_, key)) = files.iter().find(|(file, _)| *file == File::Key)
            && std::fs::metadata(key).is_ok_and(|key| key.mode() & 0o007 != 0)
        {
            let problem = format!("must not be open to everybody: chmod 640 {}", key.display());
            self.problem(&key_of(File::Key), problem);
        }
        if !whole {
            return None;
        }
        let order: Vec<File> = files.iter().map(|(file, _)| *file).collect();
        let watched = files.into_iter().map(|(file, path)| WatchedFile { key: key_of(file), path }).collect();
        self.watched(watched, move |contents| {
            let place = |wanted: File| order.iter().position(|file| *file == wanted);
            let octets = |wanted: File| place(wanted).map(|index| contents[index].as_slice());
            let files = Files {
                certificate: octets(File::Certificate).unwrap_or_default(),
                key: octets(File::Key).unwrap_or_default(),
                client_ca: octets(File::ClientCa),
                revocation_lists: octets(File::RevocationLists),
            };
            let fault = |unusable: Unusable| Fault {
                index: place(unusable.file).unwrap_or_default(),
                problem: unusable.problem,
            };
            Identity::parse(files, terms).map_err(fault)
        })
    }

    /// What one file says; that it must be named is a problem where it is not.
    pub(super) fn watched_file<T: 'static>(
        &mut self,
        key: &str,
        parse: fn(&[u8]) -> Result<T, String>,
    ) -> Option<Arc<Watched<T>>> {
        let given = self.values.contains_key(key);
        match self.file(key) {
            Some(path) => {
                let file = WatchedFile { key: key.to_owned(), path };
                self.watched(vec![file], move |contents| {
                    parse(&contents[0]).map_err(|problem| Fault { index: 0, problem })
                })
            }
            None => {
                if !given {
                    self.problem(key, "must be set");
                }
                None
            }
        }
    }

    /// The path of a file, if one is named.
    pub(super) fn file(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.text(key)?;
        Some(self.directory.join(path))
    }

    fn watched<T>(
        &mut self,
        files: Vec<WatchedFile>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Option<Arc<Watched<T>>> {
        Watched::open(files, parse).map(Arc::new).map_err(|(key, problem)| self.problem(&key, problem)).ok()
    }
}

/// The configuration key of a file, within its section.
fn name(file: File) -> &'static str {
    match file {
        File::Certificate => "certificate_file",
        File::Key => "key_file",
        File::ClientCa => "client_ca_file",
        File::RevocationLists => "crl_file",
    }
}
