//! Numbers that processes share and that outlive their crash: a file, mapped into memory.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

/// As many counters as were asked for, all 0 in a new file.
pub(crate) struct Counters(&'static [AtomicU64]);

impl Counters {
    /// Opens or makes the file. The mapping lasts as long as the process: a call that hangs may hold on to it for ever.
    pub(crate) fn open(path: &Path, count: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let len = count * size_of::<AtomicU64>();
        // Who else opens it says the same length, so that nobody's counts are cut off.
        file.set_len(len as u64)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, at an address that the kernel chooses.
        let memory = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `len` octets from the start of a page, so aligned; never unmapped; changed by atomic operations alone, here and
        // in the other processes.
        Ok(Self(unsafe { slice::from_raw_parts(memory.cast::<AtomicU64>(), count) }))
    }

    pub(crate) fn at(&self, index: usize) -> &AtomicU64 {
        &self.0[index]
    }
}
