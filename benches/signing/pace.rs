//! Calls that begin at their times, whatever has been answered (an open loop).

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet, yield_now};
use tonic::{Code, Status};

use crate::load::{Call, Load};
use crate::table::{AtPace, Latency};

/// Which call, how many of them in a second, and at what intervals.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) call: Call,
    pub(crate) per_second: f64,
    pub(crate) intervals: Intervals,
}

/// How calls are spread.
#[derive(Clone, Copy)]
pub(crate) enum Intervals {
    /// One client that works off a list.
    Even,
    /// Many clients that know nothing of each other (a Poisson process): exponential.
    Random,
}

/// What became of the calls. Their latency is counted from the times that they were due.
#[derive(Default)]
pub(crate) struct Paced {
    pub(crate) calls: AtPace,
    pub(crate) begun: usize,
    /// Calls begun and calls signed in a second, until the last one began.
    pub(crate) offered: f64,
    pub(crate) served: f64,
    /// Calls refused because too much waited.
    pub(crate) refused: usize,
    /// How late the client began its calls.
    pub(crate) late: Latency,
}

/// When a call was due, when it was answered, and how.
type Answered = (Instant, Instant, Result<(), Status>);

#[derive(Default)]
struct Tally {
    /// When each was due, and how long it took.
    latencies: Vec<(Instant, Duration)>,
    in_time: usize,
    refused: usize,
}

impl Pace {
    /// Calls for so long, each time for any of `loads`, and waits for the answers. Within a `LocalSet`.
    ///
    /// # Errors
    /// What the server answered, but for a refusal because too much waits.
    pub(crate) async fn keep(self, loads: &[Rc<Load>], duration: Duration) -> Result<Paced, String> {
        let begun = Instant::now();
        let end = begun + duration;
        let (mut calls, mut tally, mut late) = (JoinSet::new(), Tally::default(), Vec::new());
        let (mut due, mut random) = (begun, Random(self.per_second.to_bits()));
        while due < end {
            // A timer of tokio's has a millisecond's grain, and many calls fit into one.
            loop {
                yield_now().await;
                while let Some(call) = calls.try_join_next() {
                    tally.add(call, end)?;
                }
                if Instant::now() >= due {
                    break;
                }
            }
            late.push(due.elapsed());
            let load = Rc::clone(&loads[random.below(loads.len())]);
            let mut client = load.client(late.len());
            calls.spawn_local(async move {
                let outcome = self.call.once(&mut client, &load).await;
                (due, Instant::now(), outcome)
            });
            due += self.interval(&mut random);
        }
        let offering = begun.elapsed();
        while let Some(call) = calls.join_next().await {
            tally.add(call, end)?;
        }
        let Tally { mut latencies, in_time, refused } = tally;
        latencies.sort_unstable();
        let rate = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / offering.as_secs_f64();
        let (offered, served) = (rate(late.len()), rate(in_time));
        let calls = AtPace::of(latencies.into_iter().map(|(_, took)| took).collect(), duration);
        let (begun, late) = (late.len(), Latency::of(late));
        Ok(Paced { calls, begun, offered, served, refused, late })
    }

    fn interval(self, random: &mut Random) -> Duration {
        let mean = Duration::from_secs_f64(1.0 / self.per_second);
        match self.intervals {
            Intervals::Even => mean,
            Intervals::Random => mean.mul_f64(-random.next().ln()),
        }
    }
}

impl Tally {
    fn add(&mut self, call: Result<Answered, JoinError>, end: Instant) -> Result<(), String> {
        let (due, answered, outcome) = call.map_err(|panic| panic.to_string())?;
        match outcome {
            Ok(()) => {
                self.latencies.push((due, answered - due));
                self.in_time += usize::from(answered <= end);
            }
            Err(status) if status.code() == Code::ResourceExhausted => self.refused += 1,
            Err(status) => return Err(status.to_string()),
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): nobody has to be unable to guess it.
struct Random(u64);

impl Random {
    /// Above 0, and 1 at most.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let upper = u32::try_from((mixed ^ (mixed >> 31)) >> 32).expect("32 bits");
        (f64::from(upper) + 1.0) / 4_294_967_296.0
    }

    /// Any of so many.
    fn below(&mut self, count: usize) -> usize {
        ((1.0 - self.next()) * count as f64) as usize
    }
}
