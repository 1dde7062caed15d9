//! A token and a store in memory that do nothing until the history says what comes of each call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use keyward::domain::{
    Algorithm, Ed25519, Keyring, ObjectId, Octets, Protection, PublicKey, RequestId, Revision, TenantId, Timestamp,
    Trigger,
};
use keyward::store::{
    Change, EventPage, EventRow, Loaded, Revisions, Store, StoreError, TenantRecord, TenantRevisions, TokenBinding,
    TokenRecord,
};
use keyward::tlog::Tip;
use keyward::token::{
    Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey, TokenObject,
};
use tokio::sync::oneshot;

use super::rules::Ledger;

/// How far the replicas' clocks are from the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clocks {
    /// Apart by less than `clock_skew`: what verifiers see is checked in true time.
    Skewed,
    /// They jump: what is checked is what the clocks said.
    Wild,
}

/// What comes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    FailedButHappened,
    /// Of a generation: half a pair stands there.
    Half,
    /// Of a generation: the pair turns up after the error.
    Late,
    /// The token was not asked.
    NotAsked,
}

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Load,
    Revisions,
    Commit(Box<Change>),
    Generate(ObjectId, Algorithm),
    Find(ObjectId),
    Sign(Arc<KeyRef>, Vec<Vec<u8>>),
    Destroy(ObjectId),
}

enum Answer {
    Record(Box<Option<TenantRecord>>),
    Committed(Result<(), StoreError>),
    Key(TokenKey),
    Found(Found),
    Signatures(Result<Vec<Vec<u8>>, TokenError>),
    Destroyed,
    Failed,
    NotAsked,
}

/// A call that waits for the history.
pub(crate) struct Parked {
    pub(crate) life: usize,
    pub(crate) call: Call,
    /// When it was made, in the order of all that happens.
    pub(crate) born: u64,
    answer: oneshot::Sender<Answer>,
}

/// A key pair on the token, or its public half alone.
pub(crate) struct Made {
    pair: Ed25519KeyPair,
    shown: TokenKey,
    pub(crate) whole: bool,
    pub(crate) born: u64,
}

#[derive(Default)]
pub(crate) struct World {
    /// True time in seconds.
    pub(crate) time: i64,
    pub(crate) offsets: [i64; 2],
    pub(crate) parked: Vec<Parked>,
    pub(crate) record: Option<TenantRecord>,
    pub(crate) removed: bool,
    pub(crate) objects: BTreeMap<ObjectId, Vec<Made>>,
    pub(crate) late: Vec<(ObjectId, Algorithm)>,
    /// When the token was last cleared of an id.
    pub(crate) cleared: HashMap<ObjectId, u64>,
    pub(crate) triggers: HashMap<RequestId, Trigger>,
    pub(crate) ledger: Ledger,
    /// The first rule that was broken.
    pub(crate) broken: Option<String>,
    sequence: u64,
    seeds: u64,
}

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 2026-01-01, so that every time is a plain one.
pub(crate) fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).expect("histories last years at most")
}

impl World {
    pub(crate) fn tick(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn broke(&mut self, rule: impl Into<String>) {
        self.broken.get_or_insert(rule.into());
    }

    /// Lets the call at `index` have its outcome; whose it was.
    pub(crate) fn answer(&mut self, index: usize, outcome: Outcome) -> usize {
        let Parked { life, call, born, answer } = self.parked.remove(index);
        let generate = matches!(call, Call::Generate(..));
        let told = match outcome {
            Outcome::NotAsked if generate => Answer::NotAsked,
            Outcome::Failed => Answer::Failed,
            Outcome::Half if generate => {
                self.perform(life, &call, born, false);
                Answer::Failed
            }
            Outcome::Late if generate => {
                let Call::Generate(object, algorithm) = call else { unreachable!() };
                self.late.push((object, algorithm));
                Answer::Failed
            }
            Outcome::FailedButHappened => {
                self.perform(life, &call, born, true);
                Answer::Failed
            }
            _ => self.perform(life, &call, born, true),
        };
        // A caller that crashed hears nothing.
        let _ = answer.send(told);
        life
    }

    /// The process of `life` is gone; what it had asked for may happen all the same.
    pub(crate) fn crash(&mut self, life: usize, happens: bool) {
        while let Some(index) = self.parked.iter().position(|parked| parked.life == life) {
            self.answer(index, if happens { Outcome::FailedButHappened } else { Outcome::Failed });
        }
    }

    /// What was asked for and given up turns up on the token.
    pub(crate) fn turn_up(&mut self) {
        if let Some((object, algorithm)) = self.late.pop() {
            self.make(object, algorithm, true);
        }
    }

    fn make(&mut self, object: ObjectId, algorithm: Algorithm, whole: bool) -> TokenKey {
        self.seeds += 1;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seeds.to_le_bytes());
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any seed makes a key");
        let (shown, born) = (shown(&pair, algorithm), self.tick());
        self.objects.entry(object).or_default().push(Made { pair, shown: shown.clone(), whole, born });
        shown
    }

