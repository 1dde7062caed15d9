//! What this replica has seen of the store, kept in a file of its own: an older state that is put back, a single row or the
//! whole file, has whole seals, and only somebody who remembers can tell (R15).
//!
//! The file is a journal of lines, each a JSON array of what was seen at once. A crash leaves the last line torn at most, and
//! that one is passed over: what it told was not acknowledged. A file that tells nothing at all is not one that we made. Octets are set aside at its end before a change is made, so that a full disk refuses the change
//! instead of losing the memory of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::domain::{Algorithm, Keyring, Revision, Tenant, TenantId, Timestamp};
use crate::files::put_whole;
use crate::tlog::{Hash, Tip, leaf_hash};

/// Octets set aside before a change: a tenant with a keyring for each algorithm takes a tenth.
const RESERVE_BYTES: u64 = 64 * 1024;

/// The journal is written anew when it is this many times as long as what it tells, and not a short one.
const COMPACT_AT_TIMES: u64 = 4;
const COMPACT_AT_BYTES: u64 = 4 << 20;

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub(super) enum Sight {
    /// A tenant's record.
    Tenant { tenant: TenantId, create_time: Timestamp, revision: Revision, hash: Hash },
    /// A keyring's record.
    Keyring { tenant: TenantId, algorithm: Algorithm, revision: Revision, hash: Hash },
    /// That the tenant made at this time is about to be removed: after a crash it may be there or not.
    Leaving { tenant: TenantId, create_time: Timestamp },
    /// That the tenant made at this time was removed.
    Removed { tenant: TenantId, create_time: Timestamp },
    /// Where the administration log ended.
    Administration { tip: Tip },
    /// The database that the store is in, or is about to be in, instead of its file; none: it stays there after all.
    Moved { to: Option<String> },
}

impl Sight {
    /// Of a tenant's record, and the document that it is kept as.
    pub(super) fn of_tenant(tenant: &Tenant, document: &str) -> Self {
        let Tenant { create_time, revision, .. } = *tenant;
        Self::Tenant { tenant: tenant.id.clone(), create_time, revision, hash: leaf_hash(document.as_bytes()) }
    }

    /// Of a keyring's record, and the document that it is kept as.
    pub(super) fn of_keyring(keyring: &Keyring, document: &str) -> Self {
        let Keyring { algorithm, revision, .. } = *keyring;
        let (tenant, hash) = (keyring.tenant.clone(), leaf_hash(document.as_bytes()));
        Self::Keyring { tenant, algorithm, revision, hash }
    }
}

impl Sight {
    /// Whose record it is of.
    pub(super) fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Tenant { tenant, .. }
            | Self::Keyring { tenant, .. }
            | Self::Leaving { tenant, .. }
            | Self::Removed { tenant, .. } => Some(tenant),
            Self::Administration { .. } | Self::Moved { .. } => None,
        }
    }
}

/// A record as it is, for comparison with what was seen.
pub(super) struct Shown<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) create_time: Timestamp,
    pub(super) revision: Revision,
    pub(super) hash: Hash,
    pub(super) keyrings: Vec<(Algorithm, Revision, Hash)>,
}

/// The memory, and its file.
#[derive(Debug)]
pub(super) struct Witness {
    path: PathBuf,
    file: File,
    /// Octets of the file that are lines; what follows is set aside.
    used: u64,
    reserved: u64,
    /// How long the journal may become.
    compact_at: u64,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    tenants: BTreeMap<TenantId, Tenancy>,
    log_end: Option<Tip>,
    moved_to: Option<String>,
}

/// A tenant from its making to its removal.
#[derive(Debug)]
struct Tenancy {
    create_time: Timestamp,
    leaving: bool,
    removed: bool,
    record: Option<Mark>,
    keyrings: BTreeMap<Algorithm, Mark>,
}

/// The latest revision seen of a record, and what it said.
#[derive(Clone, Copy, Debug)]
struct Mark {
    revision: Revision,
    hash: Hash,
}

