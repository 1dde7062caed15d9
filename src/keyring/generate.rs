//! New keys: generated, put to the test, and given their certificate, before anybody hears of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Keyrings, new_object};
use crate::domain::rotation::GENERATION_LEASE;
use crate::domain::{Algorithm, Certificate, Generated, Keyring, Kid, ObjectId, PublicKey, Tenant};
use crate::jose::{self, Verifier};
use crate::store::TenantRecord;
use crate::token::{Found, KeyRef, KeySpec, SignInput, Token as _, TokenError, TokenKey};
use crate::x509::Unsigned;

/// Longest wait for the token's administration, which does one thing after another: longer than a generation may take
/// before another process takes it over. What the token does later is found by the next pass.
const ADMINISTRATION_WAIT_MAX: Duration = GENERATION_LEASE.saturating_add(Duration::from_secs(30));

impl Keyrings {
    /// Generates a pending key and puts it to the test. Remembers how far it came, so that the next pass neither loses nor
    /// doubles the key.
    pub(super) async fn generate(
        &self,
        object: ObjectId,
        algorithm: Algorithm,
        tenant: &Tenant,
    ) -> Result<Generated, TokenError> {
        {
            // From here on this process may have to find out what came of it: after an error, or a commit that was lost.
            let mut claims = self.lock_claims();
            claims.fresh.remove(&object);
            claims.asked.insert(object);
        }
        let spec = KeySpec { algorithm, rsa_bits: self.settings.rsa_bits };
        let key = bounded(self.tokens.of(tenant).generate(object, spec)).await.inspect_err(|error| match error {
            // The token was not asked: the intent is as fresh as before.
            TokenError::QueueFull { .. } | TokenError::Late | TokenError::Down { .. } | TokenError::PinRefused => {
                self.lock_claims().fresh.insert(object);
            }
            TokenError::Unavailable(_) | TokenError::Unsupported(_) | TokenError::Mismatch(_) => {}
        })?;
        self.tested(object, algorithm, key, tenant).await
    }

    /// Finds out what became of a pending key, and takes it up or gives it up.
    pub(super) async fn recover(&self, object: ObjectId, keyring: &Keyring, tenant: &Tenant) -> Result<Keyring, Error> {
        match bounded(self.tokens.of(tenant).find(object, keyring.algorithm)).await? {
            Found::Key(key) => match self.tested(object, keyring.algorithm, key, tenant).await {
                Ok(generated) => return Ok(keyring.publish(generated, self.clock.now())),
                // A key that the token shows and that fails its test is of no use to anybody: give it up below.
                Err(TokenError::Mismatch(cause) | TokenError::Unavailable(cause)) => {
                    tracing::error!(%object, cause, "a recovered key failed its test");
                }
                Err(error) => return Err(error.into()),
            },
            // Also after a failure that this process was told of: what the token shows nothing of may still turn up (R8),
            // and a second key under the same id would make a published one unusable.
            Found::Absent | Found::Remains => {}
        }
        // What a crash leaves here is an abandoned id in the record at the latest after the commit; until then the same
        // pending id, which the next pass recovers again. The sweep clears the token.
        Ok(keyring.abandon(Some(new_object()), self.clock.now()))
    }

    /// After a lost compare-and-swap: if this process generated a key that another one has given up meanwhile, the key is
    /// destroyed at once. A crash before that is what the second sweep is for.
    pub(super) async fn yield_object(&self, object: ObjectId, record: &TenantRecord) -> Result<(), Error> {
        let named = record.keyrings.iter().any(|keyring| {
            keyring.keys.iter().any(|key| key.object == object)
                || keyring.pending.as_ref().is_some_and(|pending| pending.object == object)
        });
        if !named {
            bounded(self.tokens.of(&record.tenant).destroy(object)).await?;
        }
        Ok(())
    }

