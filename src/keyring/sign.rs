//! Signing and verifying: from the snapshot and the token, never from the store (R9).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::generate::token_input;
use super::snapshot::{Signer, TenantView};
use super::{Attended, Error, Keyrings, Part};
use crate::domain::{Algorithm, Digest, Family, KeyState, Keyring, Kid, TenantId, after};
use crate::jose::{self, Claims};
use crate::store::TenantRecord;
use crate::token::{KeyRef, SignInput, Token as _};

/// Longest claims set: four times what header limits of common HTTP servers let a bearer JWT be.
pub const CLAIMS_BYTES_MAX: usize = 64 * 1024;

/// Longest header `typ`: several times the longest registered media type.
const TYPE_BYTES_MAX: usize = 64;

/// Most inputs of one BatchSign: the worker is busy with a batch for this many signatures before others have their turn.
pub const BATCH_INPUTS_MAX: usize = 256;

/// Which key a caller wants to sign with.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The tenant.
    pub tenant: TenantId,
    /// The algorithm; `None`: the tenant's default.
    pub algorithm: Option<Algorithm>,
    /// If set, the current key must be this one.
    pub kid: Option<Kid>,
}

/// What a caller wants to have signed.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message.
    Message(Vec<u8>),
    /// The algorithm's digest of a message.
    Digest(Vec<u8>),
}

/// Signatures, and the key that made them.
#[derive(Debug)]
pub struct Signed<T> {
    /// The result.
    pub value: T,
    /// The key's name.
    pub kid: Kid,
    /// The key's algorithm.
    pub algorithm: Algorithm,
}

/// Decides which signatures are verified before they are released (R11).
#[derive(Debug)]
pub(super) struct Sampling {
    /// One in so many; 0: none but RSA and ML-DSA. HS256 is never: only the token could, and would say the same.
    one_in: u64,
    count: AtomicU64,
}

impl Sampling {
    pub(super) fn new(share: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is checked to be 0 to 1")]
        let one_in = if share > 0.0 { (1.0 / share).floor() as u64 } else { 0 };
        Self { one_in, count: AtomicU64::new(0) }
    }

    fn wants(&self, algorithm: Algorithm) -> bool {
        // A faulty RSA signature made with the Chinese remainder theorem gives the private key away. Modules that sign with
        // ML-DSA are young, and to verify costs a part of what signing does.
        algorithm.is_rsa()
            || matches!(algorithm.family(), Family::MlDsa(_))
            || (self.one_in > 0 && self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.one_in))
    }
}

