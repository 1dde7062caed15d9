//! `make bench`: what Keyward costs beside the token's own speed, and beside nginx; docs/benchmarks.md tells what each
//! column means.
//!
//! The released binary runs on one core and the load on another. Those that are held against each other take turns, so
//! that what else the machine does meets them alike: the service and a loop of C_Sign over the same token on the server's
//! core, services that differ in one thing, Keyward and nginx.

#[path = "../../tests/common/mod.rs"]
mod common;
mod cores;
mod costs;
mod exercise;
mod growth;
mod jwks;
mod load;
mod nginx;
mod overload;
mod pace;
mod processes;
mod raw;
mod scaling;
mod signing;
mod table;
mod variants;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use cores::Cores;
use costs::Costs;
use growth::Growth;
use jwks::Jwks;
use overload::Overload;
use scaling::Scaling;
use serde_json::json;
use signing::Signing;
use table::{Bench, Table, processor};

/// What Keyward costs.
#[derive(Parser)]
struct Arguments {
    /// Writes the figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often those take turns who are held against each other; the medians are told.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Measures only the lines whose name begins with this, for example "Sign ES256".
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measures one table and not the others. Without it all but "overload" and "growth", which take long.
    #[arg(long, value_enum)]
    table: Option<Part>,
    /// How long each load of the table "overload" lasts. A line takes four times as long and some seconds more.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    secs: u32,
    /// Has the service do everything once, and measures nothing: for counting what it does.
    #[arg(long, hide = true)]
    exercise: bool,
    /// What cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// The benchmark's own second process: the raw loop for this algorithm over the token of this directory, for so long,
    /// and paced for so long.
    #[arg(long, hide = true, num_args = 4, value_names = ["ALGORITHM", "DIR", "MILLISECONDS", "PACED"])]
    raw: Option<Vec<String>>,
}

/// The tables.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Served beside raw.
    Signing,
    /// Two cores beside one.
    Cores,
    /// The JWKS beside nginx.
    Jwks,
    /// TLS, authorisation, audit and process isolation beside a service without them.
    Costs,
    /// Ten times the load that the token carries, and one tenant at ten times its share.
    Overload,
    /// One tenant and ten thousand: making them takes half an hour, once.
    Growth,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.raw {
        Some(raw) if raw[0] == "list" => growth::list(raw[1].as_ref()),
        Some(raw) => raw::run(&raw[0], raw[1].as_ref(), &raw[2], &raw[3]),
        None if cfg!(debug_assertions) => Err("a debug build says nothing about speed: use `make bench`".into()),
        None if std::env::var_os(common::BINARY).is_none() => {
            Err(format!("{} names the binary to measure: use `make bench`", common::BINARY))
        }
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let bench = Bench {
        cores: Cores::choose()?,
        runtime: runtime.map_err(|error| error.to_string())?,
        repetitions: arguments.repetitions,
        only: arguments.only.clone(),
        overload_secs: arguments.secs,
    };
    if arguments.exercise {
        return exercise::exercise(&bench);
    }
    let (processor, cores) = (processor(), bench.cores.describe());
    println!("{processor}; {cores}; medians of {} repetitions\n", bench.repetitions);
    let mut json = json!({ "processor": processor, "cores": cores, "repetitions": bench.repetitions });
    let mut measured = false;
    for part in Part::value_variants().iter().filter(|part| arguments.table.is_none_or(|wanted| wanted == **part)) {
        let Some(mut table) = part.start(&bench, arguments.table.is_some())? else { continue };
        table.measure(&bench)?;
        println!("{table}");
        json[part.name()] = table.json();
        measured = true;
    }
    if !measured {
        return Err(format!("no line begins with {:?}", arguments.only));
    }
    let Some(path) = &arguments.json else { return Ok(()) };
    let json = serde_json::to_vec_pretty(&json).map_err(|error| error.to_string())?;
    std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    /// The table with its servers, which go with it; `None` if no line of it is wanted.
    fn start(self, bench: &Bench, asked_for: bool) -> Result<Option<Box<dyn Table>>, String> {
        fn boxed<T: Table + 'static>(table: Option<T>) -> Option<Box<dyn Table>> {
            table.map(|table| Box::new(table) as Box<dyn Table>)
        }
        Ok(match self {
            Self::Signing => boxed(Signing::new(bench)?),
            Self::Cores => boxed(Scaling::new(bench)?),
            Self::Jwks => boxed(Jwks::new(bench)?),
            Self::Costs => boxed(Costs::new(bench)?),
            // They take long, each by itself.
            Self::Overload | Self::Growth if !asked_for => None,
            Self::Overload => boxed(Overload::new(bench)),
            Self::Growth => boxed(Growth::new(bench)),
        })
    }
}