impl Witness {
    /// Makes a memory of a store without anything in it. One that is there already must be such a one, too.
    pub(super) fn create(path: &Path) -> Result<(), StoreError> {
        if path.exists() {
            let seen = Self::read(path)?;
            let is_empty = seen.tenants.is_empty() && seen.log_end.is_none_or(|tip| tip.size() == 0);
            let new = is_empty && seen.moved_to.is_none();
            let text = format!("{} exists already and tells of another store; move it away", path.display());
            return if new { Ok(()) } else { Err(StoreError::Refused(text)) };
        }
        Self::write(path, &Seen { log_end: Some(Tip::default()), ..Seen::default() }).map(drop)
    }

    /// Reads the memory of the store.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let seen = Self::read(path)?;
        if seen.log_end.is_none() {
            return Err(forgotten(path, "is empty"));
        }
        let (file, used) = Self::write(path, &seen)?;
        let compact_at = COMPACT_AT_BYTES.max(COMPACT_AT_TIMES * used);
        Ok(Self { path: path.to_owned(), file, used, reserved: used, compact_at, seen })
    }

    /// A memory of nothing, for a store whose own is lost. It is kept at `path` from [`Witness::replace_with`] on.
    pub(super) fn lost(path: &Path) -> Result<Self, StoreError> {
        let file = tempfile::tempfile().map_err(|error| unusable(path, &error))?;
        let (used, reserved, compact_at) = (0, 0, COMPACT_AT_BYTES);
        Ok(Self { path: path.to_owned(), file, used, reserved, compact_at, seen: Seen::default() })
    }

    fn read(path: &Path) -> Result<Seen, StoreError> {
        let octets = fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => forgotten(path, "is not there"),
            _ => unusable(path, &error),
        })?;
        let mut seen = Seen::default();
        let mut torn = false;
        for line in octets.split_inclusive(|octet| *octet == b'\n') {
            // What was set aside, and a line without its end.
            let Some(line) = line.strip_suffix(b"\n") else { break };
            if torn {
                return Err(forgotten(path, "has a line in the middle that is none of ours"));
            }
            match serde_json::from_slice::<Vec<Sight>>(line) {
                Ok(sights) => sights.iter().for_each(|sight| seen.apply(sight)),
                Err(_) => torn = true,
            }
        }
        Ok(seen)
    }

    fn write(path: &Path, seen: &Seen) -> Result<(File, u64), StoreError> {
        let write = || -> io::Result<(File, u64)> {
            let lines = seen.lines()?;
            let file = put_whole(path, ".keyward-witness-", 0o600, &lines)?;
            Ok((file, lines.len() as u64))
        };
        write().map_err(|error| unusable(path, &error))
    }

    /// What is new in a record, or why it is not to be believed.
    pub(super) fn compare(&self, shown: &Shown<'_>) -> Result<Vec<Sight>, String> {
        let row = format!("tenant {}", shown.tenant);
        let mut news = Vec::new();
        let tenancy = self.seen.tenants.get(shown.tenant);
        if tenancy.is_some_and(|tenancy| tenancy.outlives(shown.create_time)) {
            return Err(put_back(shown.tenant));
        }
        let tenancy = tenancy.filter(|tenancy| tenancy.create_time == shown.create_time);
        if is_news(tenancy.and_then(|tenancy| tenancy.record), shown.revision, shown.hash, &row)? {
            let (tenant, create_time) = (shown.tenant.clone(), shown.create_time);
            news.push(Sight::Tenant { tenant, create_time, revision: shown.revision, hash: shown.hash });
        }
        for (algorithm, revision, hash) in &shown.keyrings {
            let row = format!("keyring {} {algorithm}", shown.tenant);
            let mark = tenancy.and_then(|tenancy| tenancy.keyrings.get(algorithm)).copied();
            if is_news(mark, *revision, *hash, &row)? {
                let (tenant, algorithm) = (shown.tenant.clone(), *algorithm);
                news.push(Sight::Keyring { tenant, algorithm, revision: *revision, hash: *hash });
            }
        }
        let there = |algorithm: &Algorithm| shown.keyrings.iter().any(|(other, _, _)| other == algorithm);
        let gone = tenancy.and_then(|tenancy| tenancy.keyrings.keys().find(|algorithm| !there(algorithm)));
        match gone {
            Some(algorithm) => Err(format!("keyring {} {algorithm}: its record is gone", shown.tenant)),
            None => Ok(news),
        }
    }

    /// The tenants that were in the store and are not among those `present`, but for those whose removal was seen.
    pub(super) fn absent(&self, mut present: Vec<String>) -> Vec<TenantId> {
        present.sort_unstable();
        let there = |tenant: &&TenantId| present.binary_search_by(|name| name.as_str().cmp(tenant.as_str())).is_ok();
        let known = self.seen.tenants.iter().filter(|(_, tenancy)| !tenancy.removed).map(|(tenant, _)| tenant);
        known.filter(|tenant| !there(tenant)).cloned().collect()
    }

    /// What is new in a tenant's removal, or why it is not to be believed.
    pub(super) fn compare_removal(&self, tenant: &TenantId, create_time: Timestamp) -> Result<Sight, String> {
        let tenancy = self.seen.tenants.get(tenant);
        if tenancy.is_some_and(|tenancy| tenancy.create_time > create_time) {
            return Err(gone(tenant));
        }
        Ok(Sight::Removed { tenant: tenant.clone(), create_time })
    }

    /// Whether anything was ever seen of a tenant of this id.
    pub(super) fn knows(&self, tenant: &TenantId) -> bool {
        self.seen.tenants.contains_key(tenant)
    }

    /// Whether this tenant must be in the store.
    pub(super) fn expects(&self, tenant: &TenantId) -> bool {
        self.seen.tenants.get(tenant).is_some_and(Tenancy::stays)
    }

    /// Whether this tenant was in the store and its removal was not seen.
    pub(super) fn awaits(&self, tenant: &TenantId) -> bool {
        self.seen.tenants.get(tenant).is_some_and(|tenancy| !tenancy.removed)
    }

    /// When the tenant of this id was made that was removed, if none was made under it since.
    pub(super) fn removed(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.seen.tenants.get(tenant).filter(|tenancy| tenancy.removed).map(|tenancy| tenancy.create_time)
    }

    /// Whether a tenant of this id was removed that was not made before this time.
    pub(super) fn outlives(&self, tenant: &TenantId, create_time: Timestamp) -> bool {
        self.seen.tenants.get(tenant).is_some_and(|tenancy| tenancy.removed && tenancy.outlives(create_time))
    }

    /// When the tenant of this id was made, as far as this replica knows.
    pub(super) fn create_time(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.seen.tenants.get(tenant).filter(|tenancy| !tenancy.removed).map(|tenancy| tenancy.create_time)
    }

    /// The database that the store of the memory at `path` was moved to, or was about to be.
    pub(super) fn moved_to(path: &Path) -> Result<Option<String>, StoreError> {
        Self::read(path).map(|seen| seen.moved_to)
    }

    /// Sees that the store was not moved out of its file.
    pub(super) fn stays(&self) -> Result<(), StoreError> {
        let Some(database) = &self.seen.moved_to else { return Ok(()) };
        Err(StoreError::Refused(format!(
            "the store was moved to {database}, and this file is what it was before that: go on with store.url; if `keyward migrate` was \
             interrupted, run it again: it finishes, or says that it is done"
        )))
    }

    /// Where the administration log ended when it was last looked at.
    pub(super) fn log_end(&self) -> Option<&Tip> {
        self.seen.log_end.as_ref()
    }

    /// Sets octets aside for what a change will have to be remembered by.
    pub(super) fn reserve(&mut self) -> io::Result<()> {
        let wanted = self.used + RESERVE_BYTES / 2;
        if self.reserved >= wanted {
            return Ok(());
        }
        // Written, not only promised by a length: a file system gives blocks to what is written.
        let zeros = vec![0; usize::try_from(self.used + RESERVE_BYTES - self.reserved).expect("some thousand")];
        self.file.write_all_at(&zeros, self.reserved)?;
        self.file.sync_data()?;
        self.reserved += zeros.len() as u64;
        Ok(())
    }

    /// Takes a store that was put back as it is: what it says is what was seen from now on.
    pub(super) fn replace_with(&mut self, sights: &[Sight]) -> Result<(), StoreError> {
        let mut seen = Seen { log_end: None, ..std::mem::take(&mut self.seen) };
        sights.iter().for_each(|sight| seen.apply(sight));
        (self.file, self.used) = Self::write(&self.path, &seen)?;
        (self.reserved, self.seen) = (self.used, seen);
        Ok(())
    }

    /// Remembers, also after a crash.
    pub(super) fn note(&mut self, sights: &[Sight]) -> io::Result<()> {
        if sights.is_empty() {
            return Ok(());
        }
        // In memory in any case: a disk that is full must not make this process forget.
        sights.iter().for_each(|sight| self.seen.apply(sight));
        let mut line = Vec::new();
        write_line(&mut line, sights)?;
        if let Err(error) = self.file.write_all_at(&line, self.used).and_then(|()| self.file.sync_data()) {
            // Nothing of it may stand behind what is written next.
            self.file.set_len(self.used)?;
            self.reserved = self.used;
            return Err(error);
        }
        self.used += line.len() as u64;
        self.reserved = self.reserved.max(self.used);
        if self.used > self.compact_at {
            self.compact();
        }
        Ok(())
    }

    /// Writes the journal anew without what later lines have overtaken. It can wait: a failure leaves everything as it is.
    fn compact(&mut self) {
        match Self::write(&self.path, &self.seen) {
            Ok((file, used)) => (self.file, self.used, self.reserved) = (file, used, used),
            Err(error) => tracing::warn!(%error, "the memory of the store was not made shorter"),
        }
        self.compact_at = COMPACT_AT_BYTES.max(COMPACT_AT_TIMES * self.used);
    }
}

