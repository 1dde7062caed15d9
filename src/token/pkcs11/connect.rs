//! From a path to a session that is logged in to one token.

use std::path::Path;
use std::thread;
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use secrecy::SecretString;

use super::failure::{Failure, text};
use crate::token::latch::Latch;
use crate::token::{TokenError, TokenIdentity};

pub(super) fn load(path: &Path) -> Result<Pkcs11, TokenError> {
    Pkcs11::new(path)
        .map_err(|error| TokenError::Unavailable(format!("the module {} cannot be loaded: {error}", path.display())))
}

pub(super) fn initialise(pkcs11: &Pkcs11) -> Result<(), Failure> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // Somebody else in this process uses the module too, or C_Finalize failed: either way it can be called.
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn finalise(pkcs11: &Pkcs11) {
    if let Err(error) = pkcs11.clone().finalize() {
        // Nothing is lost: the next C_Initialize decides.
        tracing::debug!(error = text(&error), "the PKCS#11 module was not finalised");
    }
}

/// Between one look at a token that cannot be read and the next. SoftHSM cannot tell of a token whose file another process is
/// writing, which each login does: soon it can, or as soon as it is initialised again.
pub(super) const UNREADABLE_PAUSES: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(20), Duration::from_millis(80)];

/// The one token of this label, and of this serial number if one is given. Slot numbers change with each start.
pub(super) fn find_token(pkcs11: &Pkcs11, label: &str, serial: Option<&str>) -> Result<(Slot, TokenIdentity), Failure> {
    let mut tokens = Vec::new();
    let mut unread = None;
    // Which of them are initialised is asked of each alone: one that cannot tell is no reason to find none.
    for slot in pkcs11.get_slots_with_token()? {
        match token_info(pkcs11, slot) {
            Ok(info) if info.token_initialized() => tokens.push((slot, identity(&info))),
            Ok(_) => {}
            // It may be another one; without a serial number it may have the same label.
            Err(failure) if serial.is_some() => unread = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    let labels = listed(tokens.iter().map(|(_, token)| token.label.as_str()));
    tokens.retain(|(_, token)| token.label == label);
    let serials = listed(tokens.iter().map(|(_, token)| token.serial.as_str()));
    if let Some(serial) = serial {
        tokens.retain(|(_, token)| token.serial == serial);
    }
    if tokens.len() > 1 {
        return Err(Failure::Answer(TokenError::Mismatch(format!(
            "more than one token has the label \"{label}\"; name one of the serial numbers {serials}"
        ))));
    }
    if tokens.is_empty()
        && let Some(failure) = unread
    {
        return Err(failure);
    }
    tokens.pop().ok_or_else(|| {
        Failure::Away(match serial {
            Some(serial) => format!(
                "no token has the label \"{label}\" and the serial number {serial}; labels shown: {labels}; serial \
                 numbers under this label: {serials}"
            ),
            None if labels == NONE => format!(
                "no token has the label \"{label}\", nor any other; SoftHSM shows those of the directory that the file in \
                 SOFTHSM2_CONF names"
            ),
            None => format!("no token has the label \"{label}\"; labels shown: {labels}"),
        })
    })
}

pub(super) fn identify(pkcs11: &Pkcs11, slot: Slot) -> Result<TokenIdentity, Failure> {
    Ok(identity(&token_info(pkcs11, slot)?))
}

fn identity(info: &TokenInfo) -> TokenIdentity {
    TokenIdentity {
        label: info.label().to_owned(),
        serial: info.serial_number().to_owned(),
        manufacturer: info.manufacturer_id().to_owned(),
        model: info.model().to_owned(),
    }
}

/// What the token in a slot tells of itself.
pub(super) fn token_info(pkcs11: &Pkcs11, slot: Slot) -> Result<TokenInfo, Failure> {
    for pause in UNREADABLE_PAUSES {
        match pkcs11.get_token_info(slot) {
            Err(Error::Pkcs11(RvError::GeneralError, _)) => thread::sleep(pause),
            told => return Ok(told?),
        }
    }
    Ok(pkcs11.get_token_info(slot)?)
}

/// What is listed where there is nothing to list.
const NONE: &str = "none";

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { NONE.into() } else { names.join(", ") }
}

/// A new session with the user logged in, if `latch` lets the PIN be tried; it is told what came of it. Dropping the session
/// does not close it, because C_Finalize may have, and the handle may be another's by then.
pub(super) fn log_in(pkcs11: &Pkcs11, slot: Slot, pin: &SecretString, latch: &Latch) -> Result<Session, Failure> {
    let turn = latch.turn().map_err(|error| match error {
        TokenError::Unavailable(reason) => Failure::Away(reason),
        other => Failure::Refused(other),
    })?;
    let session = pkcs11.open_ro_session_no_drop(slot)?;
    match session.login(UserType::User, Some(pin)) {
        Ok(()) => {
            turn.accepted();
            Ok(session)
        }
        // It says nothing of the PIN.
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) => {
            let failure = Failure::from(error);
            if matches!(failure, Failure::Refused(TokenError::PinRefused)) {
                turn.refused();
            }
            let _ = session.close();
            Err(failure)
        }
    }
}

pub(super) fn is_logged_in(session: &Session) -> Result<bool, Failure> {
    Ok(matches!(session.get_session_info()?.session_state(), SessionState::RoUser | SessionState::RwUser))
}

pub(super) fn shows_keys(session: &Session) -> Result<bool, Failure> {
    let private = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)];
    Ok(session.iter_objects(&private)?.next().transpose()?.is_some())
}
