//! The issuers: the generated client on a few connections, on one thread.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use keyward::grpc::proto::batch_sign_input::Input as BatchInput;
use keyward::grpc::proto::sign_request::Input;
use keyward::grpc::proto::signing_service_client::SigningServiceClient;
use keyward::grpc::proto::{BatchSignInput, BatchSignRequest, SignJwtRequest, SignRequest};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::{JoinSet, LocalSet, yield_now};
use tokio::time::sleep;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::common::{Clients, Dial, Installation, claims};
use crate::table::Latency;

const CONNECTIONS: usize = 2;
/// Calls under way at full speed, over all connections.
pub(crate) const CALLS_IN_FLIGHT: usize = 32;
/// As many as an issuer in a hurry has: what travels together costs less.
const MANY_IN_FLIGHT: usize = 128;
const BATCHES_IN_FLIGHT: usize = 4;
const WARM_UP: Duration = Duration::from_millis(150);

/// A round that was over so soon found nothing to do, mostly: what the client does for one call takes more.
const IDLE_ROUND_MAX: Duration = Duration::from_micros(2);

/// What is called. A batch has so many inputs.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) algorithm: &'static str,
    pub(crate) batch: Option<usize>,
    /// How many are under way at full speed.
    pub(crate) flights: usize,
}

impl Call {
    pub(crate) const fn unary(method: &'static str, algorithm: &'static str) -> Self {
        Self { method, algorithm, batch: None, flights: CALLS_IN_FLIGHT }
    }

    pub(crate) const fn batch(algorithm: &'static str) -> Self {
        Self { method: "BatchSign", algorithm, batch: Some(64), flights: BATCHES_IN_FLIGHT }
    }

    /// The lines of the table. Of what takes long, so many more calls would be refused.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        const ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];
        let unary = ["Sign", "SignJwt"].into_iter().flat_map(|method| {
            let many = Self { flights: MANY_IN_FLIGHT, ..Self::unary(method, "ES256") };
            ALGORITHMS.map(|algorithm| Self::unary(method, algorithm)).into_iter().chain([many])
        });
        unary.chain(ALGORITHMS.map(Self::batch))
    }

    pub(crate) fn name(self) -> String {
        let Self { method, algorithm, .. } = self;
        match self {
            Self { batch: Some(count), .. } => format!("{method} {algorithm}, {count} inputs"),
            Self { flights: CALLS_IN_FLIGHT, .. } => format!("{method} {algorithm}"),
            Self { flights: 1, .. } => format!("{method} {algorithm}, one at a time"),
            Self { flights, .. } => format!("{method} {algorithm}, {flights} under way"),
        }
    }

    /// Whether it is looked at at a pace: a batch is no call that somebody waits for one by one, and at its pace a call has no more
    /// beside it than there come.
    pub(crate) const fn is_waited_for(self) -> bool {
        self.batch.is_none() && self.flights == CALLS_IN_FLIGHT
    }

    pub(crate) fn signatures(self) -> f64 {
        self.batch.map_or(1.0, |count| f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
    }

    pub(crate) async fn once(self, client: &mut SigningServiceClient<Channel>, load: &Load) -> Result<(), Status> {
        let (tenant, algorithm) = (load.tenant.clone(), self.algorithm.to_owned());
        let message = vec![7; 32];
        if let Some(count) = self.batch {
            let inputs = vec![BatchSignInput { input: Some(BatchInput::Message(message)) }; count];
            let request = BatchSignRequest { tenant, algorithm, inputs, ..BatchSignRequest::default() };
            client.batch_sign(load.with_jwt(request)).await?;
        } else if self.method == "Sign" {
            let input = Some(Input::Message(message));
            let request = SignRequest { tenant, algorithm, input, ..SignRequest::default() };
            client.sign(load.with_jwt(request)).await?;
        } else {
            let claims_json = load.claims.clone();
            let request = SignJwtRequest { tenant, algorithm, claims_json, ..SignJwtRequest::default() };
            client.sign_jwt(load.with_jwt(request)).await?;
        }
        Ok(())
    }
}

/// For servers whose connections live longer than a table takes: tonic's client gives up what it has not sent when one ends.
pub(crate) fn installation() -> Installation {
    Installation::bare().set("grpc.connection_age_max_secs", "86400")
}

/// What the client does while it waits for answers.
#[derive(Clone, Copy)]
pub(crate) enum Waiting {
    /// It sleeps, and leaves its core to others.
    Asleep,
    /// It looks for them again and again: nobody has to wake its core, as a server does not wake that of another machine.
    Awake,
}

