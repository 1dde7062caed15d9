//! Ten times the load that the token can carry, and one tenant at ten times its share.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::LocalSet;
use tokio::try_join;

use crate::common::{Clients, Dial, Installation, Server, short_policy};
use crate::load::{self, Call, Load};
use crate::pace::{Intervals, Pace, Paced};
use crate::processes::memory_kib;
use crate::table::{Bench, Table};
use crate::variants::Isolation;
use crate::watch::Watch;

/// How many times its peak a server is offered, and how many times its share of that a tenant asks for.
const TIMES: f64 = 10.0;
/// What latency is held against, of the peak or of each tenant's share of it: a busy server that is not overloaded.
const BUSY: f64 = 0.7;
/// Tenants, one of which may flood; each has a tenth of the peak as its share.
const TENANTS: u32 = 10;
/// A client that begins fewer of its calls at their times has no time for them, and asks for a fifth less.
const BEGUN_MIN: f64 = 0.95;
const LESS: f64 = 0.8;
const TRIAL: Duration = Duration::from_secs(1);
/// The peak is measured for this part of the time.
const PEAK_PART: u32 = 4;

/// A token with a processor of its own: signing takes time, and none of the server's core.
const DEVICE: &str = "C_Sign delay 5ms";

/// A call, its keys, and where the token's module runs.
#[derive(Clone, Copy)]
struct Line {
    algorithm: &'static str,
    /// Of RSA keys.
    bits: u32,
    isolation: Isolation,
    /// What the fault module does before it goes on.
    delay: Option<&'static str>,
}

/// The lines that are wanted.
pub(crate) struct Overload {
    lines: Vec<Line>,
    secs: u32,
    figures: Vec<Figures>,
}

impl Overload {
    /// `None` if no line is wanted.
    pub(crate) fn new(bench: &Bench) -> Option<Self> {
        // A device; and on the server's core a token that is slower than refusing a call, one that is faster, and one that is
        // faster than the client.
        let keys = [("ES256", 2048, Some(DEVICE)), ("RS256", 4096, None), ("RS256", 2048, None), ("ES256", 2048, None)];
        let lines = keys.into_iter().flat_map(|(algorithm, bits, delay)| {
            [Isolation::Thread, Isolation::Process].map(|isolation| Line { algorithm, bits, isolation, delay })
        });
        let lines: Vec<Line> = lines.filter(|line| bench.wants(&line.name())).collect();
        (!lines.is_empty()).then(|| Self { lines, secs: bench.overload_secs, figures: Vec::new() })
    }
}

impl Table for Overload {
    /// Each line has a server of its own, and is measured once.
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        let duration = Duration::from_secs(self.secs.into());
        for line in &self.lines {
            let whose = format!("{}, {}", line.name(), line.isolation);
            eprintln!("bench: overload: {whose}, {} s each", self.secs);
            let subject = Subject::start(*line, bench).map_err(|problem| format!("{whose}: {problem}"))?;
            self.figures.push(subject.measure(bench, duration).map_err(|problem| format!("{whose}: {problem}"))?);
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "secs": self.secs, "rows": self.figures })
    }
}

impl Line {
    const fn call(self) -> Call {
        Call::unary("Sign", self.algorithm)
    }

    fn name(self) -> String {
        match self.algorithm {
            _ if self.delay.is_some() => format!("{}, a device of 5 ms", self.call().name()),
            "RS256" => format!("{}, {} bits", self.call().name(), self.bits),
            _ => self.call().name(),
        }
    }
}

/// A server that is measured, and the tenants' clients: one that may flood, and the others.
struct Subject {
    line: Line,
    server: Server,
    flood: Vec<Rc<Load>>,
    others: Vec<Rc<Load>>,
    /// It goes when the server has gone.
    _installation: Installation,
}

impl Subject {
    fn start(line: Line, bench: &Bench) -> Result<Self, String> {
        let installation = load::installation()
            .set("token.isolation", &format!("{:?}", line.isolation.to_string()))
            .set("signing.rsa_bits", &line.bits.to_string());
        let installation = match line.delay {
            Some(delay) => {
                let (installation, faults) = installation.with_faults();
                let installation = installation.init();
                faults.set(delay);
                installation
            }
            None => installation.init(),
        };
        let server = bench.cores.on_servers(|| installation.serve())?;
        let dial = Dial::tcp(server.grpc());
        let mut flood = bench.runtime.block_on(async {
            let mut clients = Clients::over(dial.connect().await.expect("a connection"));
            let mut tenants = Vec::new();
            for tenant in (0..TENANTS).map(|number| format!("bench-{number}")) {
                let issuer = clients.create_tenant(&tenant, &[line.algorithm], short_policy()).await.issuer;
                tenants.push(Load::connect(&dial, &tenant, &issuer, &[]).await);
            }
            tenants
        });
        let others = flood.split_off(1);
        Ok(Self { line, server, flood, others, _installation: installation })
    }

