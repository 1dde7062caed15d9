"""A proxy that takes JWTs of one issuer and forwards requests with JWTs of another: a Keyward tenant's custom domain.

    pip install 'pyjwt[crypto]' grpcio grpcio-tools
    python resign_proxy.py --upstream 127.0.0.1:9000 --audience https://api.example.com \
        --issuer https://outside.example --jwks-uri https://outside.example/.well-known/jwks.json \
        --keyward 127.0.0.1:50051 --tenant acme --domain login.example.com

It listens on loopback and prints its address as one line of JSON. docs/resigning.md explains it.
"""

import argparse
import http.client
import json
import re
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from resigner import Refusal, Resigner, log

# Request headers that reach the upstream. A list of what may pass, because what a client must not set (X-Forwarded-For,
# X-User, X_User, a cookie that the upstream believes, ..) has no end. --forward-header adds to it.
FORWARDED_HEADERS = {
    "accept", "accept-language", "content-type", "if-match", "if-modified-since", "if-none-match",
    "if-unmodified-since", "range", "traceparent", "tracestate", "user-agent",
}  # fmt: skip
# Response headers that are about the connection and not about the answer (RFC 9110 section 7.6.1).
CONNECTION_HEADERS = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip

BODY_OCTETS_MAX = 1024 * 1024
CONNECTIONS_MAX = 64  # a thread each
CLIENT_TIMEOUT_SECS = 15
UPSTREAM_TIMEOUT_SECS = 30


class Proxy(BaseHTTPRequestHandler):
    """One request of one connection: HTTP/1.0 towards the client, so that no octet of it can pass for a second request."""

    timeout = CLIENT_TIMEOUT_SECS
    server_version, sys_version = "resign-proxy", ""

    def forward(self):
        try:
            self.forward_with(self.server.resigner.resign(self.bearer()))
        except Refusal as refusal:
            self.refuse(refusal)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = forward

    def bearer(self):
        """The one JWT of the one Authorization header (RFC 6750 section 2.1)."""
        values = self.headers.get_all("Authorization", [])
        scheme, _, outside_jwt = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not outside_jwt.strip():
            # Who shows nothing is told what to show, and no error code (RFC 6750 section 3.1).
            raise Refusal(401, "send one header: Authorization: Bearer JWT", {"WWW-Authenticate": "Bearer"})
        return outside_jwt.strip()

    def forward_with(self, resigned_jwt):
        if not self.path.startswith("/"):
            raise Refusal(400, "the request's target must be a path")
        allowed = FORWARDED_HEADERS | self.server.options.forward_header
        # The client's Connection header names what is meant for this connection alone (RFC 9110 section 7.6.1).
        hop = {name.strip().lower() for line in self.headers.get_all("Connection", []) for name in line.split(",")}
        headers = {name: value for name, value in self.headers.items() if name.lower() in allowed - hop}
        headers["Authorization"] = f"Bearer {resigned_jwt}"
        body = self.body()
        with closing(http.client.HTTPConnection(self.server.options.upstream, timeout=UPSTREAM_TIMEOUT_SECS)) as upstream:
            try:
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                log(f"the upstream does not answer: {error}")
                raise Refusal(502, "the service does not answer at the moment") from None
            self.pass_on(answer)

    def pass_on(self, answer):
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in CONNECTION_HEADERS:
                self.send_header(name, value)
        self.end_headers()
        while octets := answer.read(64 * 1024):
            self.wfile.write(octets)

    def body(self):
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) > 1:
            raise Refusal(411, "send the body with one Content-Length")
        if not lengths:
            return None
        # At most ten digits: int() is not asked to read a number of any length.
        length = int(lengths[0]) if re.fullmatch("[0-9]{1,10}", lengths[0]) else BODY_OCTETS_MAX + 1
        if length > BODY_OCTETS_MAX:
            raise Refusal(413, f"the body may have {BODY_OCTETS_MAX} octets")
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {CLIENT_TIMEOUT_SECS} s") from None
        if len(body) < length:
            raise Refusal(400, "the body is shorter than its Content-Length")
        return body

    def refuse(self, refusal):
        body = json.dumps({"error": refusal.problem}).encode()
        self.send_response_only(refusal.status)
        for name, value in {**refusal.headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A thread for each connection, and a bound on both."""

    def __init__(self, options):
        super().__init__(options.listen, Proxy)
        self.options, self.resigner = options, Resigner(options)
        self.slots = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def process_request(self, request, client_address):
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            # Full is said at once. A queue would only make everybody wait.
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        # Mostly a client that left. The connection is closed; the others go on.
        log(f"a request was broken off: {sys.exc_info()[1]!r}")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:8088", type=host_and_port, help="for clients; port 0: any free one")
    parser.add_argument("--upstream", required=True, help="host and port of the service behind it")
    parser.add_argument("--issuer", required=True, help="iss of the JWTs that clients have")
    parser.add_argument("--jwks-uri", required=True, help="that issuer's JWKS")
    parser.add_argument("--jwks-max-age-secs", type=float, default=300, help="at most the max-age that the issuer states")
    parser.add_argument("--jwks-cooldown-secs", type=float, default=30, help="pause between fetches for unknown kids")
    parser.add_argument("--audience", required=True, help="aud that those JWTs must have")
    parser.add_argument("--clock-skew-secs", type=int, default=0, help="how far the issuer's clock may be ahead or behind")
    parser.add_argument("--keyward", default="127.0.0.1:50051", help="address and port of Keyward's gRPC")
    parser.add_argument("--tenant", required=True, help="whose default algorithm's key signs")
    parser.add_argument("--domain", required=True, help="the tenant's custom domain: iss becomes https://DOMAIN")
    parser.add_argument("--upstream-audience", help="aud for the upstream; left out: --audience")
    parser.add_argument("--subject-prefix", default="", help="put before sub, so that no two issuers' subjects meet")
    parser.add_argument("--life-secs-max", type=int, default=300, help="longest life of a JWT for the upstream")
    parser.add_argument(
        "--forward-header", action="append", type=str.lower, default=[], help="one more request header that may pass"
    )
    parser.add_argument("--carry-claim", action="append", default=[], help="one more claim that is carried over")
    options = parser.parse_args()
    options.carry_claim = set(options.carry_claim)
    options.forward_header = set(options.forward_header) - {"authorization", "host", "content-length"} - CONNECTION_HEADERS
    return options


def host_and_port(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    with Server(parse_options()) as server:
        host, port = server.server_address
        print(json.dumps({"listen": f"http://{host}:{port}"}), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
