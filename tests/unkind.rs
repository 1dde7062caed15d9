//! Clients that hold on, flood and drag, while one signs that means well: it goes on, and memory stays bounded.
//!
//! Nothing is timed: each wait has a limit that a server which is brought down would exceed. The figures are printed.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Authority, Clients, Dial, Installation, Server, claims, http, short_policy};
use tonic::Code;

const IDLE_CLIENTS: usize = 1000;
const SLOW_CLIENTS: usize = 100;
/// Streams that a flooding client opens and resets at once, if it is not cut off before.
const RESETS: u32 = 200_000;
/// Calls of the client that means well, in each round.
const CALLS: usize = 50;
const CALLS_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a flood may go on.
const FLOOD_MAX: Duration = Duration::from_secs(20);
/// A client that is not read from is given up by itself after this.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(2);
/// What all of them together may make the server hold besides what it holds anyway. A thousand connections of 100 KiB each.
const MEMORY_GROWTH_KIB_MAX: u64 = 160 << 10;
/// The same for calls that do not end: 128 MiB are given to them, and what the allocator keeps besides.
const MEMORY_GROWTH_UNFINISHED_KIB_MAX: u64 = 192 << 10;

/// What a client of HTTP/2 begins with (RFC 9113 section 3.4): the preface and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Types and flags of frames, and a code (RFC 9113 sections 6, 7).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header of a call of SignJwt, in HPACK without its dynamic table (RFC 7541 section 6.2.2).
fn call_header() -> Vec<u8> {
    let mut header = vec![0x83, 0x86];
    for (index, value) in [
        (&[0x04][..], "/keyward.v1.SigningService/SignJwt"),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ] {
        header.extend(index);
        header.push(u8::try_from(value.len()).expect("short"));
        header.extend(value.as_bytes());
    }
    header
}

fn connect(address: &str) -> TcpStream {
    let client = TcpStream::connect(address).expect("connected");
    client.set_write_timeout(Some(WRITE_WAIT_MAX)).expect("set");
    client
}

/// Goes on until it is cut off, cannot write any more, or has written all. Says how many octets it got rid of.
fn flood(mut client: TcpStream, parts: impl Iterator<Item = Vec<u8>>) -> usize {
    let (begun, mut written) = (Instant::now(), 0);
    for part in parts {
        if client.write_all(&part).is_err() || begun.elapsed() > FLOOD_MAX {
            break;
        }
        written += part.len();
    }
    written
}

fn spawn_flood(address: &str, parts: impl Iterator<Item = Vec<u8>> + Send + 'static) -> JoinHandle<usize> {
    let client = connect(address);
    thread::spawn(move || flood(client, [PREFACE.to_vec()].into_iter().chain(parts)))
}

