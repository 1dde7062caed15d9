use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Bounds, Listener, NoGreeter, serve};

/// More than a slow machine needs for any of this, and less than the bounds that must not be what ends a connection.
const WAIT_MAX: Duration = Duration::from_secs(30);
const FOREVER: Duration = Duration::from_secs(3600);

/// Bounds that end nothing while a test runs; each test sets what it is about.
const WIDE: Bounds = Bounds {
    connections_max: 64,
    handshake_max: FOREVER,
    first_call_max: FOREVER,
    idle_max: FOREVER,
    lifetime_max: FOREVER,
    drain_max: FOREVER,
    leave_max: FOREVER,
    call_max: FOREVER,
    ..Bounds::PUBLIC
};

/// Larger than what the system takes from a server for a client that does not read.
const LARGE_BYTES: usize = 32 << 20;

const CALL: &[u8] = b"GET / HTTP/1.1\r\nHost: keyward\r\n\r\n";
const CALL_LARGE: &[u8] = b"GET /large HTTP/1.1\r\nHost: keyward\r\n\r\n";
const CALL_GATE: &[u8] = b"GET /gate HTTP/1.1\r\nHost: keyward\r\n\r\n";

/// What a client of HTTP/2 begins with (RFC 9113 section 3.4): the preface and empty SETTINGS.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// RFC 9113 section 6.7.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0keyward!";

