//! What is particular to the store in a PostgreSQL database.

use std::sync::Arc;

use keyward::store::postgres::Settings;
use keyward::store::{SqlStore, Store, StoreError, postgres};
use secrecy::SecretString;
use tempfile::TempDir;

use crate::contract::Harness;
use crate::postgresql::Database;
use crate::samples::binding;
use crate::seals::{guard, witness_of};

/// A database of its own, and the replica that has it open.
pub(crate) struct Postgres {
    store: Arc<SqlStore>,
    database: Database,
    directory: TempDir,
}

impl Harness for Postgres {
    async fn fresh() -> Self {
        let (database, directory) = (Database::fresh(), tempfile::tempdir().unwrap());
        create(&database, &directory).await.unwrap();
        Self { store: Arc::new(open(&database, &directory).await.unwrap()), database, directory }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn reopened(self) -> Self {
        self.store.close().await;
        let store = Arc::new(open(&self.database, &self.directory).await.unwrap());
        Self { store, ..self }
    }
}

fn settings(database: &Database) -> Settings {
    Settings { url: SecretString::from(database.url()), connections_max: 4 }
}

/// With the witness in this directory.
async fn create(database: &Database, directory: &TempDir) -> Result<(), StoreError> {
    postgres::create(&settings(database), &binding(), &witness_of(&directory.path().join("store"))).await
}

async fn open(database: &Database, directory: &TempDir) -> Result<SqlStore, StoreError> {
    postgres::open(&settings(database), guard(&directory.path().join("store"))).await
}
