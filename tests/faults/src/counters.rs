//! Numbers that processes share and that outlive their crash: a file, mapped into memory.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

/// As many counters as were asked for, all 0 in a new file.
pub(crate) struct Counters {
    memory: *mut libc::c_void,
    count: usize,
}

// SAFETY: the memory is mapped as long as this lives, belongs to no thread, and is changed by atomic operations alone.
unsafe impl Send for Counters {}
// SAFETY: the same.
unsafe impl Sync for Counters {}

impl Counters {
    /// Opens or makes the file.
    pub(crate) fn open(path: &Path, count: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // Who else opens it says the same length, so that nobody's counts are cut off.
        file.set_len(octets(count) as u64)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, at an address that the kernel chooses.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), octets(count), access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { memory, count }) }
    }

    pub(crate) fn at(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `count` counters from the start of a page, so aligned; any octets are a counter; mapped as long as `self` lives;
        // changed by atomic operations alone, here and in the other processes.
        let counters = unsafe { slice::from_raw_parts(self.memory.cast::<AtomicU64>(), self.count) };
        &counters[index]
    }
}

impl Drop for Counters {
    /// Who asks for the counts again and again, as tests do, would have as many mappings else.
    fn drop(&mut self) {
        // SAFETY: what `open` mapped, and nobody refers to it any more.
        unsafe { libc::munmap(self.memory, octets(self.count)) };
    }
}

fn octets(count: usize) -> usize {
    count * size_of::<AtomicU64>()
}
