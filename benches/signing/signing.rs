//! Signing through the service beside the token's own speed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::cores::Place;
use crate::load::Call;
use crate::pace::{Intervals, Pace, Paced};
use crate::raw::{self, PACED_LOAD, Raw};
use crate::table::{AtPace, Bench, Latency, Ratio, Table, least, median};
use crate::variants::{Isolation, Turn, Variant};

/// How long each figure is measured for: a thousand RSA signatures, so that the slowest thousandth is one of them.
const RAW_DURATION: Duration = Duration::from_millis(1500);
const SERVED_DURATION: Duration = Duration::from_millis(1200);
const PACED_DURATION: Duration = Duration::from_millis(2000);

/// All lines, and the complete service with its token's module in processes and in threads.
pub(crate) struct Signing {
    servers: Vec<Variant>,
    rows: Vec<Row>,
}

/// A call, and what each repetition showed of it: the raw loop, and each of the servers.
struct Row {
    call: Call,
    raw: Vec<Raw>,
    served: Vec<Vec<(Turn, Option<Paced>)>>,
}

impl Signing {
    /// Starts the servers; `None` if no line is wanted.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn new(bench: &Bench) -> Result<Option<Self>, String> {
        let calls: Vec<Call> = Call::all().filter(|call| bench.wants(&call.name())).collect();
        if calls.is_empty() {
            return Ok(None);
        }
        let servers = Isolation::BOTH.map(|isolation| Variant::start_complete(bench, Place::Server, isolation));
        let servers: Vec<Variant> = servers.into_iter().collect::<Result<_, _>>()?;
        let rows = calls.into_iter().map(|call| Row {
            call,
            raw: Vec::new(),
            served: servers.iter().map(|_| Vec::new()).collect(),
        });
        Ok(Some(Self { rows: rows.collect(), servers }))
    }

    fn figures(&self) -> impl Iterator<Item = Figures> {
        let lines = self.rows.iter().flat_map(|row| self.servers.iter().zip(&row.served).map(move |pair| (row, pair)));
        lines.map(|(row, (server, turns))| {
            let served = |figure: fn(&Turn) -> f64| turns.iter().map(move |(turn, _)| figure(turn));
            let raw = |figure: fn(&Raw) -> f64| row.raw.iter().map(figure);
            let paced = turns.iter().filter_map(|(_, paced)| paced.as_ref());
            let is_waited_for = row.call.is_waited_for();
            let (raw_cpu_us, served_cpu_us) = (least(raw(|raw| raw.cpu_us)), least(served(|turn| turn.cpu_us)));
            Figures {
                call: row.call.name(),
                isolation: server.isolation,
                raw_per_second: median(raw(|raw| raw.per_second)),
                served_per_second: median(served(|turn| turn.served.per_second)),
                of_raw: Ratio::of(served(|turn| turn.served.per_second).zip(raw(|raw| raw.per_second))),
                raw_cpu_us,
                served_cpu_us,
                cpu_of_raw: raw_cpu_us / served_cpu_us,
                load_busy: median(served(|turn| turn.served.load_busy)),
                raw_latency: Latency::median(row.raw.iter().map(|raw| raw.latency)),
                raw_paced: is_waited_for.then(|| AtPace::median(row.raw.iter().filter_map(|raw| raw.paced))),
                paced: is_waited_for.then(|| AtPace::median(paced.clone().map(|paced| paced.calls))),
                client_late: is_waited_for.then(|| Latency::median(paced.clone().map(|paced| paced.late))),
                refused: paced.map(|paced| paced.refused).sum::<usize>()
                    + turns.iter().map(|(turn, _)| turn.served.refused).sum::<usize>(),
            }
        })
    }

    fn memory(&self) -> impl Iterator<Item = Memory> {
        let memory = |server: &Variant| Memory { isolation: server.isolation, held_kib: server.memory_kib() };
        self.servers.iter().map(memory)
    }
}

