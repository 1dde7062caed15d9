//! Which object stands under which id, for tokens that look at every object in each search: SoftHSM's searches grow with the
//! number of its keys, and each key is searched for before its first use.
//!
//! The index is made by listing the token's objects, which costs a call for each of them, and only where it pays: when slow searches
//! have cost as much time as a listing may.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::attributes;
use super::failure::Failure;
use crate::domain::ObjectId;

/// A search that takes so long looks at every object. A network HSM that finds by an index of its own takes less, and is never listed.
const SLOW: Duration = Duration::from_millis(20);

/// What slow searches cost before the first listing.
const FIRST_LISTING_AFTER: Duration = Duration::from_millis(200);

/// Handles that are asked for at once.
const PAGE: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// Longest time for which handles are fetched, and for which objects are read, while signatures wait; the next listing goes on where it
/// stopped. With the search before it, less than what a call into the module may take (`token.call_timeout_ms`).
const READING_MAX: Duration = Duration::from_millis(500);

/// The same before anybody waits: a third of what a worker process may take to start.
const FIRST_READING_MAX: Duration = Duration::from_secs(10);

/// Most objects that are remembered: the keys of 40,000 tenants, in some 30 MB.
const OBJECTS_MAX: usize = 1 << 18;

/// Handles by id, of one initialisation of the module: it is made anew with each. Whoever finds nothing here asks the token (R8).
#[derive(Default)]
pub(super) struct Index {
    /// Of each id the public half, and what signs.
    places: HashMap<(ObjectId, bool), Place>,
    /// The objects that the token has shown, and those among them that were not read yet.
    known: HashSet<u64>,
    unread: Vec<ObjectHandle>,
    /// What searches have cost since the last listing, and what the last one of them did.
    searched: Duration,
    search: Duration,
    /// What the last listing cost, and its search for all objects.
    listed: Option<Duration>,
    sweep: Duration,
}

enum Place {
    One(ObjectClass, ObjectHandle),
    Several,
}

impl Index {
    /// The index of a module that was just initialised, and whose first search took so long: made at once if that is so slow that
    /// the first keys would pay for it.
    pub(super) fn begin(session: &Session, search: Duration) -> Result<Self, Failure> {
        let mut index = Self::default();
        index.searched(search);
        if index.pays() {
            index.list_for(session, FIRST_READING_MAX)?;
        }
        Ok(index)
    }

    /// The one object of this class under this id, as far as it was listed.
    pub(super) fn find(&self, object: ObjectId, class: ObjectClass) -> Option<ObjectHandle> {
        match self.places.get(&(object, is_public(class)))? {
            Place::One(shown, handle) if *shown == class => Some(*handle),
            Place::One(..) | Place::Several => None,
        }
    }

    /// A search took so long.
    pub(super) fn searched(&mut self, cost: Duration) {
        self.search = cost;
        if cost >= SLOW {
            self.searched += cost;
        }
    }

    /// A listing failed: searches go on without, until they have cost as much again.
    pub(super) fn failed(&mut self, cost: Duration) {
        (self.listed, self.searched) = (Some(cost.max(FIRST_LISTING_AFTER)), Duration::ZERO);
    }

    /// Whether a listing is worth its time for an object that is not found here.
    pub(super) fn pays(&self) -> bool {
        // The token has shown all it had: it is new, and both its halves are found in one search for all.
        let is_new = self.listed.is_some() && self.unread.is_empty() && self.sweep <= self.search * 2;
        is_new || self.searched >= self.listed.unwrap_or(FIRST_LISTING_AFTER)
    }

    /// Looks at objects that are not known yet, for as long as searches have cost.
    pub(super) fn list(&mut self, session: &Session) -> Result<(), Failure> {
        self.list_for(session, self.searched.min(READING_MAX))
    }

    fn list_for(&mut self, session: &Session, reading: Duration) -> Result<(), Failure> {
        let started = Instant::now();
        if self.unread.is_empty() {
            let handles = session.iter_objects_with_cache_size(&[Attribute::Token(true)], PAGE)?;
            // Whatever the search itself took: it is what any search takes.
            let until = Instant::now() + reading;
            for handle in handles {
                let handle = handle?;
                if self.known.len() < OBJECTS_MAX && self.known.insert(handle.handle()) {
                    self.unread.push(handle);
                }
                if Instant::now() >= until {
                    break;
                }
            }
            self.sweep = started.elapsed();
        }
        let until = Instant::now() + reading;
        while let Some(handle) = self.unread.pop() {
            self.learn(session, handle);
            if Instant::now() >= until {
                break;
            }
        }
        (self.listed, self.searched) = (Some(started.elapsed()), Duration::ZERO);
        Ok(())
    }

    fn learn(&mut self, session: &Session, handle: ObjectHandle) {
        // Objects of others have ids of other lengths, or none; one that was destroyed meanwhile shows nothing. Whoever wants an
        // object that is not learnt searches for it.
        let Some((class, object)) = attributes::read_place(session, handle) else { return };
        let one_more = |place: &mut Place| *place = Place::Several;
        let place = self.places.entry((object, is_public(class)));
        place.and_modify(one_more).or_insert(Place::One(class, handle));
    }
}

fn is_public(class: ObjectClass) -> bool {
    class == ObjectClass::PUBLIC_KEY
}
