use super::{Error, Keyrings};
use crate::domain::TenantId;
use crate::store::{EventPage, EventRow, Start};
use crate::tlog::Entry;

impl Keyrings {
    /// Events of the administration log, newest first: those before the index `before`, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn events(&self, tenant: Option<TenantId>, before: Option<u64>, limit: u32) -> Result<Vec<Entry>, Error> {
        let rows = self.administration(&EventPage { tenant, start: Start::Newest(before), limit }).await?;
        Ok(rows.iter().map(EventRow::entry).collect())
    }
}
