use std::ops::{Deref, DerefMut};

use sqlx::Database;
use sqlx::pool::PoolConnection;

/// A connection of a pool, on which a transaction may be open that the driver does not know of. Dropped with it open, it does not go
/// back: the database ends what was begun with the connection.
pub(in crate::store) struct Held<DB: Database> {
    connection: PoolConnection<DB>,
    is_open: bool,
}

impl<DB: Database> Held<DB> {
    pub(in crate::store) fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection, is_open: false }
    }

    /// A transaction is about to begin.
    pub(in crate::store) fn opens(&mut self) {
        self.is_open = true;
    }

    /// It was committed or rolled back.
    pub(in crate::store) fn has_closed(&mut self) {
        self.is_open = false;
    }
}

impl<DB: Database> Deref for Held<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: Database> Drop for Held<DB> {
    fn drop(&mut self) {
        if self.is_open {
            self.connection.close_on_drop();
        }
    }
}
