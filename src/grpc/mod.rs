//! The gRPC face: wire <-> domain at the door, and nothing else.

mod admission;
mod audit;
mod door;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keys;
#[allow(missing_docs, reason = "generated from proto/, where every field is commented")]
pub mod proto;
mod signing;
mod status;
mod tenants;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::audit::Logs;
use crate::auth::Callers;
use crate::keyring::{Health, Keyrings};
use admission::{Admission, GateLayer};
use audit::AuditFace;
use proto::audit_service_server::{AuditServiceServer, SERVICE_NAME as AUDIT_SERVICE};
use proto::key_service_server::{KeyServiceServer, SERVICE_NAME as KEY_SERVICE};
use proto::signing_service_server::{SERVICE_NAME as SIGNING_SERVICE, SigningServiceServer};
use proto::tenant_service_server::{SERVICE_NAME as TENANT_SERVICE, TenantServiceServer};

/// Calls under way on one connection: beyond it a client waits for its own calls, which HTTP/2 tells it.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// How long a quiet connection is kept before it is asked whether it is alive, and how long the answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Header octets of one call: names, deadline and credentials fit many times over.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Serves until `shutdown`, and then until the calls under way are answered.
///
/// # Errors
/// The transport could not be served.
pub async fn serve(
    keyrings: Arc<Keyrings>,
    callers: Callers,
    logs: Logs,
    listener: TcpListener,
    message_bytes_max: usize,
    health: watch::Receiver<Health>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let admission = Admission::new(keyrings, callers, logs.calls().clone());
    let audit = AuditFace { admission: admission.clone(), logs };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let telling = tokio::spawn(tell_health(reporter, health));
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(SigningServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max))
        .add_service(KeyServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max))
        .add_service(TenantServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max))
        .add_service(AuditServiceServer::new(audit).max_decoding_message_size(message_bytes_max))
        .add_service(health_service)
        .add_service(reflection().build_v1().expect("the descriptors were compiled with this binary"))
        .add_service(reflection().build_v1alpha().expect("the descriptors were compiled with this binary"));
    // Set here, because the builder's own setting is ignored for listeners that are handed in. Without it an answer waits 40 ms
    // for the client's delayed ACK.
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .layer(tower::util::MapResponseLayer::new(move |response| door::explain_rejection(response, message_bytes_max)))
        .layer(GateLayer(admission))
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await;
    telling.abort();
    served
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl shows the details of errors in words.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Tells grpc.health.v1 what each service can do: signing needs no store (R9), administration needs everything.
async fn tell_health(reporter: tonic_health::server::HealthReporter, mut health: watch::Receiver<Health>) {
    loop {
        let (ready, can_sign) = {
            let health = health.borrow_and_update();
            (health.is_ready(), health.can_sign())
        };
        let services = [
            ("", can_sign),
            (SIGNING_SERVICE, can_sign),
            (KEY_SERVICE, ready),
            (TENANT_SERVICE, ready),
            (AUDIT_SERVICE, ready),
        ];
        for (service, serving) in services {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(service, status).await;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
