//! `keyward reconcile`: the tokens against the store.

use std::io::Write as _;
use std::process::ExitCode;

use keyward::config::Config;
use keyward::domain::{Event, ObjectId, Timestamp};
use keyward::setup::{self, OpenedTokens};

use super::{Failure, open_token, operator, runtime};

/// What tells that token and store differ; 1 is for what went wrong, and 2 for a command line that is wrong.
const DIFFERENT: u8 = 3;

#[derive(clap::Args)]
pub(super) struct ReconcileArguments {
    #[command(flatten)]
    pub(super) config: super::ConfigFile,
    /// Prints one JSON object: counts, findings, and the objects of others.
    #[arg(long)]
    json: bool,
    /// Destroys every object under this id (32 hexadecimal digits), if it looks like Keyward's and no row of the store needs it.
    /// Can be given several times: all of them or none. Another Keyward's keys on the same token look the same.
    #[arg(long, value_name = "ID", value_parser = object)]
    destroy: Vec<ObjectId>,
}

fn object(text: &str) -> Result<ObjectId, String> {
    ObjectId::try_from(text.to_owned()).map_err(|error| error.to_string())
}

pub(super) fn run(config: &Config, arguments: &ReconcileArguments) -> Result<ExitCode, Failure> {
    let ReconcileArguments { json, destroy, .. } = arguments;
    let runtime = runtime()?;
    let home = open_token(&runtime, config)?;
    let tokens = {
        let _inside = runtime.enter();
        OpenedTokens::with_further(home, config)
    };
    let event = Event::new(Timestamp::now(), "reconcile", &operator("keyward reconcile"));
    let report = runtime.block_on(setup::reconcile(config, &tokens, destroy, &event));
    tokens.close();
    let report = report.map_err(|error| error.to_string())?;
    if *json {
        say!("{}", serde_json::to_string(&report).expect("a report has a form in JSON"));
    } else {
        destroy.iter().for_each(|object| say!("destroyed {object}"));
        report.findings.iter().for_each(|finding| say!("{finding}"));
        for tenant in &report.unbelieved {
            say!("unbelieved {tenant}: its record is not believed, and what looks like an orphan may be its key");
        }
        for (token, reason) in &report.away {
            say!("away {token}: it was not looked at: {reason}");
        }
        let (objects, accounts, foreign) = (report.objects, report.accounted.len(), report.foreign.len());
        let findings = report.findings.len();
        say!(
            "findings: {findings}; objects on the tokens: {objects}, not Keyward's: {foreign}; ids in the store: {accounts}"
        );
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}
