use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Seconds since 1970 in UTC, fractions allowed (RFC 7519 section 2).
pub type NumericDate = f64;

/// The registered claims that Keyward looks at (RFC 7519 section 4.1). Everything else passes unread.
#[derive(Debug, Default, PartialEq)]
pub struct Claims {
    /// Expiration time.
    pub exp: Option<NumericDate>,
    /// Not before.
    pub nbf: Option<NumericDate>,
    /// Issuer.
    pub iss: Option<String>,
}

/// Why octets are not a claims set: "claims_json " and this text make a sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClaimsProblem(String);

impl Claims {
    /// Reads the claims of one JSON object.
    ///
    /// # Errors
    /// It is not one JSON object in UTF-8, a member stands in it twice (readers would disagree on which one counts), or
    /// `exp`, `nbf` or `iss` is of the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, ClaimsProblem> {
        // Members that are passed over are not looked into for UTF-8 by the parser.
        let json = std::str::from_utf8(json).map_err(|_| ClaimsProblem("must be JSON in UTF-8".to_owned()))?;
        if !json.trim_ascii_start().starts_with('{') {
            return Err(ClaimsProblem("must be one JSON object".to_owned()));
        }
        serde_json::from_str(json).map_err(|error| ClaimsProblem(format!("must be one JSON object: {error}")))
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = Claims::default();
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "exp" => claims.exp = Some(date("exp", &map.next_value()?)?),
                        "nbf" => claims.nbf = Some(date("nbf", &map.next_value()?)?),
                        "iss" => claims.iss = Some(text("iss", map.next_value()?)?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    if !seen.insert(name) {
                        return Err(serde::de::Error::custom("a member stands in it twice"));
                    }
                }
                Ok(claims)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

// By way of a value: the parser's own text on a wrong type quotes what it found, and a payload is told to nobody (R12).

fn date<E: serde::de::Error>(name: &str, value: &Value) -> Result<NumericDate, E> {
    value.as_f64().ok_or_else(|| E::custom(format_args!("{name} must be a number")))
}

fn text<E: serde::de::Error>(name: &str, value: Value) -> Result<String, E> {
    let Value::String(text) = value else { return Err(E::custom(format_args!("{name} must be a text"))) };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_does_not_quote_the_claims() {
        for bad in [r#"{"exp":"quoted"}"#, r#"{"nbf":{"quoted":1}}"#, r#"{"iss":["quoted"]}"#, r#"{"exp":1,"quoted"}"#]
        {
            let problem = Claims::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(!problem.contains("quoted"), "{problem}");
        }
    }

    #[test]
    fn only_one_object_with_each_member_once_is_claims() {
        let claims =
            Claims::parse(br#" {"exp": 1700000000.5, "iss": "https://a.example", "x": [{"exp": 1}]} "#).unwrap();
        assert_eq!(claims.exp, Some(1_700_000_000.5));
        assert_eq!(claims.iss.as_deref(), Some("https://a.example"));
        for bad in [
            "",
            "null",
            "[]",
            "\"a\"",
            "{",
            "{} {}",
            r#"{"exp":1,"exp":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"exp":"1"}"#,
            r#"{"exp":null}"#,
            r#"{"iss":7}"#,
        ] {
            assert!(Claims::parse(bad.as_bytes()).is_err(), "{bad} passed");
        }
        assert!(Claims::parse(b"{\"a\":\"\xff\"}").is_err(), "invalid UTF-8 passed");
    }
}