impl Keyrings {
    /// Signs a JWT with these claims.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what is wrong with `claims_json` or `type`; else as [`Keyrings::sign`].
    pub async fn sign_jwt(
        &self,
        choice: &Choice,
        claims_json: &[u8],
        typ: &str,
        deadline: Instant,
    ) -> Result<Signed<String>, Error> {
        let (tenant, signer) = self.choose(choice)?;
        self.check_claims(&tenant, claims_json)?;
        let header = match typ {
            "" | "JWT" => signer.jwt_header.clone(),
            typ => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
                if typ.len() > TYPE_BYTES_MAX || !typ.bytes().all(plain) {
                    let problem =
                        format!("must be a media type of at most {TYPE_BYTES_MAX} characters, such as at+jwt");
                    return Err(Error::invalid("type", problem));
                }
                jose::header_segment(signer.key.algorithm, &signer.kid, typ)
            }
        };
        let mut jwt = format!("{header}.{}", jose::encode_segment(claims_json));
        let input = prepare(signer.key.algorithm, Input::Message(jwt.as_bytes().to_vec()), "claims_json")?;
        let signature = self.sign_prepared(&signer, vec![input], deadline).await?.remove(0);
        jwt.push('.');
        jwt.push_str(&jose::encode_segment(&signature));
        Ok(Signed { value: jwt, kid: signer.kid.clone(), algorithm: signer.key.algorithm })
    }

    /// Signs inputs with one key, in order: all or nothing. `field` names the inputs in errors. ECDSA signatures are r || s.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the tenant, [`Error::Precondition`] when `choice.kid` is not the current key or the current key
    /// is in quarantine,
    /// [`Error::Invalid`] for inputs, [`Error::Limit`], [`Error::Unavailable`] and [`Error::DeadlineExceeded`] for the
    /// token, [`Error::Internal`] for a signature that does not verify.
    pub async fn sign(
        &self,
        choice: &Choice,
        inputs: Vec<(String, Input)>,
        deadline: Instant,
    ) -> Result<Signed<Vec<Vec<u8>>>, Error> {
        let (_, signer) = self.choose(choice)?;
        let algorithm = signer.key.algorithm;
        let prepared = inputs.into_iter().map(|(field, input)| prepare(algorithm, input, &field));
        let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        let signatures = self.sign_prepared(&signer, prepared, deadline).await?;
        Ok(Signed { value: signatures, kid: signer.kid.clone(), algorithm })
    }

    /// The one choice of a request (R5): the current key in one snapshot that is young enough to sign from (R10).
    pub(super) fn choose(&self, choice: &Choice) -> Result<(Arc<TenantView>, Arc<Signer>), Error> {
        self.check_age()?;
        let snapshot = self.snapshot();
        let view = snapshot.tenant(&choice.tenant).ok_or_else(|| self.absent(&choice.tenant))?;
        let algorithm = algorithm_of(view, choice.algorithm)?;
        let signer = view.signer(algorithm).ok_or_else(|| self.no_signer(view, algorithm))?;
        if choice.kid.as_ref().is_some_and(|kid| *kid != signer.kid) {
            return Err(Error::Precondition {
                reason: "KID_NOT_CURRENT",
                message: format!("kid is not the current key, which is {}; only the current key signs", signer.kid),
                retry_time: None,
            });
        }
        Ok((Arc::clone(view), Arc::clone(signer)))
    }

    /// Why nothing signs for one of the tenant's algorithms.
    fn no_signer(&self, view: &TenantView, algorithm: Algorithm) -> Error {
        let TenantRecord { tenant, keyrings } = &view.record;
        let added = keyrings.iter().find(|keyring| keyring.algorithm == algorithm && keyring.join_time.is_some());
        match added.and_then(Keyring::next) {
            Some(next) => {
                let ready_time = Keyring::ready_time(next, &tenant.binding_policy(self.clock.now()));
                Error::Precondition {
                    reason: "PUBLISH_LEAD",
                    message: format!(
                        "{algorithm} was added a short while ago: its first key has to be known to verifiers for \
                         publish_lead, and signs from {ready_time} on"
                    ),
                    retry_time: Some(ready_time),
                }
            }
            None => {
                let cause = format!("the first {algorithm} key of tenant {} is still being generated", tenant.id);
                Error::away(Part::Token, cause)
            }
        }
    }

    pub(super) async fn sign_prepared(
        &self,
        signer: &Arc<Signer>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.check_key(&signer.kid)?;
        let verifier = signer.verifier.as_ref().filter(|_| self.sampling.wants(signer.key.algorithm));
        let checked = verifier.map(|verifier| (verifier, inputs.clone()));
        let signatures = self
            .ask_token(&signer.token, &signer.key, inputs, deadline)
            .await
            .map_err(|error| error.of_signer(signer))?;
        if let Some((verifier, inputs)) = checked {
            let right = signatures.iter().zip(&inputs).all(|(signature, input)| match input {
                SignInput::Digest(digest) => verifier.verify_digest(digest, signature),
                SignInput::Message(message) => verifier.verify(message, signature),
            });
            if !right || signatures.len() != inputs.len() {
                self.quarantine_key(signer);
                let cause =
                    format!("the token's signature with key {} does not verify; it was not released", signer.kid);
                return Err(Error::Internal(cause));
            }
        }
        // Another call may have found out in between, and not every signature is verified.
        self.check_key(&signer.kid)?;
        Ok(signatures)
    }

    /// R10, once more and last, before the answer goes: a call may have waited for the disk since, or the process may have stood
    /// still, and meanwhile others were told that this key signs no more.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the call is to be made again, and will be signed with another key.
    pub fn may_release(&self, tenant: &TenantId, kid: &Kid) -> Result<(), Error> {
        self.check_age()?;
        let snapshot = self.snapshot();
        let is_known = |view: &Arc<TenantView>| {
            let retired = || view.record.keyrings.iter().filter_map(|keyring| keyring.key(kid));
            view.signers.iter().any(|signer| signer.kid == *kid) || retired().any(|key| key.state == KeyState::Previous)
        };
        if snapshot.tenant(tenant).is_some_and(is_known) {
            return Ok(());
        }
        Err(Error::away(Part::Snapshot, format!("key {kid} was revoked while it signed")))
    }

    /// R10: nothing is signed from a snapshot that is too old.
    pub(super) fn check_age(&self) -> Result<(), Error> {
        let age = self.published.age();
        if age > self.settings.snapshot_max_age {
            let cause = format!("the snapshot is {} ms old", age.as_millis());
            return Err(Error::away(Part::Snapshot, cause));
        }
        Ok(())
    }

    /// Signatures or MACs, in time or not at all.
    pub(super) async fn ask_token(
        &self,
        token: &Attended,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let deadline = deadline.min(Instant::now() + self.settings.sign_wait_max);
        Ok(token.sign(key, inputs, deadline).await?)
    }

    /// R4, and what a JWT of this tenant must say.
    fn check_claims(&self, view: &TenantView, claims_json: &[u8]) -> Result<(), Error> {
        let invalid = |problem: String| Error::invalid("claims_json", problem);
        if claims_json.len() > CLAIMS_BYTES_MAX {
            return Err(invalid(format!("must be at most {CLAIMS_BYTES_MAX} octets")));
        }
        let claims = Claims::parse(claims_json).map_err(|problem| invalid(problem.to_string()))?;
        let tenant = &view.record.tenant;
        // A clock that is ahead would let JWTs live longer than others keep their key.
        self.check_clock(tenant)?;
        let now = self.clock.now();
        let latest = after(now, tenant.policy.max_token_ttl);
        let exp = claims.exp.ok_or_else(|| {
            invalid(format!(
                "must have exp, in seconds since 1970, at most {} s from now",
                tenant.policy.max_token_ttl.as_secs_f64()
            ))
        })?;
        if exp <= now.as_duration().as_secs_f64() {
            return Err(invalid(format!("has an exp that is past; the time is {} ({now})", now.as_second())));
        }
        if exp > latest.as_duration().as_secs_f64() {
            return Err(invalid(format!(
                "has an exp beyond now + max_token_ttl; it may be at most {} ({latest})",
                latest.as_second()
            )));
        }
        let custom = tenant.custom_issuer();
        let own = |iss: &str| iss == tenant.issuer.as_str() || Some(iss) == custom.as_deref();
        if claims.iss.is_some_and(|iss| !own(&iss)) {
            let or_custom = custom.as_ref().map_or_else(String::new, |custom| format!(" or {custom}"));
            return Err(invalid(format!("has an iss that is not the tenant's, {}{or_custom}", tenant.issuer)));
        }
        Ok(())
    }
}

