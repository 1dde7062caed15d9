//! Names that were checked once, at the door.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// Why a text cannot be the name it was offered as. The message follows a field's name: "`tenant` must be ...".
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(&'static str);

/// Makes a text type whose only way in is its check. A clone shares the text.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> Result<(), InvalidName> = $check;
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

checked_text!(
    /// A tenant's id: a DNS label in lower case (RFC 1035 section 2.3.1, digits allowed first).
    TenantId,
    dns_label
);

checked_text!(
    /// The name of a token in the configuration: a DNS label.
    TokenName,
    dns_label
);

impl TokenName {
    /// The token that has the service key. Tenants are placed there unless they say otherwise.
    pub const HOME: &str = "home";

    /// Whether it is the token that has the service key.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.as_str() == Self::HOME
    }
}

impl Default for TokenName {
    fn default() -> Self {
        Self(Self::HOME.into())
    }
}

checked_text!(
    /// A domain name of a tenant's own, in lower case and without a trailing dot.
    Domain,
    |text| {
        let labels = text.split('.').count();
        if text.len() <= 253 && labels >= 2 && text.split('.').all(is_dns_label) {
            Ok(())
        } else {
            Err(InvalidName("must be a domain name in lower case such as login.example.com, without scheme or port"))
        }
    }
);

checked_text!(
    /// An issuer identifier (OpenID Connect Discovery 1.0 section 3): an https URL without query and fragment. It is
    /// compared as text, so it is kept as it was written. http is allowed for loopback hosts alone.
    Issuer,
    |text| {
        let url = web_url(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidName("must be a URL without query and fragment"));
        }
        Ok(())
    }
);

impl Issuer {
    /// The host in it.
    #[must_use]
    pub fn host(&self) -> String {
        let url = url::Url::parse(&self.0).ok();
        url.as_ref().and_then(url::Url::host_str).map(ToOwned::to_owned).expect("an issuer is a URL with a host")
    }

    /// What a new issuer must be besides: its host is an address, or a name of letters, digits and hyphens (RFC 1123 section
    /// 2.1). The URL standard takes more, and issuers that were taken before are read as they are.
    ///
    /// # Errors
    /// What the host must be.
    pub fn has_plain_host(&self) -> Result<(), InvalidName> {
        match url::Url::parse(&self.0).ok().as_ref().and_then(url::Url::host) {
            Some(url::Host::Domain(name)) if !name.split('.').all(is_dns_label) => {
                Err(InvalidName("must have a host of letters, digits and hyphens, such as login.example.com"))
            }
            _ => Ok(()),
        }
    }
}

impl Domain {
    /// What a new domain must be besides: no address, in whatever way it is written.
    ///
    /// # Errors
    /// What it must be.
    pub fn is_no_address(&self) -> Result<(), InvalidName> {
        let issuer = Issuer::try_from(format!("https://{self}")).map(|issuer| issuer.host());
        match issuer.as_deref().map(url::Host::parse) {
            Ok(Ok(url::Host::Domain(_))) => Ok(()),
            _ => Err(InvalidName("must be a domain name such as login.example.com, and no IP address")),
        }
    }
}

checked_text!(
    /// An https URL (http for loopback hosts alone).
    WebUrl,
    |text| web_url(text).map(drop)
);

checked_text!(
    /// A key's name: for key pairs the RFC 7638 SHA-256 thumbprint in base64url.
    Kid,
    |text| {
        let visible = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if (1..=128).contains(&text.len()) && visible {
            Ok(())
        } else {
            Err(InvalidName("must be 1 to 128 base64url characters, as ListSigningKeys shows them"))
        }
    }
);

checked_text!(
    /// The name of a key that a tenant brought itself: whatever its issuer calls it.
    CustomKid,
    |text| {
        if (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(())
        } else {
            Err(InvalidName("must be 1 to 255 visible ASCII characters"))
        }
    }
);

checked_text!(
    /// A caller's name for one request, so that a repetition is known as such.
    RequestId,
    |text| {
        if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(())
        } else {
            Err(InvalidName("must be 1 to 64 visible ASCII characters, such as a UUID"))
        }
    }
);

fn dns_label(text: &str) -> Result<(), InvalidName> {
    let wanted = InvalidName("must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
    if is_dns_label(text) { Ok(()) } else { Err(wanted) }
}

fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Longest URL taken: what discovery clients and databases index without trouble.
const URL_LENGTH_MAX: usize = 255;

fn web_url(text: &str) -> Result<url::Url, InvalidName> {
    const WANTED: InvalidName = InvalidName("must be an https URL of at most 255 characters (http for loopback hosts)");
    if text.len() > URL_LENGTH_MAX || text.contains(char::is_whitespace) {
        return Err(WANTED);
    }
    let url = url::Url::parse(text).map_err(|_| WANTED)?;
    // The parser mends what it reads; what is kept and compared is the text, so the text must be a URL already.
    if url.as_str().trim_end_matches('/') != text.trim_end_matches('/') {
        return Err(WANTED);
    }
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => return Err(WANTED),
    };
    let plain = url.username().is_empty() && url.password().is_none();
    match url.scheme() {
        "https" if plain => Ok(url),
        "http" if plain && loopback => Ok(url),
        _ => Err(WANTED),
    }
}

/// CKA_ID of a key's objects on the token: 16 random octets chosen by Keyward before the key exists, so that whatever a
/// crash leaves on the token can be named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 16]);

impl ObjectId {
    /// An id of these octets; the caller draws them at random.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// The octets, as CKA_ID holds them.
    #[must_use]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ObjectId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        u128::from_str_radix(&text, 16)
            .ok()
            .filter(|_| text.len() == 32)
            .map(|number| Self(number.to_be_bytes()))
            .ok_or(InvalidName("must be 32 hexadecimal digits"))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A number that each change of a keyring or tenant raises by one, from 1; compare-and-swap runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(u64);

impl Revision {
    /// The revision of something new.
    pub const FIRST: Self = Self(1);

    /// The revision of this number, as the store kept it.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The revision after one change.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
