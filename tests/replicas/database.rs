//! The way to the database: TLS, the password, and how many connections.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use crate::common::postgresql::Server;
use crate::common::{Authority, Clients, Installation, claims, said};
use crate::stand::{TENANT, policy};

const PASSWORD: &str = "correct horse";

/// Whoever stands between is not the database, and whoever has another password is refused; neither password nor certificate is in what
/// is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_reached_by_tls_and_password_and_no_other_way() {
    let (authority, other) = (Authority::new(), Authority::new());
    let identity = authority.issue("database");
    let server = Server::start_behind_tls(&identity.certificate, &identity.key, PASSWORD);
    let database = server.database();
    let name = database.psql("select current_database()");
    let url = |host: &str, parameters: &str| format!("postgres://keyward@{host}:{}/{name}?{parameters}", server.port());
    let trusted =
        |authority: &Authority| format!("sslmode=verify-full&sslrootcert={}", authority.certificate().display());
    let installation = |url: &str, password: &str| {
        let installation = Installation::bare().with_database(url);
        let file = installation.dir().join("database-password");
        fs::write(&file, format!("{password}\n")).expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("it is ours");
        installation.set("store.password_file", r#""database-password""#)
    };

    for (what, url, password, expected) in [
        ("another authority", url("localhost", &trusted(&other)), PASSWORD, "certificate"),
        ("another name", url("127.0.0.2", &trusted(&authority)), PASSWORD, "certificate"),
        ("no TLS", url("localhost", "sslmode=disable"), PASSWORD, "no encryption"),
        ("another password", url("localhost", &trusted(&authority)), "wrong horse", "password authentication failed"),
    ] {
        let (succeeds, text) = said(installation(&url, password).command("init"));
        assert!(!succeeds && text.contains("the store: ") && text.contains(expected), "{what}: {text}");
        assert!(!text.contains("horse"), "{what}: {text}");
    }

    let installation = installation(&url("localhost", &trusted(&authority)), PASSWORD).init();
    let running = installation.serve();
    let mut clients = Clients::connect(&running).await;
    let tenant = clients.create_tenant(TENANT, &["ES256"], policy()).await;
    clients.sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("signed");
    let ours = "from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'keyward'";
    assert_eq!(database.psql(&format!("select bool_and(ssl) and min(version) >= 'TLSv1.2' {ours}")), "t");
    assert!(!running.log().iter().any(|line| line.contains("horse")), "{:?}", running.log());
}

/// However many ask at once, a replica has no more connections than it was given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_has_no_more_connections_than_it_was_given() {
    let database = crate::common::postgresql::Database::fresh();
    let installation = Installation::bare().with_database(&database.url()).set("store.connections_max", "3").init();
    let running = installation.serve();
    let clients = Clients::connect(&running).await;
    let made = (0..12).map(|number| {
        let mut clients = clients.clone();
        tokio::spawn(async move { clients.create_tenant(&format!("tenant-{number}"), &["ES256"], policy()).await })
    });
    let made: Vec<_> = made.collect();
    let count =
        "select count(*) from pg_stat_activity where application_name = 'keyward' and datname = current_database()";
    let mut most = 0;
    while !made.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(database.psql(count).parse::<u32>().expect("a number"));
    }
    for made in made {
        made.await.expect("it is made");
    }
    assert!((2..=3).contains(&most), "{most} connections");
}
