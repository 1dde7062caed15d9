use std::time::Duration;

/// What the clients of one listener may use up. Each time is one in which an honest client is long done.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What is spoken.
    pub protocol: Protocol,
    /// Connections at one time, handshakes included; beyond it, an idle one is given up for who comes next.
    pub connections_max: usize,
    /// Calls under way on one HTTP/2 connection: beyond it a client waits for its own calls, which HTTP/2 tells it.
    pub streams_max: u32,
    /// Octets of a header, and in HTTP/1.1 of what is read ahead.
    pub header_bytes_max: u32,
    /// Octets held for calls whose bodies have not come to their end, of all connections together. Beyond it the connection is
    /// cut that has held most for longest.
    pub arriving_bytes_max: usize,
    /// The same of one connection. Beyond it calls of it fail.
    pub connection_bytes_max: usize,
    /// How long a body may take to come to its end.
    pub body_max: Duration,
    /// How long a TLS handshake may take.
    pub handshake_max: Duration,
    /// How long a new connection may take to bring the whole header of its first call.
    pub first_call_max: Duration,
    /// How long a connection may then be without a call: from the head of an answer to the whole header of the next call,
    /// whether the client is silent, sends octet by octet, or does not read what it asked for. A call whose body does not
    /// come to its end is none.
    pub idle_max: Duration,
    /// How old a connection may become; clients then make a new one.
    pub lifetime_max: Duration,
    /// How long the answers may take to be read, once the connection is to end and no call is under way.
    pub drain_max: Duration,
    /// The same for a connection whose place another client waits for.
    pub leave_max: Duration,
    /// How long the calls may take that are under way when the connection is to end.
    pub call_max: Duration,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2, as the client begins.
    Http,
    /// HTTP/2 alone, with prior knowledge or by ALPN. Quiet connections are asked whether they are alive.
    Grpc,
}

/// How long a quiet gRPC connection is kept before it is asked whether it is alive, and how long the answer may take.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams that a client opened and reset before they were looked at, and streams that were reset because of what came on
/// them: beyond it the connection is closed. Clients that give up a call do not come near it.
pub(super) const RESETS_PENDING_MAX: usize = 20;
pub(super) const RESETS_OF_ERRORS_MAX: usize = 64;

/// What a call holds besides its header and its body: its stream and the tasks that wait for it. Measured, and rounded up.
pub(super) const CALL_BYTES: usize = 8 << 10;

/// What a field of a header holds besides its octets, as RFC 9113 section 6.5.2 counts.
pub(super) const FIELD_BYTES: usize = 32;

/// Messages of the largest size that are on their way on one connection side by side, at least.
const MESSAGES_ARRIVING: usize = 4;

/// Connections that may hold their whole share at one time.
const SHARES: usize = 8;

impl Bounds {
    /// Of verifiers, caches and browsers: some thousand keep their connections where no proxy stands between.
    pub const PUBLIC: Self = Self::http(4096);

    /// Of orchestrators: a few probes.
    pub const OPS: Self = Self::http(64);

    /// Of administration: a few clients.
    pub const MANAGEMENT: Self = Self::http(256);

    /// Of issuers and operators. A certificate that was withdrawn loses access when its connection is `connection_age_max`
    /// old, and `call_max` later at the latest.
    #[must_use]
    pub const fn grpc(connections_max: usize, connection_age_max: Duration, message_bytes_max: usize) -> Self {
        let http = Self::http(connections_max);
        let messages = MESSAGES_ARRIVING * message_bytes_max;
        let share = if messages > http.connection_bytes_max { messages } else { http.connection_bytes_max };
        Self {
            protocol: Protocol::Grpc,
            arriving_bytes_max: SHARES * share,
            connection_bytes_max: share,
            // A message is sent at once: 50 KiB/s for the largest that is taken where nothing is set.
            body_max: Duration::from_secs(20),
            // An issuer under load has that many calls under way at once.
            streams_max: 1024,
            // Names, deadline and credentials fit many times over.
            header_bytes_max: 16 * 1024,
            // Clients connect when they start, and call when there is something to sign.
            first_call_max: Duration::from_secs(60),
            // One that signs once in a few minutes keeps its connection.
            idle_max: Duration::from_secs(300),
            lifetime_max: connection_age_max,
            // Longer than any signature, and than generating the keys of a tenant usually takes.
            call_max: Duration::from_secs(60),
            ..http
        }
    }

    /// How old one connection may become: up to a tenth less than the bound, so that clients who came together do not come
    /// again together.
    pub(super) fn lifetime(&self) -> Duration {
        let mut share = [0];
        // Without random octets the bound itself is good enough.
        let share = getrandom::fill(&mut share).map_or(0, |()| u32::from(share[0]));
        self.lifetime_max - self.lifetime_max / 10 * share / 255
    }

    const fn http(connections_max: usize) -> Self {
        Self {
            protocol: Protocol::Http,
            connections_max,
            // The least that RFC 9113 section 6.5.2 recommends.
            streams_max: 100,
            // A JWT and cookies fit many times over, and all places together stay within some hundred MiB.
            header_bytes_max: 32 * 1024,
            // Ordinary messages are whole at once. Each of the streams that HTTP/2 permits can begin one side by side.
            connection_bytes_max: 16 << 20,
            arriving_bytes_max: SHARES * (16 << 20),
            // Who reads it gives up after 30 s, with an answer.
            body_max: Duration::from_secs(35),
            // Some round trips over a slow line.
            handshake_max: Duration::from_secs(10),
            // The same, and what a browser that connects in advance may wait.
            first_call_max: Duration::from_secs(20),
            // Above the 60 s after which common proxies and load balancers close what they keep: it is theirs to close,
            // so that they send no call into a connection that ends at that moment.
            idle_max: Duration::from_secs(75),
            // A handshake in ten minutes costs nobody anything.
            lifetime_max: Duration::from_secs(600),
            // The largest answers have some 100 KiB: 10 KiB/s.
            drain_max: Duration::from_secs(10),
            // What is on the way arrives, over a slow line too.
            leave_max: Duration::from_secs(1),
            // 30 s for a body, and then what a token that is slow takes for a key.
            call_max: Duration::from_secs(120),
        }
    }
}
