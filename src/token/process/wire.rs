//! What the service and a worker process say to each other: frames of MessagePack, each after its length; as many of them in
//! one write as there are.
//!
//! Both ends are one program, started from one file, so the protocol has no versions. Neither end trusts a length beyond
//! [`FRAME_BYTES_MAX`].

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::names::KeyName;
use crate::domain::TokenName;
use crate::token::task::Told;
use crate::token::{Isolation, SignInput, TokenConfig, TokenError};

/// Longest frame, in octets: the largest message that gRPC may be configured to take, four times; and some hundred thousand
/// objects in a list.
pub(super) const FRAME_BYTES_MAX: usize = 64 << 20;

/// Octets of a frame's length, which is big-endian.
const LENGTH_BYTES: usize = 4;

/// The first frame to a worker: what to open. The PIN travels here, and so in no argument and no environment.
#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) module: PathBuf,
    pub(super) label: String,
    pub(super) serial: Option<String>,
    pub(super) pin: String,
    pub(super) pin_refused_file: PathBuf,
    pub(super) role: Role,
}

impl Hello {
    /// What a process needs to know of a configuration.
    pub(super) fn new(config: &TokenConfig, serial: Option<String>, role: Role) -> Self {
        Self {
            module: config.module.clone(),
            label: config.label.clone(),
            serial,
            pin: config.pin.expose_secret().to_owned(),
            pin_refused_file: config.pin_refused_file.clone(),
            role,
        }
    }
}

impl From<Hello> for TokenConfig {
    /// The configuration of a process that has the module to itself, and one session to work with.
    fn from(hello: Hello) -> Self {
        let Hello { module, label, serial, pin, pin_refused_file, role: _ } = hello;
        Self {
            // Of no meaning to a worker.
            name: TokenName::default(),
            module,
            label,
            serial,
            pin: SecretString::from(pin),
            pin_refused_file,
            isolation: Isolation::Thread,
            program: PathBuf::new(),
            workers: 1,
            queue_depth_max: 1,
            queue_wait_max: Duration::ZERO,
            call_timeout: Duration::MAX,
        }
    }
}

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    /// It gets [`Order`]s of signatures, some ahead, and carries them out in their order.
    Sign,
    /// It gets tasks, one at a time.
    Administer,
}

/// Signatures that are asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// How long the answer is still wanted.
    pub(super) patience_us: u64,
    /// How long it will take, by estimate.
    pub(super) cost_us: u64,
    /// How long its receipt may be kept for others to travel with it.
    pub(super) keep_us: u64,
    pub(super) key: KeyName,
    pub(super) inputs: Vec<SignInput>,
}

/// What came of the oldest order that is not answered yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Receipt {
    /// How long the module and the ladder of recovery took.
    pub(super) took_us: u64,
    /// How long the processor was busy with it, if that was looked at.
    pub(super) busy_us: Option<u64>,
    pub(super) outcome: Outcome<Vec<ByteBuf>>,
}

/// What came of a task ([`crate::token::task::Ask`]).
pub(super) type Report = Outcome<Told>;

/// How something ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome<T> {
    Done(T),
    /// Another process would be told nothing else: the key is not there, or the token cannot do it.
    Failed(TokenError),
    /// The token failed this process, and may not fail another.
    Away(String),
    /// It was not done, and this process is of no more use: one that starts anew may do it.
    Spent(String),
}

/// A time as it travels.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Puts a message as one frame behind what is in `out`.
pub(super) fn put(out: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let start = out.len();
    out.extend([0; LENGTH_BYTES]);
    rmp_serde::encode::write(out, message).map_err(io::Error::other)?;
    let length = out.len() - start - LENGTH_BYTES;
    if length > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(too_long(length));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Takes the first frame out of `octets`, if it is there whole: the message, and how many octets it took.
pub(super) fn take<T: DeserializeOwned>(octets: &[u8]) -> io::Result<Option<(T, usize)>> {
    let Some((length, rest)) = octets.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = length_of(*length)?;
    match rest.get(..length) {
        Some(body) => Ok(Some((decode(body)?, LENGTH_BYTES + length))),
        None => Ok(None),
    }
}

/// Writes a message as one frame. Blocks.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut frame = Vec::new();
    put(&mut frame, message)?;
    to.write_all(&frame)
}

/// Reads one frame; `None` if the other end has closed. Blocks.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; LENGTH_BYTES];
    if let Err(error) = from.read_exact(&mut length) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let mut body = vec![0; length_of(length)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

fn length_of(octets: [u8; LENGTH_BYTES]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(octets)).map_err(io::Error::other)?;
    if length > FRAME_BYTES_MAX { Err(too_long(length)) } else { Ok(length) }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} octets"))
}
