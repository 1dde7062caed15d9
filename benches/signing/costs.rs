//! What TLS, the proof of who calls and the record of it cost: each variant beside the base.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cores::Cores;
use crate::load::{CALLS_IN_FLIGHT, Call, Served};
use crate::raw;
use crate::table::{Latency, median};
use crate::variants::{GRANTS_ALONE, Variant};

/// How long each figure is measured for: some 500 RSA signatures.
const DURATION: Duration = Duration::from_millis(700);
/// How long the disk alone is measured for, and how large a record is about.
const DISK_DURATION: Duration = Duration::from_millis(100);
const RECORD_BYTES: usize = 500;

/// A call, and how many of it are under way.
#[derive(Clone, Copy)]
struct Line {
    call: Call,
    flights: usize,
}

/// What each repetition showed of one variant.
struct Seen {
    served: Served,
    cpu_us: f64,
}

/// All lines and variants.
pub(crate) struct Costs {
    variants: Vec<Variant>,
    lines: Vec<Line>,
    /// By line, variant and repetition.
    seen: Vec<Vec<Vec<Seen>>>,
    /// By line and repetition, in signatures per second.
    raw: Vec<Vec<f64>>,
    /// How long appending and fdatasync take, in microseconds.
    disk_us: Vec<f64>,
}