    fn measure(&self, bench: &Bench, duration: Duration) -> Result<Figures, String> {
        let (call, runtime) = (self.line.call(), &bench.runtime);
        let peak = self.flood[0].flat_out(call, duration / PEAK_PART, bench.cores.waiting());
        let peak = runtime.block_on(peak)?.per_second;
        let alone = |times: f64, duration| {
            LocalSet::new().block_on(runtime, self.pace(peak * times).keep(&self.flood, duration))
        };
        let busy = alone(BUSY, duration)?;

        let mut times = TIMES;
        while alone(times, TRIAL)?.offered < peak * times * BEGUN_MIN {
            times *= LESS;
        }
        let memory_before_kib = memory_kib(self.server.pid());
        let watch = Watch::begin(&self.server);
        let overloaded = alone(times, duration);
        let watched = watch.end()?;
        let overloaded = overloaded?;
        let memory_after_kib = memory_kib(self.server.pid());

        let share = peak / f64::from(TENANTS);
        let beside = |times: f64| {
            let others = self.pace((peak - share) * BUSY).keep(&self.others, duration);
            let flood = self.pace(share * times).keep(&self.flood, duration);
            LocalSet::new().block_on(runtime, async { try_join!(others, flood) })
        };
        let (modest, _) = beside(BUSY)?;
        let (others, flood) = beside(TIMES)?;
        Ok(Figures {
            call: self.line.name(),
            isolation: self.line.isolation,
            peak,
            offered: overloaded.offered / peak,
            served: overloaded.served / peak,
            busy_p99_ms: p99_ms(&busy),
            admitted_p99_ms: p99_ms(&overloaded),
            modest_p99_ms: p99_ms(&modest),
            others_p99_ms: p99_ms(&others),
            others_refused: percent(&others),
            flood_offered: flood.offered / share,
            refused: overloaded.refused,
            late_ms: overloaded.late.p99_us.max(flood.late.p99_us) / 1000.0,
            memory_before_kib,
            memory_peak_kib: watched.memory_peak_kib,
            memory_after_kib,
            health_asked: watched.asked,
            health_answered: watched.healthy,
            health_slowest_ms: watched.slowest.as_secs_f64() * 1000.0,
        })
    }

    const fn pace(&self, per_second: f64) -> Pace {
        Pace { call: self.line.call(), per_second, intervals: Intervals::Random }
    }
}

fn p99_ms(paced: &Paced) -> f64 {
    paced.calls.latency.p99_us / 1000.0
}

/// Calls that were refused.
fn percent(paced: &Paced) -> f64 {
    100.0 * paced.refused as f64 / paced.begun as f64
}

#[derive(Serialize)]
struct Figures {
    call: String,
    isolation: Isolation,
    /// In a second.
    peak: f64,
    /// Of the peak.
    offered: f64,
    served: f64,
    busy_p99_ms: f64,
    admitted_p99_ms: f64,
    /// The other tenants', without and with the flood.
    modest_p99_ms: f64,
    others_p99_ms: f64,
    /// Of a hundred calls of theirs.
    others_refused: f64,
    /// Of the flood's share.
    flood_offered: f64,
    refused: usize,
    late_ms: f64,
    memory_before_kib: u64,
    memory_peak_kib: u64,
    memory_after_kib: u64,
    health_asked: usize,
    health_answered: usize,
    health_slowest_ms: f64,
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| call | token in a | peak /s | offered / peak | signed / peak | p99 ms at 70 % | p99 ms overloaded | ratio | \
             flood / its share | others' p99 ms | beside the flood | ratio |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for figures in &self.figures {
            let Figures { call, isolation, peak, offered, served, flood_offered, .. } = figures;
            let Figures { busy_p99_ms, admitted_p99_ms, modest_p99_ms, others_p99_ms, .. } = figures;
            let (of_busy, of_modest) = (admitted_p99_ms / busy_p99_ms, others_p99_ms / modest_p99_ms);
            writeln!(
                f,
                "| {call} | {isolation} | {peak:.0} | {offered:.1} | {served:.2} | {busy_p99_ms:.1} | {admitted_p99_ms:.1} \
                 | {of_busy:.2} | {flood_offered:.1} | {modest_p99_ms:.1} | {others_p99_ms:.1} | {of_modest:.2} |"
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "| call | token in a | refused | client late ms | memory MiB before, most, after | /healthz answered | slowest ms | \
             others' calls refused % |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for figures in &self.figures {
            let Figures { call, isolation, refused, late_ms, others_refused, .. } = figures;
            let Figures { health_asked, health_answered, health_slowest_ms, .. } = figures;
            let [before, most, after] =
                [figures.memory_before_kib, figures.memory_peak_kib, figures.memory_after_kib].map(|kib| kib >> 10);
            writeln!(
                f,
                "| {call} | {isolation} | {refused} | {late_ms:.1} | {before}, {most}, {after} \
                 | {health_answered} of {health_asked} | {health_slowest_ms:.1} | {others_refused:.1} |"
            )?;
        }
        Ok(())
    }
}
