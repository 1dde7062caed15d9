//! The service's end of a signing process: orders out, receipts in, and a watch on both.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;
use tokio::time::sleep_until;

use super::child::Worker;
use super::names::Teller;
use super::progress::Progress;
use super::stream::{Incoming, Outgoing, split};
use super::wire::{Order, Outcome, Receipt, Role, micros, put, take};
use super::{End, Office, Pause};
use crate::token::queue::{self, SignJob};
use crate::token::turns::{Turn, stall_time};
use crate::token::{KeyRef, TokenError};

/// Orders that a process is given ahead: a second one where the first is done so soon that the time counts for which the process
/// would idle while its answer travels; as many as take [`AHEAD_TIME`] together, or as long as a receipt may be kept, so that they travel
/// together, and nothing before it has but half of that left; and never more than these, nor more than came back in time since a call
/// took long: nobody knows at first how slow a token is. A long one waits for whoever is free first.
const SOON: Duration = Duration::from_millis(2);
const AHEAD_TIME: Duration = Duration::from_millis(2);
const AHEAD_MAX: usize = 32;

/// How many times its estimated time a job may take beyond the timeout of a single call, because it may be a batch; or so long for
/// each of its inputs, because nobody knows at first how slow a token is.
const PATIENCE_FACTOR: u32 = 4;
const INPUT_PATIENCE: Duration = Duration::from_millis(50);

/// How long a process whose token failed it leaves the jobs to those whose token did not.
const REST: Duration = Duration::from_millis(200);

const HUNG: &str = "a call into the module has not returned in time";

/// What is read at once: receipts for many orders.
const READ_BYTES: usize = 16 << 10;