    /// R1 and R11: a new key shows that it cannot leave the token, and signs, before anybody hears of it. A key pair shows
    /// the second with its own certificate.
    async fn tested(
        &self,
        object: ObjectId,
        algorithm: Algorithm,
        key: TokenKey,
        tenant: &Tenant,
    ) -> Result<Generated, TokenError> {
        let TokenKey { public, protection } = key;
        if !protection.holds() {
            let cause = format!("the token did not protect key {object} as R1 demands: {protection:?}");
            return Err(TokenError::Mismatch(cause));
        }
        let reference = Arc::new(KeyRef { object, algorithm, public: public.clone(), tenant: None });
        let (kid, certificate) = match &public {
            Some(public) => {
                let certificate = self.certified(&reference, public, tenant).await?;
                (jose::thumbprint(public), Some(certificate))
            }
            None => {
                self.try_mac(&reference, tenant).await?;
                (random_kid(), None)
            }
        };
        Ok(Generated { kid, public, certificate, protection })
    }

    /// The certificate of a new key, signed by the key itself and verified.
    async fn certified(
        &self,
        key: &Arc<KeyRef>,
        public: &PublicKey,
        tenant: &Tenant,
    ) -> Result<Certificate, TokenError> {
        let KeyRef { object, algorithm, .. } = **key;
        let verifier = Verifier::new(algorithm, public).map_err(|bad| TokenError::Mismatch(bad.to_string()))?;
        // A verifier whose clock is slow by `clock_skew` takes the certificate from the start.
        let from = self.clock.now() - tenant.policy.clock_skew;
        let unsigned = Unsigned::of_key(algorithm, public, object, &tenant.certificate_name(), from);
        let unsigned = unsigned.expect("an algorithm with public keys has certificates");
        let message = unsigned.message();
        let signatures = self.test_signatures(key, tenant, vec![token_input(algorithm, message.clone())]).await?;
        let signature = signatures.first().filter(|signature| verifier.verify(&message, signature));
        signature.and_then(|signature| unsigned.signed(signature)).ok_or_else(|| {
            TokenError::Mismatch(format!("the signature of new key {object} in its certificate does not verify"))
        })
    }

    /// A new secret makes the same MAC of the same message, and another of another.
    async fn try_mac(&self, key: &Arc<KeyRef>, tenant: &Tenant) -> Result<(), TokenError> {
        let messages = [b"one".as_slice(), b"one", b"two"].map(|message| token_input(key.algorithm, message.to_vec()));
        match self.test_signatures(key, tenant, messages.to_vec()).await?.as_slice() {
            [one, again, other] if jose::same_mac(one, again) && !jose::same_mac(one, other) => Ok(()),
            _ => Err(TokenError::Mismatch(format!("new secret {} does not make MACs", key.object))),
        }
    }

    async fn test_signatures(
        &self,
        key: &Arc<KeyRef>,
        tenant: &Tenant,
        inputs: Vec<SignInput>,
    ) -> Result<Vec<Vec<u8>>, TokenError> {
        let deadline = Instant::now() + self.settings.sign_wait_max;
        self.tokens.of(tenant).sign(key, inputs, deadline).await
    }
}

/// The name of a key without a public half: 32 random octets.
fn random_kid() -> Kid {
    let mut octets = vec![0; 32];
    getrandom::fill(&mut octets).expect("the operating system gives random octets");
    jose::encode_segment(&octets).parse().expect("base64url of 32 octets is a kid")
}

/// What the token is given to sign `message` with this algorithm.
pub(super) fn token_input(algorithm: Algorithm, message: Vec<u8>) -> SignInput {
    match algorithm.digest() {
        Some(digest) => SignInput::Digest(jose::digest(digest, &message)),
        None => SignInput::Message(message),
    }
}

/// The token's answer, unless it takes too long.
pub(super) async fn bounded<T>(work: impl Future<Output = Result<T, TokenError>>) -> Result<T, TokenError> {
    let answer = tokio::time::timeout(ADMINISTRATION_WAIT_MAX, work).await;
    answer.unwrap_or_else(|_| Err(TokenError::Unavailable("it does not answer".to_owned())))
}
