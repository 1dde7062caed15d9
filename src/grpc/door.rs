//! From the wire to the domain: fields become values that are valid, or an error that names the field.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::status::rejection;
use crate::domain::{Algorithm, Kid, TenantId};
use crate::keyring::{Choice, Error};

/// Keys or tenants on a page when the caller names no size, and at most.
const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// A call without a deadline of its own is bounded by the service's; this stands for "none".
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// How much earlier than the caller the service gives up, at most: the time that its answer takes.
const DEADLINE_MARGIN_MAX: Duration = Duration::from_millis(20);

/// A field that must be there.
pub(super) fn required<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Error> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must be set"));
    }
    text.parse().map_err(|problem: T::Err| Error::invalid(field, problem))
}

/// A field that may be empty.
pub(super) fn optional<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, Error> {
    if text.is_empty() { Ok(None) } else { required(field, text).map(Some) }
}

/// Which key a signing call means.
pub(super) fn choice(tenant: &str, algorithm: &str, kid: &str) -> Result<Choice, Error> {
    Ok(Choice {
        tenant: required::<TenantId>("tenant", tenant)?,
        algorithm: optional::<Algorithm>("algorithm", algorithm)?,
        kid: optional::<Kid>("kid", kid)?,
    })
}

/// How many to put on a page.
pub(super) fn page_size(size: i32) -> Result<usize, Error> {
    match usize::try_from(size) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) if size <= PAGE_SIZE_MAX => Ok(size),
        _ => Err(Error::invalid("page_size", format!("must be 0 to {PAGE_SIZE_MAX}"))),
    }
}

/// A page token for what begins after `place`. It means something only together with the same `query`.
pub(super) fn page_token(query: &str, place: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{query}\n{place}"))
}

/// The place in a page token that was given for this `query`.
pub(super) fn page_place(query: &str, token: &str) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let decoded = URL_SAFE_NO_PAD.decode(token).ok().and_then(|octets| String::from_utf8(octets).ok());
    let place = decoded.and_then(|text| text.strip_prefix(query)?.strip_prefix('\n').map(ToOwned::to_owned));
    place.map(Some).ok_or_else(|| {
        let problem =
            "must be the next_page_token of the answer before, with the same filters; empty for the first page";
        Error::invalid("page_token", problem)
    })
}

/// When the caller stops waiting (grpc-timeout, in the gRPC over HTTP/2 specification).
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
    // A little earlier than the transport's own timer, which would answer CANCELLED without a reason.
    let margin = |timeout: Duration| timeout.saturating_sub((timeout / 10).min(DEADLINE_MARGIN_MAX));
    Instant::now() + timeout.map_or(NO_DEADLINE, |timeout| margin(timeout.min(NO_DEADLINE)))
}

fn timeout(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    unit.checked_mul(number)
}

/// Says what is wrong with a request that the transport turned away before any method saw it: one over the size limit, or
/// one that is not the message that the method takes, for example with a string that is not UTF-8.
pub(super) fn explain_rejection<B: Default>(
    response: http::Response<B>,
    message_bytes_max: usize,
) -> http::Response<B> {
    let headers = response.headers();
    if !headers.contains_key("grpc-status") || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let Some(status) = Status::from_header_map(headers) else { return response };
    let explained = match status.code() {
        Code::OutOfRange => rejection(
            "MESSAGE_TOO_LARGE",
            &format!("the message is over the limit of {message_bytes_max} octets; send less in one call"),
        ),
        Code::Internal if status.message().starts_with("failed to decode Protobuf") => {
            rejection("MESSAGE_MALFORMED", &format!("the message is not what the method takes: {}", status.message()))
        }
        _ => return response,
    };
    explained.into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_each_of_its_units() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout("4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout("50m"), Some(Duration::from_millis(50)));
        assert_eq!(timeout("6u"), Some(Duration::from_micros(6)));
        assert_eq!(timeout("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "5", "-1S", "1s", "1.5S", "é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_page_token_holds_for_its_query_alone() {
        let token = page_token("keys a", "place");
        assert_eq!(page_place("keys a", &token).unwrap().as_deref(), Some("place"));
        assert!(page_place("keys b", &token).is_err());
        assert!(page_place("keys a", "never ours").is_err());
    }
}
