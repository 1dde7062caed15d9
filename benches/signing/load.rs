//! The issuers: the generated client on a few connections, on one thread.

use std::rc::Rc;
use std::time::{Duration, Instant};

use keyward::grpc::proto::batch_sign_input::Input as BatchInput;
use keyward::grpc::proto::sign_request::Input;
use keyward::grpc::proto::signing_service_client::SigningServiceClient;
use keyward::grpc::proto::{BatchSignInput, BatchSignRequest, SignJwtRequest, SignRequest};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::{Clients, Server, claims};
use crate::table::Latency;

const CONNECTIONS: usize = 2;
/// Calls under way at full speed, over all connections.
const CALLS_IN_FLIGHT: usize = 32;
const BATCHES_IN_FLIGHT: usize = 4;
const WARM_UP: Duration = Duration::from_millis(150);

/// What is called. A batch has so many inputs.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) algorithm: &'static str,
    pub(crate) batch: Option<usize>,
}

impl Call {
    /// The lines of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let unary = |method| ["RS256", "ES256", "EdDSA"].map(|algorithm| Self { method, algorithm, batch: None });
        let batch = ["RS256", "ES256"].map(|algorithm| Self { method: "BatchSign", algorithm, batch: Some(64) });
        unary("Sign").into_iter().chain(unary("SignJwt")).chain(batch)
    }

    async fn once(self, client: &mut SigningServiceClient<Channel>, load: &Load) -> Result<(), Status> {
        let (tenant, algorithm) = (load.tenant.clone(), self.algorithm.to_owned());
        let message = vec![7; 32];
        if let Some(count) = self.batch {
            let inputs = vec![BatchSignInput { input: Some(BatchInput::Message(message)) }; count];
            let request = BatchSignRequest { tenant, algorithm, inputs, ..BatchSignRequest::default() };
            client.batch_sign(request).await?;
        } else if self.method == "Sign" {
            let input = Some(Input::Message(message));
            client.sign(SignRequest { tenant, algorithm, input, ..SignRequest::default() }).await?;
        } else {
            let claims_json = load.claims.clone();
            client.sign_jwt(SignJwtRequest { tenant, algorithm, claims_json, ..SignJwtRequest::default() }).await?;
        }
        Ok(())
    }
}

/// Throughput, and how busy the load's core was with it: near 1 the load is the limit and not the server.
pub(crate) struct Served {
    pub(crate) per_second: f64,
    pub(crate) load_busy: f64,
}

/// Latency at a pace, from the time that a call was due; and how many were refused because the server's queue was full.
pub(crate) struct Paced {
    pub(crate) latency: Latency,
    pub(crate) refused: usize,
}

/// The clients, connected.
pub(crate) struct Load {
    clients: Vec<SigningServiceClient<Channel>>,
    tenant: String,
    claims: Vec<u8>,
}

impl Load {
    pub(crate) async fn connect(server: &Server) -> Rc<Self> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Clients::connect(server).await.signing);
        }
        let (tenant, issuer, _) = server.demo();
        Rc::new(Self { clients, tenant: tenant.to_owned(), claims: claims(issuer, 1800) })
    }

    /// As many calls as are answered when the next one follows each answer at once.
    ///
    /// # Errors
    /// What the server answered.
    pub(crate) async fn flat_out(self: &Rc<Self>, call: Call, duration: Duration) -> Result<Served, String> {
        let start = Instant::now() + WARM_UP;
        let end = start + duration;
        let flights = if call.batch.is_some() { BATCHES_IN_FLIGHT } else { CALLS_IN_FLIGHT };
        let tasks = LocalSet::new();
        let flights: Vec<_> = (0..flights)
            .map(|number| {
                let (load, mut client) = (Rc::clone(self), self.clients[number % CONNECTIONS].clone());
                tasks.spawn_local(async move {
                    let mut answered = 0_u32;
                    loop {
                        call.once(&mut client, &load).await?;
                        let now = Instant::now();
                        if now >= end {
                            return Ok::<_, Status>(answered);
                        }
                        answered += u32::from(now >= start);
                    }
                })
            })
            .collect();
        let busy = cpu_time();
        let began = Instant::now();
        tasks.await;
        let load_busy = (cpu_time() - busy).as_secs_f64() / began.elapsed().as_secs_f64();
        let mut answered = 0;
        for flight in flights {
            let flight = flight.await.map_err(|panic| panic.to_string())?;
            answered += flight.map_err(|status| format!("{} {}: {status}", call.method, call.algorithm))?;
        }
        let signatures =
            f64::from(answered) * call.batch.map_or(1.0, |count| f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        Ok(Served { per_second: signatures / duration.as_secs_f64(), load_busy })
    }

    /// Calls at even intervals, whether or not those before are answered.
    ///
    /// # Errors
    /// What the server answered, but for a full queue.
    pub(crate) async fn paced(
        self: &Rc<Self>,
        call: Call,
        per_second: f64,
        duration: Duration,
    ) -> Result<Paced, String> {
        LocalSet::new()
            .run_until(async {
                let start = Instant::now();
                let interval = Duration::from_secs_f64(1.0 / per_second);
                let mut calls = Vec::new();
                let mut due = start;
                while due < start + duration {
                    // A timer of tokio's has a millisecond's grain, and many calls fit into one.
                    while Instant::now() < due {
                        yield_now().await;
                    }
                    let (load, mut client) = (Rc::clone(self), self.clients[calls.len() % CONNECTIONS].clone());
                    calls.push(spawn_local(async move { call.once(&mut client, &load).await.map(|()| due.elapsed()) }));
                    due += interval;
                }
                let (mut latencies, mut refused) = (Vec::new(), 0);
                for call in calls {
                    match call.await.map_err(|panic| panic.to_string())? {
                        Ok(latency) => latencies.push(latency),
                        Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
                        Err(status) => return Err(status.to_string()),
                    }
                }
                Ok(Paced { latency: Latency::of(latencies), refused })
            })
            .await
    }
}

/// What this thread has had of its core.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a time that is not negative")
}
