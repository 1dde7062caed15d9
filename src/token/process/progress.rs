use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};

/// How many orders a process has begun, for when it ends without a word: what it made waits for others before it is sent, so that
/// the receipts do not tell. In memory that both ends share, because nobody is to be woken for it.
pub(super) struct Progress {
    file: File,
    begun: u64,
}

impl Progress {
    /// None yet. The second is for the process.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let file = File::from(memfd_create("keyward-progress", MemfdFlags::CLOEXEC)?);
        let theirs = OwnedFd::from(file.try_clone()?);
        Ok((Self { file, begun: 0 }, theirs))
    }

    /// The process's end.
    pub(super) fn of(file: OwnedFd) -> Self {
        Self { file: File::from(file), begun: 0 }
    }

    /// One more is begun.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.begun += 1;
        self.file.write_all_at(&self.begun.to_ne_bytes(), 0)
    }

    /// How many the other end has begun.
    pub(super) fn begun(&self) -> u64 {
        let mut octets = [0; 8];
        // Nothing is there before the first.
        match self.file.read_exact_at(&mut octets, 0) {
            Ok(()) => u64::from_ne_bytes(octets),
            Err(_) => 0,
        }
    }
}
