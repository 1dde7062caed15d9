//! `make bench`: signing through the service beside the token's own speed; docs/benchmarks.md tells what each column means.
//!
//! The released binary runs on one core and the load on another. "Raw" is a loop of C_Sign over the same token on the
//! server's core. Raw and served take turns, so that what else the machine does meets both; so do the servers that have TLS, the
//! proof of who calls and the record of it, and the one that has none of them. The third table is of servers that are asked for far
//! more than they can do.

#[path = "../../tests/common/mod.rs"]
mod common;
mod cores;
mod costs;
mod growth;
mod load;
mod overload;
mod pace;
mod raw;
mod table;
mod variants;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::{Dial, Server};
use cores::Cores;
use costs::Costs;
use growth::Growth;
use load::{Call, Load};
use overload::Overload;
use pace::{Intervals, Pace};
use serde_json::Value;
use table::{Row, Table};
use tokio::task::LocalSet;

/// How long each figure is measured for: 900 RSA signatures or more, so that the slowest hundredth is nine of them.
const RAW_DURATION: Duration = Duration::from_millis(1000);
const SERVED_DURATION: Duration = Duration::from_millis(1200);
/// Part of the measured throughput at which latency is looked at: busy, but not so busy that the queue alone is seen.
const PACED_LOAD: f64 = 0.7;
/// How long each load of the third table lasts, where it is measured alone and where it comes with the others.
const OVERLOAD_SECS: u32 = 60;
const OVERLOAD_SECS_SHORT: u32 = 5;

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
    /// Measures one table and not the others.
    #[arg(long, value_enum)]
    table: Option<Part>,
    /// How long each load of the table "overload" lasts; 60 where no other table is measured, else 5. A line takes four times
    /// as long and some seconds more.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=600))]
    secs: Option<u32>,
    /// What cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// The benchmark's own second process: the raw loop for this algorithm over the token of this state directory.
    #[arg(long, hide = true, num_args = 2, value_names = ["ALGORITHM", "STATE_DIR"])]
    raw: Option<Vec<String>>,
}

/// The tables.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Served beside raw.
    Signing,
    /// TLS, authorisation and audit beside a service without them.
    Costs,
    /// Ten times the load that the token carries, and one tenant at ten times its share.
    Overload,
    /// One tenant and ten thousand. Only where it is asked for: making them takes a quarter of an hour, once.
    Growth,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.raw {
        Some(raw) if raw[0] == "list" => growth::list(raw[1].as_ref()),
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
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    if arguments.table == Some(Part::Growth) {
        let growth = Growth::measure(&arguments.only, &cores, &runtime)?;
        println!("{growth}");
        let Some(path) = &arguments.json else { return Ok(()) };
        return std::fs::write(path, format!("{:#}", growth.json()))
            .map_err(|error| format!("{}: {error}", path.display()));
    }
    let wants = |part| arguments.table.is_none_or(|wanted| wanted == part);
    let calls = Call::all().filter(|call| wants(Part::Signing) && call.name().starts_with(&arguments.only));
    let mut table = Table::new(cores.describe(), arguments.repetitions);
    table.rows = calls.map(Row::new).collect();
    let costs = wants(Part::Costs).then(|| Costs::new(&cores, &runtime, &arguments.only)).transpose()?;
    let mut costs = costs.filter(|costs| !costs.is_empty());
    let secs = if arguments.table.is_some() { OVERLOAD_SECS } else { OVERLOAD_SECS_SHORT };
    let overload = wants(Part::Overload).then(|| Overload::new(&arguments.only, arguments.secs.unwrap_or(secs)));
    let mut overload = overload.filter(|overload| !overload.is_empty());
    if table.rows.is_empty() && costs.is_none() && overload.is_none() {
        return Err(format!("no line begins with {:?}", arguments.only));
    }
    if !table.rows.is_empty() {
        serve_beside_raw(arguments, &cores, &runtime, &mut table)?;
    }
    println!("{table}");
    if let Some(costs) = &mut costs {
        for repetition in 1..=arguments.repetitions {
            eprintln!("bench: {repetition} of {}: costs", arguments.repetitions);
            costs.repeat(&cores, &runtime, repetition)?;
        }
        println!("{costs}");
    }
    // The servers of the table before have come to their end.
    let costs = costs.map_or(Value::Null, |costs| costs.json());
    if let Some(overload) = &mut overload {
        overload.measure(&cores, &runtime)?;
        println!("{overload}");
    }
    let Some(path) = &arguments.json else { return Ok(()) };
    let mut json = table.json();
    json["costs"] = costs;
    json["overload"] = overload.map_or(Value::Null, |overload| overload.json());
    let json = serde_json::to_vec_pretty(&json).map_err(|error| error.to_string())?;
    std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))
}

fn serve_beside_raw(
    arguments: &Arguments,
    cores: &Cores,
    runtime: &tokio::runtime::Runtime,
    table: &mut Table,
) -> Result<(), String> {
    let server = cores.on_servers(Server::dev)?;
    let (tenant, issuer, _) = server.demo();
    let load = runtime.block_on(Load::connect(&Dial::tcp(server.grpc()), tenant, issuer, &[]));
    for repetition in 1..=arguments.repetitions {
        for row in &mut table.rows {
            let call = row.call;
            eprintln!("bench: {repetition} of {}: {}", arguments.repetitions, call.name());
            let raw = cores.on_servers(|| raw::measure(call.algorithm, server.state_dir()))??;
            let served = runtime.block_on(load.flat_out(call, call.flights(), SERVED_DURATION))?;
            // A batch is not a call that somebody waits for one by one.
            let paced = match call.batch {
                None => {
                    let pace = Pace { call, per_second: served.per_second * PACED_LOAD, intervals: Intervals::Even };
                    Some(LocalSet::new().block_on(runtime, pace.keep(std::slice::from_ref(&load), SERVED_DURATION))?)
                }
                Some(_) => None,
            };
            row.add(raw, served, paced);
        }
    }
    Ok(())
}
