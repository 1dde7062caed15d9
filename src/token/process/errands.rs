//! The service's end of the administration's process: one task at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::wire::{Outcome, Report, Role, put, take};
use super::{End, Office, Pause};
use crate::token::TokenError;
use crate::token::task::{Ask, Task};

/// How long a key pair may take to generate, and a list of all objects: RSA-4096 on a slow HSM takes a minute.
const LONG_TIMEOUT: Duration = Duration::from_secs(120);

/// Calls into the module that any other task may take, each as long as `token.call_timeout_ms`: searches, and the reading of
/// attributes.
const CALLS_MAX: u32 = 8;

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

/// Keeps a process for administration on a seat until the service ends or the PIN is refused.
pub(super) async fn keep(office: Arc<Office>, seat: usize, mut tasks: mpsc::Receiver<Task>) {
    let mut pause = Pause::default();
    // What a spent process did not do, and another does.
    let mut again = None;
    loop {
        let started = office.start(seat, Role::Administer).await;
        let begun = Instant::now();
        let failure = match started {
            Ok(worker) => match live(&office, worker.stream, &mut tasks, &mut again).await {
                End::Closed => return,
                end => {
                    office.replace(seat, &end).await;
                    None
                }
            },
            Err(error) => Some(error),
        };
        let until = Instant::now() + pause.after(begun.elapsed());
        if let Some(error) = failure {
            tracing::debug!(%error, worker = seat, "a token worker did not start");
            if let Some(Task { answer, .. }) = again.take() {
                let _ = answer.send(Err(error.clone()));
            }
            // A process that cannot be started does nothing: nobody need wait for it.
            let refuse = refuse(&mut tasks, &error);
            if let TokenError::PinRefused = error {
                return refuse.await;
            }
            if tokio::time::timeout_at(until.into(), refuse).await.is_ok() {
                return;
            }
        } else if office.closing.run_until_cancelled(tokio::time::sleep_until(until.into())).await.is_none() {
            return;
        }
    }
}

/// Answers all tasks with an error, until nobody can ask any more.
async fn refuse(tasks: &mut mpsc::Receiver<Task>, error: &TokenError) {
    while let Some(Task { answer, .. }) = tasks.recv().await {
        let _ = answer.send(Err(error.clone()));
    }
}

/// One process's life.
async fn live(
    office: &Office,
    stream: std::os::unix::net::UnixStream,
    tasks: &mut mpsc::Receiver<Task>,
    again: &mut Option<Task>,
) -> End {
    match UnixStream::from_std(stream) {
        Ok(mut stream) => serve(office, &mut stream, tasks, again).await,
        Err(_) => End::Crashed,
    }
}

async fn serve(
    office: &Office,
    stream: &mut UnixStream,
    tasks: &mut mpsc::Receiver<Task>,
    again: &mut Option<Task>,
) -> End {
    loop {
        let first_time = again.is_none();
        let task = match again.take() {
            Some(task) => task,
            None => tokio::select! {
                task = tasks.recv() => match task {
                    Some(task) => task,
                    None => return End::Closed,
                },
                () = ended(stream) => return End::Crashed,
            },
        };
        // A caller that left while the task was waiting has seen no effect, and shall not.
        if task.answer.is_closed() {
            continue;
        }
        let told = tokio::time::timeout(timeout(office, &task.ask), ask(stream, &task.ask)).await;
        let (result, end) = match told {
            Ok(Ok(Outcome::Done(told))) => (Ok(told), None),
            Ok(Ok(Outcome::Failed(error))) => {
                if let TokenError::PinRefused = error {
                    office.latch.keep_in_mind();
                }
                (Err(error), None)
            }
            Ok(Ok(Outcome::Away(reason))) => (Err(TokenError::Unavailable(reason)), None),
            Ok(Ok(Outcome::Spent(reason))) if first_time => {
                *again = Some(task);
                return End::Spent(reason);
            }
            Ok(Ok(Outcome::Spent(reason))) => (Err(TokenError::Unavailable(reason.clone())), Some(End::Spent(reason))),
            Ok(Err(error)) => (Err(away(error)), Some(End::Crashed)),
            Err(_) => (Err(TokenError::Unavailable(HUNG.to_owned())), Some(End::Hung(HUNG))),
        };
        let _ = task.answer.send(result);
        if let Some(end) = end {
            return end;
        }
    }
}

fn timeout(office: &Office, ask: &Ask) -> Duration {
    match ask {
        Ask::Generate(..) | Ask::List => LONG_TIMEOUT,
        Ask::Find(..) | Ask::Destroy(_) | Ask::Probe | Ask::Mechanisms => office.config.call_timeout * CALLS_MAX,
    }
}

/// Until a process that has nothing to say is gone, or says something unasked.
async fn ended(stream: &UnixStream) {
    // A stream may be called readable because it was, and is not any more.
    while stream.readable().await.is_ok()
        && matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    {}
}

async fn ask(stream: &mut UnixStream, ask: &Ask) -> io::Result<Report> {
    let mut frame = Vec::new();
    put(&mut frame, ask)?;
    stream.write_all(&frame).await?;
    let mut incoming = Vec::with_capacity(READ_BYTES);
    loop {
        if stream.read_buf(&mut incoming).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((report, _)) = take(&incoming)? {
            return Ok(report);
        }
    }
}

const HUNG: &str = "a task of administration has not ended in time";

fn away(error: io::Error) -> TokenError {
    TokenError::Unavailable(format!("the administration's process ended in the middle of a task ({error})"))
}

#[cfg(test)]
mod tests {
    use super::super::wire;
    use super::*;
    use crate::token::task::Told;
    use crate::token::{ObjectKind, TokenObject};

    /// Whatever the length of a report, and so of what is read at last: one that fills what it is read into leaves the stream
    /// readable, as far as anybody knows.
    #[tokio::test]
    async fn a_process_that_has_answered_is_not_taken_for_one_that_is_gone() {
        let object = |label| TokenObject { class: ObjectKind::Other, id: Vec::new(), label };
        let mut exact = 0;
        for length in READ_BYTES - 64..=READ_BYTES {
            let (mut ours, theirs) = UnixStream::pair().expect("a pair");
            let mut theirs = theirs.into_std().expect("a socket");
            theirs.set_nonblocking(false).expect("it may block");
            let report: Report = Outcome::Done(Told::Objects(vec![object("x".repeat(length))]));
            let mut frame = Vec::new();
            put(&mut frame, &report).expect("it is short enough");
            exact += usize::from(frame.len() == READ_BYTES);
            let process = std::thread::spawn(move || {
                wire::receive::<Ask>(&mut theirs).expect("a task");
                wire::send(&mut theirs, &report).expect("sent");
                theirs
            });
            ask(&mut ours, &Ask::List).await.expect("a report");
            let theirs = process.join().expect("no panic");
            let gone = tokio::time::timeout(Duration::from_millis(1), ended(&ours)).await;
            assert!(gone.is_err(), "a report of {} octets", frame.len());
            drop(theirs);
            ended(&ours).await;
        }
        assert_eq!(exact, 1);
    }
}