impl Tenancy {
    /// Whether its record must be in the store.
    fn stays(&self) -> bool {
        !self.leaving && !self.removed
    }

    /// Whether a tenant made at this time is an earlier one of the same id.
    fn outlives(&self, create_time: Timestamp) -> bool {
        create_time < self.create_time || (self.removed && create_time == self.create_time)
    }
}

impl Seen {
    fn apply(&mut self, sight: &Sight) {
        match sight {
            Sight::Tenant { tenant, create_time, revision, hash } => {
                let new = || Tenancy {
                    create_time: *create_time,
                    leaving: false,
                    removed: false,
                    record: None,
                    keyrings: BTreeMap::new(),
                };
                let tenancy = self.tenants.entry(tenant.clone()).or_insert_with(new);
                if tenancy.create_time < *create_time {
                    *tenancy = new();
                }
                raise(&mut tenancy.record, *revision, *hash);
            }
            Sight::Keyring { tenant, algorithm, revision, hash } => {
                if let Some(tenancy) = self.tenants.get_mut(tenant) {
                    let mut mark = tenancy.keyrings.get(algorithm).copied();
                    raise(&mut mark, *revision, *hash);
                    tenancy.keyrings.extend(mark.map(|mark| (*algorithm, mark)));
                }
            }
            Sight::Leaving { tenant, create_time } => {
                let tenancy = self.tenants.get_mut(tenant).filter(|tenancy| tenancy.create_time == *create_time);
                tenancy.into_iter().for_each(|tenancy| tenancy.leaving = true);
            }
            // One that was made under the same id since then stays.
            Sight::Removed { tenant, create_time }
                if self.tenants.get(tenant).is_some_and(|tenancy| tenancy.create_time > *create_time) => {}
            Sight::Removed { tenant, create_time } => {
                let (create_time, keyrings) = (*create_time, BTreeMap::new());
                let gone = Tenancy { create_time, leaving: true, removed: true, record: None, keyrings };
                self.tenants.insert(tenant.clone(), gone);
            }
            Sight::Administration { tip } => {
                if self.log_end.as_ref().is_none_or(|seen| seen.size() < tip.size()) {
                    self.log_end = Some(tip.clone());
                }
            }
            Sight::Moved { to } => self.moved_to.clone_from(to),
        }
    }