impl Table for Signing {
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        for repetition in 1..=bench.repetitions {
            for Row { call, raw, served } in &mut self.rows {
                bench.say(repetition, &call.name());
                let (dir, paced_for) =
                    (self.servers[0].dir(), if call.is_waited_for() { PACED_DURATION } else { Duration::ZERO });
                let measure = || raw::measure_paced(call.algorithm, dir, RAW_DURATION, paced_for);
                raw.push(bench.cores.on_servers(measure)??);
                // Who begins changes, so that neither always comes after the other.
                for turn in 0..self.servers.len() {
                    let number = (turn + repetition as usize) % self.servers.len();
                    served[number].push(turn_of(bench, &self.servers[number], *call)?);
                }
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let (rows, memory): (Vec<Figures>, Vec<Memory>) = (self.figures().collect(), self.memory().collect());
        json!({ "rows": rows, "memory": memory })
    }
}

fn turn_of(bench: &Bench, server: &Variant, call: Call) -> Result<(Turn, Option<Paced>), String> {
    let turn = server.flat_out(bench, call, SERVED_DURATION)?;
    if !call.is_waited_for() {
        return Ok((turn, None));
    }
    let pace = Pace { call, per_second: turn.served.per_second * PACED_LOAD, intervals: Intervals::Even };
    let load = std::slice::from_ref(&server.load);
    let paced = LocalSet::new().block_on(&bench.runtime, pace.keep(load, PACED_DURATION))?;
    Ok((turn, Some(paced)))
}

#[derive(Serialize)]
struct Figures {
    call: String,
    isolation: Isolation,
    raw_per_second: f64,
    served_per_second: f64,
    of_raw: Ratio,
    /// For a signature, in the repetition where it was least.
    raw_cpu_us: f64,
    served_cpu_us: f64,
    cpu_of_raw: f64,
    load_busy: f64,
    raw_latency: Latency,
    raw_paced: Option<AtPace>,
    paced: Option<AtPace>,
    /// How late the client began its calls, which are in `paced` as if the server had taken so long.
    client_late: Option<Latency>,
    refused: usize,
}

/// What all processes of a server hold at the end.
#[derive(Serialize)]
struct Memory {
    isolation: Isolation,
    held_kib: u64,
}

impl fmt::Display for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| call | token in a | raw /s | served /s | served / raw (min to max) | CPU µs raw, served | by CPU | load busy | \
             raw p50, p99, p99.9 µs | raw at 70 %; in parts | served at 70 %; in parts | \
             p99 above raw's, raw's at 70 %; in parts, ms | client late p99 µs |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for figures in self.figures() {
            let Figures { call, isolation, raw_per_second, served_per_second, of_raw, .. } = &figures;
            let Figures { raw_cpu_us, served_cpu_us, cpu_of_raw, load_busy, raw_latency, .. } = &figures;
            let [raw_paced, paced, above] = match (&figures.raw_paced, &figures.paced) {
                (Some(raw_paced), Some(paced)) => {
                    let above =
                        [raw_latency, &raw_paced.latency].map(|raw| (paced.latency.p99_us - raw.p99_us) / 1000.0);
                    let in_parts = (paced.parts_p99_us - raw_paced.parts_p99_us) / 1000.0;
                    let above = format!("{:.2}, {:.2}; {in_parts:.2}", above[0], above[1]);
                    [raw_paced.to_string(), paced.to_string(), above]
                }
                _ => ["-"; 3].map(str::to_owned),
            };
            let late = figures.client_late.map_or_else(|| "-".to_owned(), |late| format!("{:.0}", late.p99_us));
            writeln!(
                f,
                "| {call} | {isolation} | {raw_per_second:.0} | {served_per_second:.0} | {of_raw} | {raw_cpu_us:.0}, \
                 {served_cpu_us:.0} | {cpu_of_raw:.2} | {load_busy:.2} | {raw_latency} | {raw_paced} | {paced} | {above} | \
                 {late} |"
            )?;
        }
        writeln!(f)?;
        for Memory { isolation, held_kib } in self.memory() {
            writeln!(f, "Memory, token in a {isolation}: {} MiB in all processes of the server", held_kib >> 10)?;
        }
        for Figures { call, isolation, refused, .. } in self.figures().filter(|figures| figures.refused > 0) {
            writeln!(
                f,
                "{call}, {isolation}: {refused} calls were refused because too much waited; at full speed they are made again"
            )?;
        }
        Ok(())
    }
}
