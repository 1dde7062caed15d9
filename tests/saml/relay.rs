//! A gRPC server between the example and Keyward, for what happens once in a thousand years by itself.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use keyward::grpc::proto::signing_service_server::{SigningService, SigningServiceServer};
use keyward::grpc::proto::{
    BatchSignRequest, BatchSignResponse, GetCurrentKeyRequest, GetCurrentKeyResponse, SignJwtRequest, SignJwtResponse,
    SignRequest, SignResponse, VerifyJwtRequest, VerifyJwtResponse,
};
use tokio::task::AbortHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::common::Clients;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// The first key is replaced as soon as it was told.
    RotateAfterGetCurrentKey,
    /// One bit of each signature is turned.
    DamageSignature,
}

/// A running relay. It ends when it is dropped.
pub(crate) struct Relay {
    address: String,
    calls: Arc<Mutex<Vec<&'static str>>>,
    task: AbortHandle,
}

impl Relay {
    pub(crate) async fn start(keyward: &Clients, fault: Fault) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let between = Between { keyward: keyward.clone(), fault, calls: Arc::clone(&calls) };
        let connections = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = connections.local_addr().expect("the port's number").to_string();
        let serving = Server::builder().add_service(SigningServiceServer::new(between));
        let task = tokio::spawn(serving.serve_with_incoming(connections)).abort_handle();
        Self { address, calls, task }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The calls that came, in their order.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Between {
    keyward: Clients,
    fault: Fault,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Between {
    /// Notes the call, and tells whether it is the first of its kind.
    fn note(&self, name: &'static str) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(name);
        calls.iter().filter(|call| **call == name).count() == 1
    }
}

#[tonic::async_trait]
impl SigningService for Between {
    async fn get_current_key(
        &self,
        request: Request<GetCurrentKeyRequest>,
    ) -> Result<Response<GetCurrentKeyResponse>, Status> {
        let first = self.note("GetCurrentKey");
        let GetCurrentKeyRequest { tenant, algorithm } = request.get_ref().clone();
        let mut keyward = self.keyward.clone();
        let answer = keyward.signing.get_current_key(request.into_inner()).await?;
        if first && self.fault == Fault::RotateAfterGetCurrentKey {
            keyward.rotate_when_allowed(&tenant, &algorithm).await;
        }
        Ok(answer)
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.note("Sign");
        let mut answer = self.keyward.clone().signing.sign(request.into_inner()).await?;
        if self.fault == Fault::DamageSignature {
            answer.get_mut().signature[0] ^= 1;
        }
        Ok(answer)
    }

    async fn sign_jwt(&self, _: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        Err(Status::unimplemented("no part of the example"))
    }

    async fn batch_sign(&self, _: Request<BatchSignRequest>) -> Result<Response<BatchSignResponse>, Status> {
        Err(Status::unimplemented("no part of the example"))
    }

    async fn verify_jwt(&self, _: Request<VerifyJwtRequest>) -> Result<Response<VerifyJwtResponse>, Status> {
        Err(Status::unimplemented("no part of the example"))
    }
}
