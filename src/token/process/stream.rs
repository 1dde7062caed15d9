//! The service's end of a signing process's socket, which wakes nobody but for what comes.
//!
//! A socket of tokio's is told of room, too, and a Unix socket has room again whenever the other end has taken something: each
//! order would have the serving thread take the core from the process that has just begun to sign.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::cooperative;

/// What comes from the process.
pub(super) struct Incoming(AsyncFd<Arc<UnixStream>>);

/// What goes to the process.
pub(super) struct Outgoing {
    /// A descriptor of its own: one is watched for one thing.
    socket: Arc<UnixStream>,
    /// Watched from when there is no room until there is.
    full: Option<AsyncFd<Arc<UnixStream>>>,
}

/// Both ends of a socket that does not block, on the runtime of the caller.
pub(super) fn split(socket: UnixStream) -> io::Result<(Incoming, Outgoing)> {
    let outgoing = Outgoing { socket: Arc::new(socket.try_clone()?), full: None };
    Ok((Incoming(watch(Arc::new(socket), Interest::READABLE)?), outgoing))
}

impl Incoming {
    /// Reads what has come, or waits for it; 0 at the end. Loses nothing when it is dropped.
    pub(super) async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        // However much comes, others have their turns.
        cooperative(async {
            loop {
                let mut readiness = self.0.readable().await?;
                let Ok(read) = readiness.try_io(|socket| socket.get_ref().as_ref().read(chunk)) else { continue };
                // So there was no more, and whatever comes next is told anew: no need to look.
                if read.as_ref().is_ok_and(|read| (1..chunk.len()).contains(read)) {
                    readiness.clear_ready();
                }
                return read;
            }
        })
        .await
    }
}

impl Outgoing {
    /// Writes as much as there is room for, or waits for room. Has written nothing when it is dropped.
    pub(super) async fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(full) = &self.full {
                full.writable().await?.retain_ready();
                self.full = None;
            }
            match self.socket.as_ref().write(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full = Some(watch(Arc::clone(&self.socket), Interest::WRITABLE)?);
                }
                written => return written,
            }
        }
    }
}

/// For sockets of std's alone, whose descriptor stays the same as long as they live: that is what tokio wants to be sworn.
#[expect(deprecated, reason = "what replaces it is unsafe, for types whose descriptor may change")]
fn watch(socket: Arc<UnixStream>, interest: Interest) -> io::Result<AsyncFd<Arc<UnixStream>>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::thread;

    use super::*;

    fn pair() -> (Incoming, Outgoing, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        let (incoming, outgoing) = split(ours).expect("a runtime");
        (incoming, outgoing, theirs)
    }

    /// Writes until there is no room.
    async fn fill(outgoing: &mut Outgoing, octets: &[u8]) -> usize {
        let mut written = 0;
        loop {
            tokio::select! {
                biased;
                more = outgoing.write(&octets[written..]) => written += more.expect("written"),
                () = ready(()) => return written,
            }
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_written_when_there_is_some_and_what_comes_meanwhile_is_read() {
        let (incoming, mut outgoing, mut theirs) = pair();
        let octets: Vec<u8> = (0..=250).cycle().take(4 << 20).collect();
        let mut written = fill(&mut outgoing, &octets).await;
        assert!(written < octets.len(), "a socket has room for less");
        let mut chunk = [0; 16];
        for part in [&[1; 16][..], &[2; 5]] {
            theirs.write_all(part).expect("sent");
            tokio::select! {
                read = incoming.read(&mut chunk) => assert_eq!(&chunk[..read.expect("read")], part),
                _ = outgoing.write(&octets[written..]) => panic!("nobody has made room"),
            }
        }
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).map(|_| read)
        });
        while written < octets.len() {
            written += outgoing.write(&octets[written..]).await.expect("written");
        }
        drop((incoming, outgoing));
        assert!(reading.join().expect("no panic").expect("read") == octets, "nothing is lost or comes twice");
    }

    #[tokio::test]
    async fn what_comes_is_read_once_and_waited_for_and_so_is_the_end() {
        let (incoming, _outgoing, mut theirs) = pair();
        let mut chunk = [0; 16];
        // As long as what is read into, shorter, longer.
        for length in [16, 5, 16, 40, 1, 32] {
            let part: Vec<u8> = (0..length).collect();
            theirs.write_all(&part).expect("sent");
            let mut read = Vec::new();
            while read.len() < part.len() {
                let more = incoming.read(&mut chunk).await.expect("read");
                read.extend_from_slice(&chunk[..more]);
            }
            assert_eq!(read, part);
            tokio::select! {
                biased;
                more = incoming.read(&mut chunk) => panic!("{more:?} came, and nothing was sent"),
                () = ready(()) => {}
            }
        }
        theirs.write_all(&[7; 3]).expect("sent");
        drop(theirs);
        assert_eq!(incoming.read(&mut chunk).await.expect("read"), 3);
        assert_eq!(incoming.read(&mut chunk).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn an_end_that_left_orders_unread_is_an_error_and_no_wait() {
        let (incoming, mut outgoing, theirs) = pair();
        outgoing.write(b"an order").await.expect("written");
        drop(theirs);
        assert!(incoming.read(&mut [0; 16]).await.is_err());
        assert!(outgoing.write(b"another").await.is_err());
    }
}
