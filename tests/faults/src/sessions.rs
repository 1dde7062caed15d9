//! The sessions that this process has open, and those that a rule took from it.
//!
//! The real module is not told of a loss: closing a session under a call of another thread is a fault of its own in some.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{CK_SESSION_HANDLE, CK_SLOT_ID};

struct Session {
    slot: CK_SLOT_ID,
    lost: bool,
}

static SESSIONS: Mutex<Option<HashMap<CK_SESSION_HANDLE, Session>>> = Mutex::new(None);

/// The module gave this session to the caller.
pub(crate) fn opened(handle: CK_SESSION_HANDLE, slot: CK_SLOT_ID) {
    table().get_or_insert_default().insert(handle, Session { slot, lost: false });
}

pub(crate) fn closed(handle: CK_SESSION_HANDLE) {
    table().get_or_insert_default().remove(&handle);
}

pub(crate) fn closed_all(slot: CK_SLOT_ID) {
    table().get_or_insert_default().retain(|_, session| session.slot != slot);
}

/// C_Finalize.
pub(crate) fn ended() {
    *table() = None;
}

/// Takes away every session that is open now.
pub(crate) fn lose() {
    table().get_or_insert_default().values_mut().for_each(|session| session.lost = true);
}

pub(crate) fn is_lost(handle: CK_SESSION_HANDLE) -> bool {
    table().as_ref().and_then(|sessions| sessions.get(&handle)).is_some_and(|session| session.lost)
}

/// How many the caller has.
pub(crate) fn count() -> usize {
    table().as_ref().map_or(0, |sessions| sessions.values().filter(|session| !session.lost).count())
}

fn table() -> MutexGuard<'static, Option<HashMap<CK_SESSION_HANDLE, Session>>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}
