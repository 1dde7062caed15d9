//! The functions of PKCS#11 v2.40, each forwarded.

#![allow(non_snake_case, non_camel_case_types, reason = "the functions have the names that the standard gives them")]

use std::ffi::c_void;

use cryptoki_sys::*;

use crate::faults::{Reply, call};
use crate::real;

/// Makes of a list of functions the enum of their names, a forwarder for each, and the function list for the caller.
macro_rules! forwarded {
    (
        plain { $($plain:ident($($plain_arg:ident: $plain_type:ty),*) $(=> $plain_reply:expr)?;)* }
        session { $($name:ident($session:ident $(, $arg:ident: $type:ty)*) $(=> $reply:expr)?;)* }
    ) => {
        /// A function of PKCS#11 v2.40; C_GetFunctionList apart, which is never forwarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the standard has a section for each")]
        pub enum Function { $($plain,)* $($name,)* }

        impl Function {
            /// In the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$plain,)* $(Self::$name,)*];

            /// As the standard writes it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$plain => stringify!($plain),)* $(Self::$name => stringify!($name),)* }
            }

            /// Whether its first argument is a session.
            pub(crate) fn has_session(self) -> bool {
                matches!(self, $(Self::$name)|*)
            }
        }

        static LIST: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            $($plain: Some($plain),)*
            $($name: Some($name),)*
        };

        $(unsafe extern "C" fn $plain($($plain_arg: $plain_type),*) -> CK_RV {
            let Some(real) = real::functions().$plain else { return CKR_FUNCTION_NOT_SUPPORTED };
            // SAFETY: the caller's arguments as they are, for the function of the same name.
            call(Function::$plain, None, || unsafe { real($($plain_arg),*) }, &reply!($($plain_reply)?))
        })*

        $(unsafe extern "C" fn $name($session: CK_SESSION_HANDLE $(, $arg: $type)*) -> CK_RV {
            let Some(real) = real::functions().$name else { return CKR_FUNCTION_NOT_SUPPORTED };
            // SAFETY: the caller's arguments as they are, for the function of the same name.
            call(Function::$name, Some($session), || unsafe { real($session $(, $arg)*) }, &reply!($($reply)?))
        })*
    };
}

macro_rules! reply {
    () => {
        Reply::Nothing
    };
    ($reply:expr) => {
        $reply
    };
}

impl Function {
    /// The function of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|function| function.name() == name).copied()
    }
}

/// What a program that loads the module calls first (PKCS#11 v2.40 section 5.4).
///
/// # Safety
///
/// `list` is null or points to where a pointer can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // Loaded now, so that a module that cannot be is told of here and not in the middle of something.
    real::functions();
    // SAFETY: as demanded. The standard's type is mutable; nobody may change another's list.
    unsafe { *list = (&raw const LIST).cast_mut() };
    CKR_OK
}

