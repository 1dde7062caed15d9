//! The running service: listeners, timer and health over one set of keyrings, from the first answer to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::{Administration, CallLog, Keeper, Sign};
use crate::auth::{Bearer, Callers, Fetched, IssuerKeys, Jwts};
use crate::config::{CallerSettings, Config, JwtKeys, JwtSettings, ManagementSettings, Watched};
use crate::domain::Algorithm;
use crate::keyring::{Clock, Health, Keyrings, ServiceKey, Settings, TokenState, Tokens, tend};
use crate::serving::{Bounds, Greeter, Listener, NoGreeter, serve};
use crate::store::{EventPage, Start, Store};
pub use crate::telemetry::Metrics;
use crate::telemetry::Warnings;
use crate::tls::{Identity, Roots};
use crate::{grpc, http, serving};

/// A certificate as it is at any time.
type LatestIdentity = watch::Receiver<Arc<Identity>>;

/// The Management API, who looks at its connections, and its certificate.
type Management = (axum::Router, Arc<dyn Greeter>, Option<LatestIdentity>);

/// How long calls under way may take after SIGTERM: longer than any signature waits, shorter than what orchestrators give.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long CreateTenant waits for keys that another replica makes: most tokens need less, and callers wait for as long. Shorter than
/// [`DRAIN_MAX`], so that a call is answered in any case.
const OTHERS_WAIT_MAX: Duration = Duration::from_secs(8);

/// Open files besides connections: the store's, the token's, logs and watched files, with some to spare.
const OPEN_FILES_BESIDES: u64 = 256;

/// The sockets of a service.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC, where it is served over TCP.
    pub grpc: Option<TcpListener>,
    /// gRPC for processes of this machine, where it is on.
    pub grpc_unix: Option<UnixListener>,
    /// JWKS and discovery.
    pub public: TcpListener,
    /// Health and readiness.
    pub ops: TcpListener,
    /// The Management API, where it is on.
    pub management: Option<TcpListener>,
}

/// Where a service answers.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC, where it is served over TCP.
    pub grpc: Option<SocketAddr>,
    /// JWKS and discovery.
    pub public: SocketAddr,
    /// Health and readiness.
    pub ops: SocketAddr,
    /// The Management API, where it is on.
    pub management: Option<SocketAddr>,
}

impl Listeners {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// Names the key whose address is not to be had.
    pub async fn bind(config: &Config) -> Result<Self, String> {
        let bind = async |key: &str, address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| format!("{key}: cannot listen on {address}: {error}"))
        };
        Ok(Self {
            grpc: match config.grpc.listen {
                Some(address) => Some(bind("grpc.listen", address).await?),
                None => None,
            },
            grpc_unix: match &config.grpc.unix_socket {
                Some(path) => Some(serving::bind_unix(path).map_err(|problem| format!("grpc.unix_socket: {problem}"))?),
                None => None,
            },
            public: bind("public.listen", config.public_listen).await?,
            ops: bind("ops.listen", config.ops_listen).await?,
            management: match &config.management {
                Some(settings) => Some(bind("management.listen", settings.listen).await?),
                None => None,
            },
        })
    }

    /// The addresses, with the ports that the system chose.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            grpc: self.grpc.as_ref().map(TcpListener::local_addr).transpose()?,
            public: self.public.local_addr()?,
            ops: self.ops.local_addr()?,
            management: self.management.as_ref().map(TcpListener::local_addr).transpose()?,
        })
    }
}

/// Lets the process open as many files as the system permits it, and warns where the listeners may take more connections.
pub fn raise_open_files_limit(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let places = 2 * config.grpc.connections_max
        + [Bounds::PUBLIC, Bounds::OPS, Bounds::MANAGEMENT].map(|bounds| bounds.connections_max).iter().sum::<usize>();
    let wanted = u64::try_from(places).unwrap_or(u64::MAX).saturating_add(OPEN_FILES_BESIDES);
    if current.is_some_and(|current| current < wanted) {
        tracing::warn!(
            limit = current,
            wanted,
            "the limit of open files (RLIMIT_NOFILE) is below what clients may take"
        );
    }
}