    fn perform(&mut self, life: usize, call: &Call, born: u64, whole: bool) -> Answer {
        match call {
            Call::Load | Call::Revisions => Answer::Record(Box::new(self.record.clone())),
            Call::Commit(change) => Answer::Committed(self.commit(life, change, born)),
            Call::Generate(object, algorithm) => {
                if !self.is_named(*object) && !self.removed {
                    self.broke(format!("R6: {object} is generated and the record does not name it"));
                }
                Answer::Key(self.make(*object, *algorithm, whole))
            }
            Call::Find(object) => Answer::Found(match self.objects.get(object).map(Vec::as_slice) {
                None => Found::Absent,
                Some([made]) if made.whole => Found::Key(made.shown.clone()),
                Some(_) => Found::Remains,
            }),
            Call::Sign(key, messages) => Answer::Signatures(match self.objects.get(&key.object).map(Vec::as_slice) {
                None => Err(TokenError::Unavailable("no such key".to_owned())),
                Some([made]) if made.whole && made.shown.public == key.public => {
                    // For a secret too: the same message has the same signature, and another another.
                    Ok(messages.iter().map(|message| made.pair.sign(message).as_ref().to_vec()).collect())
                }
                Some(_) => Err(TokenError::Mismatch("another key, or more than one".to_owned())),
            }),
            Call::Destroy(object) => {
                let used = self.keyrings().iter().any(|keyring| {
                    keyring.keys.iter().any(|key| key.object == *object && key.destroy_begin_time.is_none())
                        || keyring.pending.as_ref().is_some_and(|pending| pending.object == *object)
                });
                if used {
                    self.broke(format!("R6: {object} is destroyed without its intent"));
                }
                self.objects.remove(object);
                let now = self.tick();
                self.cleared.insert(*object, now);
                Answer::Destroyed
            }
        }
    }

    pub(crate) fn keyrings(&self) -> &[Keyring] {
        self.record.as_ref().map_or(&[], |record| &record.keyrings)
    }

    pub(crate) fn keyring(&self, algorithm: Algorithm) -> Option<&Keyring> {
        self.keyrings().iter().find(|keyring| keyring.algorithm == algorithm)
    }

    pub(crate) fn is_named(&self, object: ObjectId) -> bool {
        self.keyrings().iter().any(|keyring| {
            keyring.pending.as_ref().is_some_and(|pending| pending.object == object)
                || keyring.keys.iter().any(|key| key.object == object)
                || keyring.abandoned.iter().any(|abandoned| abandoned.object == object)
        })
    }

    /// Compare-and-swap, as the contract of [`Store::commit`] has it.
    fn commit(&mut self, life: usize, change: &Change, born: u64) -> Result<(), StoreError> {
        let replaces = |revision: Revision, stored: Option<Revision>| match stored {
            None => revision == Revision::FIRST,
            Some(stored) => revision == stored.next(),
        };
        if let Some(tenant) = &change.tenant {
            if tenant.revision == Revision::FIRST && self.record.is_some() {
                return Err(StoreError::Taken { field: "id" });
            }
            let stored = self.record.as_ref().map(|record| record.tenant.revision);
            if !replaces(tenant.revision, stored) {
                return Err(StoreError::Conflict);
            }
        }
        for keyring in &change.keyrings {
            let creates = change.tenant.is_some() && self.record.is_none();
            let stored = self.keyring(keyring.algorithm).map(|stored| stored.revision);
            if !replaces(keyring.revision, stored) || (self.record.is_none() && !creates) {
                return Err(StoreError::Conflict);
            }
        }
        if let Some((_, revision)) = &change.remove {
            if self.record.as_ref().is_none_or(|record| record.tenant.revision != *revision) {
                return Err(StoreError::Conflict);
            }
            super::rules::removal(self);
            self.record = None;
            self.removed = true;
            return Ok(());
        }
        let before = self.record.clone();
        let tenant = change.tenant.clone().or_else(|| before.as_ref().map(|record| record.tenant.clone()));
        let mut keyrings = before.as_ref().map(|record| record.keyrings.clone()).unwrap_or_default();
        keyrings.retain(|old| change.keyrings.iter().all(|new| new.algorithm != old.algorithm));
        keyrings.extend(change.keyrings.iter().cloned());
        keyrings.sort_by_key(|keyring| keyring.algorithm);
        self.record = Some(TenantRecord { tenant: tenant.expect("conflicts were looked for"), keyrings });
        super::rules::commit(self, before.as_ref(), change, life, born);
        Ok(())
    }
}

