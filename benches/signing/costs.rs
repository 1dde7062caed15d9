//! What TLS, the proof of who calls, the record of it, and processes for the token's module cost: each variant beside the base.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::load::Call;
use crate::raw;
use crate::table::{Bench, Latency, Ratio, Table, least, median};
use crate::variants::{GRANTS_ALONE, Turn, Variant};

/// How long each figure is measured for: some 500 RSA signatures.
const DURATION: Duration = Duration::from_millis(700);
/// How long the disk alone is measured for, and how large a record is about.
const DISK_DURATION: Duration = Duration::from_millis(100);
const RECORD_BYTES: usize = 500;

/// All lines and variants.
pub(crate) struct Costs {
    variants: Vec<Variant>,
    lines: Vec<Call>,
    /// By line, variant and repetition.
    seen: Vec<Vec<Vec<Turn>>>,
    /// By line and repetition, in signatures per second.
    raw: Vec<Vec<f64>>,
    /// How long appending and fdatasync take, in microseconds.
    disk_us: Vec<f64>,
}

impl Costs {
    /// Starts the servers; `None` if no line is wanted.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn new(bench: &Bench) -> Result<Option<Self>, String> {
        let sign = |algorithm| Call::unary("Sign", algorithm);
        let batch = Call::batch("ES256");
        let alone = Call { flights: 1, ..sign("ES256") };
        let lines = [sign("ES256"), sign("RS256"), batch, alone].into_iter();
        let lines: Vec<Call> = lines.filter(|call| bench.wants(&call.name())).collect();
        if lines.is_empty() {
            return Ok(None);
        }
        let variants = Variant::start_all(bench)?;
        let seen = lines.iter().map(|_| variants.iter().map(|_| Vec::new()).collect()).collect();
        let raw = lines.iter().map(|_| Vec::new()).collect();
        Ok(Some(Self { variants, lines, seen, raw, disk_us: Vec::new() }))
    }

    /// One turn of everything. Who begins changes, so that no variant always comes after the same one.
    fn repeat(&mut self, bench: &Bench, repetition: u32) -> Result<(), String> {
        let dir = self.variants[0].dir();
        let disk = bench.cores.on_servers(|| sync_time(dir))?;
        self.disk_us.push(disk.map_err(|error| format!("the disk: {error}"))?);
        for (index, call) in self.lines.iter().enumerate() {
            let raw = bench.cores.on_servers(|| raw::measure(call.algorithm, dir, DURATION))??;
            self.raw[index].push(raw.per_second);
            for turn in 0..self.variants.len() {
                let number = (turn + repetition as usize) % self.variants.len();
                let turn = self.variants[number].flat_out(bench, *call, DURATION)?;
                self.seen[index][number].push(turn);
            }
        }
        Ok(())
    }

    fn ratio(&self, line: usize, variant: usize, beside: usize) -> Ratio {
        let rates = |variant: usize| self.seen[line][variant].iter().map(|turn| turn.served.per_second);
        Ratio::of(rates(variant).zip(rates(beside)))
    }

    fn figures(&self, line: usize) -> Vec<Figures> {
        let figures = |(variant, seen): (usize, &Vec<Turn>)| Figures {
            call: self.lines[line].name(),
            with: self.variants[variant].with,
            per_second: median(seen.iter().map(|seen| seen.served.per_second)),
            of_base: self.ratio(line, variant, 0),
            of_raw: Ratio::of(seen.iter().map(|turn| turn.served.per_second).zip(self.raw[line].iter().copied())),
            latency: Latency::median(seen.iter().map(|turn| turn.served.latency)),
            server_cpu_us: least(seen.iter().map(|turn| turn.cpu_us)),
        };
        self.seen[line].iter().enumerate().map(figures).collect()
    }

    fn grants_alone(&self, line: usize) -> Ratio {
        let [without, with] = GRANTS_ALONE;
        self.ratio(line, with, without)
    }
}

impl Table for Costs {
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        for repetition in 1..=bench.repetitions {
            bench.say(repetition, "costs");
            self.repeat(bench, repetition)?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
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
                let Latency { p50_us, p99_us, .. } = latency;
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
