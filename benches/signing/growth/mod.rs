//! One tenant, a hundred and ten thousand on one token: what a call, a change, a start and a second without either cost at each
//! size.

mod bare;
mod state;

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use bare::{Bare, list};
use keyward::grpc::proto::{DeleteTenantRequest, RotateSigningKeyRequest, SignRequest, sign_request};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::{Clients, Dial, Server};
use crate::cores::Cores;
use crate::load::{Call, Load};
use crate::processes;
use crate::table::{Bench, Ratio, Table, least};
use state::{ALGORITHM, State, policy, tenant};

/// Tenants, of three keys each.
const SIZES: [usize; 3] = [1, 100, 10_000];
const CALL: Call = Call::unary("Sign", ALGORITHM);
/// Sizes take turns, so that what else the machine does meets all of them; the medians are told.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(800);
/// How long a server is left alone, to see what it does meanwhile.
const QUIET: Duration = Duration::from_secs(5);
/// Keys that are used for the first time, and tenants that are made and rotated.
const FIRST_USES: usize = 20;
const CHANGES: usize = 5;

/// The sizes that are wanted, and what was measured.
#[derive(Default)]
pub(crate) struct Growth(Vec<Figures>);

#[derive(Default, Serialize)]
struct Figures {
    tenants: usize,
    /// A process that only loads the module, logs in and lists.
    bare: Bare,
    start_secs: f64,
    /// From the first signature on, which the start does not wait for.
    first_sign_ms: f64,
    first_use_ms: f64,
    first_use_most_ms: f64,
    sign_per_second: f64,
    sign_p50_us: f64,
    /// The ratios to what the smallest size did in the same turn.
    sign_of_one: Ratio,
    /// For a signature, in the turn where it was least.
    sign_cpu_us: f64,
    jwks_per_second: f64,
    jwks_p50_us: f64,
    jwks_of_one: Ratio,
    create_ms: f64,
    rotate_ms: f64,
    quiet_cpu_ms: f64,
    service_mib: u64,
    workers: usize,
    all_mib: u64,
    all_peak_mib: u64,
}

/// A running server, and its clients.
struct Subject {
    state: State,
    server: Server,
    load: Rc<Load>,
    turns: Turns,
    figures: Figures,
}

/// What the turns showed: how many in a second, and how long one took that came alone.
#[derive(Default)]
struct Turns {
    sign: Vec<(f64, f64)>,
    sign_cpu_us: Vec<f64>,
    jwks: Vec<(f64, f64)>,
}

impl Growth {
    /// The sizes whose numbers begin as it is wanted.
    pub(crate) fn new(bench: &Bench) -> Option<Self> {
        SIZES.iter().any(|size| bench.wants(&size.to_string())).then(Self::default)
    }
}

impl Table for Growth {
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        let Bench { cores, runtime, .. } = bench;
        let mut states = Vec::new();
        for tenants in SIZES.into_iter().filter(|tenants| bench.wants(&tenants.to_string())) {
            eprintln!("bench: growth: {tenants} tenants");
            states.push((tenants, State::copy(tenants, runtime)?));
        }
        // After the last was made, which takes longer than a connection may be without a call.
        let start = |(tenants, state)| Subject::start(state, tenants, cores, runtime);
        let mut subjects = states.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        for turn in 1..=TURNS {
            eprintln!("bench: growth: {turn} of {TURNS}");
            // Who begins changes, so that none always comes after the same one.
            let count = subjects.len();
            (0..count).try_for_each(|place| subjects[(place + turn) % count].turn(bench))?;
        }
        for number in 0..subjects.len() {
            let of_one = |turns: fn(&Turns) -> &Vec<(f64, f64)>| {
                let rates = |number: usize| turns(&subjects[number].turns).iter().map(|(rate, _)| *rate);
                Ratio::of(rates(number).zip(rates(0)))
            };
            let ratios = (of_one(|turns| &turns.sign), of_one(|turns| &turns.jwks));
            let figures = &mut subjects[number].figures;
            (figures.sign_of_one, figures.jwks_of_one) = ratios;
        }
        subjects.iter_mut().try_for_each(|subject| subject.look(runtime))?;
        self.0 = subjects.into_iter().map(Subject::end).collect();
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "turns": TURNS, "rows": self.0 })
    }
}

