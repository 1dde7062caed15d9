//! The comparison itself: pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::domain::{Algorithm, KeyState, Keyring, Kid, ObjectId, TenantId, TokenName};
use crate::keyring::Canary;
use crate::store::Loaded;
use crate::token::{ObjectKind, TokenObject};

/// What the store accounts for on one token: every id that a record names, and what should stand under it there.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    token: TokenName,
    by_object: BTreeMap<ObjectId, Account>,
    /// Tenants whose records are not believed: nobody knows what is theirs.
    unbelieved: Vec<String>,
}

/// A key of the service's own: the service key, or a token's canary.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub(super) object: ObjectId,
    pub(super) state: &'static str,
    pub(super) expected: Expected,
}

/// The row that accounts for an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Whose key; `None` for the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// Its name, once it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<Kid>,
    /// What it is: `service`, `canary`, a [`KeyState`], `pending` or `abandoned`.
    pub state: &'static str,
    /// What should be there.
    #[serde(skip)]
    pub expected: Expected,
}

/// What should stand under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A private and a public key.
    Pair,
    /// A secret.
    Secret,
    /// Something or nothing: it is being made or destroyed.
    Anything,
    /// Nothing any more.
    Nothing,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A row's object is not on the token. That does not mean that it is gone (R8).
    Missing,
    /// One half of a pair is there, or something that is not the row's key.
    Half,
    /// The row's key is there, and more under its id.
    Duplicate,
    /// The store says that it was destroyed.
    Lingering,
    /// It looks like Keyward's, and no row accounts for it.
    Orphan,
}

/// One difference, of one id on one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What differs.
    pub kind: Kind,
    /// Where.
    pub token: TokenName,
    /// CKA_ID.
    pub object: ObjectId,
    /// The row, unless there is none.
    #[serde(flatten)]
    pub account: Option<Account>,
    /// What the token shows under the id.
    pub found: Tally,
}

/// How many objects of each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// CKO_PRIVATE_KEY.
    pub private: usize,
    /// CKO_PUBLIC_KEY.
    pub public: usize,
    /// CKO_SECRET_KEY.
    pub secret: usize,
    /// Anything else.
    pub other: usize,
}

/// An object that is not Keyward's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Where.
    pub token: TokenName,
    /// What it shows.
    #[serde(flatten)]
    pub object: TokenObject,
}

/// How tokens and store differ.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Objects on the tokens.
    pub objects: usize,
    /// Ids that rows account for, and the rows.
    #[serde(skip)]
    pub accounted: BTreeMap<ObjectId, Account>,
    /// Each difference once, ordered by its kind.
    pub findings: Vec<Finding>,
    /// Objects that are not Keyward's. They are no difference, and are left alone.
    pub foreign: Vec<Foreign>,
    /// Tenants whose records are not believed: what looks like an orphan may be theirs.
    pub unbelieved: Vec<String>,
    /// Tokens that were not looked at, and why.
    pub away: BTreeMap<TokenName, String>,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Missing, Self::Half, Self::Duplicate, Self::Lingering, Self::Orphan];

    /// Whether it is of what no row needs where it stands.
    #[must_use]
    pub fn is_not_needed(self) -> bool {
        matches!(self, Self::Lingering | Self::Orphan)
    }

    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Half => "half",
            Self::Duplicate => "duplicate",
            Self::Lingering => "lingering",
            Self::Orphan => "orphan",
        }
    }
}

impl Accounts {
    /// What these records account for on this token, besides the service's own key there.
    #[must_use]
    pub fn of(loaded: &Loaded, token: &TokenName, own: Option<Own>) -> Self {
        let mut accounts = Self { token: token.clone(), ..Self::default() };
        if let Some(Own { object, state, expected }) = own {
            let account = Account { tenant: None, algorithm: Canary::ALGORITHM, kid: None, state, expected };
            accounts.account(object, account);
        }
        let here = loaded.records.iter().filter(|record| record.tenant.token == *token);
        for keyring in here.flat_map(|record| &record.keyrings) {
            accounts.add_keyring(keyring);
        }
        accounts.unbelieved = loaded.damaged.iter().map(|damage| damage.tenant.clone()).collect();
        accounts
    }

    pub(super) fn add_keyring(&mut self, keyring: &Keyring) {
        let Keyring { tenant, algorithm, pending, abandoned, keys, .. } = keyring;
        let row = |kid, state, expected| Account {
            tenant: Some(tenant.clone()),
            algorithm: *algorithm,
            kid,
            state,
            expected,
        };
        for abandoned in abandoned {
            let expected = if abandoned.swept { Expected::Nothing } else { Expected::Anything };
            self.account(abandoned.object, row(None, "abandoned", expected));
        }
        for key in keys {
            let expected = match key.state {
                KeyState::Destroyed => Expected::Nothing,
                KeyState::Revoked if key.destroy_begin_time.is_some() => Expected::Anything,
                _ if algorithm.has_public_keys() => Expected::Pair,
                _ => Expected::Secret,
            };
            self.account(key.object, row(Some(key.kid.clone()), key.state.name(), expected));
        }
        if let Some(pending) = pending {
            self.account(pending.object, row(None, "pending", Expected::Anything));
        }
    }