/// Opens streams and resets them at once.
fn rapid_resets() -> impl Iterator<Item = Vec<u8>> + Send {
    let header = call_header();
    (0..RESETS / 100).map(move |round| {
        let both = |index| {
            let stream = 2 * (100 * round + index) + 1;
            [frame(HEADERS, END_HEADERS, stream, &header), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
        };
        (0..100).flat_map(both).collect()
    })
}

/// Opens streams whose message never ends, as many as it may, with as much of each as the window lets through.
fn endless_messages() -> impl Iterator<Item = Vec<u8>> + Send {
    let header = call_header();
    (0..2000).map(move |index| {
        let begun = [&[0, 0, 0x0f, 0xff, 0xff][..], &[b'x'; 16_000]].concat();
        let stream = 2 * index + 1;
        [frame(HEADERS, END_HEADERS, stream, &header), frame(DATA, 0, stream, &begun)].concat()
    })
}

/// The client that means well: calls on one connection, and a new one.
async fn sign(clients: &mut Clients, server: &Server, issuer: &str) -> Duration {
    let begun = Instant::now();
    let calls = async {
        for _ in 0..CALLS {
            clients.sign_jwt("acme", "", claims(issuer, 60)).await.expect("who means well signs");
        }
        Clients::connect(server).await.sign_jwt("acme", "", claims(issuer, 60)).await.expect("on a new connection too");
        let jwks = server.jwks_uri("acme");
        tokio::task::spawn_blocking(move || assert_eq!(http::get(&jwks).status, 200)).await.expect("published");
    };
    tokio::time::timeout(CALLS_WAIT_MAX, calls).await.expect("in time");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_goes_on_whatever_other_clients_do_and_memory_stays_bounded() {
    let server = Installation::prepare();
    let (installation, server) = (&server, server.serve());
    assert!(installation.dir().exists());
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    let alone = sign(&mut clients, &server, &issuer).await;
    let before = server.memory_peak_kib();
    println!("{CALLS} calls alone: {alone:?}; memory {before} KiB");
    let mut told = async |what: &str| {
        let took = sign(&mut clients, &server, &issuer).await;
        println!("{what}: {CALLS} calls in {took:?}; memory at most {} KiB", server.memory_peak_kib());
    };

    let idle: Vec<TcpStream> = (0..IDLE_CLIENTS)
        .map(|index| {
            let mut client = connect(server.grpc());
            if index % 2 == 0 {
                client.write_all(PREFACE).expect("sent");
            }
            client
        })
        .collect();
    told("1,000 idle connections").await;

    let public = server.public().trim_start_matches("http://").to_owned();
    let slow: Vec<JoinHandle<()>> = (0..SLOW_CLIENTS)
        .map(|_| {
            let mut client = connect(&public);
            thread::spawn(move || {
                let begun = Instant::now();
                let _ = client.write_all(b"GET / HTTP/1.1\r\nX: ");
                while begun.elapsed() < FLOOD_MAX / 4 && client.write_all(b"x").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            })
        })
        .collect();
    told("and 100 clients with slow headers").await;

    let floods: Vec<JoinHandle<usize>> = (0..2).map(|_| spawn_flood(server.grpc(), rapid_resets())).collect();
    told("and 2 that open and reset streams").await;
    for reset in floods {
        let written = reset.join().expect("it ended");
        println!("a resetting client got rid of {written} octets of {}", RESETS * 92);
    }

    // A frame over what HTTP/2 permits ends the connection; a message over what is taken is refused.
    let mut client = connect(server.grpc());
    client.set_read_timeout(Some(CALLS_WAIT_MAX)).expect("set");
    let oversized = [&[0x40, 0, 0, DATA, 0, 0, 0, 0, 1][..], &[0; 1000]].concat();
    client.write_all(&[PREFACE, &frame(HEADERS, END_HEADERS, 1, &call_header()), &oversized].concat()).expect("sent");
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it was not cut off"),
    }
    for _ in 0..10 {
        let claims = vec![b' '; 4 << 20];
        let refused = Clients::connect(&server).await.sign_jwt("acme", "", claims).await.expect_err("too much");
        assert!(matches!(refused.code(), Code::ResourceExhausted | Code::InvalidArgument), "{refused:?}");
    }
    told("and frames and messages of 4 MiB").await;

    let endless: Vec<JoinHandle<usize>> = (0..4).map(|_| spawn_flood(server.grpc(), endless_messages())).collect();
    told("and 4 whose messages never end").await;
    for client in endless {
        println!("a client without end got rid of {} octets", client.join().expect("it ended"));
    }

    let growth = server.memory_peak_kib() - before;
    println!("memory grew by {growth} KiB at most");
    assert!(growth < MEMORY_GROWTH_KIB_MAX, "{growth} KiB");
    drop(idle);
    slow.into_iter().for_each(|client| client.join().expect("it ended"));
}

/// Calls of a client that sends no end, kept until it is dropped.
struct Endless {
    calls: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
    requests: h2::client::SendRequest<Bytes>,
}

impl Endless {
    async fn connect(server: &Server) -> Self {
        let tcp = tokio::net::TcpStream::connect(server.grpc()).await.expect("connected");
        let mut builder = h2::client::Builder::new();
        let (requests, connection) = builder.initial_max_send_streams(1000).handshake(tcp).await.expect("HTTP/2");
        // It may be cut.
        tokio::spawn(connection);
        Self { calls: Vec::new(), requests }
    }

    /// One more call, with a field of so many octets that HPACK does not keep, and this much of its body.
    async fn call(&mut self, path: &str, field_bytes: usize, body: Bytes) -> Result<(), h2::Error> {
        let mut field = ::http::HeaderValue::from_bytes(&vec![b'a'; field_bytes]).expect("a value");
        field.set_sensitive(true);
        let request = ::http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-field", field);
        self.requests = self.requests.clone().ready().await?;
        let (answer, mut sending) = self.requests.send_request(request.body(()).expect("a request"), false)?;
        sending.send_data(body, false)?;
        self.calls.push((answer, sending));
        Ok(())
    }

    /// The gRPC code of a call that was answered all the same; the others go on.
    async fn refusal(&mut self) -> String {
        let begun = Instant::now();
        loop {
            for (answer, _) in &mut self.calls {
                if let Ok(answer) = tokio::time::timeout(Duration::ZERO, answer).await {
                    let code = answer.expect("an answer").headers().get("grpc-status").cloned();
                    return code.expect("a code").to_str().expect("a number").to_owned();
                }
            }
            assert!(begun.elapsed() < CALLS_WAIT_MAX, "no call was refused");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_an_end_stop_nobody_elses() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["ES256"], short_policy()).await.issuer;
    sign(&mut clients, &server, &issuer).await;
    let before = server.memory_peak_kib();
    let mut told = async |what: &str| {
        let took = sign(&mut clients, &server, &issuer).await;
        println!("{what}: {CALLS} calls in {took:?}; memory grew by {} KiB", server.memory_peak_kib() - before);
    };
    let refused = |reason: &str| {
        server.metric(&format!("keyward_unfinished_calls_refused_total{{listener=\"grpc\",reason=\"{reason}\"}}"))
    };

    // All that may arrive, from two connections, in messages of 1 MiB that lack their last octet. Of each so few are refused that
    // HTTP/2 itself does not end the connection, which it does where more than 64 streams had to be reset.
    let mut message = vec![0, 0, 0x10, 0, 0];
    message.resize((1 << 20) + 4, b' ');
    let message = Bytes::from(message);
    let mut two = [Endless::connect(&server).await, Endless::connect(&server).await];
    for (client, path) in
        two.iter_mut().zip(["/keyward.v1.SigningService/SignJwt", "/keyward.v1.KeyService/GetSigningKey"])
    {
        for _ in 0..64 {
            client.call(path, 0, message.clone()).await.expect("it is not cut");
        }
    }
    told("128 MiB of messages on two connections").await;
    let begun = Instant::now();
    while refused("share") == 0.0 {
        assert!(begun.elapsed() < CALLS_WAIT_MAX, "nothing was refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for client in &mut two {
        assert_eq!(client.refusal().await, (Code::ResourceExhausted as i32).to_string());
    }
    told("which are refused").await;
    // What asks for no credentials takes no message of that size.
    let mut third = Endless::connect(&server).await;
    for _ in 0..32 {
        third.call("/grpc.health.v1.Health/Check", 0, message.clone()).await.expect("it is not cut");
    }
    told("and as health checks").await;

    // More connections than there are shares, each full of headers.
    let mut many = Vec::new();
    for _ in 0..12 {
        let mut client = Endless::connect(&server).await;
        for _ in 0..1000 {
            // It may be cut by then.
            let _ = client.call("/grpc.health.v1.Health/Check", 15_000, Bytes::new()).await;
        }
        many.push(client);
    }
    told("12 connections of 1,000 headers of 15 KB").await;
    let growth = server.memory_peak_kib() - before;
    println!("refused for the share {}, cut {}, slow {}", refused("share"), refused("budget"), refused("slow"));
    assert!(growth < MEMORY_GROWTH_UNFINISHED_KIB_MAX, "{growth} KiB");
    // The first two are still there, and their calls are given up: it is a client's own affair, and no reason to be cut.
    let begun = Instant::now();
    while refused("slow") + refused("budget") == 0.0 {
        assert!(begun.elapsed() < CALLS_WAIT_MAX, "calls without an end are kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_shake_hands_or_do_not_read_keep_nobody_out() {
    let authority = Authority::new();
    let client = authority.client("client", "URI:spiffe://example.com/issuer");
    let installation = Installation::prepare()
        .with_grpc_tls(&authority.issue("server"), Some(&authority))
        .set("grpc.connections_max", "16");
    let server = installation.serve();
    // A ClientHello of which the end never comes, from more clients than there are places.
    let slow: Vec<TcpStream> = (0..32)
        .map(|_| {
            let mut client = connect(server.grpc());
            let _ = client.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
            client
        })
        .collect();
    let dial = Dial::tls(server.grpc(), &authority, Some(&client));
    let mut clients = Clients::over(dial.connect().await.expect("there is a place"));
    clients.create_tenant("acme", &["ES256"], short_policy()).await;
    assert!(server.metric("keyward_connections_refused_total{listener=\"grpc\"}") >= 1.0);
    assert!(server.metric("keyward_connections{listener=\"grpc\"}") <= 16.0);
    drop(slow);
}
