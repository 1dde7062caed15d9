//! The files of the log of calls. Each begins with a line that tells where the log stood, so that older ones can be archived and
//! a start reads the last one alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use serde::{Deserialize, Serialize};

use super::directory::{Directory, FILE_MODE, OpenError, SegmentFile, open_regular};
use super::lines::Lines;
use crate::domain::Event;
use crate::files::sync_directory;
use crate::tlog::Tip;

/// About how large a segment is: small enough to read at a start within a second or so, large enough that a year of
/// signatures is no more than thousands of files.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// The first line of a segment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    /// Whose log this is.
    pub(super) origin: String,
    /// Where the log stood.
    pub(super) tip: Tip,
}

/// The end of the log, to which records are appended. Whatever fails on the way to the disk, the next try writes the same octets
/// to the same place: no half line stands before a record, and no record is lost while this lives.
pub(super) struct Segments {
    directory: Directory,
    origin: String,
    tip: Tip,
    /// The index of the last segment's first record.
    first: u64,
    /// The file that is written to; none before the first record of a segment.
    last: Option<File>,
    /// Octets of it that are on the disk, all of whole lines.
    synced: u64,
    /// Whole lines that come after them.
    unsynced: Vec<u8>,
    /// How many octets of these the file has got.
    written: usize,
    bytes_max: u64,
}

/// A start that found a line without its end, and cut it off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) octets: usize,
}

impl Segments {
    /// Takes up the log where it ends. `known` is where it stood when its last checkpoint was signed: it must have gone on from
    /// there.
    pub(super) fn open(
        directory: Directory,
        origin: String,
        known: Option<&Tip>,
    ) -> Result<(Self, Option<Torn>), OpenError> {
        let mut segments = Self {
            directory,
            origin,
            tip: known.cloned().unwrap_or_default(),
            first: 0,
            last: None,
            synced: 0,
            unsynced: Vec::new(),
            written: 0,
            bytes_max: SEGMENT_BYTES_MAX,
        };
        let torn = segments.take_up(known)?;
        Ok((segments, torn))
    }

    fn take_up(&mut self, known: Option<&Tip>) -> Result<Option<Torn>, OpenError> {
        let path = self.directory.path().to_owned();
        let mut files = SegmentFile::all(&path).map_err(|error| OpenError::File { path, error })?;
        let mut torn = None;
        // A head without its end has no record behind it, and is written anew with the next one.
        while let Some(last) = files.last() {
            let file = |error| OpenError::File { path: last.path.clone(), error };
            let head = Lines::open(&last.path).and_then(|mut lines| lines.next()).map_err(file)?;
            if head.as_ref().is_some_and(|head| head.whole) {
                break;
            }
            std::fs::remove_file(&last.path).map_err(file)?;
            torn = Some(Torn { octets: head.map_or(0, |head| head.octets.len()) });
            files.pop();
        }
        // From the segment that the checkpoint fell into: what came before it was seen when it was signed.
        let from = known.map_or(u64::MAX, Tip::size).min(files.last().map_or(0, |last| last.first));
        let begin = files.iter().rposition(|segment| segment.first <= from).unwrap_or(0);
        let read = &files[begin.min(files.len())..];
        let mut met = known.is_none_or(|known| *known == Tip::default());
        let mut tip: Option<Tip> = None;
        for (index, segment) in read.iter().enumerate() {
            let is_last = index + 1 == read.len();
            let found = self.read(segment, tip.as_ref(), known, &mut met, is_last)?;
            torn = found.1.or(torn);
            tip = Some(found.0);
        }
        self.tip = tip.unwrap_or_default();
        if let (false, Some(known)) = (met, known) {
            let problem = if self.tip.size() < known.size() {
                format!("it has {} records, and a checkpoint was signed of {}", self.tip.size(), known.size())
            } else if files.first().is_none_or(|first| first.first > known.size()) {
                format!("the segment with record {} is missing, up to which a checkpoint was signed", known.size())
            } else {
                format!("its first {} records are not those of which a checkpoint was signed", known.size())
            };
            return Err(self.directory.damaged(problem));
        }
        Ok(torn)
    }