/// The URL of the Management API's listener, without a trailing slash.
#[must_use]
pub fn management_url(settings: &ManagementSettings, address: SocketAddr) -> String {
    let scheme = if settings.identity.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// The keyrings of a configuration, on these tokens and this store, served at these addresses. Nothing is loaded yet.
#[must_use]
pub fn keyrings(config: &Config, addresses: Addresses, tokens: Arc<Tokens>, store: Arc<dyn Store>) -> Arc<Keyrings> {
    let base_url = config.public_base_url.clone().unwrap_or_else(|| format!("http://{}", addresses.public));
    let settings = Settings {
        base_url,
        rsa_bits: config.rsa_bits,
        verify_share: config.verify_share,
        sign_wait_max: config.sign_wait_max,
        snapshot_max_age: config.snapshot_max_age,
        others_wait_max: OTHERS_WAIT_MAX,
        manual_rotations_per_day: config.manual_rotations_per_day,
        sole: !config.store.is_shared(),
    };
    Arc::new(Keyrings::new(tokens, store, Clock::system(), settings))
}

/// Serves until `shutdown`; then takes no more calls, answers those under way, and finishes what they began.
///
/// # Errors
/// A listener failed.
pub async fn run(
    config: &Config,
    keyrings: Arc<Keyrings>,
    service_key: Arc<ServiceKey>,
    audit: Keeper,
    listeners: Listeners,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let (tell, health) = watch::channel(Health::unknown());
    let logs = audit.logs();
    let warnings = Warnings::default();
    tokio::spawn(metrics.clone().keep_up(shutdown.clone()));
    tokio::spawn(tell_health(health.clone()));
    let mut faces = JoinSet::new();
    let public = http::public_router(Arc::clone(&keyrings));
    let nobody: Arc<dyn Greeter> = Arc::new(NoGreeter);
    let listener = Listener::tcp("public", listeners.public);
    faces.spawn(serve(public, listener, None, Bounds::PUBLIC, shutdown.clone(), Arc::clone(&nobody)));
    let ops = http::ops_router(health.clone(), warnings.clone(), metrics);
    let listener = Listener::tcp("ops", listeners.ops);
    faces.spawn(serve(ops, listener, None, Bounds::OPS, shutdown.clone(), nobody));
    if let (Some(settings), Some(listener)) = (&config.management, listeners.management) {
        let (router, greeter, identity) =
            management(settings, &keyrings, &listener, logs.calls().clone(), &warnings, &shutdown)?;
        let listener = Listener::tcp("management", listener);
        faces.spawn(serve(router, listener, identity, Bounds::MANAGEMENT, shutdown.clone(), greeter));
    }
    let limit = config.grpc.message_bytes_max;
    let (grpc, greeter) =
        grpc::services(Arc::clone(&keyrings), callers(&config.grpc.callers, &warnings, &shutdown), logs, limit, health);
    let bounds = Bounds::grpc(config.grpc.connections_max, config.grpc.connection_age_max, limit);
    if let Some(listener) = listeners.grpc {
        let identity = config.grpc.identity.as_ref();
        let identity = identity.map(|identity| keep_up_identity("grpc", identity, &warnings, &shutdown));
        let listener = Listener::tcp("grpc", listener);
        faces.spawn(serve(grpc.clone(), listener, identity, bounds, shutdown.clone(), Arc::clone(&greeter)));
    }
    if let Some(listener) = listeners.grpc_unix {
        let listener = Listener::unix("grpc-unix", listener);
        faces.spawn(serve(grpc, listener, None, bounds, shutdown.clone(), greeter));
    }

    let recorded = CancellationToken::new();
    let (signing, records) = (Arc::new(Signing(Arc::clone(&service_key))), Arc::new(Records(Arc::clone(&keyrings))));
    let auditing = tokio::spawn(audit.warning(warnings).run(signing, records, recorded.clone()));
    let timer = tokio::spawn(tend(Arc::clone(&keyrings), shutdown.clone()));
    let watched = Arc::clone(&keyrings);
    let stop = shutdown.clone();
    let watching = tokio::spawn(async move { watched.watch_health(tell, stop).await });
    let mut attending = JoinSet::new();
    for token in keyrings.tokens().configured() {
        if config.reconcile_at_start {
            let (reporting, token, stop) = (Arc::clone(&keyrings), Arc::clone(token), shutdown.clone());
            let object = service_key.object();
            tokio::spawn(async move { stop.run_until_cancelled(reporting.report_at_start(&token, object)).await });
        }
        let (keyrings, token, stop) = (Arc::clone(&keyrings), Arc::clone(token), shutdown.clone());
        let service_key = Arc::clone(&service_key);
        attending.spawn(async move {
            if token.name().is_home() {
                token.attend(service_key.canary(), stop).await;
            } else {
                keyrings.attend_further(&token, stop).await;
            }
        });
    }

    let mut outcome = Ok(());
    // A face that fails takes the others down in order: half a service is noticed by nobody.
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = faces.join_next() => {
            outcome = ended.map_err(|panic| panic.to_string());
            shutdown.cancel();
        }
    }
    let drained = tokio::time::timeout(DRAIN_MAX, async {
        while let Some(ended) = faces.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a listener failed while draining");
            }
        }
    });
    if drained.await.is_err() {
        tracing::warn!(waited_secs = DRAIN_MAX.as_secs(), "connections are cut that did not end by themselves");
        faces.shutdown().await;
    }
    // A token that hangs in the middle of a change must not keep the process: recovery is for the next start.
    let ended = async {
        keyrings.finish().await;
        let _ = tokio::join!(timer, watching, attending.join_all());
    };
    if tokio::time::timeout(DRAIN_MAX, ended).await.is_err() {
        tracing::warn!(
            waited_secs = DRAIN_MAX.as_secs(),
            "a change did not come to its end; the next start takes it up"
        );
    }
    // Last, so that the last checkpoints are of everything.
    recorded.cancel();
    if auditing.await.is_err() {
        tracing::error!("the audit logs were not closed in order");
    }
    outcome
}