/// The algorithm that a call means.
pub(super) fn algorithm_of(view: &TenantView, algorithm: Option<Algorithm>) -> Result<Algorithm, Error> {
    let tenant = &view.record.tenant;
    match algorithm {
        None => Ok(tenant.default_algorithm),
        Some(algorithm) if tenant.algorithms.contains(&algorithm) => Ok(algorithm),
        Some(_) => Err(Error::not_of_tenant(tenant)),
    }
}

/// What the token signs for `input`.
fn prepare(algorithm: Algorithm, input: Input, field: &str) -> Result<SignInput, Error> {
    match (algorithm.digest(), input) {
        (_, Input::Message(message)) => Ok(token_input(algorithm, message)),
        (Some(digest), Input::Digest(octets)) if octets.len() == digest.octets() => Ok(SignInput::Digest(octets)),
        (Some(digest), Input::Digest(octets)) => Err(wrong_digest(algorithm, digest, octets.len(), field)),
        (None, Input::Digest(_)) => {
            Err(Error::invalid(field, format!("cannot be a digest: {algorithm} signs messages alone; send message")))
        }
    }
}

fn wrong_digest(algorithm: Algorithm, digest: Digest, len: usize, field: &str) -> Error {
    let problem =
        format!("must be the {} octets of a {} digest for {algorithm}, not {len}", digest.octets(), digest.name());
    Error::invalid(field, problem)
}

/// The curve of an ECDSA algorithm.
#[must_use]
pub fn ecdsa_curve(algorithm: Algorithm) -> Option<crate::domain::Curve> {
    match algorithm.family() {
        Family::Ecdsa(curve) => Some(curve),
        Family::RsaPkcs1 | Family::RsaPss | Family::Ed25519 | Family::MlDsa(_) | Family::Hmac => None,
    }
}
