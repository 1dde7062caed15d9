//! What the rules do to a call.

use std::thread;
use std::time::{Duration, Instant};

use cryptoki_sys::{
    CK_BYTE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG, CKR_OK, CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID,
};

use crate::control::{Control, Watch};
use crate::functions::Function;
use crate::rules::{Fault, Moment, Rule};
use crate::{real, sessions};

/// How often a call that hangs looks whether the control file has changed.
const HANG_POLL: Duration = Duration::from_millis(2);

/// What a function writes for its caller that a rule may spoil, or that is kept in mind.
pub(crate) enum Reply {
    Nothing,
    /// A buffer, which is null where only the length is asked for, and its length.
    Signature(*mut CK_BYTE, *mut CK_ULONG),
    /// How many objects were found.
    Objects(*mut CK_ULONG),
    Opened(CK_SLOT_ID, *mut CK_SESSION_HANDLE),
    Closed(CK_SESSION_HANDLE),
    ClosedAll(CK_SLOT_ID),
    Finalised,
}

/// Does a call as the rules say.
pub(crate) fn call(
    function: Function,
    session: Option<CK_SESSION_HANDLE>,
    real: impl FnOnce() -> CK_RV,
    reply: &Reply,
) -> CK_RV {
    let Some(watch) = Watch::of_process() else { return real() };
    let call = Call { watch, control: &watch.enter(function), session };
    let rules = |moment| call.control.rules_for(function).filter(move |(_, rule)| rule.moment == moment);
    for (number, rule) in rules(Moment::Before) {
        if let Some(answer) = call.strike(number, rule) {
            return answer;
        }
    }
    if session.is_some_and(sessions::is_lost) {
        if function == Function::C_CloseSession {
            real();
            remember(reply);
        }
        return CKR_SESSION_HANDLE_INVALID;
    }
    let answer = real();
    if answer == CKR_OK {
        remember(reply);
        call.spoil(function, reply);
    }
    rules(Moment::After).find_map(|(number, rule)| call.strike(number, rule)).unwrap_or(answer)
}

struct Call<'a> {
    watch: &'a Watch,
    control: &'a Control,
    session: Option<CK_SESSION_HANDLE>,
}

impl Call<'_> {
    /// Does what one rule says to this call, if it is due. The answer, if the rule gives one.
    fn strike(&self, number: usize, rule: &Rule) -> Option<CK_RV> {
        match rule.fault {
            // What the module returned is spoilt elsewhere.
            Fault::Flip | Fault::Shorten | Fault::Empty | Fault::ShowNone => return None,
            Fault::Limit(limit) if sessions::count() < limit => return None,
            _ if !self.control.is_due(number) => return None,
            Fault::Limit(_) => return Some(CKR_SESSION_COUNT),
            Fault::Answer(value) => return Some(value),
            Fault::Hang(time) => self.hang(time),
            Fault::Crash => crash(),
            Fault::Delay(time) => thread::sleep(time),
            Fault::LoseSessions => {
                // With its last session a process loses its login, too (PKCS#11 v2.40 section 5.6).
                self.log_out();
                sessions::lose();
            }
            Fault::LoseLogin => self.log_out(),
        }
        None
    }

    /// Spoils what the real module returned with OK.
    fn spoil(&self, function: Function, reply: &Reply) {
        for (number, rule) in self.control.rules_for(function) {
            match (rule.fault, reply) {
                (Fault::Flip | Fault::Shorten | Fault::Empty, Reply::Signature(signature, len))
                    if !signature.is_null() && self.control.is_due(number) =>
                {
                    // SAFETY: the module wrote a signature of this length there, and the caller waits for it.
                    unsafe { spoil_signature(rule.fault, *signature, *len) }
                }
                (Fault::ShowNone, Reply::Objects(count)) if self.control.is_due(number) => {
                    // SAFETY: the module wrote a count there, and the caller waits for it.
                    unsafe { **count = 0 }
                }
                _ => {}
            }
        }
    }

    fn hang(&self, time: Option<Duration>) {
        let begun = Instant::now();
        while self.watch.is_current(self.control) && time.is_none_or(|time| begun.elapsed() < time) {
            thread::sleep(HANG_POLL);
        }
    }

    fn log_out(&self) {
        if let (Some(session), Some(log_out)) = (self.session, real::functions().C_Logout) {
            // SAFETY: the caller's own session, which the real module takes or refuses.
            unsafe { log_out(session) };
        }
    }
}

/// # Safety
///
/// `signature` points to as many octets as `len` points to, both writable.
unsafe fn spoil_signature(fault: Fault, signature: *mut CK_BYTE, len: *mut CK_ULONG) {
    // SAFETY: as demanded.
    let octets = unsafe { *len };
    let kept = match fault {
        Fault::Shorten => octets.saturating_sub(1),
        Fault::Empty => 0,
        _ => octets,
    };
    // SAFETY: as demanded.
    unsafe { *len = kept };
    if fault == Fault::Flip && octets > 0 {
        #[expect(clippy::cast_possible_truncation, reason = "CK_ULONG has the size of an address")]
        let middle = octets as usize / 2;
        // SAFETY: within the signature, as demanded.
        unsafe { *signature.add(middle) ^= 1 };
    }
}

/// Keeps in mind what a call that succeeded did to the sessions.
fn remember(reply: &Reply) {
    match *reply {
        // SAFETY: the module answered OK, so it wrote a handle there.
        Reply::Opened(slot, handle) => sessions::opened(unsafe { *handle }, slot),
        Reply::Closed(session) => sessions::closed(session),
        Reply::ClosedAll(slot) => sessions::closed_all(slot),
        Reply::Finalised => sessions::ended(),
        Reply::Nothing | Reply::Signature(..) | Reply::Objects(_) => {}
    }
}

/// A write to memory that is not the process's: SIGSEGV, as a module's own mistake makes it. `raise` is not the same: the
/// handler that Rust installs returns from it, and the process goes on.
fn crash() -> ! {
    // SAFETY: a new mapping, of a page that nobody may read or write.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), 1, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    // SAFETY: the page is nobody's else; that it cannot be written is the purpose.
    unsafe { page.cast::<u8>().write_volatile(1) };
    crate::complain("the memory of a crash could be written")
}