impl Costs {
    /// Starts the servers, to measure the calls whose names begin with `only`.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn new(cores: &Cores, runtime: &Runtime, only: &str) -> Result<Self, String> {
        let sign = |algorithm| Call { method: "Sign", algorithm, batch: None };
        let batch = Call { method: "BatchSign", algorithm: "ES256", batch: Some(64) };
        let full = [sign("ES256"), sign("RS256"), batch].map(|call| Line { call, flights: call.flights() });
        let alone = Line { call: sign("ES256"), flights: 1 };
        let lines: Vec<Line> =
            full.into_iter().chain([alone]).filter(|line| line.call.name().starts_with(only)).collect();
        // None of them is wanted: none is started.
        let variants = if lines.is_empty() { Vec::new() } else { runtime.block_on(Variant::start_all(cores))? };
        let seen = lines.iter().map(|_| variants.iter().map(|_| Vec::new()).collect()).collect();
        let raw = lines.iter().map(|_| Vec::new()).collect();
        Ok(Self { variants, lines, seen, raw, disk_us: Vec::new() })
    }

    /// Whether no call was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// One turn of everything. Who begins changes, so that no variant always comes after the same one.
    ///
    /// # Errors
    /// What a server answered, or of the raw loop.
    pub(crate) fn repeat(&mut self, cores: &Cores, runtime: &Runtime, repetition: u32) -> Result<(), String> {
        let disk = cores.on_servers(|| sync_time(self.variants[0].dir()))?;
        self.disk_us.push(disk.map_err(|error| format!("the disk: {error}"))?);
        for (index, line) in self.lines.iter().enumerate() {
            let dir = self.variants[0].dir().to_string_lossy().into_owned();
            let raw = cores.on_servers(|| raw::measure(line.call.algorithm, &dir))??;
            self.raw[index].push(raw.per_second);
            for turn in 0..self.variants.len() {
                let number = (turn + repetition as usize) % self.variants.len();
                let variant = &self.variants[number];
                let before = variant.cpu_time()?;
                let served = runtime.block_on(variant.load.flat_out(line.call, line.flights, DURATION));
                let served = served.map_err(|problem| format!("{}: {problem}", variant.with))?;
                let cpu = variant.cpu_time()?.saturating_sub(before);
                let calls = f64::from(u32::try_from(served.calls).unwrap_or(u32::MAX));
                let cpu_us = cpu.as_secs_f64() * 1e6 / (calls * line.call.signatures());
                self.seen[index][number].push(Seen { served, cpu_us });
            }
        }
        Ok(())
    }

    fn ratio(&self, line: usize, variant: usize, beside: usize) -> Ratio {
        let rates = |variant: usize| self.seen[line][variant].iter().map(|seen| seen.served.per_second);
        Ratio::of(rates(variant).zip(rates(beside)).map(|(one, other)| one / other))
    }

    fn figures(&self, line: usize) -> Vec<Figures> {
        let figures = |(variant, seen): (usize, &Vec<Seen>)| Figures {
            call: self.lines[line].name(),
            with: self.variants[variant].with,
            per_second: median(seen.iter().map(|seen| seen.served.per_second)),
            of_base: self.ratio(line, variant, 0),
            of_raw: Ratio::of(seen.iter().zip(&self.raw[line]).map(|(seen, raw)| seen.served.per_second / raw)),
            latency: Latency::median(&seen.iter().map(|seen| seen.served.latency).collect::<Vec<_>>()),
            // Neighbours can only add to it: they take the caches, and cores that are shared run slower.
            server_cpu_us: seen.iter().map(|seen| seen.cpu_us).fold(f64::INFINITY, f64::min),
        };
        self.seen[line].iter().enumerate().map(figures).collect()
    }

    fn grants_alone(&self, line: usize) -> Ratio {
        let [without, with] = GRANTS_ALONE;
        self.ratio(line, with, without)
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Figures> = (0..self.lines.len()).flat_map(|line| self.figures(line)).collect();
        let grants = (0..self.lines.len())
            .map(|line| json!({ "call": self.lines[line].name(), "of_tls": self.grants_alone(line) }));
        let fdatasync_us = median(self.disk_us.iter().copied());
        json!({ "fdatasync_us": fdatasync_us, "rows": rows, "grants_alone": grants.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = median(self.disk_us.iter().copied());
        writeln!(f, "Appending a record and fdatasync take {disk:.0} µs on this disk.\n")?;
        writeln!(f, "| call | with | /s | of base (min to max) | of raw | p50, p99 µs | least server CPU µs |")?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: |")?;
        for line in 0..self.lines.len() {
            for Figures { call, with, per_second, of_base, of_raw, latency, server_cpu_us } in self.figures(line) {
                let Latency { p50_us, p99_us } = latency;
                writeln!(
                    f,
                    "| {call} | {with} | {per_second:.0} | {of_base} | {:.2} | {p50_us:.0}, {p99_us:.0} | {server_cpu_us:.0} |",
                    of_raw.median
                )?;
            }
        }
        writeln!(f)?;
        for line in 0..self.lines.len() {
            writeln!(f, "{}: grants beside TLS alone: {}", self.lines[line].name(), self.grants_alone(line))?;
            let refused: usize = self.seen[line].iter().flatten().map(|seen| seen.served.refused).sum();
            if refused > 0 {
                writeln!(f, "{}: {refused} calls were refused because too much waited", self.lines[line].name())?;
            }
        }
        Ok(())
    }
}

impl Line {
    fn name(self) -> String {
        match self.flights {
            1 => format!("{}, one at a time", self.call.name()),
            flights if flights == CALLS_IN_FLIGHT => self.call.name(),
            flights => format!("{}, {flights} under way", self.call.name()),
        }
    }
}

#[derive(Serialize)]
struct Figures {
    call: String,
    with: &'static str,
    per_second: f64,
    of_base: Ratio,
    of_raw: Ratio,
    latency: Latency,
    server_cpu_us: f64,
}

/// The ratios of pairs that were measured in the same repetition.
#[derive(Serialize)]
struct Ratio {
    median: f64,
    min: f64,
    max: f64,
}

impl Ratio {
    fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let ratios: Vec<f64> = ratios.collect();
        let of = ratios.iter().copied();
        Self { median: median(of.clone()), min: of.clone().fold(f64::INFINITY, f64::min), max: of.fold(0.0, f64::max) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

/// What the disk takes for a record that is waited for, in microseconds: half of the tries took at most so long.
fn sync_time(dir: &std::path::Path) -> std::io::Result<f64> {
    let mut file = tempfile::tempfile_in(dir)?;
    let (end, mut times) = (Instant::now() + DISK_DURATION, Vec::new());
    while Instant::now() < end {
        let begun = Instant::now();
        file.write_all(&[b'x'; RECORD_BYTES])?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times.into_iter()))
}
