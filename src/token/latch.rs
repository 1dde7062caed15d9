//! The refusal of a PIN, remembered on disk, so that a restart loop cannot lock a token (R14).
//!
//! Most HSMs lock after 3 to 10 wrong PINs. So each login takes its [`Turn`] first, one at a time among all processes that
//! share the file, and a refusal is on the disk before anything else happens.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::alone::{lock, lock_file};
use super::{TokenConfig, TokenError};
use crate::domain::{Octets, Timestamp};
use crate::files::put_whole;

/// Longest wait for another process's login: several times what a login to a network HSM takes.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the name of the file ends with whose lock keeps logins apart.
const LOGIN: &str = "login.lock";

/// Octets of the salt and of the hash of a refused PIN (RFC 9106 section 3.1).
const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// What the hash costs: 64 MiB and three passes (RFC 9106 section 4, the second choice, on one thread). Some tenths of a
/// second, and only once a PIN was refused; PINs are short, and whoever reads the file must not find one by trying them all.
const HASH_COST: Result<Params, argon2::Error> = Params::new(64 * 1024, 3, 1, Some(HASH_LEN));

/// Whether this PIN was refused by this token. All logins of a process ask one latch.
#[derive(Debug)]
pub(super) struct Latch {
    path: PathBuf,
    place: TokenPlace,
    pin: SecretString,
    /// In this process; also where the file cannot be written.
    refused: AtomicBool,
}

/// Which token a PIN is for, as the configuration says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TokenPlace {
    module: PathBuf,
    label: String,
    serial: Option<String>,
}

/// A refusal, as the file keeps it. For people too: the first member says what to do.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    note: String,
    time: Timestamp,
    #[serde(flatten)]
    place: TokenPlace,
    salt: Octets,
    /// Argon2id of the PIN. It serves to know the same PIN again, and tells nobody what it is.
    pin_argon2id: Octets,
}

/// Leave to log in once. While it lives, no other process that shares the file logs in.
pub(super) struct Turn<'a> {
    latch: &'a Latch,
    _lock: Option<File>,
}

impl Latch {
    /// The latch of this token and PIN.
    ///
    /// # Errors
    /// `PinRefused` if this token refused this PIN before, or if it cannot be told.
    pub(super) fn open(config: &TokenConfig) -> Result<Self, TokenError> {
        let TokenConfig { module, label, serial, pin, pin_refused_file, .. } = config;
        let place = TokenPlace { module: module.clone(), label: label.clone(), serial: serial.clone() };
        let refused = AtomicBool::new(false);
        let latch = Self { path: pin_refused_file.clone(), place, pin: pin.clone(), refused };
        latch.check()?;
        Ok(latch)
    }