    /// All of it as lines of the journal.
    fn lines(&self) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (tenant, Tenancy { create_time, leaving, removed, record, keyrings }) in &self.tenants {
            let (tenant, create_time) = (tenant.clone(), *create_time);
            if *removed {
                write_line(&mut lines, &[Sight::Removed { tenant, create_time }])?;
                continue;
            }
            if let Some(Mark { revision, hash }) = *record {
                write_line(&mut lines, &[Sight::Tenant { tenant: tenant.clone(), create_time, revision, hash }])?;
            }
            for (algorithm, Mark { revision, hash }) in keyrings {
                let (algorithm, revision, hash) = (*algorithm, *revision, *hash);
                write_line(&mut lines, &[Sight::Keyring { tenant: tenant.clone(), algorithm, revision, hash }])?;
            }
            if *leaving {
                write_line(&mut lines, &[Sight::Leaving { tenant, create_time }])?;
            }
        }
        if let Some(tip) = self.log_end.clone() {
            write_line(&mut lines, &[Sight::Administration { tip }])?;
        }
        if let Some(to) = self.moved_to.clone() {
            write_line(&mut lines, &[Sight::Moved { to: Some(to) }])?;
        }
        Ok(lines)
    }
}

fn write_line(lines: &mut Vec<u8>, sights: &[Sight]) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, sights)?;
    lines.push(b'\n');
    Ok(())
}

