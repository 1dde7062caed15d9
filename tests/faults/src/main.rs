//! `keyward-faults FILE`: whether a control file can be read, and what has been counted so far.

use std::path::Path;
use std::process::ExitCode;

use keyward_faults::{Calls, Control, Function};

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1) else {
        eprintln!("usage: keyward-faults FILE, which KEYWARD_FAULTS_CONTROL names");
        return ExitCode::FAILURE;
    };
    match show(Path::new(&file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("keyward-faults: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn show(file: &Path) -> Result<(), String> {
    let control = Control::open(file)?;
    for rule in 0..control.len() {
        println!("rule {}: {} calls failed", rule + 1, control.fired(rule));
    }
    let calls = Calls::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    for function in Function::ALL.iter().filter(|function| calls.of(**function) > 0) {
        println!("{:<22} {:>10}", function.name(), calls.of(*function));
    }
    Ok(())
}
