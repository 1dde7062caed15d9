//! The gRPC face: wire <-> domain at the door, and nothing else.

mod admission;
mod audit;
mod codec;
mod door;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keys;
mod metered;
#[allow(missing_docs, reason = "generated from proto/, where every field is commented")]
pub mod proto;
mod services;
mod signing;
mod status;
mod tenants;
mod wire;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::RoutesBuilder;
use tonic_health::ServingStatus;
use tower::Layer as _;

use crate::audit::Logs;
use crate::auth::Callers;
use crate::keyring::{Health, Keyrings};
use crate::serving::{Face, Greeter};
use admission::{Admission, GateLayer};
use audit::AuditFace;
use metered::MeteredLayer;
use proto::audit_service_server::{AuditServiceServer, SERVICE_NAME as AUDIT_SERVICE};
use proto::key_service_server::{KeyServiceServer, SERVICE_NAME as KEY_SERVICE};
use proto::signing_service_server::{SERVICE_NAME as SIGNING_SERVICE, SigningServiceServer};
use proto::tenant_service_server::{SERVICE_NAME as TENANT_SERVICE, TenantServiceServer};
use services::Services;

/// Longest message taken by health and reflection, which answer anybody: a name, many times over.
const OPEN_MESSAGE_BYTES_MAX: usize = 4 << 10;

/// An answer, and one that is being made.
type Answer = http::Response<tonic::body::Body>;
type Answering = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

/// All services over these keyrings, with their health as it is told; and who must greet each connection to them, because what
/// it shows is what `callers` know who calls by. `logs` has the record of the calls.
pub fn services(
    keyrings: Arc<Keyrings>,
    callers: Callers,
    logs: Logs,
    message_bytes_max: usize,
    health: watch::Receiver<Health>,
) -> (impl Face, Arc<dyn Greeter>) {
    let admission = Admission::new(keyrings, callers, logs.calls().clone());
    let audit = AuditFace { admission: admission.clone(), logs };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    // Ends when nobody tells any more.
    tokio::spawn(tell_health(reporter, health));
    let signing = SigningServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max);
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(KeyServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max))
        .add_service(TenantServiceServer::new(admission.clone()).max_decoding_message_size(message_bytes_max))
        .add_service(AuditServiceServer::new(audit).max_decoding_message_size(message_bytes_max))
        .add_service(health_service.max_decoding_message_size(OPEN_MESSAGE_BYTES_MAX))
        .add_service(
            reflection()
                .build_v1()
                .expect("the descriptors were compiled with this binary")
                .max_decoding_message_size(OPEN_MESSAGE_BYTES_MAX),
        )
        .add_service(
            reflection()
                .build_v1alpha()
                .expect("the descriptors were compiled with this binary")
                .max_decoding_message_size(OPEN_MESSAGE_BYTES_MAX),
        );
    let layers = (MeteredLayer::new(message_bytes_max), GateLayer(admission.clone()));
    (layers.layer(Services::new(signing, routes.routes())), Arc::new(admission))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl shows the details of errors in words.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Tells grpc.health.v1 what each service can do, and each token by its name: signing needs no store (R9) and one token,
/// administration needs store and home token.
async fn tell_health(reporter: tonic_health::server::HealthReporter, mut health: watch::Receiver<Health>) {
    loop {
        let (can_change, can_sign, tokens) = {
            let health = health.borrow_and_update();
            let tokens = health.tokens().map(|(name, token)| (format!("token/{name}"), token.is_ok()));
            (health.can_change(), health.can_sign(), tokens.collect::<Vec<_>>())
        };
        let services = [
            ("", can_sign),
            (SIGNING_SERVICE, can_sign),
            (KEY_SERVICE, can_change),
            (TENANT_SERVICE, can_change),
            (AUDIT_SERVICE, can_change),
        ];
        let services = services.map(|(service, serving)| (service.to_owned(), serving));
        for (service, serving) in services.into_iter().chain(tokens) {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(service, status).await;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