/// Throughput, and how busy the load's core was with it: near 1 the load is the limit and not the server.
pub(crate) struct Served {
    pub(crate) per_second: f64,
    pub(crate) load_busy: f64,
    /// How long each call took.
    pub(crate) latency: Latency,
    /// Calls answered from the first to the last, those of the warm-up too.
    pub(crate) calls: usize,
    /// Calls refused because too much waited, and made again when they were asked to be.
    pub(crate) refused: usize,
}

/// The clients, connected.
pub(crate) struct Load {
    clients: Vec<SigningServiceClient<Channel>>,
    tenant: String,
    claims: Vec<u8>,
    /// What calls bring as their Authorization, each the next one; none: calls without.
    credentials: Vec<MetadataValue<Ascii>>,
    next: Cell<usize>,
}

impl Load {
    pub(crate) async fn connect(dial: &Dial, tenant: &str, issuer: &str, jwts: &[String]) -> Rc<Self> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Clients::over(dial.connect().await.expect("a connection")).signing);
        }
        let credentials = jwts.iter().map(|jwt| format!("Bearer {jwt}").parse().expect("ASCII")).collect();
        let (tenant, claims) = (tenant.to_owned(), claims(issuer, 1800));
        Rc::new(Self { clients, tenant, claims, credentials, next: Cell::new(0) })
    }

    /// The client for a call: the connections take turns.
    pub(crate) fn client(&self, number: usize) -> SigningServiceClient<Channel> {
        self.clients[number % CONNECTIONS].clone()
    }

    fn with_jwt<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.credentials.is_empty() {
            let next = self.next.get();
            self.next.set((next + 1) % self.credentials.len());
            request.metadata_mut().insert("authorization", self.credentials[next].clone());
        }
        request
    }

    /// As many calls as are answered when the next one follows each answer at once.
    ///
    /// # Errors
    /// What the server answered.
    pub(crate) async fn flat_out(
        self: &Rc<Self>,
        call: Call,
        duration: Duration,
        waiting: Waiting,
    ) -> Result<Served, String> {
        let start = Instant::now() + WARM_UP;
        let end = start + duration;
        let (tasks, mut flights) = (LocalSet::new(), JoinSet::new());
        for number in 0..call.flights {
            let (load, mut client) = (Rc::clone(self), self.client(number));
            let flight = async move {
                let (mut warm, mut refused, mut latencies) = (0, 0, Vec::new());
                let mut last = Instant::now();
                loop {
                    while let Err(status) = call.once(&mut client, &load).await {
                        sleep(pause(&status).ok_or(status)?).await;
                        refused += 1;
                        last = Instant::now();
                    }
                    let now = Instant::now();
                    let took = now - std::mem::replace(&mut last, now);
                    if now < start || now >= end {
                        warm += 1;
                    } else {
                        latencies.push(took);
                    }
                    if now >= end {
                        return Ok::<_, Status>((warm, refused, latencies));
                    }
                }
            };
            flights.spawn_local_on(flight, &tasks);
        }
        let idle = Rc::new(Cell::new(Duration::ZERO));
        if let Waiting::Awake = waiting {
            tasks.spawn_local(stay_awake(Rc::clone(&idle)));
        }
        let (used, began) = (cpu_time(), Instant::now());
        let landed = tasks.run_until(flights.join_all()).await;
        let busy = (cpu_time() - used).saturating_sub(idle.get());
        let load_busy = busy.as_secs_f64() / began.elapsed().as_secs_f64();
        let (mut calls, mut refused, mut latencies) = (0, 0, Vec::new());
        for flight in landed {
            let (warm, again, more) =
                flight.map_err(|status| format!("{} {}: {status}", call.method, call.algorithm))?;
            calls += warm + more.len();
            refused += again;
            latencies.extend(more);
        }
        let answered = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
        let per_second = answered * call.signatures() / duration.as_secs_f64();
        Ok(Served { per_second, load_busy, latency: Latency::of(latencies), calls, refused })
    }
}

/// Keeps the thread from sleeping, and adds up the time in which it had nothing else to do.
async fn stay_awake(idle: Rc<Cell<Duration>>) {
    let mut last = Instant::now();
    loop {
        yield_now().await;
        let now = Instant::now();
        let round = now - std::mem::replace(&mut last, now);
        if round <= IDLE_ROUND_MAX {
            idle.set(idle.get() + round);
        }
    }
}

/// When a call that was refused because too much waits is to be made again.
fn pause(status: &Status) -> Option<Duration> {
    (status.code() == Code::ResourceExhausted).then(|| status.get_details_retry_info()?.retry_delay).flatten()
}

/// What this thread has had of its core.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a time that is not negative")
}
