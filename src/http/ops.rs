use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::keyring::{Health, QuarantinedKey, TokenHealth};
use crate::telemetry::{Metrics, Warnings};

/// `/healthz`: the process is alive, whatever the token does. `/readyz`: tokens, store, snapshot and clock, each by name, and what is
/// not as it should be besides, which takes no replica out of service: a mistyped file is no reason for an outage.
pub fn ops_router(health: watch::Receiver<Health>, warnings: Warnings, metrics: Metrics) -> Router {
    let router = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(readyz));
    let metrics_page = get(async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()));
    router.with_state((health, warnings)).route("/metrics", metrics_page)
}

async fn readyz(State((health, warnings)): State<(watch::Receiver<Health>, Warnings)>) -> Response {
    let health = health.borrow().clone();
    let ready = health.is_ready();
    let say = |problem: Option<&str>| problem.unwrap_or("ok").to_owned();
    let parts = health.parts().map(|(part, told)| (part, say(told.as_ref().err().map(String::as_str))));
    let checks = parts.into_iter().chain([("token", say(health.token().err()))]);
    let body = json!({
        "status": if ready { "ready" } else { "unready" },
        "checks": checks.collect::<BTreeMap<_, _>>(),
        "tokens": health.tokens.iter().map(|(name, health)| (name.to_string(), token(health.as_ref()))).collect::<Map<_, _>>(),
        "quarantined": health.quarantined,
        "quarantined_keys": health.quarantined_keys.iter().map(quarantined_key).collect::<Vec<_>>(),
        "warnings": warnings.all(),
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn token(health: Option<&TokenHealth>) -> Value {
    let Some(TokenHealth { state, since, problem }) = health else { return json!({"problem": "not probed yet"}) };
    json!({"state": state.word(), "since": since.to_string(), "problem": problem})
}

fn quarantined_key(key: &QuarantinedKey) -> Value {
    let QuarantinedKey { kid, tenant, algorithm, since } = key;
    json!({"kid": kid.as_str(), "tenant": tenant.as_str(), "algorithm": algorithm.name(), "since": since.to_string()})
}
