//! The figures, and how they are told.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::load::{Call, Served};
use crate::pace::Paced;
use crate::raw::Raw;

/// Half of the calls, and all but the slowest hundredth, took at most so many microseconds.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Latency {
    pub(crate) fn of(mut calls: Vec<Duration>) -> Self {
        calls.sort_unstable();
        let at =
            |percent: usize| calls.get(calls.len() * percent / 100).map_or(f64::NAN, |call| call.as_secs_f64() * 1e6);
        Self { p50_us: at(50), p99_us: at(99) }
    }

    pub(crate) fn median(of: &[Self]) -> Self {
        Self { p50_us: median(of.iter().map(|one| one.p50_us)), p99_us: median(of.iter().map(|one| one.p99_us)) }
    }
}

/// One line: a call, and what each repetition showed of it.
pub(crate) struct Row {
    pub(crate) call: Call,
    repetitions: Vec<(Raw, Served)>,
    paced: Vec<Paced>,
}

impl Row {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, repetitions: Vec::new(), paced: Vec::new() }
    }

    pub(crate) fn add(&mut self, raw: Raw, served: Served, paced: Option<Paced>) {
        self.repetitions.push((raw, served));
        self.paced.extend(paced);
    }

    fn figures(&self) -> Figures {
        let over = |figure: fn(&(Raw, Served)) -> f64| median(self.repetitions.iter().map(figure));
        let latencies = |of: &mut dyn Iterator<Item = Latency>| Latency::median(&of.collect::<Vec<_>>());
        Figures {
            name: self.call.name(),
            raw_per_second: over(|(raw, _)| raw.per_second),
            served_per_second: over(|(_, served)| served.per_second),
            // The median of the pairs' ratios, for the two of a pair were measured a second apart.
            ratio: over(ratio),
            ratio_min: self.repetitions.iter().map(ratio).fold(f64::INFINITY, f64::min),
            ratio_max: self.repetitions.iter().map(ratio).fold(0.0, f64::max),
            load_busy: over(|(_, served)| served.load_busy),
            raw_latency: latencies(&mut self.repetitions.iter().map(|(raw, _)| raw.latency)),
            paced_latency: (!self.paced.is_empty())
                .then(|| latencies(&mut self.paced.iter().map(|paced| paced.latency))),
            refused: self.paced.iter().map(|paced| paced.refused).sum::<usize>()
                + self.repetitions.iter().map(|(_, served)| served.refused).sum::<usize>(),
        }
    }
}

#[derive(Serialize)]
struct Figures {
    name: String,
    raw_per_second: f64,
    served_per_second: f64,
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    load_busy: f64,
    raw_latency: Latency,
    paced_latency: Option<Latency>,
    refused: usize,
}

/// All lines, and what they were measured on.
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    cores: String,
    repetitions: u32,
}

impl Table {
    pub(crate) fn new(cores: String, repetitions: u32) -> Self {
        Self { rows: Vec::new(), cores, repetitions }
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Figures> = self.rows.iter().map(Row::figures).collect();
        json!({ "processor": processor(), "cores": self.cores, "repetitions": self.repetitions, "rows": rows })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {}; medians of {} repetitions", processor(), self.cores, self.repetitions)?;
        if self.rows.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(
            f,
            "| call | raw /s | served /s | served / raw (min to max) | load busy | raw p50, p99 µs | served p50, p99 µs at 70 % |"
        )?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for figures in self.rows.iter().map(Row::figures) {
            let Figures { name, raw_per_second, served_per_second, ratio, ratio_min, ratio_max, load_busy, .. } =
                &figures;
            let Latency { p50_us, p99_us } = figures.raw_latency;
            let paced = figures
                .paced_latency
                .map_or_else(|| "-".to_owned(), |Latency { p50_us, p99_us }| format!("{p50_us:.0}, {p99_us:.0}"));
            writeln!(
                f,
                "| {name} | {raw_per_second:.0} | {served_per_second:.0} | {ratio:.2} ({ratio_min:.2} to {ratio_max:.2}) \
                 | {load_busy:.2} | {p50_us:.0}, {p99_us:.0} | {paced} |"
            )?;
        }
        for Figures { name, refused, .. } in self.rows.iter().map(Row::figures).filter(|figures| figures.refused > 0) {
            writeln!(
                f,
                "\n{name}: {refused} calls were refused because too much waited; at full speed they are made again"
            )?;
        }
        Ok(())
    }
}

fn ratio((raw, served): &(Raw, Served)) -> f64 {
    served.per_second / raw.per_second
}

pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    name.unwrap_or("an unknown processor").to_owned()
}
