//! Checkpoints to hold a log against: those beside it, and those that somebody kept elsewhere.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::path::Path;

use super::backwards::LinesBackwards;
use super::checkpoints::{self, Kept, file_of};
use super::directory::open_regular;
use super::lines::{LINE_BYTES_MAX, Lines};
use crate::tlog::{Checkpoint, Log, LogKey};

/// A checkpoint that the service key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Of which log.
    pub log: Log,
    /// What it says.
    pub checkpoint: Checkpoint,
    /// Where it is, for people.
    pub place: String,
}

/// The checkpoints of a log in its own directory; with what is wrong with the first that cannot be believed.
///
/// # Errors
/// The file cannot be read.
pub fn beside(directory: &Path, log: Log, key: &LogKey) -> io::Result<(Vec<Evidence>, Option<String>)> {
    let path = file_of(directory, log);
    if !path.exists() {
        return Ok((Vec::new(), None));
    }
    read_lines(&path, |line| {
        let (_, checkpoint) = Kept::verified(line, key, log)?;
        Ok((log, checkpoint))
    })
}

/// What a reader should know of the histories of this log that were given up, from the checkpoints of them that stay.
///
/// # Errors
/// The directory or a file in it cannot be read.
pub fn given_up(directory: &Path, log: Log, key: &LogKey) -> io::Result<Vec<String>> {
    let mut notes = Vec::new();
    for path in checkpoints::given_up(directory, log)? {
        let name = path.file_name().unwrap_or_default().display().to_string();
        let last = LinesBackwards::open(&path, None)?.next()?;
        let last = last.ok_or_else(|| "it is empty".to_owned()).and_then(|line| Kept::verified(&line.octets, key, log));
        notes.push(match last {
            Ok((_, Checkpoint { size, .. })) => format!(
                "a history of {size} records was given up, as keyward accept-store does and records; {name} has its checkpoints"
            ),
            Err(problem) => format!("{name} should have the checkpoints of a history that was given up: {problem}"),
        });
    }
    Ok(notes)
}

/// The checkpoints in a file that was kept elsewhere: a signed note, or a copy of a log's own file.
///
/// # Errors
/// The file cannot be read.
pub fn elsewhere(path: &Path, key: &LogKey) -> io::Result<(Vec<Evidence>, Option<String>)> {
    let believe = |note: &str| {
        let checkpoint = Checkpoint::verified(note, key).map_err(|untrusted| untrusted.to_string())?;
        let log = key.log_of(&checkpoint.origin).ok_or("it is of another log")?;
        Ok((log, checkpoint))
    };
    let mut text = Vec::new();
    let file = open_regular(path, OpenOptions::new().read(true))?;
    file.take(LINE_BYTES_MAX).read_to_end(&mut text)?;
    if text.first() == Some(&b'{') {
        return read_lines(path, |line| {
            let kept: Kept = serde_json::from_slice(line).map_err(|error| format!("it is no checkpoint: {error}"))?;
            believe(&kept.checkpoint)
        });
    }
    let place = path.display().to_string();
    let note = String::from_utf8(text).map_err(|_| "it is no checkpoint: it is not UTF-8".to_owned());
    Ok(match note.and_then(|note| believe(&note)) {
        Ok((log, checkpoint)) => (vec![Evidence { log, checkpoint, place }], None),
        Err(problem) => (Vec::new(), Some(format!("the checkpoint in {place}: {problem}"))),
    })
}

fn read_lines(
    path: &Path,
    believe: impl Fn(&[u8]) -> Result<(Log, Checkpoint), String>,
) -> io::Result<(Vec<Evidence>, Option<String>)> {
    let (mut known, mut first_problem, mut number) = (Vec::new(), None, 0);
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        number += 1;
        if !line.whole {
            break;
        }
        let place = format!("{}, line {number}", path.display());
        match believe(&line.octets) {
            Ok((log, checkpoint)) => known.push(Evidence { log, checkpoint, place }),
            Err(problem) => {
                first_problem.get_or_insert_with(|| format!("the checkpoint in {place}: {problem}"));
            }
        }
    }
    Ok((known, first_problem))
}
