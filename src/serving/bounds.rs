use std::time::Duration;

/// What the clients of one listener may use up. Each time is one in which an honest client is long done.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at one time, handshakes included; at the last one, an idle one is given up for who comes next.
    pub connections_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_max: Duration,
    /// How long a new connection may take to bring the whole header of its first call.
    pub first_call_max: Duration,
    /// How long a connection may then be without a call: from the head of an answer to the whole header of the next call,
    /// whether the client is silent, sends octet by octet, or does not read what it asked for.
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

impl Bounds {
    /// Of verifiers, caches and browsers: some thousand keep their connections where no proxy stands between.
    pub const PUBLIC: Self = Self::with_connections(4096);

    /// Of orchestrators: a few probes.
    pub const OPS: Self = Self::with_connections(64);

    /// Of administration: a few clients.
    pub const MANAGEMENT: Self = Self::with_connections(256);

    /// How old one connection may become: up to a tenth less than the bound, so that clients who came together do not come
    /// again together.
    pub(super) fn lifetime(&self) -> Duration {
        let mut share = [0];
        // Without random octets the bound itself is good enough.
        let share = getrandom::fill(&mut share).map_or(0, |()| u32::from(share[0]));
        self.lifetime_max - self.lifetime_max / 10 * share / 255
    }

    const fn with_connections(connections_max: usize) -> Self {
        Self {
            connections_max,
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
