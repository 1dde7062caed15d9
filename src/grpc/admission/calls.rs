use crate::domain::Event;

/// The log of calls.
#[derive(Clone, Default)]
pub struct CallLog;

/// It cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the audit log cannot be written")]
pub(in crate::grpc) struct Unwritten;

impl CallLog {
    pub(super) fn ready(&self) -> Result<(), Unwritten> {
        Ok(())
    }

    pub(super) async fn record(&self, event: Event) -> Result<(), Unwritten> {
        tracing::debug!(action = %event.action, result = %event.result, "a call");
        Ok(())
    }
}
