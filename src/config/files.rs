use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
        if !whole {
            return None;
        }
        let order: Vec<File> = files.iter().map(|(file, _)| *file).collect();
        let place = move |wanted: File| order.iter().position(|file| *file == wanted);
        let fault_at = place.clone();
        let watched = files.into_iter().map(|(file, path)| WatchedFile {
            key: key_of(file),
            path,
            private: file == File::Key,
            together: match file {
                File::Certificate | File::Key => 0,
                File::ClientCa => 1,
                File::RevocationLists => 2,
            },
        });
        let fault = move |unusable: Unusable| Fault {
            index: fault_at(unusable.file).unwrap_or_default(),
            problem: unusable.problem,
        };
        let told = fault.clone();
        self.watched(
            watched.collect(),
            move |contents, in_use| {
                let octets = |wanted: File| place(wanted).map(|index| contents[index].as_slice());
                let files = Files {
                    certificate: octets(File::Certificate).unwrap_or_default(),
                    key: octets(File::Key).unwrap_or_default(),
                    client_ca: octets(File::ClientCa),
                    revocation_lists: octets(File::RevocationLists),
                };
                Identity::parse(files, terms, in_use, now_secs()).map_err(&fault)
            },
            move |identity: &Identity| identity.run_out(now_secs()).into_iter().map(&told).collect(),
        )
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
                let file = WatchedFile { key: key.to_owned(), path, private: false, together: 0 };
                let parse = move |contents: &[Vec<u8>], _: Option<&T>| {
                    parse(&contents[0]).map_err(|problem| Fault { index: 0, problem })
                };
                self.watched(vec![file], parse, |_| Vec::new())
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
        parse: impl Fn(&[Vec<u8>], Option<&T>) -> Result<T, Fault> + Send + Sync + 'static,
        run_out: impl Fn(&T) -> Vec<Fault> + Send + Sync + 'static,
    ) -> Option<Arc<Watched<T>>> {
        Watched::open(files, parse, run_out).map(Arc::new).map_err(|(key, problem)| self.problem(&key, problem)).ok()
    }
}

/// Seconds since 1970.
fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
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
