//! A worker process as its service sees it: started, told what to open, and ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Seat;
use super::progress::Progress;
use super::wire::{Hello, Role, receive, send};
use crate::token::{PIN_VARIABLE, TokenConfig, TokenError, TokenIdentity};

/// How long a worker may take to load the module, to find the token and to log in: several times what a network HSM takes
/// that fails over.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a worker that is to end is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A worker that was started and is logged in.
pub(super) struct Started {
    pub(super) worker: Worker,
    pub(super) identity: TokenIdentity,
}

/// The service's end of a worker.
pub(super) struct Worker {
    pub(super) stream: UnixStream,
    pub(super) progress: Progress,
}

/// Of the database, which no module asks: Keyward's own variable, and that of PostgreSQL's clients.
const PASSWORDS: [&str; 2] = ["KEYWARD_STORE_PASSWORD", "PGPASSWORD"];

/// Starts a process. It is in a group of its own, so that a Ctrl-C at the terminal is for the service alone.
pub(super) fn spawn(config: &TokenConfig) -> io::Result<(Seat, Worker)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (progress, their_progress) = Progress::pair()?;
    // Before there is a process that nobody would wait for.
    let stream = ours.try_clone()?;
    let mut command = Command::new(&config.program);
    // It is told its PIN; what a module prints of its environment shall not have that, nor another token's, nor a password.
    let is_secret = |name: &str| name.starts_with(PIN_VARIABLE) || PASSWORDS.contains(&name);
    let secrets = std::env::vars_os().filter(|(name, _)| is_secret(&name.to_string_lossy()));
    for (name, _) in secrets {
        command.env_remove(name);
    }
    let child = command
        // It is started from a file whose name says nothing.
        .arg0("keyward")
        .arg("token-worker")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(their_progress))
        .process_group(0)
        .spawn()?;
    Ok((Seat { child, stream }, Worker { stream: ours, progress }))
}

/// Has a worker open the token, and waits until it has.
pub(super) fn greet(
    mut worker: Worker,
    config: &TokenConfig,
    serial: Option<String>,
    role: Role,
) -> Result<Started, TokenError> {
    let hello = Hello::new(config, serial, role);
    let stream = &mut worker.stream;
    let mut ask = || {
        stream.set_read_timeout(Some(START_TIMEOUT))?;
        send(stream, &hello)?;
        let opened = receive::<Result<TokenIdentity, TokenError>>(stream)?;
        stream.set_nonblocking(true)?;
        opened.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let identity = ask().map_err(|error| {
        TokenError::Unavailable(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the module has not opened the token within {} s", START_TIMEOUT.as_secs())
            }
            _ => format!("a worker process ended while it opened the token ({error})"),
        })
    })??;
    Ok(Started { worker, identity })
}

/// Ends a worker that crashed or hangs, and says how it had ended.
pub(super) fn end(mut child: Child) -> String {
    // If it ended by itself, that it cannot be killed is nothing new, and its own status is told.
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), describe)
}

/// Waits until a worker whose stream was shut has ended; one that takes longer is killed.
pub(super) fn see_off(mut child: Child, until: Instant) {
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if Instant::now() >= until {
            return tracing::warn!("a worker process did not end by itself: {}", end(child));
        }
        thread::sleep(LOOK);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => status.to_string(),
    }
}
