//! What a second core brings.
//!
//! The load runs on the server's cores, on one or on both: so it costs the same part of them each time, and a machine with two
//! cores is enough.

use std::fmt;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cores::{Cores, Place};
use crate::load::Call;
use crate::raw;
use crate::table::{Bench, Ratio, Table, median};
use crate::variants::{Isolation, Variant};

const DURATION: Duration = Duration::from_millis(1500);
/// The token's time is nearly all of this one's.
const CALL: Call = Call::unary("Sign", "RS256");

/// The complete service on one core and on two, and bare loops of C_Sign.
pub(crate) struct Scaling {
    /// In pairs: on one core, on both.
    servers: Vec<[Variant; 2]>,
    /// By server and repetition: signatures per second on one core and on both.
    served: Vec<Vec<(f64, f64)>>,
    raw: Vec<(f64, f64)>,
}

impl Scaling {
    /// Starts the servers; `None` if the line is not wanted, or there are no two cores.
    ///
    /// # Errors
    /// The system does not let the process choose its core.
    pub(crate) fn new(bench: &Bench) -> Result<Option<Self>, String> {
        if !bench.wants(&CALL.name()) || !bench.cores.are_two() {
            return Ok(None);
        }
        let mut servers = Vec::new();
        for isolation in Isolation::BOTH {
            let one = Variant::start_complete(bench, Place::Server, isolation)?;
            servers.push([one, Variant::start_complete(bench, Place::Both, isolation)?]);
        }
        let served = servers.iter().map(|_| Vec::new()).collect();
        Ok(Some(Self { servers, served, raw: Vec::new() }))
    }

    fn figures(&self) -> impl Iterator<Item = Figures> {
        let whose = self.servers.iter().map(|pair| format!("{}, token in a {}", CALL.name(), pair[0].isolation));
        let lines = whose.zip(&self.served).chain([("raw loops".to_owned(), &self.raw)]);
        lines.map(|(line, pairs)| Figures {
            line,
            one: median(pairs.iter().map(|(one, _)| *one)),
            two: median(pairs.iter().map(|(_, two)| *two)),
            ratio: Ratio::of(pairs.iter().map(|(one, two)| (*two, *one))),
        })
    }
}

impl Table for Scaling {
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        for repetition in 1..=bench.repetitions {
            bench.say(repetition, "one core and two");
            let dir = self.servers[0][0].dir();
            let one = bench.cores.on_servers(|| raw::measure(CALL.algorithm, dir, DURATION))??.per_second;
            self.raw.push((one, on_both(&bench.cores, dir)?));
            for ([one, two], served) in self.servers.iter().zip(&mut self.served) {
                let rate = |place, server: &Variant| {
                    let turn = bench.cores.within(place, || server.flat_out(bench, CALL, DURATION))?;
                    turn.map(|turn| turn.served.per_second)
                };
                served.push((rate(Place::Server, one)?, rate(Place::Both, two)?));
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "rows": self.figures().collect::<Vec<_>>() })
    }
}

/// A loop on each core at the same time.
fn on_both(cores: &Cores, dir: &std::path::Path) -> Result<f64, String> {
    let run = |place| cores.within(place, || raw::measure(CALL.algorithm, dir, DURATION))?;
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| run(Place::Server));
        let other = run(Place::Load);
        (one.join(), other)
    });
    let one = one.map_err(|_| "the thread of a raw loop failed".to_owned())??;
    Ok(one.per_second + other?.per_second)
}

#[derive(Serialize)]
struct Figures {
    line: String,
    one: f64,
    two: f64,
    ratio: Ratio,
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | one core, /s | two cores, /s | two / one (min to max) |")?;
        writeln!(f, "| --- | ---: | ---: | ---: |")?;
        for Figures { line, one, two, ratio } in self.figures() {
            writeln!(f, "| {line} | {one:.0} | {two:.0} | {ratio} |")?;
        }
        Ok(())
    }
}
