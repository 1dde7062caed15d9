//! What every table is, and the figures that they share.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::cores::Cores;

/// One of the tables. As text it is as it stands in docs/benchmarks.md.
pub(crate) trait Table: fmt::Display {
    /// Measures all of it.
    ///
    /// # Errors
    /// What a server answered, or what is missing.
    fn measure(&mut self, bench: &Bench) -> Result<(), String>;

    /// Every figure.
    fn json(&self) -> Value;
}

/// What all tables are measured with.
pub(crate) struct Bench {
    pub(crate) cores: Cores,
    /// The load's one thread.
    pub(crate) runtime: Runtime,
    /// How often those take turns who are held against each other.
    pub(crate) repetitions: u32,
    /// How the names of the wanted lines begin.
    pub(crate) only: String,
    /// How long each load of the table "overload" lasts.
    pub(crate) overload_secs: u32,
}

impl Bench {
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only)
    }

    /// Says what is measured now.
    pub(crate) fn say(&self, repetition: u32, what: &str) {
        eprintln!("bench: {repetition} of {}: {what}", self.repetitions);
    }
}

/// Half of the calls, all but the slowest hundredth, and all but the slowest thousandth took at most so many microseconds.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

impl Latency {
    pub(crate) fn of(mut calls: Vec<Duration>) -> Self {
        calls.sort_unstable();
        let at = |permille: usize| {
            calls.get(calls.len() * permille / 1000).map_or(f64::NAN, |call| call.as_secs_f64() * 1e6)
        };
        Self { p50_us: at(500), p99_us: at(990), p999_us: at(999) }
    }

    pub(crate) fn median(of: impl Iterator<Item = Self> + Clone) -> Self {
        let over = |figure: fn(Self) -> f64| median(of.clone().map(figure));
        Self { p50_us: over(|one| one.p50_us), p99_us: over(|one| one.p99_us), p999_us: over(|one| one.p999_us) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}, {:.0}, {:.0}", self.p50_us, self.p99_us, self.p999_us)
    }
}

/// What p99 is looked at in, beside that of all calls. A machine whose cores others take for some milliseconds several times in a
/// second makes one call in a hundred late by that alone; most parts are spared. So is what a server does itself less than ten times
/// in a second.
const PART: Duration = Duration::from_millis(50);

/// How long calls took that were begun at their times.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct AtPace {
    pub(crate) latency: Latency,
    /// The median of the parts' p99.
    pub(crate) parts_p99_us: f64,
}

impl AtPace {
    /// Of calls in the order in which they were due, over so much time.
    pub(crate) fn of(calls: Vec<Duration>, over: Duration) -> Self {
        let parts = over.div_duration_f64(PART).round().max(1.0);
        let parts = calls.chunks_exact(((calls.len() as f64 / parts) as usize).max(1));
        let parts_p99_us = median(parts.map(|part| Latency::of(part.to_vec()).p99_us));
        Self { latency: Latency::of(calls), parts_p99_us }
    }

    pub(crate) fn median(of: impl Iterator<Item = Self> + Clone) -> Self {
        let latency = Latency::median(of.clone().map(|one| one.latency));
        Self { latency, parts_p99_us: median(of.map(|one| one.parts_p99_us)) }
    }
}

impl fmt::Display for AtPace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {:.0}", self.latency, self.parts_p99_us)
    }
}

/// The ratios of pairs that were measured in the same repetition: the median, for the two of a pair were measured a second
/// apart.
#[derive(Default, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Ratio {
    pub(crate) fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let ratios: Vec<f64> = pairs.map(|(one, other)| one / other).collect();
        let of = ratios.iter().copied();
        Self { median: median(of.clone()), min: least(of.clone()), max: of.fold(0.0, f64::max) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of what neighbours can only add to, as they do to CPU time: they take the caches, and cores that are shared run slower.
pub(crate) fn least(figures: impl Iterator<Item = f64>) -> f64 {
    figures.fold(f64::INFINITY, f64::min)
}

pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    name.unwrap_or("an unknown processor").to_owned()
}