struct Served {
    address: SocketAddr,
    /// Has one permit for each call of `/gate` that has begun.
    entered: Arc<Semaphore>,
    /// One permit lets one call of `/gate` end.
    gate: Arc<Semaphore>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Served {
    async fn with(bounds: Bounds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (entered, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (tell, wait) = (Arc::clone(&entered), Arc::clone(&gate));
        let gated = async move || {
            tell.add_permits(1);
            wait.acquire().await.expect("open").forget();
            "through"
        };
        let large = bytes::Bytes::from(vec![b'.'; LARGE_BYTES]);
        let taken = post(async |body: bytes::Bytes| body.len().to_string());
        let router = Router::new()
            .route("/", get("well"))
            .route("/body", taken)
            .route("/large", get(large))
            .route("/gate", get(gated));
        let shutdown = CancellationToken::new();
        let listener = Listener::tcp("test", listener);
        let serving = tokio::spawn(serve(router, listener, None, bounds, shutdown.clone(), Arc::new(NoGreeter)));
        Self { address, entered, gate, shutdown, serving }
    }

    async fn connect(&self) -> TcpStream {
        let client = within(TcpStream::connect(self.address)).await.expect("a connection");
        client.set_nodelay(true).expect("set");
        client
    }

    /// A client that makes this call and reads the first octet of its answer.
    async fn connect_and_call(&self, call: &[u8]) -> TcpStream {
        let mut client = self.connect().await;
        client.write_all(call).await.expect("sent");
        assert_eq!(within(client.read_u8()).await.expect("an answer"), b'H');
        client
    }
}

/// What clients do who only hold on to their place.
#[derive(Clone, Copy, Debug)]
enum Unkind {
    Silent,
    /// The header of its first call, octet by octet.
    Dripping,
    /// The same after a call that was answered.
    DrippingLater,
    /// Does not read its answers, and sends on.
    NotReading,
    /// HTTP/2, alive, and without a call.
    Pinging,
    /// The preface of HTTP/2, whole but for its end.
    Undecided,
}

const UNKIND: [Unkind; 6] =
    [Unkind::Silent, Unkind::Dripping, Unkind::DrippingLater, Unkind::NotReading, Unkind::Pinging, Unkind::Undecided];

impl Unkind {
    async fn connect(self, to: &Served) -> TcpStream {
        let mut client = match self {
            Self::DrippingLater => to.connect_and_call(CALL).await,
            Self::NotReading => to.connect_and_call(CALL_LARGE).await,
            _ => to.connect().await,
        };
        let begin: &[u8] = match self {
            Self::Silent => b"",
            Self::Dripping | Self::DrippingLater => b"GET / HTTP/1.1\r\nX: ",
            Self::NotReading => &CALL_LARGE.repeat(10),
            Self::Pinging => HTTP_2,
            Self::Undecided => &HTTP_2[..20],
        };
        client.write_all(begin).await.expect("sent");
        client
    }

    /// Goes on until the server has cut the connection.
    async fn go_on(self, mut client: TcpStream) {
        let more: &[u8] = match self {
            Self::Silent | Self::Undecided => {
                // Nothing comes but the end.
                let _ = client.read(&mut [0; 100]).await;
                return;
            }
            Self::Pinging => PING,
            Self::Dripping | Self::DrippingLater | Self::NotReading => b"x",
        };
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        while client.write_all(more).await.is_ok() {
            pace.tick().await;
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_MAX, future).await.expect("in time")
}

/// Calls `/` and says what was answered; nothing where the connection had ended.
async fn call(client: &mut TcpStream) -> String {
    if client.write_all(CALL).await.is_err() {
        return String::new();
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"well") && within(client.read_buf(&mut answer)).await.is_ok_and(|count| count > 0) {}
    String::from_utf8(answer).expect("text")
}

fn is_well(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nwell")
}

#[tokio::test]
async fn as_many_unkind_clients_as_there_are_places_keep_nobody_out() {
    for unkind in UNKIND {
        let served = Served::with(Bounds { connections_max: 8, leave_max: Duration::from_millis(50), ..WIDE }).await;
        let mut unkinds = Vec::new();
        // As many as there are places, and as many again that wait for one.
        for _ in 0..2 * 8 {
            let client = unkind.connect(&served).await;
            unkinds.push(tokio::spawn(unkind.go_on(client)));
        }
        let mut client = served.connect().await;
        let answer = call(&mut client).await;
        assert!(is_well(&answer), "{unkind:?}: {answer:?}");
        unkinds.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test]
async fn a_client_that_makes_no_call_or_reads_no_answer_is_cut_in_time() {
    let (short, drain_max) = (Duration::from_millis(200), Duration::from_millis(50));
    let served = Served::with(Bounds { first_call_max: short, idle_max: short, drain_max, ..WIDE }).await;
    for unkind in UNKIND {
        let client = unkind.connect(&served).await;
        let cut = tokio::time::timeout(WAIT_MAX, unkind.go_on(client)).await;
        assert!(cut.is_ok(), "{unkind:?} was not cut");
    }
    let mut client = served.connect().await;
    assert!(is_well(&call(&mut client).await));
}

#[tokio::test]
async fn those_who_use_their_places_keep_them() {
    let served = Served::with(Bounds { connections_max: 16, leave_max: Duration::ZERO, ..WIDE }).await;
    let mut active = served.connect().await;
    let mut busy = served.connect().await;
    busy.write_all(CALL_GATE).await.expect("sent");
    within(served.entered.acquire()).await.expect("open").forget();
    let mut idle = Vec::new();
    for _ in 0..64 {
        assert!(is_well(&call(&mut active).await), "it is in use");
        let mut another = served.connect().await;
        assert!(is_well(&call(&mut another).await));
        idle.push(another);
    }
    served.gate.add_permits(1);
    let mut answer = Vec::new();
    while !answer.ends_with(b"through") {
        assert!(within(busy.read_buf(&mut answer)).await.expect("it is served") > 0, "it was cut");
    }
    assert_eq!(call(&mut idle[0]).await, "", "nobody gave way");
}

#[tokio::test]
async fn a_slow_client_within_the_bounds_is_served() {
    let served = Served::with(Bounds::PUBLIC).await;
    let mut client = served.connect().await;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for octet in CALL {
        client.write_all(&[*octet]).await.expect("sent");
        pace.tick().await;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"well") {
        assert!(within(client.read_buf(&mut answer)).await.expect("it is served") > 0, "it was cut");
    }
    // And on the same connection again, with an answer that does not fit into what the system keeps.
    client.write_all(CALL_LARGE).await.expect("sent");
    let (mut read, mut part) = (0, vec![0; 1 << 20]);
    while read < LARGE_BYTES {
        let count = within(client.read(&mut part)).await.expect("it is served");
        assert!(count > 0, "it was cut after {read} octets");
        read += count;
        pace.tick().await;
    }
}

#[tokio::test]
async fn a_connection_ends_at_its_age_and_after_a_whole_answer() {
    let served = Served::with(Bounds { lifetime_max: Duration::from_millis(200), ..WIDE }).await;
    let mut client = served.connect().await;
    assert!(is_well(&call(&mut client).await));
    within(async {
        loop {
            let answer = call(&mut client).await;
            if answer.is_empty() {
                break;
            }
            assert!(is_well(&answer), "{answer:?}");
        }
    })
    .await;
    assert!(is_well(&call(&mut served.connect().await).await));
}

/// Begins a body of 100,000 octets, and sends all but one.
async fn hold_a_body(client: &mut TcpStream) {
    client.write_all(b"POST /body HTTP/1.1\r\nHost: keyward\r\nContent-Length: 100000\r\n\r\n").await.expect("sent");
    client.write_all(&[b'.'; 99_999]).await.expect("sent");
}

/// Sends what is left of the body, and says how the answer begins; nothing where the connection was cut.
async fn end_a_body(client: &mut TcpStream) -> String {
    // One that was refused may be closed already.
    let _ = client.write_all(b".").await;
    let mut answer = [0; 12];
    match within(client.read_exact(&mut answer)).await {
        Ok(_) => String::from_utf8_lossy(&answer).into_owned(),
        Err(_) => String::new(),
    }
}

const WELL: &str = "HTTP/1.1 200";

#[tokio::test]
async fn where_bodies_that_do_not_end_take_all_there_is_the_one_goes_that_has_held_longest() {
    // Two fit, and three do not.
    let served = Served::with(Bounds { arriving_bytes_max: 250_000, ..WIDE }).await;
    let mut first = served.connect().await;
    hold_a_body(&mut first).await;
    // What is told apart is how long they hold.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..5 {
        let mut client = served.connect().await;
        hold_a_body(&mut client).await;
        assert_eq!(end_a_body(&mut client).await, WELL, "there is room for one more");
    }
    let (mut second, mut third) = (served.connect().await, served.connect().await);
    hold_a_body(&mut second).await;
    hold_a_body(&mut third).await;
    let cut = within(first.read(&mut [0; 100])).await;
    assert!(!cut.is_ok_and(|count| count > 0), "it was not cut");
    assert_eq!(end_a_body(&mut second).await, WELL);
    assert_eq!(end_a_body(&mut third).await, WELL);
}

#[tokio::test]
async fn one_connection_holds_no_more_than_its_share() {
    let served = Served::with(Bounds { connection_bytes_max: 90_000, ..WIDE }).await;
    let mut client = served.connect().await;
    hold_a_body(&mut client).await;
    assert_ne!(end_a_body(&mut client).await, WELL);
    // And a header counts like a body.
    let served = Served::with(Bounds { connection_bytes_max: 20_000, ..WIDE }).await;
    for (filling, is_well) in [(100, true), (15_000, false)] {
        let mut client = served.connect().await;
        let field = "x".repeat(filling);
        let head = format!("POST /body HTTP/1.1\r\nHost: keyward\r\nX: {field}\r\nContent-Length: 1\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("sent");
        assert_eq!(end_a_body(&mut client).await == WELL, is_well, "{filling}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_to_its_end_is_given_up() {
    let served = Served::with(Bounds { body_max: Duration::from_millis(200), ..WIDE }).await;
    let mut client = served.connect().await;
    hold_a_body(&mut client).await;
    let mut answer = [0; 12];
    let read = within(client.read_exact(&mut answer)).await;
    assert!(read.is_err() || answer != WELL.as_bytes(), "{answer:?}");
    let mut client = served.connect().await;
    hold_a_body(&mut client).await;
    assert_eq!(end_a_body(&mut client).await, WELL);
}

#[tokio::test]
async fn shutdown_ends_idle_connections_at_once_and_waits_for_calls_under_way() {
    let served = Served::with(WIDE).await;
    let mut idle = vec![served.connect().await, Unkind::Undecided.connect(&served).await];
    let mut called = served.connect().await;
    assert!(is_well(&call(&mut called).await));
    idle.push(called);
    let mut busy = served.connect().await;
    busy.write_all(CALL_GATE).await.expect("sent");
    within(served.entered.acquire()).await.expect("open").forget();

    served.shutdown.cancel();
    for mut client in idle {
        let rest = within(client.read(&mut [0; 100])).await;
        assert!(!rest.is_ok_and(|count| count > 0), "something was sent to an idle client");
    }
    assert!(within(TcpStream::connect(served.address)).await.is_err(), "new clients are taken");
    assert!(!served.serving.is_finished(), "a call was not waited for");
    served.gate.add_permits(1);
    let mut answer = Vec::new();
    within(busy.read_to_end(&mut answer)).await.expect("the answer");
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("through"), "{answer:?}");
    within(served.serving).await.expect("it ended");
}