impl Subject {
    fn start(state: State, tenants: usize, cores: &Cores, runtime: &Runtime) -> Result<Self, String> {
        // Twice: the first one brings the files into the system's memory.
        cores.on_servers(|| bare::measure(state.path()))??;
        let bare = cores.on_servers(|| bare::measure(state.path()))??;
        let began = Instant::now();
        let server = cores.on_servers(|| state.serve())?;
        let start_secs = began.elapsed().as_secs_f64();
        let mut clients = runtime.block_on(Clients::connect(&server));
        let first_sign_ms = millis(|| runtime.block_on(sign(&mut clients, 0)))?;
        let steps = FIRST_USES.min(tenants.saturating_sub(1));
        let first: Result<Vec<f64>, String> = (1..=steps)
            .map(|step| millis(|| runtime.block_on(sign(&mut clients, step * (tenants - 1) / steps))))
            .collect();
        let mut first = first?;
        let load = runtime.block_on(Load::connect(&Dial::tcp(server.grpc()), &tenant(0), "", &[]));
        let figures = Figures {
            tenants,
            bare,
            start_secs,
            first_sign_ms,
            first_use_most_ms: first.iter().copied().fold(0.0, f64::max),
            first_use_ms: median(&mut first),
            ..Figures::default()
        };
        Ok(Self { state, server, load, turns: Turns::default(), figures })
    }

    fn turn(&mut self, bench: &Bench) -> Result<(), String> {
        let (runtime, waiting) = (&bench.runtime, bench.cores.waiting());
        let flat_out = || runtime.block_on(self.load.flat_out(CALL, TURN, waiting));
        let (served, cpu) = processes::cpu_during(self.server.pid(), flat_out)?;
        self.turns.sign_cpu_us.push(cpu.as_secs_f64() * 1e6 / served.calls as f64);
        let one = runtime.block_on(self.load.flat_out(Call { flights: 1, ..CALL }, TURN / 2, waiting))?.latency.p50_us;
        self.turns.sign.push((served.per_second, one));
        // A new connection each time: one that waits for its turn is given up.
        self.turns.jwks.push(Jwks::connect(&self.server)?.read_for(TURN / 2)?);
        Ok(())
    }

    /// What takes the tenants' memory and the timer's time, and what a change takes.
    fn look(&mut self, runtime: &Runtime) -> Result<(), String> {
        let server = self.server.pid();
        let ((), cpu) = processes::cpu_during(server, || {
            thread::sleep(QUIET);
            Ok(())
        })?;
        let mut clients = runtime.block_on(Clients::connect(&self.server));
        let (mut creates, mut rotates) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let id = format!("growth-{number}");
            creates.push(millis(|| {
                runtime.block_on(clients.create_tenant(&id, &[ALGORITHM], policy()));
                Ok(())
            })?);
            rotates.push(millis(|| runtime.block_on(rotate(&mut clients, &id)))?);
        }
        for number in 0..CHANGES {
            let id = format!("growth-{number}");
            let delete = DeleteTenantRequest { confirm_id: id.clone(), id };
            let deleted = runtime.block_on(clients.tenants.delete_tenant(delete));
            deleted.map_err(|status| format!("DeleteTenant: {status}"))?;
        }
        let figures = &mut self.figures;
        figures.quiet_cpu_ms = cpu.as_secs_f64() * 1000.0 / QUIET.as_secs_f64();
        (figures.create_ms, figures.rotate_ms) = (median(&mut creates), median(&mut rotates));
        figures.service_mib = processes::own_memory_kib(server) >> 10;
        figures.workers = processes::count(server) - 1;
        figures.all_mib = processes::memory_kib(server) >> 10;
        figures.all_peak_mib = processes::memory_peak_kib(server) >> 10;
        Ok(())
    }

    fn end(mut self) -> Figures {
        (self.figures.sign_per_second, self.figures.sign_p50_us) = medians(&self.turns.sign);
        self.figures.sign_cpu_us = least(self.turns.sign_cpu_us.iter().copied());
        (self.figures.jwks_per_second, self.figures.jwks_p50_us) = medians(&self.turns.jwks);
        self.server.terminate();
        drop(self.state);
        self.figures
    }
}

async fn sign(clients: &mut Clients, number: usize) -> Result<(), String> {
    let input = Some(sign_request::Input::Message(vec![7; 32]));
    let request =
        SignRequest { tenant: tenant(number), algorithm: ALGORITHM.to_owned(), input, ..SignRequest::default() };
    clients.signing.sign(request).await.map(drop).map_err(|status| format!("Sign for {}: {status}", tenant(number)))
}

