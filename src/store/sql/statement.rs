//! Statements and rows, as the databases' drivers all take and give them.

use std::fmt::Write as _;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use crate::domain::TenantId;
use crate::store::StoreError;

/// What a column holds, or a parameter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Value {
    /// Only columns of text may have none.
    None,
    Number(i64),
    Text(String),
    Octets(Vec<u8>),
}

/// A statement in the SQL that all databases understand, with its parameters `$1`, `$2`, ...
#[derive(Debug)]
pub(in crate::store) struct Statement {
    pub(in crate::store) text: SqlStr,
    pub(in crate::store) values: Vec<Value>,
}

/// A row, by the names of its columns.
#[derive(Debug)]
pub(in crate::store) struct Row {
    names: Arc<[String]>,
    values: Vec<Value>,
}

impl Statement {
    pub(in crate::store) const fn new(text: &'static str) -> Self {
        Self { text: SqlStr::from_static(text), values: Vec::new() }
    }

    /// `into`, such as `insert into t (a, b)`, with these rows.
    pub(in crate::store) fn insert(into: &'static str, rows: impl IntoIterator<Item = Row>) -> Self {
        let (mut text, mut values) = (format!("{into} values"), Vec::new());
        for row in rows {
            let mut before = if values.is_empty() { " (" } else { ", (" };
            for value in row.values {
                values.push(value);
                write!(text, "{before}${}", values.len()).expect("a String takes all");
                before = ", ";
            }
            text.push(')');
        }
        // Nothing of it but numbers that were counted here was not written in this crate.
        Self { text: AssertSqlSafe(text).into_sql_str(), values }
    }

    /// With one parameter more.
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }
}

impl Row {
    pub(in crate::store) fn new(names: Arc<[String]>, values: Vec<Value>) -> Self {
        Self { names, values }
    }

    /// What the column of this name holds. A value that the schema and the code that wrote it rule out is damage.
    pub(in crate::store) fn get<T: TryFrom<Value>>(&self, name: &str) -> Result<T, StoreError> {
        let place = self.names.iter().position(|other| other == name);
        let value = place.and_then(|place| self.values.get(place));
        let value = value.ok_or_else(|| StoreError::Damaged(format!("there is no column {name}")))?;
        T::try_from(value.clone())
            .map_err(|_| StoreError::Damaged(format!("column {name} holds a value of another kind")))
    }
}

/// A value of another kind than was asked for.
pub(in crate::store) struct OtherKind;

impl TryFrom<Value> for String {
    type Error = OtherKind;

    fn try_from(value: Value) -> Result<Self, OtherKind> {
        if let Value::Text(text) = value { Ok(text) } else { Err(OtherKind) }
    }
}

impl TryFrom<Value> for Option<String> {
    type Error = OtherKind;

    fn try_from(value: Value) -> Result<Self, OtherKind> {
        if value == Value::None { Ok(None) } else { value.try_into().map(Some) }
    }
}

impl TryFrom<Value> for i64 {
    type Error = OtherKind;

    fn try_from(value: Value) -> Result<Self, OtherKind> {
        if let Value::Number(number) = value { Ok(number) } else { Err(OtherKind) }
    }
}

/// Also of text, as it stands there: whoever wants octets looks at them himself.
impl TryFrom<Value> for Vec<u8> {
    type Error = OtherKind;

    fn try_from(value: Value) -> Result<Self, OtherKind> {
        match value {
            Value::Octets(octets) => Ok(octets),
            Value::Text(text) => Ok(text.into_bytes()),
            Value::None | Value::Number(_) => Err(OtherKind),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&TenantId> for Value {
    fn from(tenant: &TenantId) -> Self {
        tenant.as_str().into()
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Vec<u8>> for Value {
    fn from(octets: Vec<u8>) -> Self {
        Self::Octets(octets)
    }
}
