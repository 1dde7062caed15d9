//! Every call of the table "signing", and the JWKS, for counting what the service does (deploy/record-profile): the complete
//! service, with its token's module in processes and in threads.

use std::time::Duration;

use crate::cores::Place;
use crate::load::Call;
use crate::table::Bench;
use crate::variants::{Isolation, Variant};

const DURATION: Duration = Duration::from_secs(1);
/// About as many as there are calls that sign with RSA.
const JWKS_REQUESTS: usize = 2000;

/// Does it once. The servers leave in order, for a process that is killed tells nobody what it counted.
///
/// # Errors
/// A server does not answer, or does not leave in order.
pub(crate) fn exercise(bench: &Bench) -> Result<(), String> {
    for isolation in Isolation::BOTH {
        let server = Variant::start_complete(bench, Place::Server, isolation)?;
        for call in Call::all() {
            server.flat_out(bench, call, DURATION)?;
        }
        server.fetch_jwks(JWKS_REQUESTS)?;
        server.leave(bench)?;
    }
    Ok(())
}
