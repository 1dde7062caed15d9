//! The page for people, as a person's browser shows it: Chromium, headless and with scripts off (tests/clients/page.mjs).

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod places;
mod safety;
mod screens;
mod timeline;

use common::{Clients, Server};
use keyward::grpc::proto::{CreateTenantRequest, RotationPolicy, Tenant};

const DOMAIN: &str = "login.example.com";

/// WCAG 2.2, success criterion 1.4.3: the contrast of text.
const CONTRAST_MIN: f64 = 4.5;

/// A server with the tenant `acme`: as `wanted`, and otherwise with two algorithms and a domain of its own.
async fn acme(wanted: Tenant) -> (Server, Clients) {
    let server = Server::dev();
    let clients = create_acme(&server, wanted).await;
    (server, clients)
}

async fn create_acme(server: &Server, wanted: Tenant) -> Clients {
    let mut clients = Clients::connect(server).await;
    let both = vec!["RS256".into(), "ES256".into()];
    let tenant = Tenant {
        id: "acme".into(),
        custom_domain: DOMAIN.into(),
        algorithms: if wanted.algorithms.is_empty() { both } else { wanted.algorithms },
        rotation_policy: wanted.rotation_policy.or_else(|| Some(policy())),
        ..wanted
    };
    clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
    clients
}

/// The default times, told, so that the page's can be reckoned from them.
fn policy() -> RotationPolicy {
    RotationPolicy {
        max_token_ttl: secs(86_400),
        jwks_max_age: secs(300),
        clock_skew: secs(60),
        publish_lead: secs(360),
        ..RotationPolicy::default()
    }
}

fn policy_of_short_times() -> RotationPolicy {
    RotationPolicy { publish_lead: secs(9), ..common::short_policy() }
}

fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn page_of(server: &Server) -> String {
    format!("{}/acme/", server.public())
}

/// The page on the custom domain, which the browser looks for on this machine.
fn on_domain(server: &Server) -> String {
    let port = server.public().rsplit_once(':').expect("host and port").1;
    format!("http://{DOMAIN}:{port}/")
}
