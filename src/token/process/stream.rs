use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The service's end of a signing process's socket, which wakes nobody but for what comes.
///
/// A socket of tokio's is told of room, too, and a Unix socket has room again whenever the other end has taken something: each
/// order would have the serving thread take the core from the process that has just begun to sign.
pub(super) struct Stream(AsyncFd<UnixStream>);

impl Stream {
    /// Of a socket that does not block, on the runtime of the caller.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        watch(socket, Interest::READABLE).map(Self)
    }

    /// Reads what has come, or waits for it; 0 at the end. Loses nothing when it is dropped.
    pub(super) async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut readiness = self.0.readable().await?;
            let Ok(read) = readiness.try_io(|socket| socket.get_ref().read(chunk)) else { continue };
            // So there was no more, and whatever comes next is told anew: no need to look.
            if read.as_ref().is_ok_and(|read| (1..chunk.len()).contains(read)) {
                readiness.clear_ready();
            }
            return read;
        }
    }

    /// Writes as much as there is room for, or waits for room. Has written nothing when it is dropped.
    pub(super) async fn write(&self, octets: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.get_ref().write(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                written => return written,
            }
        }
    }

    /// Waits for room, by a second descriptor: one is watched for one thing.
    async fn room(&self) -> io::Result<()> {
        watch(self.0.get_ref().try_clone()?, Interest::WRITABLE)?.writable().await?.retain_ready();
        Ok(())
    }
}

#[expect(deprecated, reason = "what replaces it is unsafe, for types whose descriptor may change: a socket's does not")]
fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        (Stream::new(ours).expect("a runtime"), theirs)
    }

    #[tokio::test]
    async fn what_finds_no_room_is_written_when_there_is_some() {
        let (stream, mut theirs) = pair();
        let octets: Vec<u8> = (0..=250).cycle().take(4 << 20).collect();
        let mut written = 0;
        let is_full = loop {
            tokio::select! {
                biased;
                more = stream.write(&octets[written..]) => written += more.expect("written"),
                () = std::future::ready(()) => break written < octets.len(),
            }
        };
        assert!(is_full, "a socket has room for less");
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).map(|_| read)
        });
        while written < octets.len() {
            written += stream.write(&octets[written..]).await.expect("written");
        }
        drop(stream);
        assert!(reading.join().expect("no panic").expect("read") == octets, "nothing is lost or comes twice");
    }

    #[tokio::test]
    async fn what_comes_is_read_however_it_is_cut_up_and_then_the_end() {
        let (stream, mut theirs) = pair();
        let octets: Vec<u8> = (0..100).collect();
        // As long as what is read into, shorter, longer.
        let parts: Vec<Vec<u8>> = [16, 5, 40, 16, 23].map(|length| octets[..length].to_vec()).to_vec();
        let whole = parts.concat();
        let sending = thread::spawn(move || parts.into_iter().try_for_each(|part| theirs.write_all(&part)));
        let (mut read, mut chunk) = (Vec::new(), [0; 16]);
        loop {
            match stream.read(&mut chunk).await.expect("read") {
                0 => break,
                more => read.extend_from_slice(&chunk[..more]),
            }
        }
        sending.join().expect("no panic").expect("sent");
        assert_eq!(read, whole);
    }
}