/// What the token shows of a pair, or of a secret.
fn shown(pair: &Ed25519KeyPair, algorithm: Algorithm) -> TokenKey {
    let x = Octets(pair.public_key().as_ref().to_vec());
    let protection = Protection {
        token_label: "model".to_owned(),
        token_serial: "1".to_owned(),
        token_manufacturer: "model".to_owned(),
        token_model: "model".to_owned(),
        sensitive: true,
        always_sensitive: true,
        extractable: false,
        never_extractable: true,
        local: true,
    };
    let public = PublicKey::Ed25519 { crv: Ed25519::Ed25519, x };
    TokenKey { public: algorithm.has_public_keys().then_some(public), protection }
}

/// The token and the store as one process sees them.
pub(crate) struct Outside {
    pub(crate) world: Shared,
    pub(crate) life: usize,
}

impl Outside {
    async fn ask(&self, call: Call) -> Answer {
        let (answer, told) = oneshot::channel();
        {
            let mut world = lock(&self.world);
            let born = world.tick();
            world.parked.push(Parked { life: self.life, call, born, answer });
        }
        told.await.unwrap_or(Answer::Failed)
    }

    async fn record(&self, call: Call) -> Result<Option<TenantRecord>, StoreError> {
        match self.ask(call).await {
            Answer::Record(record) => Ok(*record),
            _ => Err(StoreError::Unavailable("model".to_owned())),
        }
    }
}

fn away() -> TokenError {
    TokenError::Unavailable("model".to_owned())
}

#[async_trait]
impl Token for Outside {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        match self.ask(Call::Generate(object, spec.algorithm)).await {
            Answer::Key(key) => Ok(key),
            Answer::NotAsked => Err(TokenError::QueueFull { retry_after: Duration::from_secs(1) }),
            _ => Err(away()),
        }
    }

    async fn find(&self, object: ObjectId, _: Algorithm) -> Result<Found, TokenError> {
        match self.ask(Call::Find(object)).await {
            Answer::Found(found) => Ok(found),
            _ => Err(away()),
        }
    }

    async fn sign(&self, key: &Arc<KeyRef>, inputs: Vec<SignInput>, _: Instant) -> Result<Vec<Vec<u8>>, TokenError> {
        let messages = inputs.into_iter().map(|input| match input {
            SignInput::Message(message) | SignInput::Digest(message) => message,
        });
        match self.ask(Call::Sign(Arc::clone(key), messages.collect())).await {
            Answer::Signatures(signatures) => signatures,
            _ => Err(away()),
        }
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        match self.ask(Call::Destroy(object)).await {
            Answer::Destroyed => Ok(()),
            _ => Err(away()),
        }
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        Err(TokenError::Unavailable("this token is not listed".to_owned()))
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        Ok(Algorithm::ALL.map(|algorithm| (algorithm, Ok(()))).to_vec())
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        Err(away())
    }
}

#[async_trait]
impl Store for Outside {
    async fn load(&self, _: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        self.record(Call::Load).await
    }

    async fn load_all(&self) -> Result<Loaded, StoreError> {
        Ok(Loaded { records: self.record(Call::Load).await?.into_iter().collect(), damaged: Vec::new() })
    }

    async fn revisions(&self) -> Result<Revisions, StoreError> {
        let revisions = |record: TenantRecord| TenantRevisions {
            keyrings: record.keyrings.iter().map(|keyring| (keyring.algorithm, keyring.revision)).collect(),
            tenant: record.tenant.id,
            revision: record.tenant.revision,
        };
        let tenants = self.record(Call::Revisions).await?.into_iter().map(revisions).collect();
        Ok(Revisions { tenants, damaged: Vec::new() })
    }

    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        match self.ask(Call::Commit(Box::new(change.clone()))).await {
            Answer::Committed(result) => result,
            _ => Err(StoreError::Unavailable("model".to_owned())),
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn tokens(&self) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError> {
        Ok(BTreeMap::new())
    }

    async fn binding(&self) -> Result<TokenBinding, StoreError> {
        Ok(TokenBinding { serial: "1".to_owned(), label: "model".to_owned() })
    }

    async fn events(&self, _: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn log_tip(&self) -> Result<Tip, StoreError> {
        Ok(Tip::default())
    }
}