// The letters are the arguments in their order; only the few that a rule looks into have a meaning here.
forwarded! {
    plain {
        C_Initialize(a: *mut c_void);
        C_Finalize(a: *mut c_void) => Reply::Finalised;
        C_GetInfo(a: *mut CK_INFO);
        C_GetSlotList(a: CK_BBOOL, b: *mut CK_SLOT_ID, c: *mut CK_ULONG);
        C_GetSlotInfo(a: CK_SLOT_ID, b: *mut CK_SLOT_INFO);
        C_GetTokenInfo(a: CK_SLOT_ID, b: *mut CK_TOKEN_INFO);
        C_GetMechanismList(a: CK_SLOT_ID, b: *mut CK_MECHANISM_TYPE, c: *mut CK_ULONG);
        C_GetMechanismInfo(a: CK_SLOT_ID, b: CK_MECHANISM_TYPE, c: *mut CK_MECHANISM_INFO);
        C_InitToken(a: CK_SLOT_ID, b: *mut CK_UTF8CHAR, c: CK_ULONG, d: *mut CK_UTF8CHAR);
        C_OpenSession(a: CK_SLOT_ID, b: CK_FLAGS, c: *mut c_void, d: CK_NOTIFY, e: *mut CK_SESSION_HANDLE) => Reply::Opened(a, e);
        C_CloseAllSessions(a: CK_SLOT_ID) => Reply::ClosedAll(a);
        C_WaitForSlotEvent(a: CK_FLAGS, b: *mut CK_SLOT_ID, c: *mut c_void);
    }
    session {
        C_InitPIN(session, a: *mut CK_UTF8CHAR, b: CK_ULONG);
        C_SetPIN(session, a: *mut CK_UTF8CHAR, b: CK_ULONG, c: *mut CK_UTF8CHAR, d: CK_ULONG);
        C_CloseSession(session) => Reply::Closed(session);
        C_GetSessionInfo(session, a: *mut CK_SESSION_INFO);
        C_GetOperationState(session, a: *mut CK_BYTE, b: *mut CK_ULONG);
        C_SetOperationState(session, a: *mut CK_BYTE, b: CK_ULONG, c: CK_OBJECT_HANDLE, d: CK_OBJECT_HANDLE);
        C_Login(session, a: CK_USER_TYPE, b: *mut CK_UTF8CHAR, c: CK_ULONG);
        C_Logout(session);
        C_CreateObject(session, a: *mut CK_ATTRIBUTE, b: CK_ULONG, c: *mut CK_OBJECT_HANDLE);
        C_CopyObject(session, a: CK_OBJECT_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG, d: *mut CK_OBJECT_HANDLE);
        C_DestroyObject(session, a: CK_OBJECT_HANDLE);
        C_GetObjectSize(session, a: CK_OBJECT_HANDLE, b: *mut CK_ULONG);
        C_GetAttributeValue(session, a: CK_OBJECT_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG);
        C_SetAttributeValue(session, a: CK_OBJECT_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG);
        C_FindObjectsInit(session, a: *mut CK_ATTRIBUTE, b: CK_ULONG);
        C_FindObjects(session, a: *mut CK_OBJECT_HANDLE, b: CK_ULONG, c: *mut CK_ULONG) => Reply::Objects(c);
        C_FindObjectsFinal(session);
        C_EncryptInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_Encrypt(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_EncryptUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_EncryptFinal(session, a: *mut CK_BYTE, b: *mut CK_ULONG);
        C_DecryptInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_Decrypt(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DecryptUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DecryptFinal(session, a: *mut CK_BYTE, b: *mut CK_ULONG);
        C_DigestInit(session, a: *mut CK_MECHANISM);
        C_Digest(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DigestUpdate(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_DigestKey(session, a: CK_OBJECT_HANDLE);
        C_DigestFinal(session, a: *mut CK_BYTE, b: *mut CK_ULONG);
        C_SignInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_Sign(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG) => Reply::Signature(c, d);
        C_SignUpdate(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_SignFinal(session, a: *mut CK_BYTE, b: *mut CK_ULONG) => Reply::Signature(a, b);
        C_SignRecoverInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_SignRecover(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_VerifyInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_Verify(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: CK_ULONG);
        C_VerifyUpdate(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_VerifyFinal(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_VerifyRecoverInit(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE);
        C_VerifyRecover(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DigestEncryptUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DecryptDigestUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_SignEncryptUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_DecryptVerifyUpdate(session, a: *mut CK_BYTE, b: CK_ULONG, c: *mut CK_BYTE, d: *mut CK_ULONG);
        C_GenerateKey(session, a: *mut CK_MECHANISM, b: *mut CK_ATTRIBUTE, c: CK_ULONG, d: *mut CK_OBJECT_HANDLE);
        C_GenerateKeyPair(session, a: *mut CK_MECHANISM, b: *mut CK_ATTRIBUTE, c: CK_ULONG, d: *mut CK_ATTRIBUTE, e: CK_ULONG, f: *mut CK_OBJECT_HANDLE, g: *mut CK_OBJECT_HANDLE);
        C_WrapKey(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE, c: CK_OBJECT_HANDLE, d: *mut CK_BYTE, e: *mut CK_ULONG);
        C_UnwrapKey(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE, c: *mut CK_BYTE, d: CK_ULONG, e: *mut CK_ATTRIBUTE, f: CK_ULONG, g: *mut CK_OBJECT_HANDLE);
        C_DeriveKey(session, a: *mut CK_MECHANISM, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG, e: *mut CK_OBJECT_HANDLE);
        C_SeedRandom(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_GenerateRandom(session, a: *mut CK_BYTE, b: CK_ULONG);
        C_GetFunctionStatus(session);
        C_CancelFunction(session);
    }
}
