//! Files that several rooms keep: whole or not there, and on the disk when a call returns.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A draft's own mode, which needs no file system that knows modes.
const DRAFT_MODE: u32 = 0o600;

/// The directory that a file is in, or would be.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts a file in its place, so that a crash leaves what was there before or all of the new one. The draft beside it has a name
/// that begins with `draft`. Returns the file, open for more.
pub(crate) fn put_whole(path: &Path, draft: &str, mode: u32, octets: &[u8]) -> io::Result<File> {
    let directory = directory_of(path);
    let mut draft = tempfile::Builder::new().prefix(draft).tempfile_in(directory)?;
    draft.write_all(octets)?;
    if mode != DRAFT_MODE {
        draft.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    draft.as_file().sync_all()?;
    let file = draft.persist(path)?;
    sync_directory(directory)?;
    Ok(file)
}

/// Puts the names in a directory on the disk.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_no_draft_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        for (octets, mode) in [(&b"first, and longer"[..], 0o600), (b"second", 0o644)] {
            put_whole(&path, ".draft-", mode, octets).expect("put");
            assert_eq!(fs::read(&path).expect("it is there"), octets);
            assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_bare_name_is_in_the_working_directory() {
        for (path, directory) in [("file", "."), ("a/file", "a"), ("/file", "/")] {
            assert_eq!(directory_of(Path::new(path)), Path::new(directory), "{path}");
        }
    }
}
