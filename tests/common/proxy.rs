//! Stands between a replica and PostgreSQL, and lets through what a test says.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tempfile::TempDir;

/// The name of PostgreSQL's socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

/// What becomes of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// Connections end, and there are no new ones.
    Cut,
    /// Nothing comes through, and nobody is told: a cable that was pulled.
    Still,
    /// What the database tells by NOTIFY is lost.
    WithoutNews,
}

/// What happens to the next commit, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtCommit {
    /// The connection ends before the database hears of it.
    CutBefore,
    /// The database hears of it, and its answer is lost.
    CutAfter,
}

/// The way from one replica to its database.
pub(crate) struct Proxy {
    directory: TempDir,
    state: Arc<State>,
}

struct State {
    server: PathBuf,
    rules: Mutex<Rules>,
    changed: Condvar,
}

struct Rules {
    way: Way,
    at_commit: Option<AtCommit>,
    /// All that were accepted; those that have ended fail to end again.
    connections: Vec<UnixStream>,
}

impl Proxy {
    /// A way to the server whose socket is in this folder.
    pub(crate) fn to(server: &Path) -> Self {
        let directory = TempDir::with_prefix("keyward-proxy-").expect("a directory");
        let listener = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
        let rules = Mutex::new(Rules { way: Way::Open, at_commit: None, connections: Vec::new() });
        let state = Arc::new(State { server: server.join(SOCKET), rules, changed: Condvar::new() });
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                accepting.accept(client);
            }
        });
        Self { directory, state }
    }

    /// The folder that takes the place of the server's.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn set(&self, way: Way) {
        let mut rules = self.state.lock();
        rules.way = way;
        if way == Way::Cut {
            rules.end_all();
        }
        self.state.changed.notify_all();
    }

    /// Whoever commits next is cut off; returns at once.
    pub(crate) fn at_commit(&self, what: AtCommit) {
        self.state.lock().at_commit = Some(what);
    }

    /// Whether somebody was.
    pub(crate) fn has_cut(&self) -> bool {
        self.state.lock().at_commit.is_none()
    }

    /// Nobody is cut off any more who was not yet.
    pub(crate) fn spare_commits(&self) {
        self.state.lock().at_commit = None;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Way::Cut);
    }
}

impl Rules {
    fn end_all(&mut self) {
        for connection in self.connections.drain(..) {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may come through.
    fn way(&self) -> Way {
        let rules = self.changed.wait_while(self.lock(), |rules| rules.way == Way::Still);
        rules.unwrap_or_else(PoisonError::into_inner).way
    }

    fn accept(self: &Arc<Self>, client: UnixStream) {
        let mut rules = self.lock();
        if rules.way == Way::Cut {
            return;
        }
        let Ok(server) = UnixStream::connect(&self.server) else { return };
        let copy = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
        rules.connections.extend([copy(&client), copy(&server)]);
        drop(rules);
        let (this, from, to) = (Arc::clone(self), copy(&client), copy(&server));
        thread::spawn(move || this.forward(from, to));
        let this = Arc::clone(self);
        thread::spawn(move || this.answer(server, client));
    }

    /// From the replica to the database.
    fn forward(&self, mut from: UnixStream, mut to: UnixStream) {
        // Statements are prepared once and then named.
        let (mut commit, mut cut) = (None, None);
        let mut message = Message::read_first(&mut from);
        while let Some(Message { kind, body }) = &message {
            self.way();
            let mut words = body.split(|octet| *octet == 0);
            match kind {
                Some(b'P') => {
                    let name = words.next();
                    if words.next() == Some(b"commit") {
                        commit = name.map(<[u8]>::to_vec);
                    }
                }
                Some(b'B') if commit.is_some() && words.nth(1) == commit.as_deref() => {
                    cut = self.lock().at_commit.take();
                }
                _ => {}
            }
            let is_sync = *kind == Some(b'S');
            if cut == Some(AtCommit::CutBefore) || message.expect("it is there").write(&mut to).is_none() {
                break;
            }
            if cut == Some(AtCommit::CutAfter) && is_sync {
                // The database carries it out, and its answer goes nowhere.
                from.shutdown(Shutdown::Both).ok();
                return;
            }
            message = Message::read(&mut from);
        }
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }

    /// From the database to the replica.
    fn answer(&self, mut from: UnixStream, mut to: UnixStream) {
        const NOTIFICATION: Option<u8> = Some(b'A');
        while let Some(message) = Message::read(&mut from) {
            let is_lost = self.way() == Way::WithoutNews && message.kind == NOTIFICATION;
            if !is_lost && message.write(&mut to).is_none() {
                break;
            }
        }
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }
}

/// What both sides speak in: a letter but for the very first, a length that counts itself, and the rest.
struct Message {
    kind: Option<u8>,
    body: Vec<u8>,
}

impl Message {
    fn read_first(from: &mut UnixStream) -> Option<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length).checked_sub(4)? as usize];
        from.read_exact(&mut body).ok()?;
        Some(Self { kind: None, body })
    }

    fn read(from: &mut UnixStream) -> Option<Self> {
        let mut kind = [0];
        from.read_exact(&mut kind).ok()?;
        Some(Self { kind: Some(kind[0]), ..Self::read_first(from)? })
    }

    fn write(self, to: &mut UnixStream) -> Option<()> {
        let length = u32::try_from(self.body.len() + 4).expect("it was read so");
        let whole = [self.kind.as_slice(), &length.to_be_bytes(), &self.body].concat();
        to.write_all(&whole).ok()
    }
}
