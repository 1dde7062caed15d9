//! Holding a log against its chain and its checkpoints, from its first record to its last.

use std::fmt;
use std::io;
use std::path::Path;

use super::directory::SegmentFile;
use super::evidence::Evidence;
use super::lines::Lines;
use super::segments::Head;
use crate::tlog::{Broken, Entry, Hash, Log, Record, Tip, leaf_hash};

/// What came of looking at a log.
#[derive(Debug)]
pub struct Findings {
    /// Which log.
    pub log: Log,
    /// The first record that is here: those before it were archived.
    pub first: u64,
    /// How many records there are, with those before the first.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
    /// Files that it consists of.
    pub segments: usize,
    /// Checkpoints that it was held against.
    pub checkpoints: usize,
    /// Up to which record checkpoints confirm it.
    pub confirmed: Option<u64>,
    /// The first thing that is wrong.
    pub bad: Option<Bad>,
    /// What is wrong besides: the first checkpoint that cannot be believed, the first record with wrong copies beside it.
    pub also: Vec<String>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

impl Findings {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.bad.is_none() && self.also.is_empty()
    }
}

/// The first thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A record is not what was written.
    Record {
        /// Which.
        index: u64,
        /// In which way.
        what: String,
    },
    /// Some record was changed, and all after it were written anew to fit.
    Rewritten {
        /// The first that it can be.
        from: u64,
        /// The last that it can be.
        to: u64,
        /// Which checkpoint tells.
        place: String,
    },
    /// Records at the end are gone.
    Truncated {
        /// How many there are.
        size: u64,
        /// How many there were.
        was: u64,
        /// Which checkpoint tells.
        place: String,
    },
    /// What stands beside the records is not what was written.
    Other(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { index, what } => write!(f, "record {index} {what}"),
            Self::Rewritten { from, to, place } => write!(
                f,
                "records {from} to {to} were rewritten: they fit together, and are not those of the checkpoint in {place}"
            ),
            Self::Truncated { size, was, place } => {
                write!(f, "records {size} to {} are gone: the checkpoint in {place} is of {was} records", was - 1)
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A walk through one log, record by record.
pub struct Walk {
    tip: Tip,
    known: std::iter::Peekable<std::vec::IntoIter<Evidence>>,
    findings: Findings,
    /// The first checkpoint that the tree does not have.
    mismatch: Option<Bad>,
    /// A break of the chain, for which one of two can be the reason: what comes next tells which.
    suspect: Option<Suspect>,
    /// Whether that was told of.
    copies_differ: bool,
}

enum Suspect {
    Record(Vec<u8>),
    Head(String),
}

impl Walk {
    /// Begins a walk. `problem` is what is wrong with the evidence itself.
    #[must_use]
    pub fn new(log: Log, mut known: Vec<Evidence>, problem: Option<String>) -> Self {
        known.retain(|evidence| evidence.log == log);
        known.sort_by_key(|evidence| evidence.checkpoint.size);
        let findings = Findings {
            log,
            first: 0,
            size: 0,
            root: Hash::of_nothing(),
            segments: 0,
            checkpoints: 0,
            confirmed: None,
            bad: None,
            also: problem.into_iter().collect(),
            notes: Vec::new(),
        };
        Self {
            tip: Tip::default(),
            known: known.into_iter().peekable(),
            findings,
            mismatch: None,
            suspect: None,
            copies_differ: false,
        }
    }

    /// A segment begins, which says that the log stood at `tip` then.
    fn head(&mut self, name: &str, tip: &Tip) {
        self.findings.segments += 1;
        if self.findings.segments == 1 && self.findings.bad.is_none() {
            self.tip = tip.clone();
            self.findings.first = tip.size();
        } else if tip.size() > self.tip.size() {
            let what = format!("is missing, as are all before record {}, with which {name} begins", tip.size());
            self.bad(self.tip.size(), what);
        } else if *tip != self.tip {
            self.suspect = self.suspect.take().or_else(|| Some(Suspect::Head(name.to_owned())));
        }
    }

    /// The next record.
    pub fn record(&mut self, octets: &[u8]) {
        if self.findings.bad.is_some() {
            return;
        }
        if let Some(suspect) = self.suspect.take() {
            self.decide(&suspect, Some(octets));
            return;
        }
        self.meet_checkpoints();
        let index = self.tip.size();
        match self.tip.follow(octets) {
            Ok(_) => {}
            Err(Broken::Unreadable(problem)) => self.bad(index, format!("is no record: {problem}")),
            Err(Broken::Index(found)) => self.bad(index, format!("is missing: record {found} stands in its place")),
            Err(Broken::Previous) => self.suspect = Some(Suspect::Record(octets.to_vec())),
        }
    }

    /// Whether something is wrong, so that what comes next cannot be judged.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.findings.bad.is_some()
    }

    /// The next record, with the copies of its members that its row has.
    pub fn row(&mut self, row: &[u8], Entry { index, record, problem }: &Entry) {
        if let (Some(_), Some(problem), false) = (record, problem, self.copies_differ) {
            self.copies_differ = true;
            self.findings.also.push(format!("record {index}: {problem}"));
        }
        self.record(row);
    }

    /// What came of it, at the end of the log.
    #[must_use]
    pub fn finish(mut self) -> Findings {
        if let Some(suspect) = self.suspect.take() {
            self.decide(&suspect, None);
        }
        if self.findings.bad.is_none() {
            self.meet_checkpoints();
            if let (None, Some(evidence)) = (&self.mismatch, self.known.next()) {
                let (size, was) = (self.tip.size(), evidence.checkpoint.size);
                self.findings.bad = Some(Bad::Truncated { size, was, place: evidence.place });
            }
        }
        self.findings.bad = match (self.findings.bad, self.mismatch) {
            // A record that broke the chain is named, unless the log was rewritten before it.
            (Some(Bad::Record { index, .. }), Some(Bad::Rewritten { from, to, place })) if to < index => {
                Some(Bad::Rewritten { from, to, place })
            }
            (bad, mismatch) => bad.or(mismatch),
        };
        self.findings.size = self.tip.size();
        self.findings.root = self.tip.root();
        self.findings
    }

    /// Adds what a reader should know.
    pub fn note(&mut self, text: String) {
        self.findings.notes.push(text);
    }

    fn bad(&mut self, index: u64, what: String) {
        self.findings.bad.get_or_insert(Bad::Record { index, what });
    }

    /// Holds the tree against the checkpoints of its size.
    fn meet_checkpoints(&mut self) {
        let size = self.tip.size();
        while let Some(evidence) = self.known.next_if(|evidence| evidence.checkpoint.size <= size) {
            if evidence.checkpoint.size < size {
                // Only before the first record that is here.
                continue;
            }
            self.findings.checkpoints += 1;
            if evidence.checkpoint.root == self.tip.root() {
                self.findings.confirmed = Some(size);
            } else if self.mismatch.is_none() {
                let from = self.findings.confirmed.unwrap_or(self.findings.first);
                self.mismatch = Some(Bad::Rewritten { from, to: size.saturating_sub(1), place: evidence.place });
            }
        }
    }

    /// Where the chain breaks, either the record before was changed, or what names it.
    fn decide(&mut self, suspect: &Suspect, next: Option<&[u8]>) {
        let index = self.tip.size();
        let next = next.and_then(|octets| Record::parse(octets).ok());
        let fits = next.as_ref().is_some_and(|next| match suspect {
            Suspect::Record(octets) => next.previous == Some(leaf_hash(octets)),
            Suspect::Head(_) => next.previous.as_ref() != self.tip.last(),
        });
        // Nothing comes after it: a checkpoint of what came before it tells, if there is one.
        let confirmed = next.is_none() && self.findings.confirmed == Some(index);
        match suspect {
            Suspect::Record(_) if confirmed || (next.is_some() && !fits) => {
                self.bad(index, "was changed: it says that another record came before it".to_owned());
            }
            Suspect::Head(name) if confirmed || !fits => {
                let text = format!("the first line of {name} was changed: it does not say where the log stood");
                self.findings.bad.get_or_insert(Bad::Other(text));
            }
            Suspect::Record(_) | Suspect::Head(_) => {
                self.bad(
                    index.saturating_sub(1),
                    "was changed: what comes after it was written after another".to_owned(),
                );
            }
        }
    }
}

/// Goes through the log of calls in `directory`, while it is written or not. Blocks on files.
///
/// # Errors
/// A file cannot be read.
pub fn verify_calls(directory: &Path, origin: &str, mut walk: Walk) -> io::Result<Findings> {
    let segments = SegmentFile::all(directory)?;
    let archived = segments.first().map_or(0, |first| first.first);
    if archived > 0 {
        walk.note(format!("records 0 to {} are not here: they were archived, or removed", archived - 1));
    }
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let name = segment.path.file_name().unwrap_or_default().display().to_string();
        if walk.is_over() {
            break;
        }
        let mut lines = match Lines::open(&segment.path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                walk.findings.bad = Some(Bad::Other(format!("{name}: {error}")));
                break;
            }
            lines => lines?,
        };
        match lines.next()? {
            Some(line) if line.whole => match serde_json::from_slice::<Head>(&line.octets) {
                Ok(head) if head.origin != origin => {
                    let text = format!("{name} is of the log {}, and this one is {origin}", head.origin);
                    walk.findings.bad.get_or_insert(Bad::Other(text));
                }
                Ok(head) if head.tip.size() != segment.first => {
                    let text = format!("{name} says that it begins with record {}", head.tip.size());
                    walk.findings.bad.get_or_insert(Bad::Other(text));
                }
                Ok(head) => walk.head(&name, &head.tip),
                Err(error) => {
                    let text = format!("the first line of {name} was changed: {error}");
                    walk.findings.bad.get_or_insert(Bad::Other(text));
                }
            },
            _ if is_last => walk.note(format!("{name} has no first line yet")),
            _ => {
                walk.findings.bad.get_or_insert(Bad::Other(format!("{name} is empty")));
            }
        }
        while !walk.is_over() {
            let line = match lines.next() {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    walk.bad(walk.tip.size(), format!("cannot be read: {error}"));
                    break;
                }
                line => line?,
            };
            let Some(line) = line else { break };
            if !line.whole && is_last {
                walk.note(format!("the last line of {name} has no end: it is being written, or a crash tore it"));
                break;
            }
            walk.record(&line.octets);
        }
    }
    let mut findings = walk.finish();
    if archived > 0 && findings.bad.is_none() && findings.confirmed.is_none() {
        findings.notes.push("no checkpoint confirms where the records that are here begin".to_owned());
    }
    Ok(findings)
}
