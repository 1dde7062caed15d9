//! Records as every database keeps them: a document, and copies of some of its members in columns.
//!
//! The document is the domain value as JSON with its fields in the order of their declaration, so equal values have equal
//! bytes. The columns beside it serve constraints and compare-and-swap; a row is only believed if they say what the document
//! says. This is the one place where documents are written and read.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StoreError, TenantRevisions};
use crate::domain::{Algorithm, Event, Keyring, Revision, Tenant};

/// A row of `tenant`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TenantRow {
    pub(super) id: String,
    pub(super) revision: i64,
    pub(super) issuer: String,
    pub(super) custom_domain: Option<String>,
    pub(super) document: String,
}

/// A row of `keyring`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyringRow {
    pub(super) tenant: String,
    pub(super) algorithm: String,
    pub(super) revision: i64,
    pub(super) document: String,
}

impl TenantRow {
    pub(super) fn encode(tenant: &Tenant) -> Result<Self, StoreError> {
        Ok(Self {
            id: tenant.id.to_string(),
            revision: number(tenant.revision)?,
            issuer: tenant.issuer.to_string(),
            custom_domain: tenant.custom_domain.as_ref().map(ToString::to_string),
            document: document(tenant)?,
        })
    }

    pub(super) fn decode(self) -> Result<Tenant, StoreError> {
        let row = format!("tenant {}", self.id);
        let tenant: Tenant = value(&self.document, &row)?;
        let told = Self { document: self.document.clone(), ..Self::encode(&tenant)? };
        if told == self { Ok(tenant) } else { Err(differs(&row)) }
    }
}

impl KeyringRow {
    pub(super) fn encode(keyring: &Keyring) -> Result<Self, StoreError> {
        Ok(Self {
            tenant: keyring.tenant.to_string(),
            algorithm: keyring.algorithm.to_string(),
            revision: number(keyring.revision)?,
            document: document(keyring)?,
        })
    }

    pub(super) fn decode(self) -> Result<Keyring, StoreError> {
        let row = format!("keyring {} {}", self.tenant, self.algorithm);
        let keyring: Keyring = value(&self.document, &row)?;
        let told = Self { document: self.document.clone(), ..Self::encode(&keyring)? };
        if told == self { Ok(keyring) } else { Err(differs(&row)) }
    }
}

/// The document of an event.
pub(super) fn encode_event(event: &Event) -> Result<String, StoreError> {
    document(event)
}

/// The event of a document.
pub(super) fn decode_event(sequence: i64, document: &str) -> Result<Event, StoreError> {
    value(document, &format!("audit_event {sequence}"))
}

/// The revisions in the columns of a tenant's row and its keyrings' rows. The documents are not read: whoever finds another
/// revision here loads the record, and so has it checked.
pub(super) fn revisions(
    tenant: &str,
    revision: i64,
    keyrings: Vec<(String, i64)>,
) -> Result<TenantRevisions, StoreError> {
    let row = format!("tenant {tenant}");
    let mut keyrings: Vec<(Algorithm, Revision)> = keyrings
        .into_iter()
        .map(|(algorithm, revision)| {
            let row = format!("keyring {tenant} {algorithm}");
            Ok((parse(&algorithm, &row, "algorithm")?, self::revision(revision, &row)?))
        })
        .collect::<Result<_, StoreError>>()?;
    keyrings.sort_unstable();
    Ok(TenantRevisions { tenant: parse(tenant, &row, "id")?, revision: self::revision(revision, &row)?, keyrings })
}

/// The revision as databases count. One beyond that is of no record that exists, and cannot replace any.
pub(super) fn number(revision: Revision) -> Result<i64, StoreError> {
    i64::try_from(revision.number()).map_err(|_| StoreError::Conflict)
}

fn revision(number: i64, row: &str) -> Result<Revision, StoreError> {
    u64::try_from(number).map(Revision::new).map_err(|_| StoreError::Damaged(format!("{row}: revision {number}")))
}

fn document(value: &impl Serialize) -> Result<String, StoreError> {
    // Only a value that JSON has no form for fails here, such as a duration of more milliseconds than a u64 counts.
    serde_json::to_string(value).map_err(|error| StoreError::Refused(format!("the record cannot be written: {error}")))
}

fn value<T: DeserializeOwned>(document: &str, row: &str) -> Result<T, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Damaged(format!("{row}: document: {error}")))
}

fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str, row: &str, column: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error| StoreError::Damaged(format!("{row}: {column}: {error}")))
}

fn differs(row: &str) -> StoreError {
    StoreError::Damaged(format!("{row}: its columns do not say what its document says"))
}
