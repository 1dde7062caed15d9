//! Times as people read them.

use std::time::Duration;

use crate::domain::{RotationPolicy, Timestamp};

/// A moment, to the second and in UTC: for machines as in RFC 3339, for people as date and time of day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) datetime: String,
    pub(super) date: String,
    pub(super) time: String,
}

impl From<Timestamp> for Moment {
    fn from(time: Timestamp) -> Self {
        let text = |format| time.strftime(format).to_string();
        Self { datetime: text("%Y-%m-%dT%H:%M:%SZ"), date: text("%Y-%m-%d"), time: text("%H:%M:%S") }
    }
}

/// From `earlier` to `later`, or none if it is over.
pub(super) fn between(earlier: Timestamp, later: Timestamp) -> Option<Duration> {
    Duration::try_from(later.duration_since(earlier)).ok().filter(|wait| !wait.is_zero())
}

/// Between a number and its unit, which belong on one line.
const NO_BREAK: char = '\u{a0}';

/// The two largest units of a duration: "6 min", "24 h 6 min", "30 d". Hours go to 48, as people count a day.
pub(super) fn span(duration: Duration) -> String {
    const UNITS: [(&str, u64, u64); 4] = [("d", 86_400, 172_800), ("h", 3600, 3600), ("min", 60, 60), ("s", 1, 1)];
    let mut rest = duration.as_secs();
    let mut said = Vec::new();
    for (index, (unit, secs, from)) in UNITS.into_iter().enumerate() {
        if rest >= from {
            said.push((index, format!("{}{NO_BREAK}{unit}", rest / secs)));
            rest %= secs;
        }
    }
    let first = said.first().map_or(0, |(index, _)| *index);
    let near = said.into_iter().filter(|(index, _)| *index <= first + 1).map(|(_, text)| text);
    let text = near.collect::<Vec<_>>().join(" ");
    if text.is_empty() { format!("{}{NO_BREAK}ms", duration.as_millis()) } else { text }
}

/// A tenant's policy, said in spans.
pub(super) struct PolicyWords {
    pub(super) publish_lead: String,
    pub(super) jwks_max_age: String,
    pub(super) max_token_ttl: String,
    /// How long a previous key stays; none: until it is revoked by hand.
    pub(super) retention: Option<String>,
}

impl PolicyWords {
    /// What `policy` binds to.
    pub(super) fn new(policy: &RotationPolicy) -> Self {
        Self {
            publish_lead: span(policy.publish_lead),
            jwks_max_age: span(policy.jwks_max_age),
            max_token_ttl: span(policy.max_token_ttl),
            retention: policy.auto_revoke.then(|| span(policy.retention())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_said_in_its_two_largest_units() {
        let said = |secs| span(Duration::from_secs(secs)).replace(NO_BREAK, " ");
        assert_eq!(said(1), "1 s");
        assert_eq!(said(360), "6 min");
        assert_eq!(said(3661), "1 h 1 min");
        assert_eq!(said(86_400), "24 h");
        assert_eq!(said(86_760), "24 h 6 min");
        assert_eq!(said(30 * 86_400 + 59), "30 d");
        assert_eq!(said(3 * 86_400 + 7200), "3 d 2 h");
        assert_eq!(span(Duration::from_millis(250)), "250\u{a0}ms");
    }

    #[test]
    fn a_moment_is_in_utc_to_the_second() {
        let moment = Moment::from("2026-03-01T23:30:05.999-01:30".parse::<Timestamp>().unwrap());
        let shown = [&moment.datetime, &moment.date, &moment.time].map(String::as_str);
        assert_eq!(shown, ["2026-03-02T01:00:05Z", "2026-03-02", "01:00:05"]);
    }
}
