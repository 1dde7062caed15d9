//! Records as every database keeps them: a document, and copies of some of its members in columns.
//!
//! The document is the domain value as JSON with its fields in the order of their declaration, so equal values have equal
//! bytes. It is what the service key seals. The columns beside it serve constraints and compare-and-swap; a row is only
//! believed if its seal holds and they say what the document says. This is the one place where documents are written and read.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Seals, StoreError, TenantRevisions, TokenRecord, seal};
use crate::domain::{Algorithm, Keyring, Revision, Tenant, TenantId, Timestamp};

/// A row of `tenant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TenantRow {
    pub(super) id: String,
    pub(super) revision: i64,
    pub(super) issuer: String,
    pub(super) custom_domain: Option<String>,
    pub(super) document: String,
    /// Empty until it is sealed.
    pub(super) seal: Vec<u8>,
}

/// A row of `keyring`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyringRow {
    pub(super) tenant: String,
    pub(super) algorithm: String,
    pub(super) revision: i64,
    pub(super) document: String,
    /// Empty until it is sealed.
    pub(super) seal: Vec<u8>,
}

/// A row of `token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenRow {
    pub(super) name: String,
    pub(super) document: String,
    /// Empty until it is sealed.
    pub(super) seal: Vec<u8>,
}

/// A row of `removal`: that the tenant of this id that was made at this time is there no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemovalRow {
    pub(super) tenant: String,
    pub(super) create_time: String,
    /// Empty until it is sealed.
    pub(super) seal: Vec<u8>,
}

impl TenantRow {
    pub(super) fn encode(tenant: &Tenant) -> Result<Self, StoreError> {
        Ok(Self {
            id: tenant.id.to_string(),
            revision: number(tenant.revision)?,
            issuer: tenant.issuer.to_string(),
            custom_domain: tenant.custom_domain.as_ref().map(ToString::to_string),
            document: document(tenant)?,
            seal: Vec::new(),
        })
    }

    /// What is sealed.
    pub(super) fn message(&self) -> Vec<u8> {
        seal::tenant_message(&self.document)
    }

    pub(super) fn decode(self, seals: &dyn Seals) -> Result<Tenant, StoreError> {
        let row = format!("tenant {}", self.id);
        // Before anything in it is looked at: a parser is no place for what somebody else wrote.
        seal::check(seals, &self.message(), &self.seal, &row)?;
        let tenant: Tenant = value(&self.document, &row)?;
        let told = Self { document: self.document.clone(), seal: self.seal.clone(), ..Self::encode(&tenant)? };
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
            seal: Vec::new(),
        })
    }

    /// What is sealed; `tenant_created` is when its tenant was made.
    pub(super) fn message(&self, tenant_created: Timestamp) -> Vec<u8> {
        seal::keyring_message(tenant_created, &self.document)
    }

    pub(super) fn decode(self, tenant_created: Timestamp, seals: &dyn Seals) -> Result<Keyring, StoreError> {
        let row = format!("keyring {} {}", self.tenant, self.algorithm);
        seal::check(seals, &self.message(tenant_created), &self.seal, &row)?;
        let keyring: Keyring = value(&self.document, &row)?;
        let told = Self { document: self.document.clone(), seal: self.seal.clone(), ..Self::encode(&keyring)? };
        if told == self { Ok(keyring) } else { Err(differs(&row)) }
    }
}

impl TokenRow {
    pub(super) fn encode(token: &TokenRecord) -> Result<Self, StoreError> {
        Ok(Self { name: token.name.to_string(), document: document(token)?, seal: Vec::new() })
    }

    /// What is sealed.
    pub(super) fn message(&self) -> Vec<u8> {
        seal::token_message(&self.document)
    }

    pub(super) fn decode(&self, seals: &dyn Seals) -> Result<TokenRecord, StoreError> {
        let row = format!("token {}", self.name);
        seal::check(seals, &self.message(), &self.seal, &row)?;
        let token: TokenRecord = value(&self.document, &row)?;
        if token.name.as_str() == self.name { Ok(token) } else { Err(differs(&row)) }
    }
}

impl RemovalRow {
    pub(super) fn encode(tenant: &TenantId, create_time: Timestamp) -> Self {
        Self { tenant: tenant.to_string(), create_time: create_time.to_string(), seal: Vec::new() }
    }

    /// What is sealed.
    pub(super) fn message(&self) -> Vec<u8> {
        seal::removal_message(&self.tenant, &self.create_time)
    }

    /// When the tenant was made.
    pub(super) fn decode(&self, seals: &dyn Seals) -> Result<Timestamp, StoreError> {
        let row = format!("removal {}", self.tenant);
        seal::check(seals, &self.message(), &self.seal, &row)?;
        parse(&self.create_time, &row, "create_time")
    }
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
    u64::try_from(number).map(Revision::new).map_err(|_| StoreError::Untrusted(format!("{row}: revision {number}")))
}

fn document(value: &impl Serialize) -> Result<String, StoreError> {
    // Only a value that JSON has no form for fails here, such as a duration of more milliseconds than a u64 counts.
    serde_json::to_string(value).map_err(|error| StoreError::Refused(format!("the record cannot be written: {error}")))
}

fn value<T: DeserializeOwned>(document: &str, row: &str) -> Result<T, StoreError> {
    serde_json::from_str(document).map_err(|error| StoreError::Untrusted(format!("{row}: document: {error}")))
}

fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str, row: &str, column: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error| StoreError::Untrusted(format!("{row}: {column}: {error}")))
}

fn differs(row: &str) -> StoreError {
    StoreError::Untrusted(format!("{row}: its columns do not say what its document says"))
}
