//! `keyward migrate`: a store that outgrows its file.

use std::path::PathBuf;

use keyward::config::Config;
use keyward::domain::{Event, Timestamp};
use keyward::setup;
use keyward::store::Moved;

use super::{ConfigFile, Failure, open_token, operator, runtime};

#[derive(clap::Args)]
pub(super) struct MigrateArguments {
    #[command(flatten)]
    pub(super) config: ConfigFile,
    /// The SQLite store, which store.path named until now.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

pub(super) fn run(config: &Config, arguments: &MigrateArguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let token = open_token(&runtime, config)?;
    let event = Event::new(Timestamp::now(), "migrate", &operator("keyward migrate"));
    let event = Event { detail: "from a SQLite file to a PostgreSQL database".to_owned(), ..event };
    let moved = runtime.block_on(setup::migrate(config, &arguments.from, &token, event));
    token.close();
    let (to, from) = (&config.store, arguments.from.display());
    match moved.map_err(|error| error.to_string())? {
        Some(Moved { tenants, events }) => {
            eprintln!("moved {tenants} tenants and {events} records of the administration log: {to} holds from now on");
        }
        None => eprintln!("nothing was moved: {to} holds already"),
    }
    eprintln!("`keyward serve` goes on there; {from} is not used any more");
    Ok(())
}
