//! `keyward audit`: what was done, and whether the record of it is what was written.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use keyward::audit::{self, Findings, Walk, evidence};
use keyward::config::{Config, Places};
use keyward::domain::TenantId;
use keyward::setup;
use keyward::store::{EventPage, EventRow, Location, LogReader, Start};
use keyward::tlog::{Entry, Log, LogKey, Record};

use super::{Failure, runtime};

/// Records read from the store at once.
const PAGE: u32 = 1000;

#[derive(clap::Subcommand)]
pub(super) enum AuditCommand {
    /// Checks every record of both logs against the ones around it, and against all checkpoints. Exits with 1 and the first bad
    /// record if they do not agree.
    ///
    /// What was written after the last checkpoint, or by somebody who could also remove the checkpoints, is found with a
    /// checkpoint that was kept elsewhere.
    Verify {
        #[command(flatten)]
        places: PlacesArguments,
        /// A checkpoint that was kept elsewhere (GetCheckpoint, or a copy of a checkpoints file). Can be given several times.
        #[arg(long = "checkpoint", value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
    },
    /// Prints records, the oldest first.
    List {
        #[command(flatten)]
        places: PlacesArguments,
        /// Which log.
        #[arg(long, value_enum, default_value = "administration")]
        log: LogName,
        /// Only records about this tenant.
        #[arg(long, value_name = "ID")]
        tenant: Option<TenantId>,
        /// The record to begin with; without it, the latest are printed.
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
        /// At most this many.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        /// One JSON object a line, as the log has it.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
pub(super) struct PlacesArguments {
    /// The configuration, for the places of the files below; its PIN is not read.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file that pins the service key.
    #[arg(long, value_name = "FILE")]
    service_key: Option<PathBuf>,
    /// The directory of the log of calls and of the checkpoints (audit.directory).
    #[arg(long = "directory", value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The SQLite store, which has the log of administration, or a copy of it.
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogName {
    Administration,
    Calls,
}

/// Where everything is, as far as it was said.
struct Found {
    service_key: Option<PathBuf>,
    directory: Option<PathBuf>,
    store: Option<Location>,
}

impl PlacesArguments {
    fn find(self) -> Result<Found, Failure> {
        let places =
            self.config.map(|path| Places::load(&path)).transpose().map_err(|problems| problems.to_string())?;
        let of = |place: fn(&Places) -> &PathBuf| places.as_ref().map(|places| place(places).clone());
        Ok(Found {
            service_key: self.service_key.or_else(|| of(|places| &places.service_key)),
            directory: self.directory.or_else(|| of(|places| &places.audit_directory)),
            store: self.store.map(Location::Sqlite).or_else(|| places.as_ref().map(|places| places.store.clone())),
        })
    }
}

pub(super) fn run(command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Verify { places, checkpoints } => verify(&places.find()?, &checkpoints),
        AuditCommand::List { places, log, tenant, from, limit, json } => {
            let entries = match (log, places.find()?) {
                (LogName::Administration, Found { store: Some(store), .. }) => {
                    runtime()?.block_on(of_store(&store, tenant, from, limit))?
                }
                (LogName::Calls, Found { directory: Some(directory), .. }) => {
                    of_files(&directory, tenant.as_ref(), from, limit)?
                }
                (LogName::Administration, _) => return Err("--config or --store must say where the log is".to_owned()),
                (LogName::Calls, _) => return Err("--config or --directory must say where the log is".to_owned()),
            };
            print(&entries, json)
        }
    }
}

fn verify(found: &Found, checkpoints: &[PathBuf]) -> Result<(), Failure> {
    let Found { service_key: Some(service_key), directory, store } = found else {
        return Err("--config or --service-key must say which key signed the checkpoints".to_owned());
    };
    let public = setup::service_public_key(service_key).map_err(|error| error.to_string())?;
    let key = LogKey::new(&public).map_err(|error| error.to_string())?;
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| format!("{}: {error}", path.display())
    };
    let (mut kept, mut good) = (Vec::new(), true);
    for path in checkpoints {
        let (known, problem) = evidence::elsewhere(path, &key).map_err(unreadable(path))?;
        kept.extend(known);
        if let Some(problem) = problem {
            good = false;
            say!("BAD: {}", visible(&problem));
        }
    }
    let walk = |log| -> Result<Walk, Failure> {
        let beside = directory.as_ref().map(|path| evidence::beside(path, log, &key).map_err(unreadable(path)));
        let (mut known, problem) = beside.transpose()?.unwrap_or_default();
        known.extend(kept.iter().cloned());
        let mut walk = Walk::new(log, known, problem);
        if let Some(path) = directory {
            evidence::given_up(path, log, &key).map_err(unreadable(path))?.into_iter().for_each(|note| walk.note(note));
        }
        Ok(walk)
    };
    let mut looked = false;
    if let Some(store) = store {
        let findings = runtime()?.block_on(verify_store(store, walk(Log::Administration)?))?;
        good &= tell(&findings);
        looked = true;
    }
    if let Some(directory) = directory {
        let findings = audit::verify_calls(directory, &key.origin(Log::Calls), walk(Log::Calls)?);
        good &= tell(&findings.map_err(unreadable(directory))?);
        looked = true;
    }
    if !looked {
        return Err("--config, --directory or --store must say where the logs are".to_owned());
    }
    if good { Ok(()) } else { Err("the audit logs are not as they were written".to_owned()) }
}

/// Where the log of a store that was accepted is another than was signed, puts the checkpoints of that aside.
pub(super) fn retire(config: &Config) -> Result<(), Failure> {
    let public = setup::service_public_key(&config.service_key_path).map_err(|error| error.to_string())?;
    let retired = runtime()?.block_on(async {
        let log = config.store.read_log().await.map_err(|error| error.to_string())?;
        audit::retire_administration(&config.audit.log.directory, &public, &Records(log)).await
    });
    let retired = retired.map_err(|problem| {
        format!("the store was accepted, and its log cannot go on yet: {problem}; run the same command again")
    })?;
    if let Some(path) = retired {
        say!("the log goes on from here; the checkpoints of what was given up are in {}", path.display());
    }
    Ok(())
}

/// The administration log of a store that nobody has open.
struct Records(LogReader);

#[async_trait::async_trait]
impl audit::Administration for Records {
    async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, String> {
        let page = EventPage { tenant: None, start: Start::Oldest(from), limit };
        let rows = self.0.events(&page).await.map_err(|error| error.to_string())?;
        Ok(rows.into_iter().map(|row| row.record).collect())
    }
}

async fn verify_store(store: &Location, mut walk: Walk) -> Result<Findings, Failure> {
    let log = store.read_log().await.map_err(|error| error.to_string())?;
    let mut from = 0;
    loop {
        let page = EventPage { tenant: None, start: Start::Oldest(from), limit: PAGE };
        let rows = log.events(&page).await.map_err(|error| error.to_string())?;
        for row in &rows {
            walk.row(&row.record, &row.entry());
        }
        let last = rows.last().and_then(|row| u64::try_from(row.position).ok());
        let Some(last) = last.filter(|_| rows.len() == PAGE as usize && !walk.is_over()) else {
            return Ok(walk.finish());
        };
        // Whatever the positions say, each step reads on.
        from = last.saturating_add(1);
    }
}

/// Prints what was found, and says whether it is good.
fn tell(findings: &Findings) -> bool {
    let Findings { log, first, size, root, segments, checkpoints, confirmed, bad, also, notes } = findings;
    let mut line = format!("{log}: {} records", size - first);
    if *first > 0 {
        let _ = write!(line, " from {first} on");
    }
    if *log == Log::Calls {
        let _ = write!(line, " in {segments} segments");
    }
    let _ = write!(line, ", {checkpoints} checkpoints");
    if let Some(confirmed) = confirmed {
        let _ = write!(line, ", the last of {confirmed} records");
    }
    say!("{line}, root {root}");
    notes.iter().for_each(|note| say!("{log}: note: {}", visible(note)));
    let all_bad = bad.iter().map(ToString::to_string).chain(also.iter().cloned());
    all_bad.for_each(|bad| say!("{log}: BAD: {}", visible(&bad)));
    match bad {
        _ if !findings.is_good() => {}
        None if confirmed.is_none() && size > first => {
            say!("{log}: note: no checkpoint confirms it: its records fit together, and that is all");
        }
        _ => say!("{log}: ok"),
    }
    findings.is_good()
}

async fn of_store(
    store: &Location,
    tenant: Option<TenantId>,
    from: Option<u64>,
    limit: u32,
) -> Result<Vec<Entry>, Failure> {
    let log = store.read_log().await.map_err(|error| error.to_string())?;
    let start = from.map_or(Start::Newest(None), Start::Oldest);
    let rows = log.events(&EventPage { tenant, start, limit }).await.map_err(|error| error.to_string())?;
    let mut entries: Vec<_> = rows.iter().map(EventRow::entry).collect();
    if from.is_none() {
        entries.reverse();
    }
    Ok(entries)
}

fn of_files(directory: &Path, tenant: Option<&TenantId>, from: Option<u64>, limit: u32) -> Result<Vec<Entry>, Failure> {
    let failure = |error: std::io::Error| format!("{}: {}", directory.display(), visible(&error.to_string()));
    let (limit, mut entries) = (limit as usize, Vec::new());
    if let Some(from) = from {
        let take = |entry: Entry| {
            let of = |record: &Record| tenant.is_none_or(|tenant| record.event.tenant.as_ref() == Some(tenant));
            if entry.record.as_ref().is_none_or(of) {
                entries.push(entry);
            }
            entries.len() < limit
        };
        audit::records_from(directory, from, take).map_err(failure)?;
        return Ok(entries);
    }
    let mut before = None;
    loop {
        let page = audit::page(directory, tenant, limit - entries.len(), before).map_err(failure)?;
        entries.extend(page.entries);
        before = page.next;
        if entries.len() == limit || before.is_none() {
            entries.reverse();
            return Ok(entries);
        }
    }
}

/// Prints what is a record, and says which are not as they were written.
fn print(entries: &[Entry], json: bool) -> Result<(), Failure> {
    let mut bad = 0;
    for Entry { index, record, problem } in entries {
        if let Some(record) = record {
            say!("{}", if json { as_json(record) } else { as_text(record) });
        }
        if let Some(problem) = problem {
            eprintln!("record {index}: {}", visible(problem));
            bad += 1;
        }
    }
    if bad == 0 {
        Ok(())
    } else {
        Err(format!("{bad} of these records are not as they were written; see keyward audit verify"))
    }
}

/// A record as its log has it.
fn as_json(record: &Record) -> String {
    visible(&serde_json::to_string(record).expect("a record has a form in JSON"))
}

/// A record for people.
fn as_text(Record { index, event, .. }: &Record) -> String {
    let principals: Vec<String> = event.principals.iter().map(ToString::to_string).collect();
    let mut line = format!("{index} {} {} {} {}", event.time, event.action, event.result, principals.join(" and "));
    let hash = event.input_sha256.as_ref().map(|hash| hash.0.iter().map(|octet| format!("{octet:02x}")).collect());
    let members = [
        ("tenant", event.tenant.as_ref().map(ToString::to_string)),
        ("algorithm", event.algorithm.map(|algorithm| algorithm.to_string())),
        ("kid", event.kid.as_ref().map(ToString::to_string)),
        ("input_sha256", hash),
        ("request_id", event.request_id.as_deref().map(ToOwned::to_owned)),
        ("method", Some(event.method.to_string())),
        ("detail", Some(event.detail.clone()).filter(|detail| !detail.is_empty())),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value}");
        }
    }
    visible(&line)
}

/// The text without what a terminal takes for orders, or shows in another order: whoever calls chooses parts of it.
fn visible(text: &str) -> String {
    let hidden = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut shown, letter| {
        if hidden(letter) {
            let _ = write!(shown, "\\u{:04x}", u32::from(letter));
        } else {
            shown.push(letter);
        }
        shown
    })
}
