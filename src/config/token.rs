use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::{Config, Reader};
use crate::domain::TokenName;
use crate::files::directory_of;
use crate::token::{Isolation, PIN_VARIABLE, TokenConfig};

/// This program, even after the file that it was started from was replaced: workers speak the protocol of those who start
/// them.
const THIS_PROGRAM: &str = "/proc/self/exe";

impl Reader {
    /// The token that has the service key.
    pub(super) fn home_token(&mut self) -> TokenConfig {
        let serial = self.text("token.serial");
        self.token("token", TokenName::default(), serial)
    }

    /// The others, each in a section of its name.
    pub(super) fn further_tokens(&mut self) -> Vec<TokenConfig> {
        let sections = self.values.keys().filter_map(|key| key.strip_prefix("tokens.")?.split_once('.'));
        let sections: BTreeSet<String> = sections.map(|(section, _)| section.to_owned()).collect();
        sections.into_iter().filter_map(|section| self.further_token(&section)).collect()
    }

    fn further_token(&mut self, name: &str) -> Option<TokenConfig> {
        let section = format!("tokens.{name}");
        let name = match TokenName::try_from(name.to_owned()) {
            Ok(name) if name.is_home() => Err("must have another name: home is the token of [token]".to_owned()),
            Ok(name) => Ok(name),
            Err(problem) => Err(format!("has a name that cannot be: it {problem}")),
        };
        match name {
            Ok(name) => {
                // By it alone is a token known that is away when the service first starts with it.
                let serial = self.required_text(&format!("{section}.serial"));
                Some(self.token(&section, name, Some(serial)))
            }
            Err(problem) => {
                self.values.retain(|key, _| !key.starts_with(&format!("{section}.")));
                self.problem(&section, problem);
                None
            }
        }
    }

    /// Which token, and how it is used.
    fn token(&mut self, section: &str, name: TokenName, serial: Option<String>) -> TokenConfig {
        let key = |key: &str| format!("{section}.{key}");
        let of_name = |home: &str, further: String| if name.is_home() { home.to_owned() } else { further };
        let pin_variable =
            of_name(PIN_VARIABLE, format!("{PIN_VARIABLE}_{}", name.as_str().to_uppercase().replace('-', "_")));
        let pin_refused_file = of_name("token-pin-refused", format!("token-{name}-pin-refused"));
        TokenConfig {
            module: self.required_path(&key("module")),
            label: self.required_text(&key("label")),
            serial,
            pin: self.pin(&key("pin_file"), &pin_variable),
            pin_refused_file: self.pin_refused_file(&key("pin_refused_file"), &pin_refused_file),
            isolation: self.isolation(&key("isolation")),
            program: PathBuf::from(THIS_PROGRAM),
            workers: self.number(&key("workers"), 2, 1..=256),
            queue_depth_max: self.number(&key("queue_depth_max"), 256, 1..=65_536),
            queue_wait_max: Duration::from_millis(self.number(&key("queue_wait_max_ms"), 100, 1..=60_000)),
            call_timeout: Duration::from_millis(self.number(&key("call_timeout_ms"), 2000, 100..=600_000)),
            name,
        }
    }

    /// What two tokens must not share.
    pub(super) fn tokens_apart(&mut self, config: &Config) {
        let section = |token: &TokenConfig| match token.name.is_home() {
            true => "token".to_owned(),
            false => format!("tokens.{}", token.name),
        };
        let mut earlier = vec![&config.token];
        for token in &config.further_tokens {
            for other in &earlier {
                let here = section(token);
                let there = section(other);
                if token.serial == other.serial && token.label == other.label {
                    let problem = format!("must not be that of [{there}]: one token has one name");
                    self.problem(&format!("{here}.serial"), problem);
                }
                if token.pin_refused_file == other.pin_refused_file {
                    self.problem(&format!("{here}.pin_refused_file"), format!("must not be that of [{there}]"));
                }
                let threads = [token, other].iter().all(|token| token.isolation == Isolation::Thread);
                if threads && same_file(&token.module, &other.module) {
                    let problem = format!(
                        "must be \"process\": [{there}] has the same module on threads, and a process can initialise a module \
                         once"
                    );
                    self.problem(&format!("{here}.isolation"), problem);
                }
            }
            earlier.push(token);
        }
    }

    /// Found out at each start, and not when a PIN was refused and each restart would try it again (R14).
    fn pin_refused_file(&mut self, key: &str, default: &str) -> PathBuf {
        let path = self.path(key, default);
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

/// Whether two paths lead to one file. One that leads nowhere is found out when the token is opened.
fn same_file(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    resolved(one) == resolved(other)
}
