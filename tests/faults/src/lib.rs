//! A PKCS#11 module that forwards each call to a real one, and makes it fail as a file says.
//!
//! A program loads it in the place of its own module. `KEYWARD_FAULTS_MODULE` names the real one, `KEYWARD_FAULTS_CONTROL` a
//! file of rules, which is read again when it has changed; `docs/fault-module.md` has the format. Without the second the module
//! only forwards.
//!
//! To read: `rules` (what a line says), `control` (which rules hold now, over all processes), `faults` (what they do to a call),
//! `functions` (the functions of PKCS#11 v2.40), then what these stand on: `counters`, `sessions`, `real`, `values`.

mod control;
mod counters;
mod faults;
mod functions;
mod real;
mod rules;
mod sessions;
mod values;

pub use control::{CONTROL_VARIABLE, Calls, Control};
pub use functions::{C_GetFunctionList, Function};
pub use real::MODULE_VARIABLE;
pub use rules::{RULES_MAX, Rule};

/// Something was asked for that cannot be done, and a test that went on would prove nothing: says so and ends the process.
fn complain(what: &str) -> ! {
    eprintln!("keyward-faults: {what}");
    std::process::abort()
}
