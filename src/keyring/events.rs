use super::{Error, Keyrings};
use crate::domain::TenantId;
use crate::store::{EventPage, Start};
use crate::tlog::Record;

impl Keyrings {
    /// Events of the administration log, newest first: those before the index `before`, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for the store, [`Error::Internal`] for a row that is no record.
    pub async fn events(
        &self,
        tenant: Option<TenantId>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Record>, Error> {
        let records = self.store.events(&EventPage { tenant, start: Start::Newest(before), limit }).await?;
        let parse = |octets: Vec<u8>| {
            Record::parse(&octets).map_err(|broken| Error::Internal(format!("the administration log: {broken}")))
        };
        records.into_iter().map(parse).collect()
    }

    /// The octets of the records of the administration log from the index `from` on, in order, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for the store.
    pub async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.store.events(&EventPage { tenant: None, start: Start::Oldest(from), limit }).await?)
    }
}
