use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Face;
use crate::auth::{NamesNobody, principal_of};
use crate::domain::{Caller, Event, Principal};
use crate::serving::{Greeter, Peer, Proof};

/// Whom the client certificate of a connection names, where there was one. It is asked for to let nobody else near; what a
/// caller may do stands in the JWT.
#[derive(Clone)]
pub(super) struct Certificate(pub(super) Result<Principal, NamesNobody>);

impl Greeter for Face {
    fn greet(&self, peer: &Peer, extensions: &mut http::Extensions) {
        if let Proof::Certificate(der) = &peer.proof {
            extensions.insert(Certificate(principal_of(der, false)));
        }
    }

    fn refused(&self, address: SocketAddr, reason: &'static str) {
        let caller = Caller { principals: Arc::from([]), method: "TLS handshake", request_id: None };
        let event = Event::new(self.keyrings.now(), "connect", &caller);
        let result = Cow::Borrowed("UNAUTHENTICATED");
        self.log.record_soon(Event { result, detail: format!("{reason} from {address}"), ..event });
    }
}
