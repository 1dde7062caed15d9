//! `make bench`: signing through the service beside the token's own speed; docs/benchmarks.md tells what each column means.
//!
//! The released binary runs on one core and the load on another. "Raw" is a loop of C_Sign over the same token on the
//! server's core. Raw and served take turns, so that what else the machine does meets both.

#[path = "../../tests/common/mod.rs"]
mod common;
mod cores;
mod load;
mod raw;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::Server;
use cores::Cores;
use load::{Call, Load};
use table::{Row, Table};

/// How long each figure is measured for: 900 RSA signatures or more, so that the slowest hundredth is nine of them.
const RAW_DURATION: Duration = Duration::from_millis(1000);
const SERVED_DURATION: Duration = Duration::from_millis(1200);
/// Part of the measured throughput at which latency is looked at: busy, but not so busy that the queue alone is seen.
const PACED_LOAD: f64 = 0.7;

/// Signatures per second and latency, served and raw.
#[derive(Parser)]
struct Arguments {
    /// Writes the figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often raw and served take turns; the medians are told.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Measures only the lines whose name begins with this, for example "Sign ES256".
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// What cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// The benchmark's own second process: the raw loop for this algorithm over the token of this state directory.
    #[arg(long, hide = true, num_args = 2, value_names = ["ALGORITHM", "STATE_DIR"])]
    raw: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.raw {
        Some(raw) => raw::run(&raw[0], raw[1].as_ref(), RAW_DURATION),
        None if cfg!(debug_assertions) => Err("a debug build says nothing about speed: use `make bench`".into()),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let cores = Cores::choose()?;
    let server = cores.on_servers(Server::dev)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let mut table = Table::new(cores.describe(), arguments.repetitions);
    let mut rows: Vec<Row> = Call::all().map(Row::new).filter(|row| row.name().starts_with(&arguments.only)).collect();
    if rows.is_empty() {
        return Err(format!("no line begins with {:?}", arguments.only));
    }
    let load = runtime.block_on(Load::connect(&server));
    for repetition in 1..=arguments.repetitions {
        for row in &mut rows {
            eprintln!("bench: {repetition} of {}: {}", arguments.repetitions, row.name());
            let raw = cores.on_servers(|| raw::measure(row.call.algorithm, server.state_dir()))??;
            let served = runtime.block_on(load.flat_out(row.call, SERVED_DURATION))?;
            // A batch is not a call that somebody waits for one by one.
            let paced = match row.call.batch {
                None => {
                    Some(runtime.block_on(load.paced(row.call, served.per_second * PACED_LOAD, SERVED_DURATION))?)
                }
                Some(_) => None,
            };
            row.add(raw, served, paced);
        }
    }
    table.rows = rows;
    println!("{table}");
    match &arguments.json {
        Some(path) => {
            let json = serde_json::to_vec_pretty(&table.json()).map_err(|error| error.to_string())?;
            std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))
        }
        None => Ok(()),
    }
}