/// Keeps a signing process on a seat until the service ends or the PIN is refused.
pub(super) async fn keep(office: Arc<Office>, seat: usize, mut first: Option<Worker>) {
    let mut pause = Pause::default();
    loop {
        let started = match first.take() {
            Some(worker) => Ok(worker),
            None => office.start(seat, Role::Sign).await,
        };
        let begun = Instant::now();
        match started {
            Ok(Worker { stream, progress }) => {
                office.signer_is_ready();
                let end = Line::new(&office, seat, progress).run(stream).await;
                office.signer_has_gone();
                if let End::Closed = end {
                    return;
                }
            }
            Err(error) => {
                office.signer_is_missing(&error);
                if matches!(error, TokenError::PinRefused) {
                    tracing::error!(worker = seat, "{error}");
                    return;
                }
                tracing::debug!(%error, worker = seat, "a token worker did not start");
            }
        }
        let pause = pause.after(begun.elapsed());
        if office.closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// One process's life.
struct Line<'a> {
    office: &'a Arc<Office>,
    seat: usize,
    /// Its leave to sign beside the others; given back when it cannot.
    turn: Option<Turn>,
    /// Orders without a receipt, oldest first. The process says which it has begun.
    under_way: VecDeque<UnderWay>,
    progress: Progress,
    /// How many orders have a receipt.
    settled: u64,
    /// How much it is given ahead, and how many orders at most.
    ahead: Duration,
    trusted: usize,
    /// Whether it is given orders until it has enough, or works off what it has.
    filling: bool,
    /// Since when the first is.
    since: Instant,
    /// Whether what waited behind the first was given to others.
    stalled: bool,
    /// Until when it rests, if its token failed it the last time.
    unwell: Option<Instant>,
    /// The keys that it was told.
    keys: Teller,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

/// An order, and the job that it is for, unless it was given to another process.
struct UnderWay {
    job: Option<SignJob>,
    key: Arc<KeyRef>,
    inputs: u32,
    cost: Duration,
}

impl<'a> Line<'a> {
    fn new(office: &'a Arc<Office>, seat: usize, progress: Progress) -> Self {
        Self {
            office,
            seat,
            turn: None,
            under_way: VecDeque::new(),
            progress,
            settled: 0,
            ahead: AHEAD_TIME,
            trusted: 1,
            filling: true,
            since: Instant::now(),
            stalled: false,
            unwell: None,
            keys: Teller::default(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    async fn run(mut self, socket: UnixStream) -> End {
        let served = match split(socket) {
            Ok((incoming, outgoing)) => self.serve(&incoming, outgoing).await,
            Err(error) => Err(error),
        };
        let end = served.unwrap_or_else(|error| {
            tracing::error!(%error, worker = self.seat, "a token worker is not to be understood");
            End::Crashed
        });
        self.finish(&end).await;
        end
    }

    async fn serve(&mut self, from: &Incoming, mut to: Outgoing) -> io::Result<End> {
        // Kept from one order to the next, which moves the time to look on: a timer that is set earlier than all others wakes the
        // thread that sets it.
        let (mut look, mut is_set) = (pin!(sleep_until(self.since.into())), false);
        let mut chunk = [0; READ_BYTES];
        let office = Arc::clone(self.office);
        loop {
            self.order_what_waits()?;
            let has_room = self.has_room();
            let next_look = self.next_look().filter(|next| !is_set || *next < look.deadline().into_std());
            if let Some(next) = next_look {
                look.as_mut().reset(next.into());
                is_set = true;
            }
            tokio::select! {
                // What has come is heard before the time is looked at, which may be late.
                biased;
                // Between jobs, `next` tells; a line without room does not ask it.
                () = office.closing.cancelled() => return Ok(End::Closed),
                read = from.read(&mut chunk) => match read {
                    Ok(read @ 1..) => {
                        self.incoming.extend_from_slice(&chunk[..read]);
                        if let Some(end) = self.take_receipts()? {
                            return Ok(end);
                        }
                    }
                    Ok(0) | Err(_) => return Ok(End::Crashed),
                },
                written = to.write(&self.outgoing), if !self.outgoing.is_empty() => match written {
                    Ok(written) => drop(self.outgoing.drain(..written)),
                    Err(_) => return Ok(End::Crashed),
                },
                Some(turn) = office.turns.take(), if self.turn.is_none() && self.is_fit() => self.turn = Some(turn),
                job = office.queue.next(), if has_room => match job {
                    Some(job) => self.order(job)?,
                    None => return Ok(End::Closed),
                },
                () = &mut look, if is_set => {
                    is_set = false;
                    if let Some(next) = self.next_look() {
                        // While this process stood still nobody worked, or nobody was heard.
                        self.since += Instant::now().saturating_duration_since(next);
                    }
                    if self.is_hung() {
                        return Ok(End::Hung(HUNG));
                    }
                    if self.is_stalled() {
                        self.relieve();
                    }
                }
            }
        }
    }

    fn order_what_waits(&mut self) -> io::Result<()> {
        while self.has_room()
            && let Some(job) = self.office.queue.try_next()
        {
            self.order(job)?;
        }
        Ok(())
    }

    fn has_room(&mut self) -> bool {
        let room = match self.under_way.len() {
            0 => true,
            ahead if ahead >= self.trusted => false,
            1 => self.given() < SOON,
            _ => self.given() < if self.filling { self.ahead } else { self.ahead / 2 },
        };
        self.filling = room;
        room && self.turn.is_some() && self.is_fit()
    }

    /// Whether it can be given anything.
    fn is_fit(&self) -> bool {
        // What was given to others cannot be called back: it is worked off before anything new, which would wait behind it and be
        // given away as well.
        let given_away = || self.under_way.iter().any(|order| order.job.is_none());
        !self.stalled && !self.rests() && !given_away()
    }

    /// Whether it leaves the jobs to others: not where there are none.
    fn rests(&self) -> bool {
        self.unwell.is_some_and(|until| Instant::now() < until) && self.office.is_anybody_well()
    }

    fn order(&mut self, mut job: SignJob) -> io::Result<()> {
        let patience = job.deadline.saturating_duration_since(Instant::now());
        if patience.is_zero() {
            queue::answer(job, Err(TokenError::Late));
            return Ok(());
        }
        job.beside += self.given_alone(&job.key);
        let order = Order {
            patience_us: micros(patience),
            cost_us: micros(job.cost),
            keep_us: micros(job.keep_max()),
            key: self.keys.name(&job.key),
            inputs: std::mem::take(&mut job.inputs),
        };
        self.ahead = AHEAD_TIME.max(job.keep_max());
        put(&mut self.outgoing, &order)?;
        // Lent for the frame: should the process end, another gets them.
        job.inputs = order.inputs;
        if self.under_way.is_empty() {
            self.since = Instant::now();
        }
        let (key, cost) = (Arc::clone(&job.key), job.cost);
        let inputs = u32::try_from(job.inputs.len()).unwrap_or(u32::MAX);
        self.under_way.push_back(UnderWay { job: Some(job), key, inputs, cost });
        Ok(())
    }

    /// What the process has of a key's tenant, where it has nobody else's: most of a burst is given ahead, and the queue shows only the
    /// rest. Where others' orders are there, too, they are not what an answer is to be kept for.
    fn given_alone(&self, key: &KeyRef) -> Duration {
        let alone = self.under_way.iter().all(|order| order.key.tenant == key.tenant);
        if alone { self.given() } else { Duration::ZERO }
    }

    /// The token time of all that it has.
    fn given(&self) -> Duration {
        self.under_way.iter().map(|order| order.cost).sum()
    }

    /// Hands out what has come; the end, if the process is of no more use.
    fn take_receipts(&mut self) -> io::Result<Option<End>> {
        let mut taken = 0;
        let mut end = None;
        while end.is_none()
            && let Some((receipt, length)) = take::<Receipt>(&self.incoming[taken..])?
        {
            taken += length;
            end = self.settle(receipt);
        }
        self.incoming.drain(..taken);
        Ok(end)
    }

    /// Hands out one receipt; the end, if it is the last.
    fn settle(&mut self, Receipt { took_us, busy_us, outcome }: Receipt) -> Option<End> {
        self.since = Instant::now();
        if !std::mem::take(&mut self.stalled) {
            self.trusted = (self.trusted + 1).min(AHEAD_MAX);
        }
        self.settled += 1;
        let UnderWay { job, key, inputs, cost } = self.under_way.pop_front()?;
        if let Outcome::Done(_) = outcome {
            self.is_well();
            let took = Duration::from_micros(took_us);
            let busy = busy_us.map(Duration::from_micros);
            if busy.is_some_and(|busy| self.office.turns.learn(cost, took, busy)) {
                self.office.queue.all_work(self.office.config.workers);
            }
            self.office.queue.worked(&key, inputs, took);
        }
        match (outcome, job) {
            (Outcome::Done(signatures), Some(job)) => {
                queue::answer(job, Ok(signatures.into_iter().map(ByteBuf::into_vec).collect()));
            }
            // The others may still be logged in.
            (Outcome::Failed(TokenError::PinRefused), job) => {
                self.office.latch.keep_in_mind();
                if let Some(job) = job {
                    self.give_away(job, TokenError::PinRefused);
                }
                return Some(End::Refused);
            }
            (Outcome::Away(reason), Some(job)) => {
                self.is_unwell();
                let error = TokenError::Unavailable(reason);
                if self.office.is_anybody_well() {
                    self.give_away(job, error);
                } else {
                    queue::answer(job, Err(error));
                }
            }
            (Outcome::Failed(error), Some(job)) => queue::answer(job, Err(error)),
            (Outcome::Spent(reason), job) => {
                if let Some(job) = job {
                    self.give_away(job, TokenError::Unavailable(reason.clone()));
                }
                return Some(End::Spent(reason));
            }
            // Another process had it in the meantime.
            (Outcome::Done(_) | Outcome::Failed(_) | Outcome::Away(_), None) => {}
        }
        None
    }

    fn is_unwell(&mut self) {
        self.turn = None;
        if self.unwell.replace(Instant::now() + REST).is_none() {
            self.office.signer_is_unwell();
        }
    }

    fn is_well(&mut self) {
        if self.unwell.take().is_some() {
            self.office.signer_is_well();
        }
    }

    /// A job that one process could not do is done by another, once.
    fn give_away(&self, mut job: SignJob, error: TokenError) {
        if std::mem::replace(&mut job.given_away, true) {
            queue::answer(job, Err(error));
        } else {
            self.office.queue.put_back(job);
        }
    }

    fn front_cost(&self) -> Duration {
        self.under_way.front().map_or(Duration::ZERO, |order| order.cost)
    }

    fn stall_time(&self) -> Instant {
        self.since + stall_time(self.front_cost())
    }

    fn hang_time(&self) -> Instant {
        let inputs = self.under_way.front().map_or(0, |order| order.inputs);
        let patience = (self.front_cost() * PATIENCE_FACTOR).max(INPUT_PATIENCE * inputs);
        self.since + self.office.config.call_timeout + patience
    }

    /// When there is something to do although nothing comes.
    fn next_look(&self) -> Option<Instant> {
        if self.under_way.is_empty() {
            // There is nothing to look at but the rest that it takes.
            return self.unwell.filter(|until| Instant::now() < *until);
        }
        Some(if self.stalled { self.hang_time() } else { self.stall_time().min(self.hang_time()) })
    }

    fn is_hung(&self) -> bool {
        !self.under_way.is_empty() && Instant::now() >= self.hang_time()
    }

    fn is_stalled(&self) -> bool {
        !self.under_way.is_empty() && Instant::now() >= self.stall_time()
    }

    /// Gives what waits for a call that takes long to others: what is behind it, and what was made before and is not sent. What the
    /// process says of that in the end is not heard any more.
    fn relieve(&mut self) {
        self.stalled = true;
        self.trusted = 1;
        self.turn = None;
        let in_module = self.in_module();
        let waiting = self.under_way.iter_mut().enumerate().rev().filter(|(index, _)| Some(*index) != in_module);
        waiting.filter_map(|(_, order)| order.job.take()).for_each(|job| self.office.queue.put_back(job));
    }

    /// Which order was begun last. What was begun before it was made, and waits for it.
    fn in_module(&self) -> Option<usize> {
        let begun = self.progress.begun().checked_sub(self.settled + 1)?;
        usize::try_from(begun).ok()
    }

    /// Answers the call that was in the module, gives what was not begun to others, and ends the process.
    async fn finish(mut self, end: &End) {
        self.is_well();
        // Others go on at once, however long it takes to end this one.
        self.turn = None;
        let in_module = match end {
            // Whoever closed the queue sees the processes off.
            End::Closed => {
                let left = self.under_way.drain(..).filter_map(|order| order.job);
                return left.for_each(|job| queue::answer(job, Err(super::gone())));
            }
            End::Spent(_) | End::Refused => None,
            End::Hung(_) | End::Crashed => self.in_module().and_then(|order| self.under_way.remove(order)?.job),
        };
        let left = self.under_way.drain(..).rev();
        left.filter_map(|order| order.job).for_each(|job| self.office.queue.put_back(job));
        let reason = self.office.replace(self.seat, end).await;
        if let Some(job) = in_module {
            queue::answer(job, Err(TokenError::Unavailable(reason)));
        }
    }
}