    pub(super) fn account(&mut self, object: ObjectId, account: Account) {
        self.by_object.insert(object, account);
    }

    /// How the token, of which this is the whole list, differs from what should be on it.
    #[must_use]
    pub fn compare(&self, listed: &[TokenObject]) -> Report {
        let (mut groups, mut foreign): (BTreeMap<ObjectId, Vec<&TokenObject>>, Vec<&TokenObject>) = Default::default();
        for object in listed {
            match <[u8; 16]>::try_from(object.id.as_slice()) {
                Ok(id) => groups.entry(ObjectId::new(id)).or_default().push(object),
                Err(_) => foreign.push(object),
            }
        }
        let mut findings = Vec::new();
        let mut find = |kind, object, account: Option<&Account>, found| {
            let token = self.token.clone();
            findings.push(Finding { kind, token, object, account: account.cloned(), found });
        };
        for (object, account) in &self.by_object {
            let found = Tally::of(groups.remove(object).unwrap_or_default().into_iter());
            if let Some(kind) = account.expected.differs(found) {
                find(kind, *object, Some(account), found);
            }
        }
        for (object, group) in groups {
            if is_ours(object, &group) {
                find(Kind::Orphan, object, None, Tally::of(group.into_iter()));
            } else {
                foreign.extend(group);
            }
        }
        findings.sort_by_key(|finding| finding.kind);
        let foreign = foreign.into_iter().map(|object| Foreign { token: self.token.clone(), object: object.clone() });
        Report {
            objects: listed.len(),
            accounted: self.by_object.clone(),
            findings,
            foreign: foreign.collect(),
            unbelieved: self.unbelieved.clone(),
            away: BTreeMap::new(),
        }
    }
}

impl Expected {
    fn differs(self, found: Tally) -> Option<Kind> {
        let (whole, lacks) = match self {
            Self::Pair => {
                (Tally { private: 1, public: 1, ..Tally::default() }, found.private == 0 || found.public == 0)
            }
            Self::Secret => (Tally { secret: 1, ..Tally::default() }, found.secret == 0),
            Self::Anything => return None,
            Self::Nothing => return (found != Tally::default()).then_some(Kind::Lingering),
        };
        match found {
            _ if found == whole => None,
            _ if found == Tally::default() => Some(Kind::Missing),
            _ if lacks => Some(Kind::Half),
            _ => Some(Kind::Duplicate),
        }
    }
}

/// Whether Keyward made what stands under this id, by the label that it gives. A write that was cut off may leave an object without
/// one; another's label makes it another's.
fn is_ours(id: ObjectId, group: &[&TokenObject]) -> bool {
    let ours = format!("keyward {id}");
    group.iter().any(|object| object.label == ours)
        && group.iter().all(|object| object.label == ours || object.label.is_empty())
}

impl Tally {
    fn of<'a>(objects: impl Iterator<Item = &'a TokenObject>) -> Self {
        objects.fold(Self::default(), |mut tally, object| {
            match object.class {
                ObjectKind::PrivateKey => tally.private += 1,
                ObjectKind::PublicKey => tally.public += 1,
                ObjectKind::SecretKey => tally.secret += 1,
                ObjectKind::Other => tally.other += 1,
            }
            tally
        })
    }
}

impl Report {
    /// Whether the store accounts for all that is Keyward's, and the token has all that it should.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.unbelieved.is_empty() && self.away.is_empty()
    }

    /// Both reports, each of a token of its own.
    #[must_use]
    pub fn beside(mut self, other: Self) -> Self {
        self.objects += other.objects;
        self.accounted.extend(other.accounted);
        self.findings.extend(other.findings);
        self.findings.sort_by_key(|finding| finding.kind);
        self.foreign.extend(other.foreign);
        self.unbelieved.extend(other.unbelieved);
        self.unbelieved.sort_unstable();
        self.unbelieved.dedup();
        self.away.extend(other.away);
        self
    }

    /// What is in both reports: one made with the rows before the token was listed, and one with those after. What only one of
    /// them has was a change under way.
    #[must_use]
    pub fn and(mut self, after: Self) -> Self {
        let stays = |finding: &Finding| {
            let same = |other: &Finding| other.object == finding.object && other.kind == finding.kind;
            after.findings.iter().any(same)
        };
        self.findings.retain(stays);
        self.accounted.extend(after.accounted);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.private, "private key"),
            (self.public, "public key"),
            (self.secret, "secret"),
            (self.other, "other object"),
        ];
        let named = counts.iter().filter(|(count, _)| *count > 0);
        let named: Vec<String> =
            named.map(|(count, name)| format!("{count} {name}{}", if *count == 1 { "" } else { "s" })).collect();
        f.write_str(&if named.is_empty() { "nothing".to_owned() } else { named.join(", ") })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, algorithm, kid, state, .. } = self;
        let Some(tenant) = tenant else { return write!(f, "the {state} key") };
        match kid {
            Some(kid) => write!(f, "{state} key {kid} of {tenant} {algorithm}"),
            None => write!(f, "{state} id of {tenant} {algorithm}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, token, object, account, found } = self;
        write!(f, "{} {object}: {found} on token {token}", kind.name())?;
        match account {
            Some(account) => write!(f, ", {account}"),
            None => write!(f, ", and no row accounts for it"),
        }
    }
}
