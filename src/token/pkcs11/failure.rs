//! What came back from the module when it was not OK, sorted by what helps.

use cryptoki::error::{Error, RvError};

use crate::token::TokenError;

/// Why an attempt on one session came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The session, the login or the token is not well: the session goes, and the ladder of recovery may help.
    Away(String),
    /// The module said no for good: the session goes, because the operation may still be active on it, but no other
    /// session would be told anything else.
    Refused(TokenError),
    /// Decided here, from what the module answered with OK: the session stays.
    Answer(TokenError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = text(&error);
        match error {
            Error::Pkcs11(rv, _) if is_refused_pin(rv) => Self::Refused(TokenError::PinRefused),
            Error::Pkcs11(
                RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::KeySizeRange
                | RvError::DomainParamsInvalid
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::TemplateInconsistent
                | RvError::TemplateIncomplete
                | RvError::FunctionNotSupported,
                _,
            )
            | Error::NullFunctionPointer => Self::Refused(TokenError::Unsupported(text)),
            Error::Pkcs11(RvError::KeyTypeInconsistent | RvError::KeyFunctionNotPermitted, _) => {
                Self::Refused(TokenError::Mismatch(text))
            }
            _ => Self::Away(text),
        }
    }
}

impl From<Failure> for TokenError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Away(text) => Self::Unavailable(text),
            Failure::Refused(error) | Failure::Answer(error) => error,
        }
    }
}

/// Function and return value as PKCS#11 writes them: `C_Sign: CKR_OBJECT_HANDLE_INVALID`.
pub(super) fn text(error: &Error) -> String {
    match error {
        Error::Pkcs11(rv, function) => format!("C_{function:?}: {}", name(*rv)),
        other => other.to_string(),
    }
}

/// The return values that say that the PIN, not the token, is wrong. Trying again may lock a token (R14).
fn is_refused_pin(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired | RvError::PinLocked
    )
}

/// The return value's own name. cryptoki keeps the names in camel case and displays paragraphs of the standard instead.
fn name(rv: RvError) -> String {
    match rv {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => format!("CKR_{code:#010x}"),
        named => {
            let mut name = String::from("CKR");
            for letter in format!("{named:?}").chars() {
                if letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn return_values_are_named_as_the_standard_names_them() {
        assert_eq!(
            text(&Error::Pkcs11(RvError::ObjectHandleInvalid, Function::SignInit)),
            "C_SignInit: CKR_OBJECT_HANDLE_INVALID"
        );
        assert_eq!(name(RvError::SlotIdInvalid), "CKR_SLOT_ID_INVALID");
        assert_eq!(name(RvError::VendorDefined(0x8000_0001)), "CKR_0x80000001");
    }

    #[test]
    fn only_failures_that_a_new_session_may_help_climb_the_ladder() {
        let sorted = |rv| Failure::from(Error::Pkcs11(rv, Function::Sign));
        assert!(matches!(sorted(RvError::SessionHandleInvalid), Failure::Away(_)));
        assert!(matches!(sorted(RvError::GeneralError), Failure::Away(_)));
        assert!(matches!(sorted(RvError::MechanismInvalid), Failure::Refused(TokenError::Unsupported(_))));
        assert!(matches!(sorted(RvError::PinLocked), Failure::Refused(TokenError::PinRefused)));
    }
}