/// By force: current, next and previous are there afterwards.
async fn rotate(clients: &mut Clients, id: &str) -> Result<(), String> {
    let request = RotateSigningKeyRequest {
        tenant: id.to_owned(),
        algorithm: ALGORITHM.to_owned(),
        request_id: format!("growth-{id}"),
        force: true,
        ..RotateSigningKeyRequest::default()
    };
    let rotated =
        clients.keys.rotate_signing_key(request).await.map_err(|status| format!("rotating {id}: {status}"))?;
    let has_next = rotated.into_inner().next.is_some_and(|next| !next.kid.is_empty());
    if has_next { Ok(()) } else { Err(format!("{id} has no next key after its rotation")) }
}

/// A client of the public listener on one connection.
struct Jwks {
    connection: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Jwks {
    fn connect(server: &Server) -> Result<Self, String> {
        let connection =
            TcpStream::connect(server.public().trim_start_matches("http://")).map_err(|error| error.to_string())?;
        connection.set_nodelay(true).map_err(|error| error.to_string())?;
        let request = format!("GET /{}/.well-known/jwks.json HTTP/1.1\r\nHost: keys.example.com\r\n\r\n", tenant(0));
        Ok(Self { connection, request: request.into_bytes(), buffer: vec![0; 1 << 16] })
    }

    /// How many were read in a second, each asked for after the one before, and how long half of them took at most, in µs.
    fn read_for(&mut self, duration: Duration) -> Result<(f64, f64), String> {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < duration {
            let began = Instant::now();
            self.read()?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let rate = times.len() as f64 / start.elapsed().as_secs_f64();
        Ok((rate, median(&mut times)))
    }

    fn read(&mut self) -> Result<(), String> {
        let Self { connection, request, buffer } = self;
        connection.write_all(request).map_err(|error| error.to_string())?;
        let mut held = 0;
        loop {
            let read = connection.read(&mut buffer[held..]).map_err(|error| error.to_string())?;
            held += read;
            let text = String::from_utf8_lossy(&buffer[..held]);
            if read == 0 || !text.starts_with("HTTP/1.1 200") {
                return Err(format!("the JWKS was not served: {text}"));
            }
            let Some(end) = text.find("\r\n\r\n") else { continue };
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if held >= end + 4 + length.ok_or("a JWKS without its length")? {
                return Ok(());
            }
        }
    }
}

/// How long it takes.
fn millis(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn medians(pairs: &[(f64, f64)]) -> (f64, f64) {
    let (mut first, mut second): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    (median(&mut first), median(&mut second))
}

/// What a command that must succeed came to.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let failed = || format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    output.status.success().then_some(()).ok_or_else(failed)
}

fn problem(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| tenants | Sign /s | of one tenant's (min to max) | server CPU µs | p50 µs | \
             JWKS /s | of one tenant's (min to max) | p50 µs | first use of a key ms, most | \
             CreateTenant ms | RotateSigningKey ms | CPU ms in a quiet second |"
        )?;
        writeln!(f, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for size in &self.0 {
            let Figures { tenants, sign_per_second, sign_p50_us, sign_cpu_us, jwks_per_second, jwks_p50_us, .. } = size;
            let Figures { sign_of_one, jwks_of_one, first_use_ms, first_use_most_ms, .. } = size;
            let Figures { create_ms, rotate_ms, quiet_cpu_ms, .. } = size;
            writeln!(
                f,
                "| {tenants} | {sign_per_second:.0} | {sign_of_one} | {sign_cpu_us:.1} | {sign_p50_us:.0} | \
                 {jwks_per_second:.0} | {jwks_of_one} | {jwks_p50_us:.0} | {first_use_ms:.1}, {first_use_most_ms:.0} | {create_ms:.0} | \
                 {rotate_ms:.0} | {quiet_cpu_ms:.1} |"
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "| tenants | start s | the module's own: C_Initialize and login, list of all objects s | first signature ms | \
             memory MiB: service, all processes, at most | a bare process with the module MiB | worker processes |"
        )?;
        writeln!(f, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Figures { tenants, bare, start_secs, first_sign_ms, service_mib, all_mib, all_peak_mib, workers, .. } in
            &self.0
        {
            let Bare { open_secs, list_secs, memory_kib, .. } = bare;
            let bare_mib = memory_kib >> 10;
            writeln!(
                f,
                "| {tenants} | {start_secs:.2} | {open_secs:.2}, {list_secs:.2} | {first_sign_ms:.0} | \
                 {service_mib}, {all_mib}, {all_peak_mib} | {bare_mib} | {workers} |"
            )?;
        }
        Ok(())
    }
}
