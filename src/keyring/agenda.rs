//! Which tenants the timer has to look at, and when: it plans for those alone, and not for all of them each second.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::rotation::Outlook;
use crate::domain::{TenantId, Timestamp};

/// Every tenant for which something is due, or will be.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// In the order in which they became due: where there is more to do than can be done, nobody waits for ever.
    due: BTreeMap<u64, TenantId>,
    /// The place of each tenant among `due`.
    places: HashMap<TenantId, u64>,
    next_place: u64,
    wakes: BTreeSet<(Timestamp, TenantId)>,
    /// The time of each tenant among `wakes`.
    times: HashMap<TenantId, Timestamp>,
}

impl Agenda {
    /// What is known of a tenant from now on.
    pub(super) fn put(&mut self, tenant: TenantId, outlook: Outlook) {
        if let Some(time) = self.times.remove(&tenant) {
            self.wakes.remove(&(time, tenant.clone()));
        }
        match outlook {
            Outlook::Due => self.add_due(tenant),
            Outlook::At(time) => {
                self.remove_due(&tenant);
                self.wakes.insert((time, tenant.clone()));
                self.times.insert(tenant, time);
            }
            Outlook::Nothing => self.remove_due(&tenant),
        }
    }

    fn add_due(&mut self, tenant: TenantId) {
        if !self.places.contains_key(&tenant) {
            self.places.insert(tenant.clone(), self.next_place);
            self.due.insert(self.next_place, tenant);
            self.next_place += 1;
        }
    }

    fn remove_due(&mut self, tenant: &TenantId) {
        if let Some(place) = self.places.remove(tenant) {
            self.due.remove(&place);
        }
    }

    /// Those whose time has come are due.
    pub(super) fn wake(&mut self, now: Timestamp) {
        while let Some((time, _)) = self.wakes.first()
            && *time <= now
            && let Some((_, tenant)) = self.wakes.pop_first()
        {
            self.times.remove(&tenant);
            self.add_due(tenant);
        }
    }

    /// Those that are due, the longest due first.
    pub(super) fn due(&self) -> impl Iterator<Item = &TenantId> {
        self.due.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::after;
    use std::time::Duration;

    #[test]
    fn a_tenant_is_due_when_its_time_has_come_and_for_as_long_as_nobody_says_otherwise() {
        let (one, two): (TenantId, TenantId) = ("one".parse().expect("an id"), "two".parse().expect("an id"));
        let now = Timestamp::now();
        let at = |secs| after(now, Duration::from_secs(secs));
        let due = |agenda: &Agenda| agenda.due().map(ToString::to_string).collect::<Vec<_>>();
        let mut agenda = Agenda::default();
        agenda.put(one.clone(), Outlook::At(at(5)));
        agenda.put(two.clone(), Outlook::Due);
        agenda.wake(at(4));
        assert_eq!(due(&agenda), ["two"]);
        agenda.wake(at(5));
        assert_eq!(due(&agenda), ["two", "one"], "the longest due first");
        agenda.put(one.clone(), Outlook::At(at(9)));
        agenda.put(two.clone(), Outlook::At(at(7)));
        // A later word takes the place of an earlier one.
        agenda.put(two, Outlook::Nothing);
        agenda.wake(at(8));
        assert!(due(&agenda).is_empty());
        agenda.wake(at(100));
        assert_eq!(due(&agenda), ["one"]);
        agenda.put(one, Outlook::Nothing);
        agenda.wake(at(200));
        assert!(due(&agenda).is_empty());
    }
}
