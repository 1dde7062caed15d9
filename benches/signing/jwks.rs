//! The JWKS beside nginx, which serves the same octets from a file.

use std::fmt;
use std::process::Command;

use keyward::grpc::proto::{CreateTenantRequest, Tenant};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::common::http::{Answer, send};
use crate::common::{Clients, Installation, Server, short_policy};
use crate::nginx::Nginx;
use crate::processes;
use crate::table::{Bench, Latency, Ratio, Table, least, median};

/// How long each of the two is asked in a turn: tens of thousands of times.
const SECS: u64 = 1;
/// Clients that keep their connections and ask again as soon as they are answered.
const CONNECTIONS: usize = 16;
/// Clients that rest for a millisecond in between, so that both servers have about the same to do, and less than they can. At full
/// speed the quicker one has more to do, and the client is the limit.
const CONNECTIONS_PAUSING: usize = 64;
const TENANT: &str = "bench";
const DOMAIN: &str = "login.example.com";
const DOCUMENT: &str = "/.well-known/jwks.json";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/signing/figures.lua");

/// How the set is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Under the tenant's path.
    Path,
    /// On the tenant's own domain.
    Domain,
    /// By somebody who has it already.
    Fresh,
}

/// What wrk tells of one turn, by figures.lua.
#[derive(Deserialize)]
struct Asked {
    per_second: f64,
    requests: u64,
    failed: u64,
    /// Of its core.
    busy: f64,
    #[serde(flatten)]
    latency: Latency,
}

/// One turn of one of the two.
struct Turn {
    /// At full speed, and with pauses.
    asked: Asked,
    pausing: Asked,
    /// Of the server, for each request.
    cpu_us: f64,
}

/// Both servers, and what each repetition showed.
pub(crate) struct Jwks {
    nginx: Nginx,
    server: Server,
    bytes: usize,
    /// By line and repetition: Keyward and nginx.
    turns: Vec<(Line, Vec<[Turn; 2]>)>,
    _installation: Installation,
}

impl Jwks {
    /// Starts both; `None` if no line is wanted.
    ///
    /// # Errors
    /// One does not start, or they do not answer alike.
    pub(crate) fn new(bench: &Bench) -> Result<Option<Self>, String> {
        let lines = [Line::Path, Line::Domain, Line::Fresh];
        let wanted = lines.into_iter().filter(|line| bench.wants(line.name()));
        let turns: Vec<_> = wanted.map(|line| (line, Vec::new())).collect();
        if turns.is_empty() {
            return Ok(None);
        }
        let installation = Installation::prepare();
        let server = bench.cores.on_servers(|| installation.serve())?;
        let tenant = Tenant {
            id: TENANT.into(),
            algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).into(),
            custom_domain: DOMAIN.into(),
            rotation_policy: Some(short_policy()),
            ..Tenant::default()
        };
        let created = bench.runtime.block_on(async {
            let mut clients = Clients::connect(&server).await;
            clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await
        });
        created.map_err(|status| status.to_string())?;
        let answer = send("GET", &server.jwks_uri(TENANT), &[]);
        let nginx = bench.cores.on_servers(|| Nginx::start(DOCUMENT, &answer))??;
        for line in lines {
            same(line, &line.ask(&line.url(&server)), &line.ask(&nginx.url(DOCUMENT)))?;
        }
        Ok(Some(Self { nginx, server, bytes: answer.body.len(), turns, _installation: installation }))
    }

    fn figures(&self) -> impl Iterator<Item = Figures> {
        self.turns.iter().map(|(line, turns)| {
            let over = |which: usize, figure: fn(&Turn) -> f64| turns.iter().map(move |turn| figure(&turn[which]));
            let served = |which: usize| Served {
                per_second: median(over(which, |turn| turn.asked.per_second)),
                latency: Latency::median(turns.iter().map(|turn| turn[which].asked.latency)),
                pausing_per_second: median(over(which, |turn| turn.pausing.per_second)),
                pausing_latency: Latency::median(turns.iter().map(|turn| turn[which].pausing.latency)),
                cpu_us: least(over(which, |turn| turn.cpu_us)),
                load_busy: median(over(which, |turn| turn.asked.busy)),
            };
            let ratio = |figure: fn(&Turn) -> f64| Ratio::of(over(0, figure).zip(over(1, figure)));
            Figures {
                call: line.name(),
                keyward: served(0),
                nginx: served(1),
                ratio: ratio(|turn| turn.asked.per_second),
                p99_ratio: ratio(|turn| turn.asked.latency.p99_us),
                pausing_p99_ratio: ratio(|turn| turn.pausing.latency.p99_us),
            }
        })
    }
}

