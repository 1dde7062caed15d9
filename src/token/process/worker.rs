//! A worker process: one session with the token, and orders from standard input.
//!
//! It climbs the ladder of recovery by itself, and says so when that has not helped for long: then another process starts in
//! its place.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, Signal, getpid, kill_process, set_dumpable_behavior};
use rustix::stdio::{dup2_stdin, dup2_stdout};
use serde_bytes::ByteBuf;

use super::names::Listener;
use super::progress::Progress;
use super::wire::{Hello, Order, Outcome, Receipt, Report, Role, micros, put, receive, send};
use crate::token::alone::Administration;
use crate::token::latch::Latch;
use crate::token::pkcs11::{Access, Module, WorkerSession, perform, sign};
use crate::token::repeats::Repeats;
use crate::token::sharing::Courtesy;
use crate::token::task::Ask;
use crate::token::turns::Meter;
use crate::token::{TokenConfig, TokenError};

/// How long a worker that was left may take to finalise the module.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is read at once: as many orders as a service gives ahead, mostly.
const ORDERS_BYTES: usize = 16 << 10;

/// Serves whoever started this process, over the socket that is its standard input, until that is closed.
///
/// # Errors
/// Standard input is no socket of a service, or what comes over it is not to be understood.
pub fn work_as_process() -> io::Result<()> {
    match work() {
        // The service has ended, or a command that had no more for it to do.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        worked => worked,
    }
}

fn work() -> io::Result<()> {
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    if stream.local_addr().is_err() {
        return Err(io::Error::other("standard input is no socket: `keyward serve` starts its workers itself"));
    }
    // What the module starts has no part in it, or its service would not see that this process has ended; and what the module asks
    // for at the terminal is not read from it.
    dup2_stdin(File::open("/dev/null")?)?;
    // Nor does the module print where its progress is told.
    let progress = Progress::of(io::stdout().as_fd().try_clone_to_owned()?);
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    harden(&stream)?;
    let Some(hello) = receive::<Hello>(&mut stream)? else { return Ok(()) };
    let role = hello.role;
    let config = TokenConfig::from(hello);
    let open = |latch| Module::open(&config, Arc::new(latch), Repeats::quiet_at_first(), false);
    // On a thread of its own: what the module reads of a large token, and gives back, lies in another heap than what each signature
    // takes and gives back, which so is always the same few pages.
    let opened = thread::scope(|scope| {
        let opening = thread::Builder::new().name("token-worker-open".into());
        let opening = opening.spawn_scoped(scope, || Latch::open(&config).and_then(open))?;
        io::Result::Ok(opening.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    send(&mut stream, &opened.as_ref().map(Module::identity).map_err(Clone::clone))?;
    let Ok(module) = opened else { return Ok(()) };
    let module = Arc::new(module);
    let served = match role {
        Role::Sign => make_signatures(&mut stream, progress, &module),
        Role::Administer => do_errands(&mut stream, &module, &Administration::of(&config)),
    };
    module.close();
    served
}

/// The PIN is in the memory of this process, and so are keys where the token is software: no core dump, no debugger of the
/// same user. And nobody's child for long: a worker that hangs in the module does not see that its service is gone.
fn harden(stream: &UnixStream) -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let watched = stream.try_clone()?;
    thread::Builder::new().name("token-worker-watch".into()).spawn(move || {
        while poll(&mut [PollFd::new(&watched, PollFlags::RDHUP)], None).is_err() {}
        thread::sleep(FAREWELL);
        let _ = kill_process(getpid(), Signal::KILL);
    })?;
    Ok(())
}

/// Receipts are kept while more orders are there, for as long as each may be, and not for an order that takes longer: they wake the
/// service together.
fn make_signatures(stream: &mut UnixStream, mut progress: Progress, module: &Arc<Module>) -> io::Result<()> {
    let mut session = WorkerSession::new(Arc::clone(module), Access::ReadOnly);
    let mut incoming = BufReader::with_capacity(ORDERS_BYTES, stream.try_clone()?);
    let (mut keys, mut meter, mut courtesy) = (Listener::default(), Meter::default(), Courtesy::default());
    let (mut kept, mut until) = (Vec::new(), Instant::now());
    loop {
        if !kept.is_empty() && incoming.buffer().is_empty() && !has_come(stream)? {
            hand_over(stream, &mut kept)?;
        }
        let Some(order) = receive::<Order>(&mut incoming)? else { return Ok(()) };
        let key = keys.key(order.key)?;
        let cost = Duration::from_micros(order.cost_us);
        if !kept.is_empty() && (Instant::now() + cost > until || !session.knows(&key)) {
            hand_over(stream, &mut kept)?;
            courtesy.let_others_go_on();
        }
        progress.begin()?;
        let (metered, begun) = (meter.begin(cost), Instant::now());
        let deadline = begun + Duration::from_micros(order.patience_us);
        let signatures = sign(&mut session, &key, &order.inputs, deadline);
        let signatures = signatures.map(|made| made.into_iter().map(ByteBuf::from).collect());
        let ended = Instant::now();
        let (took_us, busy_us) = (micros(ended - begun), metered.end().map(micros));
        let outcome = outcome(module, signatures);
        let is_last = matches!(outcome, Outcome::Spent(_));
        let keep = (ended + Duration::from_micros(order.keep_us)).min(deadline);
        until = if kept.is_empty() { keep } else { until.min(keep) };
        put(&mut kept, &Receipt { took_us, busy_us, outcome })?;
        if is_last {
            return hand_over(stream, &mut kept);
        }
    }
}

fn hand_over(stream: &mut UnixStream, kept: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(kept)?;
    kept.clear();
    Ok(())
}

fn do_errands(stream: &mut UnixStream, module: &Arc<Module>, administration: &Administration) -> io::Result<()> {
    let mut session = WorkerSession::new(Arc::clone(module), Access::ReadWrite);
    let mut incoming = stream.try_clone()?;
    while let Some(errand) = receive::<Ask>(&mut incoming)? {
        let alone = administration.alone(&errand);
        // Its service may have been killed and started again meanwhile, and have looked at what this would change.
        if is_left(stream)? {
            break;
        }
        let told = alone.as_ref().map_err(Clone::clone).and_then(|_| perform(&mut session, &errand));
        drop(alone);
        let report: Report = match (errand, told) {
            // What may have happened must not be done again by itself.
            (Ask::Generate(..), Err(error)) => Outcome::Failed(error),
            (_, told) => outcome(module, told),
        };
        let is_last = matches!(report, Outcome::Spent(_));
        send(stream, &report)?;
        if is_last {
            break;
        }
    }
    Ok(())
}

/// Whether there is something to read, the end included.
fn has_come(stream: &UnixStream) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&Timespec::default()))? > 0)
}

/// Whether the service has closed its end.
fn is_left(stream: &UnixStream) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(stream, PollFlags::RDHUP)], Some(&Timespec::default()))? > 0)
}

fn outcome<T>(module: &Module, result: Result<T, TokenError>) -> Outcome<T> {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(TokenError::Unavailable(reason)) if module.is_spent() => Outcome::Spent(reason),
        Err(TokenError::Unavailable(reason)) if module.is_failing() => Outcome::Away(reason),
        Err(error) => Outcome::Failed(error),
    }
}
