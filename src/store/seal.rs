use async_trait::async_trait;

use super::StoreError;
use crate::domain::Timestamp;

/// Seals records, and tells whether a seal is one: with the service key, which lives on the token (R15).
#[async_trait]
pub trait Seals: Send + Sync + 'static {
    /// The seals of these messages, in order: all or none.
    ///
    /// # Errors
    /// Why there are none, in words for the log; nothing was changed.
    async fn seal(&self, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String>;

    /// Whether `seal` is the seal of `message`.
    fn holds(&self, message: &[u8], seal: &[u8]) -> bool;
}

/// Begins each sealed message, so that nothing else that the service key signs can pass for a seal.
const PURPOSE: &str = "keyward-seal/v1";

/// What the seal of a tenant's record is over: all of its document, revision included.
pub(super) fn tenant_message(document: &str) -> Vec<u8> {
    format!("{PURPOSE}\ntenant\n{document}").into_bytes()
}

/// What the seal of a keyring's record is over. With the time at which its tenant was made: a tenant that was deleted and made
/// again under the same id has new keyrings, and the old ones must not come back.
pub(super) fn keyring_message(tenant_created: Timestamp, document: &str) -> Vec<u8> {
    format!("{PURPOSE}\nkeyring\n{tenant_created}\n{document}").into_bytes()
}

/// What the seal of a removal is over.
pub(super) fn removal_message(tenant: &str, tenant_created: &str) -> Vec<u8> {
    format!("{PURPOSE}\nremoval\n{tenant}\n{tenant_created}").into_bytes()
}

/// What the seal of a token's record is over.
pub(super) fn token_message(document: &str) -> Vec<u8> {
    format!("{PURPOSE}\ntoken\n{document}").into_bytes()
}

/// Seals records, each a message and the place of its seal: one journey to the token for all of them.
pub(super) async fn put(seals: &dyn Seals, records: Vec<(Vec<u8>, &mut Vec<u8>)>) -> Result<(), StoreError> {
    if records.is_empty() {
        return Ok(());
    }
    let (messages, places): (Vec<_>, Vec<_>) = records.into_iter().unzip();
    let made = seals.seal(messages).await.map_err(StoreError::Unsealed)?;
    if made.len() != places.len() {
        return Err(StoreError::Unsealed(format!("{} seals for {} records", made.len(), places.len())));
    }
    places.into_iter().zip(made).for_each(|(place, seal)| *place = seal);
    Ok(())
}

/// Sees that a record is the one that was sealed.
pub(super) fn check(seals: &dyn Seals, message: &[u8], seal: &[u8], row: &str) -> Result<(), StoreError> {
    if seals.holds(message, seal) {
        return Ok(());
    }
    Err(StoreError::Untrusted(format!("{row}: the service key did not seal this record; somebody edited it")))
}
