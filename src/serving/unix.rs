use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::net::UnixListener;

use crate::files::directory_of;

/// Owner and group may connect: what else a process may is told by its user.
const MODE: u32 = 0o660;

/// Listens at a path. A socket that an earlier process left there is replaced; one that somebody listens at is not, nor
/// anything that is no socket.
///
/// # Errors
/// What is in the way, for the operator.
pub fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    let failed = |error: io::Error| format!("cannot listen at {}: {error}", path.display());
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(format!("cannot listen at {}: there is something else than a socket", path.display()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(format!("cannot listen at {}: another process does", path.display()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Made in a directory of its owner alone and then moved: nobody else can connect to it before it has its mode, and what was
    // there is replaced at once.
    let placed =
        tempfile::Builder::new().prefix(".keyward-").rand_bytes(6).tempdir_in(directory_of(path)).and_then(|private| {
            let new = private.path().join("s");
            let listener = UnixListener::bind(&new)?;
            fs::set_permissions(&new, Permissions::from_mode(MODE))?;
            fs::rename(&new, path)?;
            Ok(listener)
        });
    placed.map_err(failed)
}
