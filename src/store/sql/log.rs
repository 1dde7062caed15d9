use super::{Reads, read};
use crate::store::{EventPage, EventRow, StoreError, TokenBinding};

/// The administration log of a store that may be in use, or may be a copy: it is read, and of the rest nothing is looked at but
/// the name of the token, and nothing believed.
pub struct LogReader(Box<dyn Reads>);

impl LogReader {
    pub(in crate::store) fn new(database: impl Reads + 'static) -> Self {
        Self(Box::new(database))
    }

    /// The token that the store says it belongs to; nobody sealed that.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn binding(&self) -> Result<TokenBinding, StoreError> {
        read::binding(&*self.0).await
    }

    /// Records, as [`crate::store::Store::events`] has them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        read::events(&*self.0, page).await
    }
}
