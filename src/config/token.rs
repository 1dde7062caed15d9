use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::Reader;
use crate::files::directory_of;
use crate::token::{Isolation, TokenConfig};

/// This program, even after the file that it was started from was replaced: workers speak the protocol of those who start
/// them.
const THIS_PROGRAM: &str = "/proc/self/exe";

impl Reader {
    /// Which token, and how it is used.
    pub(super) fn token(&mut self) -> TokenConfig {
        TokenConfig {
            module: self.required_path("token.module"),
            label: self.required_text("token.label"),
            serial: self.text("token.serial"),
            pin: self.pin("token.pin_file"),
            pin_refused_file: self.pin_refused_file("token.pin_refused_file"),
            isolation: self.isolation("token.isolation"),
            program: PathBuf::from(THIS_PROGRAM),
            workers: self.number("token.workers", 2, 1..=256),
            queue_depth_max: self.number("token.queue_depth_max", 256, 1..=65_536),
            queue_wait_max: Duration::from_millis(self.number("token.queue_wait_max_ms", 100, 1..=60_000)),
            call_timeout: Duration::from_millis(self.number("token.call_timeout_ms", 2000, 100..=600_000)),
        }
    }

    /// Found out at each start, and not when a PIN was refused and each restart would try it again (R14).
    fn pin_refused_file(&mut self, key: &str) -> PathBuf {
        let path = self.path(key, "token-pin-refused");
        let directory = directory_of(&path);
        if let Err(error) = access(directory, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            let problem = format!(
                "must be in a directory that can be read and written, or a PIN that the token refused would be tried again at each \
                 start: {}: {error}",
                directory.display()
            );
            self.problem(key, problem);
        }
        path
    }

    fn isolation(&mut self, key: &str) -> Isolation {
        match self.text(key).as_deref() {
            None | Some("process") => Isolation::Process,
            Some("thread") => Isolation::Thread,
            Some(_) => {
                self.problem(key, "must be \"process\" or \"thread\"");
                Isolation::Process
            }
        }
    }
}
