use tonic::{Request, Response, Status, async_trait};

use super::proto::audit_service_server::AuditService;
use super::proto::{
    AuditEvent, Checkpoint, GetCheckpointRequest, ListAuditEventsRequest, ListAuditEventsResponse, Log as WireLog,
};
use super::{Admission, door, wire};
use crate::audit::{Logs, Place, ReadError};
use crate::domain::TenantId;
use crate::keyring::{Error, Part};
use crate::tlog::{Entry, Log, Record};

/// The service, over the logs that this replica has.
#[derive(Clone)]
pub(super) struct AuditFace {
    pub(super) admission: Admission,
    pub(super) logs: Logs,
}

/// A page of a log, as it is asked for.
pub(super) struct Listing {
    log: Log,
    tenant: Option<TenantId>,
    pub(super) size: usize,
    /// What a page token holds for.
    query: String,
    place: Option<String>,
}

#[async_trait]
impl AuditService for AuditFace {
    async fn list_audit_events(
        &self,
        request: Request<ListAuditEventsRequest>,
    ) -> Result<Response<ListAuditEventsResponse>, Status> {
        let logs = self.logs.clone();
        let answer = self.admission.call(request, |admitted, request| async move {
            let Listing { log, tenant, size, query, place } = listing(&request)?;
            let (entries, next) = match log {
                Log::Administration => {
                    let before = place.map(|place| place.parse().map_err(|_| wrong_token())).transpose()?;
                    let limit = u32::try_from(size).expect("a page is bounded");
                    let entries = admitted.keyrings().events(tenant, before, limit).await?;
                    let more = entries.len() == size && entries.last().is_some_and(|entry| entry.index > 0);
                    let next = entries.last().filter(|_| more).map(|entry| entry.index.to_string());
                    (entries, next)
                }
                Log::Calls => {
                    let before = place.map(|place| parse_place(&place).ok_or_else(wrong_token)).transpose()?;
                    let page = logs.page(tenant, size, before).await.map_err(unreadable)?;
                    (page.entries, page.next.map(|place| format!("{} {} {}", place.index, place.segment, place.octet)))
                }
            };
            Ok(ListAuditEventsResponse {
                events: entries.into_iter().map(event).collect(),
                next_page_token: next.map(|place| door::page_token(&query, &place)).unwrap_or_default(),
            })
        });
        answer.await
    }

    async fn get_checkpoint(&self, request: Request<GetCheckpointRequest>) -> Result<Response<Checkpoint>, Status> {
        let logs = self.logs.clone();
        let answer = self.admission.call(request, |_, request| async move {
            let log = log(request.log)?;
            let signed = logs.checkpoints().latest(log).ok_or_else(|| {
                Error::NotFound(format!("there is no checkpoint of the log of {log} yet: one follows its first record"))
            })?;
            Ok(Checkpoint {
                checkpoint: signed.note,
                size: signed.checkpoint.size,
                root_hash: signed.checkpoint.root.octets().to_vec(),
                origin: signed.checkpoint.origin,
            })
        });
        answer.await
    }
}

pub(super) fn listing(request: &ListAuditEventsRequest) -> Result<Listing, Error> {
    let log = log(request.log)?;
    let query = format!("events {log} {}", request.tenant);
    Ok(Listing {
        log,
        tenant: door::optional("tenant", &request.tenant)?,
        size: door::page_size(request.page_size)?,
        place: door::page_place(&query, &request.page_token)?,
        query,
    })
}

pub(super) fn log(log: i32) -> Result<Log, Error> {
    match WireLog::try_from(log) {
        Ok(WireLog::Unspecified | WireLog::Administration) => Ok(Log::Administration),
        Ok(WireLog::Calls) => Ok(Log::Calls),
        Err(_) => Err(Error::invalid("log", "must be LOG_ADMINISTRATION or LOG_CALLS")),
    }
}

fn parse_place(text: &str) -> Option<Place> {
    let mut numbers = text.split(' ').map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some(Place { index: number()?, segment: number()?, octet: number()? })
}

fn wrong_token() -> Error {
    Error::invalid("page_token", "must be the next_page_token of the answer before, with the same log and tenant")
}

fn unreadable(error: ReadError) -> Error {
    match error {
        ReadError::NoSuchPlace => wrong_token(),
        ReadError::Busy => Error::Limit {
            reason: "AUDIT_READS",
            message: "more pages of the audit log are read at once than is good for signing; retry with a pause"
                .to_owned(),
            limit: None,
            retry_time: None,
        },
        ReadError::Unreadable(cause) => Error::away(Part::Audit, cause),
    }
}

fn event(Entry { index, record, problem }: Entry) -> AuditEvent {
    let problem = problem.unwrap_or_default();
    let Some(Record { event, .. }) = record else {
        return AuditEvent { index, problem, ..AuditEvent::default() };
    };
    AuditEvent {
        index,
        problem,
        time: Some(wire::timestamp(event.time)),
        action: event.action.into_owned(),
        principals: event.principals.iter().map(ToString::to_string).collect(),
        method: event.method.into_owned(),
        tenant: event.tenant.map(String::from).unwrap_or_default(),
        algorithm: event.algorithm.map(|algorithm| algorithm.to_string()).unwrap_or_default(),
        kid: event.kid.map(String::from).unwrap_or_default(),
        input_sha256: event.input_sha256.map(|hash| hash.0).unwrap_or_default(),
        result: event.result.into_owned(),
        request_id: event.request_id.as_deref().unwrap_or_default().to_owned(),
        detail: event.detail,
    }
}
