use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::backwards::LinesBackwards;
use super::directory::{Directory, FILE_MODE, OpenError, open_regular};
use crate::domain::Timestamp;
use crate::files::sync_directory;
use crate::tlog::{Checkpoint, Log, LogKey, Tip};

/// What the name of a file says whose history was given up, before when.
const GIVEN_UP: &str = "given-up-";

/// The file that keeps a log's checkpoints, a line each.
pub(super) fn file_of(directory: &Path, log: Log) -> PathBuf {
    directory.join(format!("checkpoints-{log}.jsonl"))
}

/// The files of checkpoints of a history that was given up.
pub(super) fn given_up(directory: &Path, log: Log) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("checkpoints-{log}.{GIVEN_UP}");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        files.extend(
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes())).then_some(path),
        );
    }
    files.sort();
    Ok(files)
}

/// Puts the checkpoints of a log aside, under a name that says when.
pub(super) fn give_up(directory: &Directory, log: Log, now: Timestamp) -> io::Result<PathBuf> {
    let name = format!("checkpoints-{log}.{GIVEN_UP}{}.jsonl", now.strftime("%Y%m%dT%H%M%S.%9fZ"));
    let path = directory.path().join(name);
    fs::rename(file_of(directory.path(), log), &path)?;
    sync_directory(directory.path())?;
    Ok(path)
}

/// A checkpoint as its file keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The signed note.
    pub(super) checkpoint: String,
    /// Where the log ended. It needs no signature of its own: its root is the checkpoint's.
    pub(super) tip: Tip,
}

impl Kept {
    /// What a line of the file says, if it can be believed.
    pub(super) fn verified(line: &[u8], key: &LogKey, log: Log) -> Result<(Self, Checkpoint), String> {
        let kept: Self = serde_json::from_slice(line).map_err(|error| format!("it is no checkpoint: {error}"))?;
        let checkpoint = Checkpoint::verified(&kept.checkpoint, key).map_err(|untrusted| untrusted.to_string())?;
        if checkpoint != Checkpoint::new(key.origin(log), &kept.tip) {
            return Err("what it was signed for is not what stands beside it".to_owned());
        }
        Ok((kept, checkpoint))
    }
}

/// A checkpoint that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The signed note, for whoever keeps it elsewhere.
    pub note: String,
}

/// The latest checkpoints of both logs. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    latest: Arc<Mutex<[Option<Signed>; 2]>>,
}

impl Checkpoints {
    /// The latest checkpoint of a log; none before it has its first record, and for a short while after.
    #[must_use]
    pub fn latest(&self, log: Log) -> Option<Signed> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)[log as usize].clone()
    }

    pub(super) fn publish(&self, log: Log, signed: Signed) {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)[log as usize] = Some(signed);
    }
}

/// The file of one log's checkpoints, to which the next is appended.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    log: Log,
    file: File,
    len: u64,
    latest: Option<Kept>,
    published: Checkpoints,
}

impl CheckpointFile {
    /// Opens the file, or makes it. The latest checkpoint in it is believed if the service key signed it.
    pub(super) fn open(
        directory: &Directory,
        log: Log,
        key: &LogKey,
        published: Checkpoints,
    ) -> Result<Self, OpenError> {
        let path = file_of(directory.path(), log);
        let unusable = |error| OpenError::File { path: path.clone(), error };
        let open = || {
            let options = &mut OpenOptions::new();
            let file = open_regular(&path, options.write(true).create(true).truncate(false).mode(FILE_MODE))?;
            sync_directory(directory.path())?;
            Ok((file, LinesBackwards::open(&path, None)?.next()?))
        };
        let (file, last) = open().map_err(unusable)?;
        let Some(last) = last else { return Ok(Self { log, file, len: 0, latest: None, published }) };
        let name = path.file_name().unwrap_or_default().display();
        let (kept, checkpoint) = Kept::verified(&last.octets, key, log)
            .map_err(|problem| directory.damaged(format!("the last line of {name}: {problem}")))?;
        published.publish(log, Signed { checkpoint, note: kept.checkpoint.clone() });
        // What has no newline after the last line was not written to its end; the next line takes its place.
        let len = last.place + last.octets.len() as u64 + 1;
        Ok(Self { log, file, len, latest: Some(kept), published })
    }

    /// Where the log ended at its latest checkpoint.
    pub(super) fn tip(&self) -> Option<&Tip> {
        self.latest.as_ref().map(|kept| &kept.tip)
    }

    /// Keeps a checkpoint of the log's end at `tip`. After a failure the next one takes its place.
    pub(super) fn keep(&mut self, signed: Signed, tip: Tip) -> io::Result<()> {
        let kept = Kept { checkpoint: signed.note.clone(), tip };
        let mut line = serde_json::to_vec(&kept)?;
        line.push(b'\n');
        self.file.set_len(self.len)?;
        self.file.write_all_at(&line, self.len)?;
        self.file.sync_all()?;
        self.len += line.len() as u64;
        self.latest = Some(kept);
        self.published.publish(self.log, signed);
        Ok(())
    }
}
