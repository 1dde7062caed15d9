//! The running service: listeners, timer and health over one set of keyrings, from the first answer to the last.

mod audit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::Keeper;
use crate::auth::{Bearer, Callers, IssuerKeys};
use crate::config::{Config, ManagementSettings};
use crate::domain::Algorithm;
use crate::http::Bounds;
use crate::keyring::{Clock, Health, Keyrings, ServiceKey, Settings, tend};
use crate::store::Store;
use crate::token::Token;
use crate::{grpc, http};

/// How long calls under way may take after SIGTERM: longer than any signature waits, shorter than what orchestrators give.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The sockets of a service.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
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
    /// gRPC.
    pub grpc: SocketAddr,
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
            grpc: bind("grpc.listen", config.grpc_listen).await?,
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
            grpc: self.grpc.local_addr()?,
            public: self.public.local_addr()?,
            ops: self.ops.local_addr()?,
            management: self.management.as_ref().map(TcpListener::local_addr).transpose()?,
        })
    }
}

/// The URL of the Management API's listener, without a trailing slash.
#[must_use]
pub fn management_url(settings: &ManagementSettings, address: SocketAddr) -> String {
    let scheme = if settings.identity.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// The keyrings of a configuration, on this token and store, served at these addresses. Nothing is loaded yet.
#[must_use]
pub fn keyrings(config: &Config, addresses: Addresses, token: Arc<dyn Token>, store: Arc<dyn Store>) -> Arc<Keyrings> {
    let base_url = config.public_base_url.clone().unwrap_or_else(|| format!("http://{}", addresses.public));
    let settings = Settings {
        base_url,
        rsa_bits: config.rsa_bits,
        verify_share: config.verify_share,
        sign_wait_max: config.sign_wait_max,
        snapshot_max_age: config.snapshot_max_age,
        manual_rotations_per_day: config.manual_rotations_per_day,
        // SQLite is opened by one process alone.
        sole: true,
    };
    Arc::new(Keyrings::new(token, store, Clock::system(), settings))
}

/// Serves until `shutdown`; then takes no more calls, answers those under way, and finishes what they began.
///
/// # Errors
/// A listener failed.
pub async fn run(
    config: &Config,
    keyrings: Arc<Keyrings>,
    service_key: Arc<ServiceKey>,
    keeper: Keeper,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let (tell, health) = watch::channel(Health::unknown());
    let mut faces = JoinSet::new();
    let public = http::public_router(Arc::clone(&keyrings));
    faces.spawn(without_failure(http::serve(public, listeners.public, None, Bounds::PUBLIC, shutdown.clone())));
    let ops = http::ops_router(health.clone());
    faces.spawn(without_failure(http::serve(ops, listeners.ops, None, Bounds::OPS, shutdown.clone())));
    if let (Some(settings), Some(listener)) = (&config.management, listeners.management) {
        let serving = management(settings, &keyrings, listener, &shutdown)?;
        faces.spawn(without_failure(serving));
    }
    let limit = config.grpc_message_bytes_max;
    let serving = grpc::serve(
        Arc::clone(&keyrings),
        Callers::anybody(),
        keeper.logs(),
        listeners.grpc,
        limit,
        health,
        shutdown.clone(),
    );
    faces.spawn(async { serving.await.map_err(|error| format!("the grpc listener failed: {error}")) });

    let (sign, records) = (audit::Signer(Arc::clone(&service_key)), audit::Records(Arc::clone(&keyrings)));
    let end = CancellationToken::new();
    let keeping = tokio::spawn(keeper.run(Arc::new(sign), Arc::new(records), end.clone()));
    let timer = tokio::spawn(tend(Arc::clone(&keyrings), shutdown.clone()));
    let watched = Arc::clone(&keyrings);
    let stop = shutdown.clone();
    let watching = tokio::spawn(async move { watched.watch_health(service_key, tell, stop).await });

    let mut outcome = Ok(());
    // A face that fails takes the others down in order: half a service is noticed by nobody.
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = faces.join_next() => {
            outcome = ended.unwrap_or_else(|panic| Err(panic.to_string()));
            shutdown.cancel();
        }
    }
    let drained = tokio::time::timeout(DRAIN_MAX, async {
        while let Some(ended) = faces.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|panic| Err(panic.to_string())) {
                tracing::error!(error, "a listener failed while draining");
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
        let _ = tokio::join!(timer, watching);
    };
    if tokio::time::timeout(DRAIN_MAX, ended).await.is_err() {
        tracing::warn!(
            waited_secs = DRAIN_MAX.as_secs(),
            "a change did not come to its end; the next start takes it up"
        );
    }
    // Last, so that all of it is in the checkpoints.
    end.cancel();
    if let Err(panic) = keeping.await {
        tracing::error!(%panic, "the audit logs were not closed in order");
    }
    outcome
}

/// Serves the Management API, and keeps up with the files that it believes in.
fn management(
    settings: &ManagementSettings,
    keyrings: &Arc<Keyrings>,
    listener: TcpListener,
    shutdown: &CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, String> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let base_url = settings.base_url.clone().unwrap_or_else(|| management_url(settings, address));
    let bearer = Bearer::new(settings.issuer.clone(), &Algorithm::ALL, IssuerKeys::File(settings.jwks.latest()));
    tokio::spawn(Arc::clone(&settings.jwks).keep_up(shutdown.clone()));
    let identity = settings.identity.as_ref().map(|identity| {
        tokio::spawn(Arc::clone(identity).keep_up(shutdown.clone()));
        identity.latest()
    });
    let router = http::management_router(Arc::clone(keyrings), bearer, base_url);
    Ok(http::serve(router, listener, identity, Bounds::MANAGEMENT, shutdown.clone()))
}

/// HTTP is served until it is told to stop: a connection that fails is no failure of its listener.
async fn without_failure(serving: impl Future<Output = ()>) -> Result<(), String> {
    serving.await;
    Ok(())
}
