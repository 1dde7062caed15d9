use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use secrecy::SecretString;

use super::connect::{finalise, identify, load, token_info};
use super::failure::Failure;
use crate::token::{TokenError, TokenIdentity};

/// CK_TOKEN_INFO.label has room for 32 octets; a longer one would be cut.
const LABEL_LENGTH_MAX: usize = 32;

/// Makes a token in the first slot whose token is not initialised, with these PINs. For development: a token in
/// production is set up with its maker's tools.
///
/// The module is finalised afterwards, so that [`crate::token::Pkcs11Token::open`] finds the token where SoftHSM then has it (a
/// new slot). So nobody else in the process may have the module in use. Blocks on the module.
///
/// # Errors
///
/// `Mismatch` if there is a token of this label already, which is never touched; `Unavailable` if no slot is free or the
/// module fails.
pub fn provision(
    module: &Path,
    label: &str,
    so_pin: &SecretString,
    pin: &SecretString,
) -> Result<TokenIdentity, TokenError> {
    if label.is_empty() || label.len() > LABEL_LENGTH_MAX {
        return Err(TokenError::Unsupported(format!("a token label has 1 to {LABEL_LENGTH_MAX} octets")));
    }
    let pkcs11 = load(module)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(Failure::from)?;
    let made = make_token(&pkcs11, label, so_pin, pin);
    finalise(&pkcs11);
    Ok(made?)
}

/// A crash on the way leaves a token of this label without a user PIN: the next call refuses it, and says so.
fn make_token(
    pkcs11: &Pkcs11,
    label: &str,
    so_pin: &SecretString,
    pin: &SecretString,
) -> Result<TokenIdentity, Failure> {
    let mut free = None;
    for slot in pkcs11.get_slots_with_token()? {
        let token = token_info(pkcs11, slot)?;
        if !token.token_initialized() {
            free = free.or(Some(slot));
        } else if token.label() == label {
            let text = format!("there is a token with the label \"{label}\" already");
            return Err(Failure::Answer(TokenError::Mismatch(text)));
        }
    }
    let slot = free.ok_or_else(|| Failure::Away("no slot has a token that is not initialised".into()))?;
    pkcs11.init_token(slot, so_pin, label)?;
    let session = pkcs11.open_rw_session(slot)?;
    session.login(UserType::So, Some(so_pin))?;
    session.init_pin(pin)?;
    identify(pkcs11, slot)
}
