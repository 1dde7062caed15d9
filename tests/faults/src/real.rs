use std::env;
use std::ptr;
use std::sync::OnceLock;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_OK, Pkcs11};

use crate::complain;

/// Names the real module.
pub const MODULE_VARIABLE: &str = "KEYWARD_FAULTS_MODULE";

/// The real module's functions; the module stays loaded as long as the process lives.
pub(crate) fn functions() -> &'static CK_FUNCTION_LIST {
    static FUNCTIONS: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
    FUNCTIONS.get_or_init(|| load().unwrap_or_else(|problem| complain(&problem)))
}

fn load() -> Result<CK_FUNCTION_LIST, String> {
    let path = env::var_os(MODULE_VARIABLE).ok_or_else(|| format!("{MODULE_VARIABLE} must name a PKCS#11 module"))?;
    let told = |problem: &str| format!("{MODULE_VARIABLE} = {}: {problem}", path.display());
    // SAFETY: whoever names a library there wants its initialisers to run; that it is a PKCS#11 module they vouch for.
    let library = unsafe { Pkcs11::new(&path) }.map_err(|error| told(&error.to_string()))?;
    let get = library.C_GetFunctionList.as_ref().map_err(|error| told(&error.to_string()))?;
    let mut list = ptr::null_mut();
    // SAFETY: C_GetFunctionList is callable before C_Initialize and writes one pointer (PKCS#11 v2.40 section 5.4).
    let answer: CK_RV = unsafe { get(&raw mut list) };
    if answer != CKR_OK || list.is_null() {
        return Err(told(&format!("C_GetFunctionList answered {answer:#x}")));
    }
    // SAFETY: the module answered OK, so this is its list, whose first members are those of v2.40 in every version.
    let functions = unsafe { *list };
    // Dropping the library would unload what the list points into.
    std::mem::forget(library);
    Ok(functions)
}
