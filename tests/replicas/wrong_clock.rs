//! A clock that a test sets, for the processes that it is given to.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Installation, Server};

pub(crate) struct WrongClock {
    library: PathBuf,
    added: PathBuf,
}

impl WrongClock {
    /// One that is right for now. Its files are in this folder.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        let clock = Self { library: folder.join("wrong_clock.so"), added: folder.join("wrong_clock") };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replicas/wrong_clock.c");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&clock.library).arg(source);
        assert!(compile.status().expect("`make test` brings a compiler").success());
        clock.set(0);
        fs::set_permissions(&clock.added, fs::Permissions::from_mode(0o644)).expect("it is ours");
        clock
    }

    /// What a process has it by.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("WRONG_CLOCK", &self.added)]
    }

    /// A replica that has it.
    pub(crate) fn serve(&self, installation: &Installation) -> Server {
        let mut serve = installation.command("serve");
        serve.arg("--announce").envs(self.environment());
        Server::start(serve)
    }

    /// Sets it so many seconds before or after the machine's.
    pub(crate) fn set(&self, seconds: i64) {
        // In place: processes have it mapped.
        let file = File::options().create(true).truncate(false).write(true).open(&self.added).expect("it opens");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("it is written");
    }
}
