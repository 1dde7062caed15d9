//! What a `keyward dev` keeps, and what it keeps to itself.

use std::fs;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Row as _, query};

use super::Server;

/// Every row of the store that a caller can change.
pub(crate) async fn rows(server: &Server) -> Vec<String> {
    let path = Path::new(server.state_dir()).join("store.sqlite");
    let mut store = SqliteConnectOptions::new().filename(path).read_only(true).connect().await.expect("the store");
    let rows = "select document as row from tenant union all select document from keyring \
                union all select position || record from audit_event";
    let rows = query(rows).fetch_all(&mut store).await.expect("the store can be read");
    rows.iter().map(|row| row.get("row")).collect()
}

/// The token's PIN.
pub(crate) fn pin(server: &Server) -> String {
    let pin = fs::read_to_string(Path::new(server.state_dir()).join("pin")).expect("the PIN file");
    pin.trim().to_owned()
}

/// No line of the log holds this payload, or the PIN.
pub(crate) fn is_not_logged(server: &Server, payload: &str) {
    let pin = pin(server);
    for line in server.log() {
        assert!(!line.contains(payload) && !line.contains(&pin), "logged: {line}");
    }
}
