//! What audit logs tell: who did what to which key, and how it ended. Never a payload, never a secret.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Kid, Octets, TenantId, Timestamp};

/// Who calls, as the proof of it names them. Its text form stands in audit logs and in the configuration's grants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Principal {
    /// `anonymous`: nobody was asked for a proof.
    Anonymous,
    /// `keyward`: the service itself, its timer above all.
    Keyward,
    /// `uri:URI`: a client certificate with this one URI subject alternative name (RFC 5280 section 4.2.1.6).
    Uri(String),
    /// `dns:NAME`: a client certificate without a URI, with this one DNS name.
    Dns(String),
    /// `cn:NAME`: a client certificate with this common name, where the configuration allows it.
    CommonName(String),
    /// `unix:UID`: a process of this user at the other end of a Unix socket.
    Unix(u32),
    /// `jwt:ISSUER#SUBJECT`: the bearer of a JWT with these `iss` and `sub` (RFC 7519 section 4.1).
    Jwt {
        /// `iss`, which has no fragment.
        issuer: String,
        /// `sub`.
        subject: String,
    },
}

/// A text that names no principal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be uri:URI, dns:NAME, cn:NAME, unix:UID or jwt:ISSUER#SUBJECT")]
pub struct UnknownPrincipal;

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Keyward => f.write_str("keyward"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::CommonName(name) => write!(f, "cn:{name}"),
            Self::Unix(uid) => write!(f, "unix:{uid}"),
            Self::Jwt { issuer, subject } => write!(f, "jwt:{issuer}#{subject}"),
        }
    }
}

impl FromStr for Principal {
    type Err = UnknownPrincipal;

    fn from_str(text: &str) -> Result<Self, UnknownPrincipal> {
        match text {
            "anonymous" => return Ok(Self::Anonymous),
            "keyward" => return Ok(Self::Keyward),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or(UnknownPrincipal)?;
        if name.is_empty() {
            return Err(UnknownPrincipal);
        }
        match kind {
            "uri" => Ok(Self::Uri(name.to_owned())),
            "dns" => Ok(Self::Dns(name.to_owned())),
            "cn" => Ok(Self::CommonName(name.to_owned())),
            "unix" => name.parse().map(Self::Unix).map_err(|_| UnknownPrincipal),
            "jwt" => {
                let (issuer, subject) = name.split_once('#').ok_or(UnknownPrincipal)?;
                Ok(Self::Jwt { issuer: issuer.to_owned(), subject: subject.to_owned() })
            }
            _ => Err(UnknownPrincipal),
        }
    }
}

impl TryFrom<String> for Principal {
    type Error = UnknownPrincipal;

    fn try_from(text: String) -> Result<Self, UnknownPrincipal> {
        text.parse()
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> Self {
        principal.to_string()
    }
}

/// One call, as far as audit logs tell of it: who makes it, and through which door. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Everybody who stands for the call: a certificate and a JWT may come together.
    pub principals: Arc<[Principal]>,
    /// The full name of the gRPC method, method and path of the Management API, or `timer`.
    pub method: &'static str,
    /// What the caller calls this call, if anything.
    pub request_id: Option<Arc<str>>,
}

impl Caller {
    /// The service itself, when something is due.
    #[must_use]
    pub fn timer() -> Self {
        Self { principals: Arc::from([Principal::Keyward]), method: "timer", request_id: None }
    }

    /// Whoever calls where nobody is asked who they are.
    #[must_use]
    pub fn anonymous(method: &'static str) -> Self {
        Self { principals: Arc::from([Principal::Anonymous]), method, request_id: None }
    }
}

/// One operation, as audit logs keep it. As JSON its members stand in the order of declaration, and absent ones are left out,
/// so equal events have equal octets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it ended.
    pub time: Timestamp,
    /// What was done: a fixed word such as `rotate`, `sign` or `refuse`.
    pub action: Cow<'static, str>,
    /// Who did it.
    pub principals: Arc<[Principal]>,
    /// Through which door; see [`Caller::method`].
    pub method: Cow<'static, str>,
    /// Whose keys, where a tenant was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// Which keyring, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Which key, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<Kid>,
    /// SHA-256 of what was to be signed or taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<Octets>,
    /// `OK`, or the gRPC code that the caller was told, such as `PERMISSION_DENIED`.
    pub result: Cow<'static, str>,
    /// What the caller calls the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Arc<str>>,
    /// What a reader should know besides, such as `forced`. Never a payload or a secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Event {
    /// An operation by `caller` that succeeded, on nothing in particular yet.
    #[must_use]
    pub fn new(time: Timestamp, action: &'static str, caller: &Caller) -> Self {
        Self {
            time,
            action: Cow::Borrowed(action),
            principals: Arc::clone(&caller.principals),
            method: Cow::Borrowed(caller.method),
            tenant: None,
            algorithm: None,
            kid: None,
            input_sha256: None,
            result: Cow::Borrowed("OK"),
            request_id: caller.request_id.clone(),
            detail: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_what_its_text_says() {
        for text in ["anonymous", "keyward", "uri:spiffe://a.example/b", "dns:a.example", "cn:a:b", "unix:0"] {
            assert_eq!(text.parse::<Principal>().expect(text).to_string(), text);
        }
        let jwt = "jwt:https://a.example/#b#c".parse::<Principal>().expect("a JWT's");
        assert_eq!(jwt, Principal::Jwt { issuer: "https://a.example/".to_owned(), subject: "b#c".to_owned() });
        for bad in ["", "uri", "uri:", "unix:-1", "unix:root", "jwt:nobody", "x509:a", "Uri:a"] {
            assert_eq!(bad.parse::<Principal>(), Err(UnknownPrincipal), "{bad}");
        }
    }
}
