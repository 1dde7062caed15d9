//! Who changed what: so that a snapshot that nothing happened to need not be compared with every row.

use std::collections::{BTreeSet, VecDeque};

use crate::domain::TenantId;
use crate::store::Moment;

/// Most writes that are remembered: more than a process makes from one look to the next, a second later.
const WRITES_MAX: usize = 4096;

/// The writes of this process, by the tenants whose records they touch. What others commit, SQLite counts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    writes: VecDeque<TenantId>,
    /// How many were forgotten.
    forgotten: u64,
}

impl Ledger {
    /// Remembers that a tenant's record is about to be written. Whether it then was, nobody need know.
    pub(super) fn note(&mut self, tenant: TenantId) {
        if self.writes.len() == WRITES_MAX {
            self.writes.pop_front();
            self.forgotten += 1;
        }
        self.writes.push_back(tenant);
    }

    /// The moment now, on this connection, with what it says of the commits of others.
    pub(super) fn moment(&self, connection: u64, others: i64) -> Moment {
        Moment { counting: connection, others, own: self.forgotten + self.writes.len() as u64 }
    }

    /// The tenants that were written from one moment to a later one; `None` if others wrote too, or if too much was written.
    pub(super) fn between(&self, since: Moment, until: Moment) -> Option<BTreeSet<TenantId>> {
        if (since.counting, since.others) != (until.counting, until.others) {
            return None;
        }
        let skip = usize::try_from(since.own.checked_sub(self.forgotten)?).ok()?;
        (skip <= self.writes.len()).then(|| self.writes.iter().skip(skip).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: usize) -> TenantId {
        format!("tenant-{number}").parse().expect("an id")
    }

    #[test]
    fn own_writes_are_told_by_tenant_and_those_of_others_only_as_such() {
        let mut ledger = Ledger::default();
        let start = ledger.moment(1, 7);
        ledger.note(tenant(1));
        ledger.note(tenant(1));
        ledger.note(tenant(2));
        let later = ledger.moment(1, 7);
        assert_eq!(ledger.between(start, later), Some([tenant(1), tenant(2)].into()));
        assert_eq!(ledger.between(later, later), Some([].into()));
        assert_eq!(ledger.between(start, ledger.moment(1, 8)), None, "somebody else committed");
        assert_eq!(ledger.between(start, ledger.moment(2, 7)), None, "another connection counts anew");
    }

    #[test]
    fn what_was_forgotten_may_be_anything() {
        let mut ledger = Ledger::default();
        let start = ledger.moment(1, 7);
        ledger.note(tenant(0));
        let second = ledger.moment(1, 7);
        (1..=WRITES_MAX).for_each(|number| ledger.note(tenant(number)));
        let now = ledger.moment(1, 7);
        assert_eq!(ledger.between(start, now), None);
        assert_eq!(ledger.between(second, now).map(|tenants| tenants.len()), Some(WRITES_MAX));
    }
}
