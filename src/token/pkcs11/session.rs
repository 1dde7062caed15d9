//! One thread's session with the token, and the ladder that it climbs when a call fails.
//!
//! The rungs: a new session; a new login on a new anchor; a new initialisation of the module.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;

use super::connect::is_logged_in;
use super::failure::Failure;
use super::module::{Module, Visit};
use crate::domain::ObjectId;
use crate::token::{KeyRef, TokenError};

/// What a thread may do with its session.
#[derive(Clone, Copy)]
pub(in crate::token) enum Access {
    /// Find and sign.
    ReadOnly,
    /// Generate and destroy too.
    ReadWrite,
}

/// A thread's session: opened when it is first needed, thrown away after any return value but OK.
pub(in crate::token) struct WorkerSession {
    module: Arc<Module>,
    access: Access,
    open: Option<OpenSession>,
    /// Generation of the last visit.
    seen: u64,
}

/// A session that was logged in when it was opened.
pub(super) struct OpenSession {
    pub(super) session: Session,
    pub(super) slot: Slot,
    /// Private keys that this session found, with what they were compared with.
    pub(super) keys: HashMap<ObjectId, (ObjectHandle, Arc<KeyRef>)>,
    generation: u64,
}

impl WorkerSession {
    pub(in crate::token) fn new(module: Arc<Module>, access: Access) -> Self {
        Self { module, access, open: None, seen: 0 }
    }

    /// Whether it has used this key already: if not, it looks for it before it signs, which takes long on some tokens.
    pub(in crate::token) fn knows(&self, key: &KeyRef) -> bool {
        self.open.as_ref().is_some_and(|open| open.keys.contains_key(&key.object))
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }

    /// Does `work`, and if it fails in a way that a new session may help, recovers and does it once more unless
    /// `deadline` has passed.
    pub(super) fn attempt<T>(
        &mut self,
        deadline: Option<Instant>,
        mut work: impl FnMut(&Module, &mut OpenSession) -> Result<T, Failure>,
    ) -> Result<T, TokenError> {
        let first = match self.run(deadline, &mut work) {
            Err(Failure::Away(reason)) => reason,
            done => return Ok(done?),
        };
        self.module.tell_failure(&first);
        match self.recover() {
            Ok(()) => {}
            Err(TokenError::Unavailable(reason)) => {
                self.module.fails();
                let reason = if reason == first { reason } else { format!("{first}; {reason}") };
                return Err(TokenError::Unavailable(reason));
            }
            Err(error) => return Err(error),
        }
        match self.run(deadline, &mut work) {
            // The first attempt did reach the token.
            Err(Failure::Answer(TokenError::Late)) => Err(TokenError::Unavailable(first)),
            Err(Failure::Away(reason)) => {
                self.module.doubt();
                Err(TokenError::Unavailable(reason))
            }
            done => Ok(done?),
        }
    }

    /// Does `work` at most once, for what must not happen twice. It recovers before it, if the token is not well, and
    /// after it, for those who come next.
    pub(super) fn attempt_once<T>(
        &mut self,
        mut work: impl FnMut(&Module, &mut OpenSession) -> Result<T, Failure>,
    ) -> Result<T, TokenError> {
        self.attempt(None, |module, open| module.check(&open.session))?;
        let result = self.run(None, &mut work);
        if let Err(Failure::Away(reason)) = &result {
            self.module.tell_failure(reason);
            if self.recover().is_err() {
                self.module.doubt();
            }
        }
        Ok(result?)
    }

    /// One attempt on the session at hand.
    fn run<T>(
        &mut self,
        deadline: Option<Instant>,
        work: &mut impl FnMut(&Module, &mut OpenSession) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let module = Arc::clone(&self.module);
        let visit = module.visit()?;
        self.seen = visit.generation;
        // Looked at here and not before: an initialisation may have been waited for.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::Answer(TokenError::Late));
        }
        let result = self.enter(&visit).and_then(|open| work(&module, open));
        match &result {
            Ok(_) => module.trust(),
            Err(Failure::Answer(_)) => {}
            Err(Failure::Away(_) | Failure::Refused(_)) => self.discard(),
        }
        result
    }

    /// Climbs until the token is well again, or says what it stands at.
    fn recover(&mut self) -> Result<(), TokenError> {
        if !self.module.is_doubted() {
            match self.run(None, &mut |module, open| module.check(&open.session)) {
                Ok(()) => return Ok(()),
                Err(Failure::Away(reason)) => tracing::debug!(reason, "a new session did not help"),
                Err(failure) => return Err(failure.into()),
            }
        }
        self.module.reinitialise(self.seen)
    }

    fn enter(&mut self, visit: &Visit<'_>) -> Result<&mut OpenSession, Failure> {
        // A session of an older generation was closed by C_Finalize, and its number may denote a newer one: forget it
        // without closing.
        self.open.take_if(|open| open.generation != visit.generation);
        let open = match self.open.take() {
            Some(open) => open,
            None => open_session(&self.module, visit, self.access)?,
        };
        Ok(self.open.insert(open))
    }

    /// Only during a visit of the session's own generation.
    fn discard(&mut self) {
        if let Some(open) = self.open.take() {
            // It failed already; that it cannot be closed is nothing new.
            let _ = open.session.close();
        }
    }
}

fn open_session(module: &Module, visit: &Visit<'_>, access: Access) -> Result<OpenSession, Failure> {
    let session = match access {
        Access::ReadOnly => module.pkcs11().open_ro_session_no_drop(visit.slot),
        Access::ReadWrite => module.pkcs11().open_rw_session_no_drop(visit.slot),
    }?;
    let logged_in = is_logged_in(&session).and_then(|yes| match yes {
        true => Ok(()),
        false => module.log_in_again(visit),
    });
    if let Err(failure) = logged_in {
        let _ = session.close();
        return Err(failure);
    }
    Ok(OpenSession { session, slot: visit.slot, keys: HashMap::new(), generation: visit.generation })
}
