use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::Mutex;

use super::Problem;

/// Longest body taken, in octets: more than the longest set of custom keys, whose own limit then says what is wrong.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// How much more is heard out and dropped, in octets, of a body that is too long or that nobody wants.
const DROPPED_BYTES_MAX: usize = 1024 * 1024;

/// How long a body may take to arrive.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);

/// The body of a request, which a handler may read.
#[derive(Clone)]
pub(super) struct Unread(Arc<Mutex<Body>>);

/// Hears a request out before it is answered. A client that is answered before it has sent its body may take that for a
/// broken connection, and would not tell its user that the JWT has expired.
pub(super) async fn heard_out(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let unread = Unread(Arc::new(Mutex::new(body)));
    parts.extensions.insert(unread.clone());
    let response = next.run(Request::from_parts(parts, Body::empty())).await;
    let dropping = async {
        let mut body = unread.0.lock().await;
        let mut dropped = 0;
        while let Some(Ok(data)) = next_data(&mut body).await
            && dropped < DROPPED_BYTES_MAX
        {
            dropped += data.len();
        }
    };
    // A client that does not come to its end is answered all the same.
    let _ = tokio::time::timeout(BODY_WAIT_MAX, dropping).await;
    response
}

impl Unread {
    /// The whole body as text.
    pub(super) async fn text(&self) -> Result<String, Problem> {
        let bad = |message| Problem::new(StatusCode::BAD_REQUEST, message);
        let reading = async {
            let mut body = self.0.lock().await;
            let mut octets = Vec::new();
            while let Some(data) = next_data(&mut body).await {
                // Nobody hears this answer, but what was cut off must not be carried out.
                let data = data.map_err(|_| bad("the body was cut off"))?;
                if octets.len() + data.len() > BODY_BYTES_MAX {
                    let message = format!("the body is longer than {BODY_BYTES_MAX} octets; a set has at most 10 keys");
                    return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message));
                }
                octets.extend_from_slice(&data);
            }
            String::from_utf8(octets).map_err(|_| bad("the body must be JSON in UTF-8"))
        };
        let read = tokio::time::timeout(BODY_WAIT_MAX, reading).await;
        read.unwrap_or_else(|_| Err(bad("the body did not arrive within 30 s")))
    }
}

/// The next octets; none at the end.
async fn next_data(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => return Some(Ok(data)),
            // Trailers, which say nothing here.
            Ok(Err(_)) => {}
            Err(broken) => return Some(Err(broken)),
        }
    }
}
