//! The claims of SignJwt, which are signed octet for octet.
#![no_main]

use keyward::jose::Claims;
use keyward_fuzz::SECRET;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|json: &[u8]| {
    // Another reader of the same octets; it keeps the last of two members of one name.
    let value = serde_json::from_slice::<Value>(json).ok();
    match Claims::parse(json) {
        Ok(claims) => {
            assert!(std::str::from_utf8(json).is_ok());
            // It reads every value, and gives up where a number is out of its range or a surrogate stands alone.
            let Some(value) = value else { return };
            let members = value.as_object().expect("claims are an object");
            assert_eq!(claims.exp, members.get("exp").map(|exp| exp.as_f64().expect("a number")));
            assert_eq!(claims.nbf, members.get("nbf").map(|nbf| nbf.as_f64().expect("a number")));
            assert_eq!(claims.iss.as_deref(), members.get("iss").map(|iss| iss.as_str().expect("a text")));
            // White space, order and escapes say nothing.
            let again = Claims::parse(value.to_string().as_bytes()).expect("the same object, written anew");
            assert_eq!(again.iss, claims.iss);
            assert_eq!((again.exp.is_some(), again.nbf.is_some()), (claims.exp.is_some(), claims.nbf.is_some()));
        }
        Err(problem) => {
            let problem = problem.to_string();
            assert!(problem.starts_with("must be ") && !problem.contains(SECRET), "{problem}");
            // Refused for its shape, for the type of a claim, or because a member stands in it twice: not for what it says.
            if let Some(Value::Object(members)) = value {
                let is_number = |name| members.get(name).is_none_or(Value::is_number);
                let well = is_number("exp") && is_number("nbf") && members.get("iss").is_none_or(Value::is_string);
                let once = Value::Object(members).to_string();
                assert!(!well || Claims::parse(once.as_bytes()).is_ok(), "{problem}");
            }
        }
    }
});
