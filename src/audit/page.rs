use std::io;
use std::path::Path;

use super::backwards::LinesBackwards;
use super::directory::SegmentFile;
use super::lines::Lines;
use crate::domain::TenantId;
use crate::tlog::{Entry, Record};

/// Records looked at for one page: where a tenant is asked for of whom little is recorded, a page can have fewer events than asked
/// for, and still not be the last.
const LOOKED_AT_MAX: usize = 20_000;

/// Events of the log of calls, newest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The events, with what is wrong with those that are not as they were written. What is no record is shown whatever tenant
    /// is asked for: nobody knows whose it is.
    pub entries: Vec<Entry>,
    /// Where the next page begins; none: there is no older one here.
    pub next: Option<Place>,
}

/// A place between two records of the log of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The index of the record after it.
    pub index: u64,
    /// The first record of its segment.
    pub segment: u64,
    /// Where in the file it is.
    pub octet: u64,
}

/// Hands the records of the log of calls in `directory` on, from the index `from`, until `take` has enough and answers false.
///
/// # Errors
/// A file cannot be read.
pub fn records_from(directory: &Path, from: u64, mut take: impl FnMut(Entry) -> bool) -> io::Result<()> {
    let segments = SegmentFile::all(directory)?;
    let begin = segments.iter().rposition(|segment| segment.first <= from).unwrap_or(0);
    for segment in &segments[begin.min(segments.len())..] {
        let mut lines = Lines::open(&segment.path)?;
        lines.next()?;
        let mut index = segment.first;
        while let Some(line) = lines.next()?.filter(|line| line.whole) {
            let entry = Entry::read(index, &line.octets);
            // Where a record is missing, those after it are not wrong as well.
            index = said(&entry).saturating_add(1);
            if entry.index >= from && !take(entry) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Which place an entry says that it has.
fn said(entry: &Entry) -> u64 {
    entry.record.as_ref().map_or(entry.index, |record| record.index)
}

/// The place of the line that begins at `octet`, counted from the segment's first.
fn index_at(segment: &SegmentFile, octet: u64) -> io::Result<u64> {
    let mut lines = Lines::open(&segment.path)?;
    let mut index = segment.first;
    lines.next()?;
    while lines.next()?.is_some_and(|line| line.place < octet) {
        index = index.saturating_add(1);
    }
    Ok(index)
}

/// Reads a page of the log of calls in `directory`. Blocks on files; works while the log is written.
///
/// # Errors
/// A file cannot be read, or `before` is no place of this log.
pub fn page(directory: &Path, tenant: Option<&TenantId>, size: usize, before: Option<Place>) -> io::Result<Page> {
    let mut segments = SegmentFile::all(directory)?;
    if let Some(before) = before {
        segments.retain(|segment| segment.first <= before.segment);
        if segments.last().is_none_or(|last| last.first != before.segment) {
            return Ok(Page::default());
        }
    }
    let (mut page, mut looked_at) = (Page::default(), 0);
    let mut end = before.map(|before| before.octet);
    let mut expected = before.map(|before| before.index);
    for segment in segments.iter().rev() {
        let mut lines = LinesBackwards::open(&segment.path, end.take())?;
        while let Some(line) = lines.next()? {
            if line.place == 0 {
                break;
            }
            let index = match expected {
                Some(after) => u64::saturating_sub(after, 1),
                None => match Record::parse(&line.octets) {
                    Ok(record) => record.index,
                    Err(_) => index_at(segment, line.place)?,
                },
            };
            let entry = Entry::read(index, &line.octets);
            expected = Some(said(&entry));
            looked_at += 1;
            let event = entry.record.as_ref().map(|record| &record.event);
            if tenant.is_none_or(|tenant| event.is_none_or(|event| event.tenant.as_ref() == Some(tenant))) {
                page.entries.push(entry);
            }
            if page.entries.len() == size || looked_at == LOOKED_AT_MAX {
                // What an edited record says of its place is not believed to be the end.
                let more = expected != Some(0) || lines.next()?.is_some_and(|line| line.place > 0);
                let index = expected.unwrap_or(index);
                page.next = more.then_some(Place { index, segment: segment.first, octet: line.place });
                return Ok(page);
            }
        }
    }
    Ok(page)
}