    /// Leave to try the PIN, if nobody was refused with it: neither this process nor another one, now or earlier.
    pub(super) fn turn(&self) -> Result<Turn<'_>, TokenError> {
        self.in_memory()?;
        let turn = Turn { latch: self, _lock: self.lock()? };
        self.check()?;
        Ok(turn)
    }

    /// Whether the PIN may be tried.
    pub(super) fn check(&self) -> Result<(), TokenError> {
        self.in_memory()?;
        let path = self.path.display();
        let known = match read(&self.path) {
            Ok(None) => false,
            Ok(Some(refusal)) => self.is_meant(&refusal),
            // It was written because a PIN was refused. Which one nobody knows any more: another try may be the last.
            Err(error) => {
                tracing::error!(
                    %path, %error,
                    "a PIN was refused, and the file that remembers which cannot be read; the token is not asked. See that \
                     the PIN is right and the token not locked, then remove the file"
                );
                return Err(TokenError::PinRefused);
            }
        };
        if !known {
            return Ok(());
        }
        self.refused.store(true, Ordering::Release);
        tracing::error!(
            %path,
            "the token refused this PIN before; it is not asked again. Correct the PIN; if it was right and the token has been \
             unlocked since, remove the file"
        );
        Err(TokenError::PinRefused)
    }

    /// The token refused the PIN: remembered before anything else happens. A crash in between costs one more try.
    pub(super) fn refused(&self) {
        self.keep_in_mind();
        let path = self.path.display();
        match self.refusal().and_then(|refusal| write(&self.path, &refusal)) {
            Ok(()) => tracing::error!(
                %path,
                "the token refused the PIN; it is not tried again. Correct the PIN; if it was right and the token has been \
                 unlocked, remove the file"
            ),
            Err(error) => tracing::error!(
                %path, %error,
                "the token refused the PIN, and the file that remembers it cannot be written: each start tries it again, \
                 which may lock the token. Correct the PIN before the next start"
            ),
        }
    }

    /// The token took the PIN: an earlier refusal was of another one, and is settled.
    fn accepted(&self) {
        let settled = match read(&self.path) {
            Ok(Some(refusal)) if refusal.place.may_be(&self.place) => fs::remove_file(&self.path).map(|()| true),
            _ => Ok(false),
        };
        let path = self.path.display();
        match settled {
            Ok(true) => tracing::info!(%path, "the token took the PIN; the refusal of an earlier one is forgotten"),
            Ok(false) => {}
            // It tells of another PIN, and does no harm.
            Err(error) => tracing::warn!(%path, %error, "the refusal of an earlier PIN cannot be forgotten"),
        }
    }

    /// The token refused the PIN in another process, which has told of it.
    pub(super) fn keep_in_mind(&self) {
        self.refused.store(true, Ordering::Release);
    }

    fn in_memory(&self) -> Result<(), TokenError> {
        if self.refused.load(Ordering::Acquire) { Err(TokenError::PinRefused) } else { Ok(()) }
    }

    /// Keeps other processes from logging in meanwhile: they would try the same wrong PIN before this one can say so.
    fn lock(&self) -> Result<Option<File>, TokenError> {
        match lock(&lock_file(&self.path, LOGIN), TURN_WAIT_MAX) {
            Ok(Some(lock)) => Ok(Some(lock)),
            Ok(None) => {
                let text = "another process has been logging in to it for too long".to_owned();
                Err(TokenError::Unavailable(text))
            }
            Err(error) => Ok(self.unlocked(&error)),
        }
    }

    fn unlocked(&self, error: &io::Error) -> Option<File> {
        let path = self.path.display();
        tracing::warn!(%path, %error, "logins of several processes are not kept apart: a wrong PIN may be tried by each");
        None
    }

    /// Whether the refusal is of this PIN by this token.
    fn is_meant(&self, refusal: &Refusal) -> bool {
        let same = || self.hash(&refusal.salt.0).is_ok_and(|hash| hash == refusal.pin_argon2id);
        refusal.place.may_be(&self.place) && same()
    }

    fn refusal(&self) -> io::Result<Refusal> {
        let mut salt = vec![0; SALT_LEN];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let note = "The token refused this PIN, and Keyward does not try it again: most tokens lock after a few wrong ones. \
                    Correct the PIN. If it was right and the token has been unlocked, remove this file.";
        Ok(Refusal {
            note: note.to_owned(),
            time: Timestamp::now(),
            place: self.place.clone(),
            pin_argon2id: self.hash(&salt)?,
            salt: Octets(salt),
        })
    }

    fn hash(&self, salt: &[u8]) -> io::Result<Octets> {
        let cost = HASH_COST.expect("64 MiB, three passes and 32 octets are within Argon2's bounds");
        let mut hash = vec![0; HASH_LEN];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, cost)
            .hash_password_into(self.pin.expose_secret().as_bytes(), salt, &mut hash)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Octets(hash))
    }
}

impl Turn<'_> {
    /// The token took the PIN.
    pub(super) fn accepted(&self) {
        self.latch.accepted();
    }

    /// The token refused the PIN.
    pub(super) fn refused(&self) {
        self.latch.refused();
    }
}

impl TokenPlace {
    /// Whether both may be one token. A serial number that is added to a configuration makes no other token of it.
    fn may_be(&self, other: &Self) -> bool {
        let differ = self.serial.is_some() && other.serial.is_some() && self.serial != other.serial;
        self.module == other.module && self.label == other.label && !differ
    }
}