/// Signs checkpoints with the service key.
struct Signing(Arc<ServiceKey>);

#[async_trait]
impl Sign for Signing {
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.0.sign(message).await.map_err(|error| error.to_string())
    }
}

/// The administration log, for its checkpoints.
struct Records(Arc<Keyrings>);

#[async_trait]
impl Administration for Records {
    async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, String> {
        let page = EventPage { tenant: None, start: Start::Oldest(from), limit };
        let rows = self.0.administration(&page).await.map_err(|error| error.for_log())?;
        Ok(rows.into_iter().map(|row| row.record).collect())
    }
}

/// The Management API, and with which certificate it is served; keeps up with the files that it believes in.
fn management(
    settings: &ManagementSettings,
    keyrings: &Arc<Keyrings>,
    listener: &TcpListener,
    log: CallLog,
    warnings: &Warnings,
    shutdown: &CancellationToken,
) -> Result<Management, String> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let base_url = settings.base_url.clone().unwrap_or_else(|| management_url(settings, address));
    let bearer = Bearer::new(
        settings.issuer.clone(),
        &Algorithm::ALL,
        IssuerKeys::File(keep_up(&settings.jwks, warnings, shutdown)),
    );
    let identity = settings.identity.as_ref();
    let identity = identity.map(|identity| keep_up_identity("management", identity, warnings, shutdown));
    let (router, greeter) = http::management_router(Arc::clone(keyrings), bearer, base_url, log);
    Ok((router, greeter, identity))
}

