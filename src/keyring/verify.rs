//! VerifyJwt: for those who may sign, and for HS256, whose JWTs nobody else can verify.

use std::sync::Arc;
use std::time::Instant;

use super::generate::token_input;
use super::snapshot::TenantView;
use super::{Error, Keyrings};
use crate::domain::{Algorithm, KeyState, Kid, TenantId};
use crate::jose::{self, Claims, Jws, Verifier};
use crate::token::KeyRef;

/// What became of a JWT's verification.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Why it is not valid; `None`: it is.
    pub problem: Option<String>,
    /// The claims, if the signature is right.
    pub claims: Vec<u8>,
    /// The key that the header names, if the tenant has it.
    pub key: Option<(Kid, Algorithm, KeyState)>,
}

/// Why a JWT was not found to be valid.
enum Unverified {
    /// It is not.
    Invalid(String),
    /// The token did not say.
    Unknown(Error),
}

impl<T: Into<String>> From<T> for Unverified {
    fn from(problem: T) -> Self {
        Self::Invalid(problem.into())
    }
}

impl Keyrings {
    /// Tells whether a published key of the tenant signed `jwt`, and whether it is valid now. The MAC of an HS256 key is
    /// made again by the token.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the tenant, and for HS256 those of the token. A JWT that is not valid is a [`Verdict`].
    pub async fn verify_jwt(&self, tenant: &TenantId, jwt: &str, deadline: Instant) -> Result<Verdict, Error> {
        let snapshot = self.snapshot();
        let view = snapshot.tenant(tenant).ok_or_else(|| self.absent(tenant))?;
        let mut verdict = Verdict::default();
        match self.verify_with(view, jwt, deadline, &mut verdict).await {
            Ok(()) => {}
            Err(Unverified::Invalid(problem)) => verdict.problem = Some(problem),
            Err(Unverified::Unknown(error)) => return Err(error),
        }
        Ok(verdict)
    }

    async fn verify_with(
        &self,
        view: &TenantView,
        jwt: &str,
        deadline: Instant,
        verdict: &mut Verdict,
    ) -> Result<(), Unverified> {
        let jws = Jws::parse(jwt).map_err(|malformed| malformed.to_string())?;
        let kid = jws.kid.as_deref().ok_or("the header has no kid")?;
        let found = kid.parse().ok().and_then(|kid| view.key(&kid));
        let (keyring, key) = found.ok_or("the header's kid is no key of the tenant")?;
        verdict.key = Some((key.kid.clone(), keyring.algorithm, key.state));
        if jws.alg != keyring.algorithm.name() {
            return Err(format!("the header's alg is not the key's, {}", keyring.algorithm).into());
        }
        if !key.state.is_published() {
            return Err(format!("the key is {}", key.state).into());
        }
        let message = jws.signing_input.as_bytes();
        let verifier = Verifier::of(keyring.algorithm, key.public.as_ref()).map_err(|bad| bad.to_string())?;
        let right = match verifier {
            Some(verifier) => verifier.verify(message, &jws.signature),
            None => {
                let (object, algorithm) = (key.object, keyring.algorithm);
                let tenant = Some(view.record.tenant.id.clone());
                let key = Arc::new(KeyRef { object, algorithm, public: None, tenant });
                let input = vec![token_input(keyring.algorithm, message.to_vec())];
                let macs = self.ask_token(&view.token, &key, input, deadline).await.map_err(Unverified::Unknown)?;
                macs.first().is_some_and(|mac| jose::same_mac(mac, &jws.signature))
            }
        };
        if !right {
            return Err("the signature is not the key's".into());
        }
        let claims = Claims::parse(&jws.payload).map_err(|problem| format!("the claims {problem}"));
        verdict.claims = jws.payload;
        let claims = claims?;
        let now = self.clock.now();
        let skew = view.record.tenant.policy.clock_skew.as_secs_f64();
        let now = now.as_duration().as_secs_f64();
        if claims.exp.is_some_and(|exp| exp + skew <= now) {
            return Err("exp is past".into());
        }
        if claims.nbf.is_some_and(|nbf| nbf - skew > now) {
            return Err("nbf is not reached".into());
        }
        Ok(())
    }
}
