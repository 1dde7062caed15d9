use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf as _;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use super::calls::{Calls, Refused};

/// The body of a call, which tells when it has come to its end, and fails where it may not go on.
pub struct Arriving<B> {
    body: B,
    /// Until its end has come: the connection's calls, and its number among them.
    of: Option<(Calls, u64)>,
    /// Whether the call was refused before its body was looked at.
    refused: bool,
}

impl<B> Arriving<B> {
    /// A body that is whole already.
    pub(super) fn whole(body: B) -> Self {
        Self { body, of: None, refused: false }
    }

    /// One that is still to come.
    pub(super) fn of(body: B, calls: Calls, number: u64) -> Self {
        Self { body, of: Some((calls, number)), refused: false }
    }

    /// One that nobody will read.
    pub(super) fn refused(body: B) -> Self {
        Self { body, of: None, refused: true }
    }

    fn arrived(&mut self) {
        if let Some((calls, number)) = self.of.take() {
            calls.arrived(number);
        }
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.arrived();
    }
}

impl<B: Body<Error: Error + Send + Sync + 'static> + Unpin> Body for Arriving<B> {
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        // The word of HTTP/2 for it, which gRPC knows as RESOURCE_EXHAUSTED.
        let too_much = || Poll::Ready(Some(Err(h2::Error::from(Reason::ENHANCE_YOUR_CALM).into())));
        if self.refused {
            return too_much();
        }
        let frame = Pin::new(&mut self.body).poll_frame(context).map_err(Self::Error::from);
        if let Some((calls, number)) = &self.of {
            let goes_on = match &frame {
                Poll::Pending => calls.waits(*number, context.waker()),
                Poll::Ready(Some(Ok(frame))) => {
                    calls.came(*number, frame.data_ref().map_or(0, |data| data.remaining()))
                }
                Poll::Ready(_) => Ok(()),
            };
            if let Err(Refused) = goes_on {
                self.arrived();
                self.refused = true;
                return too_much();
            }
        }
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.arrived();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        !self.refused && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