    /// Goes through one segment.
    fn read(
        &mut self,
        segment: &SegmentFile,
        before: Option<&Tip>,
        known: Option<&Tip>,
        met: &mut bool,
        is_last: bool,
    ) -> Result<(Tip, Option<Torn>), OpenError> {
        let file = |error| OpenError::File { path: segment.path.clone(), error };
        let name = segment.path.file_name().unwrap_or_default().display();
        let damaged = |problem: String| self.directory.damaged(format!("{name}: {problem}"));
        let mut lines = Lines::open(&segment.path).map_err(file)?;
        let head = lines.next().map_err(file)?.map(|line| line.octets).unwrap_or_default();
        let head: Head = serde_json::from_slice(&head).map_err(|error| damaged(format!("its first line: {error}")))?;
        if head.origin != self.origin {
            return Err(damaged(format!("it is of the log {}, and this one is {}", head.origin, self.origin)));
        }
        if head.tip.size() != segment.first || before.is_some_and(|before| *before != head.tip) {
            return Err(damaged("its first line does not go on from the segment before it".to_owned()));
        }
        let mut tip = head.tip;
        *met |= known == Some(&tip);
        let mut torn = None;
        while let Some(line) = lines.next().map_err(file)? {
            if !line.whole {
                if !is_last {
                    return Err(damaged(format!("record {} has no end", tip.size())));
                }
                let keep = OpenOptions::new().write(true).open(&segment.path).map_err(file)?;
                keep.set_len(line.place).and_then(|()| keep.sync_all()).map_err(file)?;
                torn = Some(Torn { octets: line.octets.len() });
                break;
            }
            tip.follow(&line.octets).map_err(|broken| damaged(format!("record {}: {broken}", tip.size())))?;
            *met |= known == Some(&tip);
        }
        if is_last {
            let last = OpenOptions::new().write(true).open(&segment.path).map_err(file)?;
            self.synced = last.metadata().map_err(file)?.len();
            self.last = Some(last);
            self.first = segment.first;
        }
        Ok((tip, torn))
    }

    /// Where the log ends, with what is not on the disk yet.
    pub(super) const fn tip(&self) -> &Tip {
        &self.tip
    }

    /// How much is not on the disk yet.
    pub(super) fn unsynced_len(&self) -> usize {
        self.unsynced.len()
    }

    /// Puts a record at the end. It is nowhere but in memory yet.
    pub(super) fn append(&mut self, event: &Event) {
        if self.last.is_none() && self.unsynced.is_empty() {
            let head = Head { origin: self.origin.clone(), tip: self.tip.clone() };
            self.unsynced = serde_json::to_vec(&head).expect("texts and numbers have a form in JSON");
            self.unsynced.push(b'\n');
            self.first = self.tip.size();
            self.synced = 0;
        }
        let record = self.tip.append(event);
        self.unsynced.extend_from_slice(&record);
        self.unsynced.push(b'\n');
    }

    /// Gives the file what it has not got.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.written == self.unsynced.len() {
            return Ok(());
        }
        let file = match &self.last {
            Some(file) => file,
            None => {
                let path = SegmentFile::new(self.directory.path(), self.first).path;
                // It can be there from a try that failed half-way, and then holds nothing that was acknowledged.
                let options = &mut OpenOptions::new();
                let file = open_regular(&path, options.write(true).create(true).truncate(true).mode(FILE_MODE))?;
                sync_directory(self.directory.path())?;
                self.last.insert(file)
            }
        };
        file.write_all_at(&self.unsynced[self.written..], self.synced + self.written as u64)?;
        self.written = self.unsynced.len();
        Ok(())
    }

    /// Puts all of it on the disk. After a failure all that was not is written anew: what the system holds of it by then may be
    /// anything.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        let Some(file) = &self.last else { return Ok(()) };
        if self.unsynced.is_empty() {
            return Ok(());
        }
        if let Err(error) = file.sync_data() {
            self.written = 0;
            return Err(error);
        }
        self.synced += self.unsynced.len() as u64;
        self.unsynced.clear();
        self.written = 0;
        if self.synced >= self.bytes_max {
            self.last = None;
        }
        Ok(())
    }
}
