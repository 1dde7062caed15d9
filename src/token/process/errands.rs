//! The service's end of the administration's process: one task at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::wire::{Outcome, Report, Role, put, take};
use super::{Office, Pause};
use crate::token::TokenError;
use crate::token::task::{Ask, Task};

/// How long a key pair may take to generate, and a list of all objects: RSA-4096 on a slow HSM takes a minute.
const LONG_TIMEOUT: Duration = Duration::from_secs(120);

/// Calls into the module that any other task may take, each as long as `token.call_timeout_ms`: searches, and the reading of
/// attributes.
const CALLS_MAX: u32 = 8;

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

/// Why a process is replaced, if it did not crash.
enum End {
    Closed,
    Crashed,
    Hung,
    Spent(String),
}

/// Keeps a process for administration on a seat until the service ends or the PIN is refused.
pub(super) async fn keep(office: Arc<Office>, seat: usize, mut tasks: mpsc::Receiver<Task>) {
    let mut pause = Pause(Duration::ZERO);
    // What a spent process did not do, and another does.
    let mut again = None;
    loop {
        let begun = Instant::now();
        let mut failure = None;
        match office.start(seat, Role::Administer).await.and_then(|stream| UnixStream::from_std(stream).map_err(away)) {
            Ok(mut stream) => match serve(&office, &mut stream, &mut tasks, &mut again).await {
                End::Closed => return,
                end => replace(&office, seat, end).await,
            },
            Err(error) => failure = Some(error),
        }
        let until = Instant::now() + pause.after(begun.elapsed());
        if let Some(error) = failure {
            let refused = matches!(error, TokenError::PinRefused);
            if let Some(Task { answer, .. }) = again.take() {
                let _ = answer.send(Err(error.clone()));
            }
            // A process that cannot be started does nothing: nobody need wait for it.
            let refuse = refuse(&mut tasks, &error);
            if refused {
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
                // It has nothing to say unasked.
                _ = stream.readable() => return End::Crashed,
            },
        };
        // A caller that left while the task was waiting has seen no effect, and shall not.
        if task.answer.is_closed() {
            continue;
        }
        let told = tokio::time::timeout(timeout(office, &task.ask), ask(stream, &task.ask)).await;
        let (result, end) = match told {
            Ok(Ok(Outcome::Done(told))) => (Ok(told), None),
            Ok(Ok(Outcome::Failed(error))) => (Err(error), None),
            Ok(Ok(Outcome::Spent(reason))) if first_time => {
                *again = Some(task);
                return End::Spent(reason);
            }
            Ok(Ok(Outcome::Spent(reason))) => (Err(TokenError::Unavailable(reason.clone())), Some(End::Spent(reason))),
            Ok(Err(error)) => (Err(away(error)), Some(End::Crashed)),
            Err(_) => (Err(TokenError::Unavailable(HUNG.to_owned())), Some(End::Hung)),
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

async fn replace(office: &Arc<Office>, seat: usize, end: End) {
    let ending = Arc::clone(office);
    let ended = tokio::task::spawn_blocking(move || ending.end(seat)).await.unwrap_or_default();
    match end {
        End::Closed => {}
        End::Crashed => {
            office.tell_replaced(seat, "crashed", &format!("the module's process ended by itself: {ended}"))
        }
        End::Hung => office.tell_replaced(seat, "hung", HUNG),
        End::Spent(reason) => office.tell_replaced(seat, "spent", &reason),
    }
}

const HUNG: &str = "a task of administration has not ended in time";

fn away(error: io::Error) -> TokenError {
    TokenError::Unavailable(format!("the administration's process ended in the middle of a task ({error})"))
}