/// Who may call gRPC, as it is at any time until `shutdown`.
fn callers(settings: &CallerSettings, warnings: &Warnings, shutdown: &CancellationToken) -> Callers {
    let CallerSettings::Known { grants, common_name, jwt } = settings else { return Callers::anybody() };
    let jwts = jwt.as_ref().map(|jwt| jwts(jwt, warnings, shutdown));
    Callers::known(grants.clone(), *common_name, jwts)
}

fn jwts(settings: &JwtSettings, warnings: &Warnings, shutdown: &CancellationToken) -> Jwts {
    let keys = match &settings.keys {
        JwtKeys::File(file) => IssuerKeys::File(keep_up(file, warnings, shutdown)),
        JwtKeys::Url { url, roots, times } => {
            let roots = match roots {
                Some(roots) => keep_up(roots, warnings, shutdown),
                // Who only receives keeps the last value.
                None => watch::channel(Arc::new(Roots::of_system())).1,
            };
            let fetched = Arc::new(Fetched::new(url.clone(), roots, *times));
            tokio::spawn(Arc::clone(&fetched).keep_up("grpc.jwt.jwks_url", warnings.clone(), shutdown.clone()));
            IssuerKeys::Url(fetched)
        }
    };
    let bearer = Bearer::new(settings.issuer.clone(), &settings.algorithms, keys);
    Jwts::new(bearer, settings.audience.clone())
}

/// What files say, at any time until `shutdown`.
fn keep_up<T: Send + Sync + 'static>(
    watched: &Arc<Watched<T>>,
    warnings: &Warnings,
    shutdown: &CancellationToken,
) -> watch::Receiver<Arc<T>> {
    tokio::spawn(Arc::clone(watched).keep_up(warnings.clone(), shutdown.clone()));
    watched.latest()
}

/// The same for a listener's certificate, whose end metrics tell.
fn keep_up_identity(
    listener: &'static str,
    watched: &Arc<Watched<Identity>>,
    warnings: &Warnings,
    shutdown: &CancellationToken,
) -> LatestIdentity {
    let mut latest = keep_up(watched, warnings, shutdown);
    let told = latest.clone();
    tokio::spawn(async move {
        let expires =
            metrics::gauge!("keyward_certificate_not_after_seconds", "key" => format!("{listener}.certificate_file"));
        loop {
            let (not_after, next_update) = {
                let identity = latest.borrow_and_update();
                (identity.not_after_secs(), identity.next_update_secs())
            };
            // Exact for the next hundred million years.
            expires.set(not_after as f64);
            if let Some(next_update) = next_update {
                metrics::gauge!("keyward_revocation_list_next_update_seconds", "key" => format!("{listener}.crl_file"))
                    .set(next_update as f64);
            }
            if latest.changed().await.is_err() {
                return;
            }
        }
    });
    told
}

/// Puts each part of the health into metrics, whenever it changes.
async fn tell_health(mut health: watch::Receiver<Health>) {
    loop {
        {
            let health = health.borrow_and_update();
            let number = |is_so: bool| if is_so { 1.0 } else { 0.0 };
            for (part, told) in health.parts() {
                metrics::gauge!("keyward_ready", "part" => part).set(number(told.is_ok()));
            }
            for (name, token) in health.tokens() {
                metrics::gauge!("keyward_ready", "part" => "token", "token" => name.to_string())
                    .set(number(token.is_ok()));
            }
            for (name, token) in &health.tokens {
                for state in TokenState::ALL {
                    let is_it = token.as_ref().is_some_and(|token| token.state == state);
                    let labels = [("state", state.word().to_owned()), ("token", name.to_string())];
                    metrics::gauge!("keyward_token_state", &labels).set(number(is_it));
                }
            }
            // Their number is far below where a float becomes inexact.
            metrics::gauge!("keyward_tenants_quarantined").set(health.quarantined.len() as f64);
            metrics::gauge!("keyward_keys_quarantined").set(health.quarantined_keys.len() as f64);
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
