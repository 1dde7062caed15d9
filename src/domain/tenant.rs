use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Algorithm, CustomKey, Domain, Issuer, Revision, TenantId, Timestamp, TokenName, WebUrl, after};

/// One issuer of JWTs or SAML assertions. Keys are never shared between tenants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// What its JWTs carry as `iss`, and what discovery on the canonical path names.
    pub issuer: Issuer,
    /// A domain of its own on which its documents are served too.
    pub custom_domain: Option<Domain>,
    /// The token that its keys are on, for life. Left out where it is home, as in records from before there were others.
    #[serde(default, skip_serializing_if = "TokenName::is_home")]
    pub token: TokenName,
    /// Where its SAML identity provider takes requests, if it has one.
    pub saml_sso_url: Option<WebUrl>,
    /// Its algorithms, one keyring each; never empty, no repetition.
    pub algorithms: Vec<Algorithm>,
    /// The algorithm of calls that name none; one of `algorithms`.
    pub default_algorithm: Algorithm,
    /// How its keys rotate.
    pub policy: RotationPolicy,
    /// Public keys that it brought itself, in its order; they are published on its custom domain alone.
    #[serde(default)]
    pub custom_keys: Vec<CustomKey>,
    /// Longer times of policies replaced a short while ago, which R3 and R4 still have to honour.
    pub policy_floor: Option<PolicyFloor>,
    /// When it was created.
    pub create_time: Timestamp,
    /// When its deletion was asked for; from then on it is neither served nor shown.
    pub delete_time: Option<Timestamp>,
    /// Raised by each change of this record.
    pub revision: Revision,
}

impl Tenant {
    /// The issuer of its custom domain, if it has one.
    #[must_use]
    pub fn custom_issuer(&self) -> Option<String> {
        self.custom_domain.as_ref().map(|domain| format!("https://{domain}"))
    }

    /// The name in the certificates of its keys: its custom domain, or its issuer's host; its id where that is longer than
    /// a common name may be (RFC 5280 appendix A.1).
    #[must_use]
    pub fn certificate_name(&self) -> String {
        const COMMON_NAME_OCTETS_MAX: usize = 64;
        let host = self.custom_domain.as_ref().map_or_else(|| self.issuer.host(), ToString::to_string);
        if host.len() <= COMMON_NAME_OCTETS_MAX { host } else { self.id.to_string() }
    }

    /// The policy that changes of keys must satisfy at `now`: the present one, or longer where a policy replaced a short
    /// while ago may still bind a JWT or a cache.
    #[must_use]
    pub fn binding_policy(&self, now: Timestamp) -> RotationPolicy {
        match &self.policy_floor {
            Some(floor) if now < floor.until => self.policy.longest(&floor.policy),
            _ => self.policy.clone(),
        }
    }

    /// The tenant with another policy from `now` on.
    #[must_use]
    pub fn with_policy(mut self, policy: RotationPolicy, now: Timestamp) -> Self {
        let bound = self.binding_policy(now);
        let until = after(now, bound.retention());
        let until = self.policy_floor.map_or(until, |floor| floor.until.max(until));
        self.policy_floor = Some(PolicyFloor { policy: bound, until });
        self.policy = policy;
        self
    }
}

/// Times that a replaced policy promised, kept for as long as somebody may hold something made under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFloor {
    /// The longest of the replaced times.
    pub policy: RotationPolicy,
    /// When nothing made under them is in use any more.
    pub until: Timestamp,
}

/// When a tenant's keys rotate, and how long each step waits for verifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationPolicy {
    /// Longest life of a JWT from its signing (R4).
    #[serde(with = "millis")]
    pub max_token_ttl: Duration,
    /// How long a verifier may keep the JWKS: the max-age of its Cache-Control.
    #[serde(with = "millis")]
    pub jwks_max_age: Duration,
    /// How far clocks of issuers, verifiers and replicas may be apart.
    #[serde(with = "millis")]
    pub clock_skew: Duration,
    /// How long a key is published before it signs (R3); at least `jwks_max_age + clock_skew`.
    #[serde(with = "millis")]
    pub publish_lead: Duration,
    /// How long a key is current before the next one takes its place; zero: only by hand.
    #[serde(with = "millis")]
    pub rotation_period: Duration,
    /// How long a revoked private key stays on the token before it is destroyed.
    #[serde(with = "millis")]
    pub destroy_delay: Duration,
    /// Whether a previous key is revoked when its retention ends; if not, it stays until it is revoked by hand.
    pub auto_revoke: bool,
}

/// A relation between the times of a policy that does not hold, or a time out of its bounds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidPolicy {
    /// The field to change, as the proto names it.
    pub field: &'static str,
    /// What must hold.
    pub problem: String,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl Default for RotationPolicy {
    fn default() -> Self {
        Self {
            max_token_ttl: Duration::from_secs(DAY),
            jwks_max_age: Duration::from_secs(5 * MINUTE),
            clock_skew: Duration::from_secs(MINUTE),
            publish_lead: Duration::from_secs(6 * MINUTE),
            rotation_period: Duration::ZERO,
            destroy_delay: Duration::from_secs(DAY),
            auto_revoke: true,
        }
    }
}

impl RotationPolicy {
    /// How long a key stays published after it stopped signing (R4).
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.max_token_ttl + self.jwks_max_age + self.clock_skew
    }

    /// Holds each time against its bounds and the others; all problems at once.
    ///
    /// # Errors
    /// One entry for each field that must change.
    pub fn check(&self) -> Result<(), Vec<InvalidPolicy>> {
        let mut problems = Vec::new();
        // Bounds: a JWT or a cache that outlives a year is a mistake in units; ten years of schedule is none.
        let bounds = [
            ("max_token_ttl", self.max_token_ttl, 1, 366 * DAY),
            ("jwks_max_age", self.jwks_max_age, 1, 7 * DAY),
            ("clock_skew", self.clock_skew, 0, HOUR),
            ("publish_lead", self.publish_lead, 1, 366 * DAY),
            ("rotation_period", self.rotation_period, 0, 3660 * DAY),
            ("destroy_delay", self.destroy_delay, 0, 3660 * DAY),
        ];
        for (field, value, min_secs, max_secs) in bounds {
            if value < Duration::from_secs(min_secs) || value > Duration::from_secs(max_secs) {
                problems.push(InvalidPolicy { field, problem: format!("must be from {min_secs} s to {max_secs} s") });
            }
        }
        let lead_min = self.jwks_max_age + self.clock_skew;
        if self.publish_lead < lead_min {
            let problem = format!("must be at least jwks_max_age + clock_skew, here {} s", lead_min.as_secs_f64());
            problems.push(InvalidPolicy { field: "publish_lead", problem });
        }
        if !self.rotation_period.is_zero() && self.rotation_period < self.publish_lead {
            let problem =
                format!("must be 0 (by hand) or at least publish_lead, here {} s", self.publish_lead.as_secs_f64());
            problems.push(InvalidPolicy { field: "rotation_period", problem });
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// This policy with each time that protects a verifier as long as in either of the two.
    fn longest(&self, other: &Self) -> Self {
        Self {
            max_token_ttl: self.max_token_ttl.max(other.max_token_ttl),
            jwks_max_age: self.jwks_max_age.max(other.jwks_max_age),
            clock_skew: self.clock_skew.max(other.clock_skew),
            publish_lead: self.publish_lead.max(other.publish_lead),
            ..self.clone()
        }
    }
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_millis()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
