use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Problems, Reader};
use crate::audit::{OnFailure, Settings, Signing};
use crate::store::Location;

/// The audit logs.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// The log of calls.
    pub log: Settings,
    /// How often a checkpoint is signed of a log that has grown.
    pub checkpoint_every: Duration,
}

/// Where the files are that tell who did what: all that is needed to look at them, and of secrets none but a
/// database's password.
#[derive(Clone, Debug)]
pub struct Places {
    /// The store, which has the log of administration.
    pub store: Location,
    /// The file that pins the service key.
    pub service_key: PathBuf,
    /// The directory of the log of calls and of all checkpoints.
    pub audit_directory: PathBuf,
}

impl Places {
    /// Reads these keys alone from the file and the environment: whoever looks at audit logs has neither the PIN nor the
    /// certificates of the service.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let mut reader = Reader::open(path)?;
        let places = Self {
            store: reader.store(),
            service_key: reader.service_key_path(),
            audit_directory: reader.audit_directory(),
        };
        if reader.problems.is_empty() { Ok(places) } else { Err(Problems(reader.problems)) }
    }
}

impl Reader {
    /// The section `[audit]`.
    pub(super) fn audit(&mut self) -> AuditSettings {
        let signing = match self.text("audit.signing").as_deref() {
            None | Some("async") => Signing::Async,
            Some("durable") => Signing::Durable,
            Some("off") => Signing::Off,
            Some(_) => {
                self.problem("audit.signing", "must be \"off\", \"async\" or \"durable\"");
                Signing::Async
            }
        };
        let on_failure = match self.text("audit.on_failure").as_deref() {
            None | Some("refuse") => OnFailure::Refuse,
            Some("allow") => OnFailure::Allow,
            Some(_) => {
                self.problem("audit.on_failure", "must be \"refuse\" or \"allow\"");
                OnFailure::Refuse
            }
        };
        // Below a second the token would sign little else; beyond a day there is nothing to hold a log against.
        let checkpoint_secs = self.number("audit.checkpoint_secs", 60, 1..=86_400);
        AuditSettings {
            log: Settings { directory: self.audit_directory(), signing, on_failure },
            checkpoint_every: Duration::from_secs(checkpoint_secs),
        }
    }

    fn audit_directory(&mut self) -> PathBuf {
        self.path("audit.directory", "audit")
    }

    pub(super) fn service_key_path(&mut self) -> PathBuf {
        self.path("service_key.file", "service-key.json")
    }
}
