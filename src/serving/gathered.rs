use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// What is gathered at most: more is written at once.
const GATHERED_BYTES: usize = 8 << 10;

/// A connection whose answers travel together: what is to be sent waits until the tasks that are ready have run, because each of
/// them may have an answer for the same client. A system call and, with TLS, a record for each answer cost more than the answer.
pub(super) struct Gathered<I> {
    io: BufWriter<I>,
    /// Whether the others had their turn since something was sent the last time.
    waited: bool,
}

impl<I: AsyncWrite> Gathered<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io: BufWriter::with_capacity(GATHERED_BYTES, io), waited: false }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

/// Vectored writes are not taken: what is gathered is copied in any case, and without them h2 hands over answers of up to 1 KiB before
/// it wants any of them sent.
impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, octets)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.waited && !this.io.buffer().is_empty() {
            this.waited = true;
            // A task that wakes itself comes after all that are ready.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let flushed = Pin::new(&mut this.io).poll_flush(context);
        if flushed.is_ready() {
            this.waited = false;
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
