use std::io;
use std::path::Path;

use super::backwards::LinesBackwards;
use super::directory::SegmentFile;
use super::lines::Lines;
use crate::domain::TenantId;
use crate::tlog::Record;

/// Records looked at for one page: where a tenant is asked for of whom little is recorded, a page can have fewer events than asked
/// for, and still not be the last.
const LOOKED_AT_MAX: usize = 20_000;

/// Events of the log of calls, newest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The events.
    pub records: Vec<Record>,
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
/// A file cannot be read or holds something else.
pub fn records_from(directory: &Path, from: u64, mut take: impl FnMut(Record) -> bool) -> io::Result<()> {
    let segments = SegmentFile::all(directory)?;
    let begin = segments.iter().rposition(|segment| segment.first <= from).unwrap_or(0);
    for segment in &segments[begin.min(segments.len())..] {
        let mut lines = Lines::open(&segment.path)?;
        lines.next()?;
        while let Some(line) = lines.next()?.filter(|line| line.whole) {
            let record = parse(&line.octets)?;
            if record.index >= from && !take(record) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn parse(octets: &[u8]) -> io::Result<Record> {
    Record::parse(octets).map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken.to_string()))
}

/// Reads a page of the log of calls in `directory`. Blocks on files; works while the log is written.
///
/// # Errors
/// A file cannot be read or holds no records, or `before` is no place of this log.
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
            let record = parse(&line.octets)?;
            let index = record.index;
            if expected.is_some_and(|expected| expected != index + 1) {
                let problem = format!("record {index} is not in its place");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            expected = Some(index);
            looked_at += 1;
            if tenant.is_none_or(|tenant| record.event.tenant.as_ref() == Some(tenant)) {
                page.records.push(record);
            }
            if page.records.len() == size || looked_at == LOOKED_AT_MAX {
                page.next = (index > 0).then_some(Place { index, segment: segment.first, octet: line.place });
                return Ok(page);
            }
        }
    }
    Ok(page)
}
