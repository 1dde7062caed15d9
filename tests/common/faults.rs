use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use keyward_faults::{CONTROL_VARIABLE, Calls, Control, Function, MODULE_VARIABLE, Rule};

use super::tools;

/// The fault module between a program and SoftHSM, and the file that tells it what to do (docs/fault-module.md).
pub(crate) struct Faults {
    control: PathBuf,
}

impl Faults {
    /// Without faults so far; its files are in this directory.
    pub(crate) fn new(directory: &Path) -> Self {
        let faults = Self::at(directory);
        faults.clear();
        faults
    }

    /// Those that another process has made there.
    pub(crate) fn at(directory: &Path) -> Self {
        Self { control: directory.join("faults") }
    }

    /// The shared library. Cargo puts it beside the tests, for which it is a dependency.
    pub(crate) fn module() -> PathBuf {
        let tests = std::env::current_exe().expect("a test has a file");
        let module = tests.with_file_name("libkeyward_faults.so");
        assert!(module.exists(), "{} is not there: cargo test builds it", module.display());
        module
    }

    /// From the next call on these rules hold, one a line, and no others.
    pub(crate) fn set(&self, rules: &str) {
        if let Err(problem) = Rule::parse_all(rules) {
            panic!("{problem} of\n{rules}");
        }
        let whole = self.control.with_extension("new");
        let mut file = File::create(&whole).expect("a new file");
        file.write_all(rules.as_bytes()).expect("the rules are written");
        // The kernel's own time for it may be some milliseconds old, the same as that of the rules before.
        file.set_modified(SystemTime::now()).expect("the time is set");
        fs::rename(whole, &self.control).expect("the rules are put in place");
    }

    /// No faults from the next call on.
    pub(crate) fn clear(&self) {
        self.set("");
    }

    /// How often a function has been called, by all processes.
    pub(crate) fn calls(&self, function: &str) -> u64 {
        let function = Function::named(function).expect("a function of PKCS#11 v2.40");
        Calls::open(&self.control).expect("the counts can be read").of(function)
    }

    /// How many calls the rule of this number, from 0, has made fail since it was set.
    pub(crate) fn fired(&self, rule: usize) -> u64 {
        Control::open(&self.control).expect("the rules that were set").fired(rule)
    }

    /// What the environment of a program must say, so that it finds SoftHSM and the rules.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [(MODULE_VARIABLE, tools::SOFTHSM_MODULE.into()), (CONTROL_VARIABLE, self.control.clone())]
    }
}
