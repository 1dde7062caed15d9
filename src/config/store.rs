use url::Url;

use super::Reader;
use crate::store::{Location, postgres};

/// The password's place beside `store.password_file`.
const PASSWORD_VARIABLE: &str = "KEYWARD_STORE_PASSWORD";

/// What may stand in the URL. The driver would tell the log of others, with their values.
const PARAMETERS: [&str; 5] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host"];

impl Reader {
    /// The section `[store]`, but for the witness.
    pub(super) fn store(&mut self) -> Location {
        let Some(url) = self.text("store.url") else {
            if self.values.contains_key("store.password_file") {
                self.problem("store.password_file", "must stand beside store.url: a SQLite file has no password");
                self.values.remove("store.password_file");
            }
            return Location::Sqlite(self.required_path("store.path"));
        };
        if self.values.remove("store.path").is_some() {
            self.problem("store.path", "must not be set together with store.url: a store is in one place");
        }
        match Url::parse(&url) {
            Ok(parsed) if matches!(parsed.scheme(), "postgres" | "postgresql") => {
                if parsed.password().is_some() {
                    let text = "must not hold the password: put it into store.password_file or ";
                    self.problem("store.url", format!("{text}{PASSWORD_VARIABLE}"));
                }
                if parsed.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
                    self.problem("store.url", format!("must have no other parameters than {}", PARAMETERS.join(", ")));
                }
            }
            _ => self.problem("store.url", "must be of the form postgres://user@host:port/database"),
        }
        Location::Postgres(postgres::Settings {
            url,
            password: self.secret("store.password_file", PASSWORD_VARIABLE),
            connections_max: self.number("store.connections_max", 8, 3..=100),
        })
    }
}