fn raise(mark: &mut Option<Mark>, revision: Revision, hash: Hash) {
    if mark.is_none_or(|mark| mark.revision < revision) {
        *mark = Some(Mark { revision, hash });
    }
}

/// Whether a record is newer than what was seen of it; `Err` if it is older, or another of the same revision.
fn is_news(mark: Option<Mark>, revision: Revision, hash: Hash, row: &str) -> Result<bool, String> {
    let Some(mark) = mark else { return Ok(true) };
    if revision < mark.revision {
        let seen = mark.revision;
        let problem =
            format!("{row}: it was put back to revision {revision}, and {seen} was seen already; {IF_ON_PURPOSE}");
        return Err(problem);
    }
    if revision == mark.revision && hash != mark.hash {
        return Err(format!("{row}: it is another revision {revision} than the one that was seen; {IF_ON_PURPOSE}"));
    }
    Ok(revision > mark.revision)
}

/// What is to be done about a state that is not the latest.
pub(super) const IF_ON_PURPOSE: &str = "if a backup was put back on purpose, `keyward accept-store` takes it as it is";

fn forgotten(path: &Path, what: &str) -> StoreError {
    StoreError::Refused(format!(
        "{}, which remembers what this store was like, {what}; restore it, or, if the store is known to be good, run \
         `keyward accept-store --confirm`; a new replica runs `keyward join`",
        path.display()
    ))
}

/// What is wrong where a tenant's record is not there.
pub(super) fn gone(tenant: &TenantId) -> String {
    format!("tenant {tenant}: its record is gone, and nobody deleted it through Keyward; {IF_ON_PURPOSE}")
}

/// What is wrong where the record of a tenant is there that was removed.
pub(super) fn put_back(tenant: &TenantId) -> String {
    format!("tenant {tenant}: it was deleted, and an old record of it was put back; {IF_ON_PURPOSE}")
}

fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Refused(format!("{} cannot be used to remember the store by: {error}", path.display()))
}
