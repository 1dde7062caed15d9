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
        let records = self.administration(&EventPage { tenant, start: Start::Newest(before), limit }).await?;
        let parse = |octets: Vec<u8>| {
            Record::parse(&octets).map_err(|broken| Error::Internal(format!("the administration log: {broken}")))
        };
        records.into_iter().map(parse).collect()
    }
}
