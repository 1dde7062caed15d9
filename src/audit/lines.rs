use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use super::directory::open_regular;

/// Longest line read: a principal of the longest certificate or JWT that is taken fits many times over.
pub(super) const LINE_BYTES_MAX: u64 = 1 << 20;

/// The lines of a file, in order, each with the place where it begins.
pub(super) struct Lines {
    file: BufReader<File>,
    place: u64,
}

/// One line of a file, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins in the file.
    pub(super) place: u64,
    /// What it says.
    pub(super) octets: Vec<u8>,
    /// Whether its newline is there: what has none was not written to its end.
    pub(super) whole: bool,
}

impl Lines {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::with_capacity(1 << 16, open_regular(path, OpenOptions::new().read(true))?),
            place: 0,
        })
    }

    /// The next line, if there is one.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut octets = Vec::new();
        let read = self.file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut octets)?;
        if read == 0 {
            return Ok(None);
        }
        let whole = octets.pop_if(|last| *last == b'\n').is_some();
        if !whole && read as u64 == LINE_BYTES_MAX {
            let text = format!("a line of more than {LINE_BYTES_MAX} octets at {}", self.place);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let place = self.place;
        self.place += read as u64;
        Ok(Some(Line { place, octets, whole }))
    }
}