impl Table for Jwks {
    fn measure(&mut self, bench: &Bench) -> Result<(), String> {
        for repetition in 1..=bench.repetitions {
            bench.say(repetition, "JWKS");
            for (line, turns) in &mut self.turns {
                let keyward = || line.turn(&line.url(&self.server), self.server.pid());
                let nginx = || line.turn(&self.nginx.url(DOCUMENT), self.nginx.pid());
                // Who begins changes, so that neither always comes after the other.
                turns.push(if repetition.is_multiple_of(2) {
                    let nginx = nginx()?;
                    [keyward()?, nginx]
                } else {
                    [keyward()?, nginx()?]
                });
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let rows: Vec<Figures> = self.figures().collect();
        json!({
            "octets": self.bytes,
            "connections": CONNECTIONS,
            "connections_pausing": CONNECTIONS_PAUSING,
            "rows": rows,
        })
    }
}

impl Line {
    const fn name(self) -> &'static str {
        match self {
            Self::Path => "JWKS by path",
            Self::Domain => "JWKS by domain",
            Self::Fresh => "JWKS by path, not modified",
        }
    }

    fn url(self, server: &Server) -> String {
        match self {
            Self::Path | Self::Fresh => server.jwks_uri(TENANT),
            Self::Domain => format!("{}{DOCUMENT}", server.public()),
        }
    }

    /// What is sent besides: each server has made the document a tag of its own.
    fn headers(self, url: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::Path => Vec::new(),
            // wrk sends its own but for this spelling.
            Self::Domain => vec![("Host", DOMAIN.to_owned())],
            Self::Fresh => vec![("if-none-match", send("GET", url, &[]).header("etag").to_owned())],
        }
    }

    fn ask(self, url: &str) -> Answer {
        let headers = self.headers(url);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        send("GET", url, &headers)
    }

    fn turn(self, url: &str, server: u32) -> Result<Turn, String> {
        let (asked, cpu) = processes::cpu_during(server, || self.ask_for_long(url, CONNECTIONS, &[]))?;
        let cpu_us = cpu.as_secs_f64() * 1e6 / asked.requests as f64;
        let pausing = self.ask_for_long(url, CONNECTIONS_PAUSING, &["--", "pause"])?;
        Ok(Turn { asked, pausing, cpu_us })
    }

    fn ask_for_long(self, url: &str, connections: usize, how: &[&str]) -> Result<Asked, String> {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", "-s", SCRIPT, url]).arg(format!("-c{connections}")).arg(format!("-d{SECS}s"));
        for (name, value) in self.headers(url) {
            wrk.arg("-H").arg(format!("{name}: {value}"));
        }
        let output =
            wrk.args(how).output().map_err(|error| format!("wrk, which `tests/setup bench` brings: {error}"))?;
        let told = String::from_utf8_lossy(&output.stdout);
        let asked = told.lines().find_map(|line| serde_json::from_str::<Asked>(line).ok());
        let asked = asked.filter(|asked| asked.failed == 0 && asked.requests > 0);
        asked.ok_or_else(|| format!("{wrk:?}: {told}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Whether both answer alike; what differs is the tag, and what nginx tells of itself.
fn same(line: Line, keyward: &Answer, nginx: &Answer) -> Result<(), String> {
    let status = if line == Line::Fresh { 304 } else { 200 };
    let told = ["content-type", "cache-control", "access-control-allow-origin", "x-content-type-options"];
    let told = |answer: &Answer| told.map(|name| answer.header(name).to_owned());
    let headers = line == Line::Fresh || told(keyward) == told(nginx);
    if keyward.status == status && nginx.status == status && keyward.body == nginx.body && headers {
        Ok(())
    } else {
        Err(format!("{}: Keyward and nginx differ: {keyward:?}, {nginx:?}", line.name()))
    }
}

/// One of the two.
#[derive(Serialize)]
struct Served {
    per_second: f64,
    latency: Latency,
    pausing_per_second: f64,
    pausing_latency: Latency,
    /// Least server CPU for a request.
    cpu_us: f64,
    load_busy: f64,
}

#[derive(Serialize)]
struct Figures {
    call: &'static str,
    keyward: Served,
    nginx: Served,
    ratio: Ratio,
    p99_ratio: Ratio,
    pausing_p99_ratio: Ratio,
}

impl fmt::Display for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A JWKS of {} octets, {CONNECTIONS} connections, {CONNECTIONS_PAUSING} with pauses; Keyward, nginx.\n",
            self.bytes
        )?;
        writeln!(
            f,
            "| call | requests /s | Keyward / nginx (min to max) | p50 µs | p99 µs | p99 / nginx's (min to max) | least server CPU µs | \
             load busy | with pauses: requests /s | p99 µs | p99 / nginx's (min to max) |"
        )?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for Figures { call, keyward, nginx, ratio, p99_ratio, pausing_p99_ratio } in self.figures() {
            writeln!(
                f,
                "| {call} | {:.0}, {:.0} | {ratio} | {:.0}, {:.0} | {:.0}, {:.0} | {p99_ratio} | {:.1}, {:.1} | {:.2}, {:.2} | \
                 {:.0}, {:.0} | {:.0}, {:.0} | {pausing_p99_ratio} |",
                keyward.per_second,
                nginx.per_second,
                keyward.latency.p50_us,
                nginx.latency.p50_us,
                keyward.latency.p99_us,
                nginx.latency.p99_us,
                keyward.cpu_us,
                nginx.cpu_us,
                keyward.load_busy,
                nginx.load_busy,
                keyward.pausing_per_second,
                nginx.pausing_per_second,
                keyward.pausing_latency.p99_us,
                nginx.pausing_latency.p99_us
            )?;
        }
        Ok(())
    }
}