fn read(path: &Path) -> io::Result<Option<Refusal>> {
    match fs::read(path) {
        Ok(octets) => Ok(Some(serde_json::from_slice(&octets)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the file, for its owner alone.
fn write(path: &Path, refusal: &Refusal) -> io::Result<()> {
    put_whole(path, ".keyward-pin-refused-", 0o600, &serde_json::to_vec_pretty(refusal)?).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::token::Isolation;

    fn config(directory: &Path, pin: &str) -> TokenConfig {
        TokenConfig {
            name: crate::domain::TokenName::default(),
            module: "/module.so".into(),
            label: "label".into(),
            serial: None,
            pin: pin.to_owned().into(),
            pin_refused_file: directory.join("refused"),
            isolation: Isolation::Thread,
            program: "/program".into(),
            workers: 1,
            queue_depth_max: 1,
            queue_wait_max: Duration::ZERO,
            call_timeout: Duration::from_secs(1),
        }
    }

    fn refuse(config: &TokenConfig) -> Latch {
        let latch = Latch::open(config).expect("nothing was refused");
        latch.turn().expect("it may be tried").refused();
        latch
    }

    fn is_refused(config: &TokenConfig) -> bool {
        matches!(Latch::open(config), Err(TokenError::PinRefused))
    }

    #[test]
    fn a_refusal_is_of_one_pin_and_one_token() {
        let directory = tempfile::tempdir().expect("a directory");
        let wrong = config(directory.path(), "4711-wrong");
        let latch = refuse(&wrong);
        assert!(matches!(latch.turn().map(drop), Err(TokenError::PinRefused)), "in the same process");
        assert!(is_refused(&wrong), "in another one");
        assert!(
            is_refused(&TokenConfig { serial: Some("1".into()), ..wrong.clone() }),
            "its serial number is known now"
        );
        for other in [
            TokenConfig { pin: "4711-right".to_owned().into(), ..wrong.clone() },
            TokenConfig { label: "other".into(), ..wrong.clone() },
            TokenConfig { module: "/other.so".into(), ..wrong.clone() },
        ] {
            assert!(!is_refused(&other), "{other:?}");
        }
        let first = TokenConfig { serial: Some("1".into()), pin: "4711-new".to_owned().into(), ..wrong.clone() };
        refuse(&first);
        assert!(is_refused(&first));
        assert!(!is_refused(&TokenConfig { serial: Some("2".into()), ..first }), "another token of the same label");
    }

    #[test]
    fn the_file_is_private_and_does_not_tell_the_pin() {
        let directory = tempfile::tempdir().expect("a directory");
        let wrong = config(directory.path(), "4711-wrong");
        refuse(&wrong);
        let file = &wrong.pin_refused_file;
        assert_eq!(fs::metadata(file).expect("it is there").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(file).expect("it is text");
        assert!(text.contains("remove this file") && !text.contains("4711"), "{text}");
        fs::remove_file(file).expect("an operator may");
        refuse(&wrong);
        assert_ne!(fs::read_to_string(file).expect("it is text"), text, "the salt is drawn each time");
    }

    #[test]
    fn a_pin_that_is_taken_settles_an_earlier_refusal_by_its_own_token() {
        let directory = tempfile::tempdir().expect("a directory");
        let wrong = config(directory.path(), "4711-wrong");
        refuse(&wrong);
        let accept = |config: &TokenConfig| {
            Latch::open(config).expect("another matter").turn().expect("it may be tried").accepted();
        };
        accept(&TokenConfig { label: "other".into(), ..wrong.clone() });
        assert!(is_refused(&wrong));
        accept(&TokenConfig { pin: "4711-right".to_owned().into(), ..wrong.clone() });
        assert!(!wrong.pin_refused_file.exists() && !is_refused(&wrong));
    }

    #[test]
    fn what_cannot_be_read_refuses_and_what_cannot_be_written_is_kept_in_memory() {
        let directory = tempfile::tempdir().expect("a directory");
        let any = config(directory.path(), "1");
        for damaged in ["", "{", "{}", "\0\0\0\0"] {
            fs::write(&any.pin_refused_file, damaged).expect("written");
            assert!(is_refused(&any), "{damaged:?}");
        }
        fs::remove_file(&any.pin_refused_file).expect("it was written");
        fs::create_dir(&any.pin_refused_file).expect("made");
        assert!(is_refused(&any), "a directory in its place");

        let nowhere = TokenConfig { pin_refused_file: directory.path().join("gone/refused"), ..any };
        let latch = refuse(&nowhere);
        assert!(matches!(latch.turn().map(drop), Err(TokenError::PinRefused)));
    }

    /// What many processes do that start at once with the same wrong PIN.
    #[test]
    fn of_many_who_start_at_once_one_alone_tries() {
        let directory = tempfile::tempdir().expect("a directory");
        let wrong = config(directory.path(), "4711-wrong");
        let latches: Vec<Latch> = (0..6).map(|_| Latch::open(&wrong).expect("nothing was refused")).collect();
        let tries = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for latch in &latches {
                scope.spawn(|| match latch.turn() {
                    Ok(turn) => {
                        tries.fetch_add(1, Ordering::Relaxed);
                        turn.refused();
                    }
                    Err(error) => assert!(matches!(error, TokenError::PinRefused), "{error}"),
                });
            }
        });
        assert_eq!(tries.into_inner(), 1);
    }
}
