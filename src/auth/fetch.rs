use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::tls::Roots;

/// How long a fetch may take, from the name of the host to the last octet: an issuer that is slower is not there.
pub(super) const FETCH_MAX: Duration = Duration::from_secs(5);

/// Largest answer taken, in octets: as much as of a file.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What stands at a URL. One request on a connection of its own; no redirect is followed, no proxy asked, no cookie kept.
/// The error follows the name of the configuration key.
pub(super) async fn get(url: &str, roots: &Roots) -> Result<Vec<u8>, String> {
    let url = Url::parse(url).map_err(|_| "is no URL".to_owned())?;
    timeout(FETCH_MAX, exchange(&url, roots))
        .await
        .unwrap_or_else(|_| Err(format!("does not answer within {} s", FETCH_MAX.as_secs())))
}

async fn exchange(url: &Url, roots: &Roots) -> Result<Vec<u8>, String> {
    let host = url.host_str().ok_or("is no URL with a host")?;
    let port = url.port_or_known_default().ok_or("is no URL with a port")?;
    // The brackets of an IPv6 address belong to the URL.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((name, port)).await.map_err(|error| format!("cannot be reached: {error}"))?;
    if url.scheme() == "https" {
        let stream = roots.connect(name, tcp).await.map_err(|error| format!("cannot be reached by TLS: {error}"))?;
        request(url, stream).await
    } else {
        request(url, tcp).await
    }
}

async fn request(url: &Url, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Vec<u8>, String> {
    let failed = |error: hyper::Error| format!("does not speak HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, "keyward")
        .body(Empty::<Bytes>::new())
        .map_err(|_| "cannot be asked for".to_owned())?;
    let mut answer = pin!(async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Err(format!("answers with the status {}; redirects are not followed", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|_| format!("breaks off, or answers with more than {ANSWER_BYTES_MAX} octets"))?;
        Ok(body.to_bytes().to_vec())
    });
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // The server may end the connection with the last octet, which is then still to be read.
        ended = connection => ended.map_err(failed)?,
    }
    answer.await
}
