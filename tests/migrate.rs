//! `keyward migrate`: a store that moves out of its SQLite file into a PostgreSQL database.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::http::{Answer, get, send};
use common::postgresql::{self, Database, Shell};
use common::{Clients, Installation, Server, claims, said, shared_policy, short_policy, verify};
use keyward::grpc::proto::{
    CreateTenantRequest, DeleteTenantRequest, GetTenantRequest, RevokeSigningKeyRequest, RotationPolicy, Tenant,
};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection, query, raw_sql};

/// How long what must come may take.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A domain of `acme`'s own.
const DOMAIN: &str = "login.acme.example";

const FILE: &str = "store.sqlite";

fn file(installation: &Installation) -> PathBuf {
    installation.dir().join(FILE)
}

/// The configuration that names the file again.
fn on_file(installation: Installation) -> Installation {
    installation.without("store.url").set("store.path", &format!("{FILE:?}"))
}

fn migrate(installation: &Installation) -> Command {
    let mut command = installation.command("migrate");
    command.arg("--from").arg(file(installation));
    command
}

/// What `keyward migrate` says that must be refused, and leave the database as empty as it was.
fn refusal(installation: &Installation, database: &Database) -> String {
    let (moved, text) = said(migrate(installation));
    assert!(!moved, "{text}");
    assert_empty(database);
    text
}

fn assert_empty(database: &Database) {
    let names =
        "select coalesce(string_agg(relname, ' '), '') from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(database.psql(names), "");
}

fn move_to(installation: &Installation) {
    let (moved, text) = said(migrate(installation));
    assert!(moved && text.contains("holds from now on"), "{text}");
}

async fn shell(installation: &Installation) -> SqliteConnection {
    let file = SqliteConnectOptions::new().filename(file(installation)).foreign_keys(false);
    file.connect().await.expect("the store")
}

/// An edit by somebody who can write the file.
async fn edit(installation: &Installation, statement: &'static str) {
    raw_sql(statement).execute(&mut shell(installation).await).await.expect("edited");
}

/// Waits until a tenant that was deleted is gone, and a removal in its place.
async fn wait_for_removal(installation: &Installation) {
    let mut connection = shell(installation).await;
    let begun = Instant::now();
    while query("select tenant from removal").fetch_optional(&mut connection).await.expect("the store").is_none() {
        assert!(begun.elapsed() < WAIT_MAX, "it is not removed");
        tokio::time::sleep(POLL).await;
    }
}

/// An installation on a file, stopped, with the tenant `acme`, whose key was rotated once.
async fn prepare() -> (Installation, Tenant) {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let acme = clients.create_tenant("acme", &["ES256"], shared_policy()).await;
    clients.force_rotation("acme", "ES256").await;
    assert!(server.terminate().success());
    (installation, acme)
}

async fn assert_signs(server: &Server, tenant: &Tenant) {
    let mut clients = Clients::connect(server).await;
    let signed = clients.sign_jwt(&tenant.id, "", claims(&tenant.issuer, 60)).await.expect("it signs");
    verify(&signed.jwt, &get(&server.jwks_uri(&tenant.id)).json());
    clients.force_rotation(&tenant.id, "ES256").await;
}

/// The file serves, signs and changes as if nothing had been.
async fn assert_holds(installation: Installation, tenant: &Tenant) -> Installation {
    let installation = on_file(installation);
    let server = installation.serve();
    assert_signs(&server, tenant).await;
    assert!(server.terminate().success());
    installation
}

/// Moved in the end, whatever happened before.
async fn assert_moves(installation: Installation, database: &Database, tenant: &Tenant) {
    let installation = installation.with_database(&database.url());
    move_to(&installation);
    assert_signs(&installation.serve(), tenant).await;
}

fn keys_in(jwks: &Answer, state: &str) -> Vec<String> {
    let jwks: Value = jwks.json();
    let keys = jwks["keys"].as_array().expect("a JWKS").iter().filter(|key| key["state"] == state);
    keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// What everybody sees of the tenants: their JWKS, octet by octet, and their records with their revisions.
async fn seen(server: &Server) -> Vec<(Answer, Tenant)> {
    let mut clients = Clients::connect(server).await;
    let mut seen = Vec::new();
    for id in ["acme", "other"] {
        let jwks = get(&server.jwks_uri(id));
        assert_eq!(jwks.status, 200);
        let record = clients.tenants.get_tenant(GetTenantRequest { id: id.to_owned() }).await.expect("it is there");
        seen.push((jwks, record.into_inner()));
    }
    seen
}

fn assert_verifies(installation: &Installation, records: &str) {
    let output = installation.verify_audit().output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains(&format!("administration: {records} records")), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_over_and_the_file_is_the_past() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let acme = Tenant {
        id: "acme".to_owned(),
        custom_domain: DOMAIN.to_owned(),
        algorithms: vec!["ES256".to_owned(), "EdDSA".to_owned()],
        rotation_policy: Some(shared_policy()),
        ..Tenant::default()
    };
    let acme = clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(acme) }).await.expect("created");
    let acme = acme.into_inner();
    clients.create_tenant("other", &["ES256"], shared_policy()).await;
    let at_once = RotationPolicy { destroy_delay: Some(prost_types::Duration::default()), ..shared_policy() };
    clients.create_tenant("gone", &["ES256"], at_once).await;
    for _ in 0..3 {
        clients.force_rotation("acme", "ES256").await;
    }
    let revoked = keys_in(&get(&server.jwks_uri("acme")), "previous").remove(0);
    let revoke = RevokeSigningKeyRequest { tenant: "acme".to_owned(), kid: revoked.clone() };
    clients.keys.revoke_signing_key(revoke).await.expect("revoked");
    let confirmed = DeleteTenantRequest { id: "gone".to_owned(), confirm_id: "gone".to_owned() };
    clients.tenants.delete_tenant(confirmed).await.expect("deleted");
    wait_for_removal(&installation).await;
    let before = seen(&server).await;
    let signed = clients.sign_jwt("acme", "ES256", claims(&acme.issuer, 60)).await.expect("it signs");
    assert!(server.terminate().success());
    let checkpoints =
        fs::read(installation.dir().join("audit/checkpoints-administration.jsonl")).expect("they were signed");

    let database = Database::fresh();
    let installation = installation.with_database(&database.url());
    move_to(&installation);
    let server = installation.serve();
    let after = seen(&server).await;
    for ((jwks, record), (jwks_after, record_after)) in before.iter().zip(&after) {
        assert_eq!(String::from_utf8_lossy(&jwks.body), String::from_utf8_lossy(&jwks_after.body));
        assert_eq!(record, record_after);
    }
    assert_eq!(get(&server.jwks_uri("gone")).status, 404);
    let on_domain = format!("{}/.well-known/jwks.json", server.public());
    assert_eq!(send("GET", &on_domain, &[("host", DOMAIN)]).status, 200);
    let mut clients = Clients::connect(&server).await;
    let again = clients.sign_jwt("acme", "ES256", claims(&acme.issuer, 60)).await.expect("it signs");
    assert_eq!(again.kid, signed.kid);
    verify(&again.jwt, &before[0].0.json());
    clients.force_rotation("acme", "ES256").await;
    assert!(keys_in(&get(&server.jwks_uri("acme")), "previous").contains(&signed.kid));
    verify(&signed.jwt, &get(&server.jwks_uri("acme")).json());
    assert!(server.terminate().success());

    // One log, under the checkpoints from before and those since.
    let checkpoints_now =
        fs::read(installation.dir().join("audit/checkpoints-administration.jsonl")).expect("they are there");
    assert!(checkpoints_now.starts_with(&checkpoints) && checkpoints_now.len() > checkpoints.len());
    assert_verifies(&installation, &database.psql("select count(*) from audit_event"));
    let moves = "select count(*) from audit_event where record::json ->> 'action' = 'migrate'";
    assert_eq!(database.psql(moves), "1");

    let (again, text) = said(migrate(&installation));
    assert!(again && text.contains("nothing was moved") && text.contains("holds already"), "{text}");
    // Another replica believes it all, and that the tenant is gone.
    assert_eq!(database.psql("select tenant from removal"), "gone");
    drop(installation.replica().join().serve());

    // Nor to another database: there would be two of it.
    let elsewhere = Database::fresh();
    let installation = installation.with_database(&elsewhere.url());
    let text = refusal(&installation, &elsewhere);
    assert!(text.contains("name that database") && text.contains(&database.url()), "{text}");

    // Whoever still has the old configuration leaves the memory alone that the service goes on with.
    let installation = installation.with_database(&database.url());
    let server = installation.serve();
    let installation = on_file(installation);
    let memory = || fs::metadata(installation.dir().join("store-witness.jsonl")).expect("it is there").ino();
    let before_that = memory();
    for verb in ["accept-store", "reconcile"] {
        let (taken, text) = said(installation.command(verb));
        assert!(!taken && text.contains("store-witness.jsonl is in use by another Keyward process"), "{verb}: {text}");
        assert_eq!(memory(), before_that, "{verb}");
    }
    assert!(server.terminate().success());
    for verb in ["serve", "accept-store", "reconcile"] {
        let (taken, text) = said(installation.command(verb));
        assert!(!taken && text.contains("was moved to") && text.contains(&database.url()), "{verb}: {text}");
    }
    // The way back, on purpose: a memory that begins anew with what is in the file.
    fs::remove_file(installation.dir().join("store-witness.jsonl")).expect("it is there");
    let mut accept = installation.command("accept-store");
    accept.arg("--confirm");
    let (accepted, text) = said(accept);
    assert!(accepted, "{text}");
    let server = installation.serve();
    let back = get(&server.jwks_uri("acme"));
    assert_eq!(keys_in(&back, "current"), keys_in(&before[0].0, "current"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_way_is_named_and_left() {
    let (installation, acme) = prepare().await;
    let (moved, text) = said(migrate(&installation));
    assert!(!moved && text.contains("store.url"), "{text}");

    let taken = Database::fresh();
    drop(Installation::bare().with_database(&taken.url()).init());
    let installation = installation.with_database(&taken.url());
    let (moved, text) = said(migrate(&installation));
    let named = |text: &str, database: &Database| text.contains("store.url") && text.contains(&database.url());
    assert!(!moved && named(&text, &taken) && text.contains("holds a store already"), "{text}");

    let in_use = Database::fresh();
    in_use.psql("create table invoices (number int); insert into invoices values (7)");
    let installation = installation.with_database(&in_use.url());
    let (moved, text) = said(migrate(&installation));
    assert!(!moved && named(&text, &in_use) && text.contains("1 tables, such as invoices"), "{text}");
    assert_eq!(in_use.psql("select number from invoices"), "7");
    assert_eq!(in_use.psql("select count(*) from pg_class where relnamespace = 'public'::regnamespace"), "1");

    let database = Database::fresh();
    let installation = installation.with_database(&database.url());
    let mut missing = installation.command("migrate");
    missing.args(["--from", "/nowhere/store.sqlite"]);
    let (moved, text) = said(missing);
    assert!(!moved && text.contains("/nowhere/store.sqlite"), "{text}");

    // Another token, even with everything else at hand.
    let stranger = Installation::bare().with_database(&database.url());
    for name in ["service-key.json", "store-witness.jsonl", FILE] {
        stranger.put(name, &installation.dir().join(name));
    }
    let text = refusal(&stranger, &database);
    assert!(text.contains("serial"), "{text}");

    let installation = on_file(installation);
    let server = installation.serve();
    let installation = installation.with_database(&database.url());
    let text = refusal(&installation, &database);
    assert!(text.contains("in use by another Keyward process"), "{text}");
    assert_signs(&server, &acme).await;

    // A policy that leaves no room for replicas.
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("short", &["ES256"], short_policy()).await;
    assert!(server.terminate().success());
    let text = refusal(&installation, &database);
    assert!(text.contains("clock_skew must be at least 3 s, and it is less for short;"), "{text}");
    let installation = on_file(installation);
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let deletion = DeleteTenantRequest { id: "short".to_owned(), confirm_id: "short".to_owned() };
    clients.tenants.delete_tenant(deletion).await.expect("deleted");
    assert!(server.terminate().success());
    let installation = installation.with_database(&database.url());
    assert_moves(installation, &database, &acme).await;
}

/// Each time somebody edited something else, or put an older state back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_believed_is_named_and_nothing_is_moved() {
    let (installation, acme) = prepare().await;
    let older = fs::read(file(&installation)).expect("a closed store is one file");
    let installation = assert_holds(installation, &acme).await;
    let good = fs::read(file(&installation)).expect("a closed store is one file");
    let database = Database::fresh();
    let installation = installation.with_database(&database.url());
    for (statement, named) in [
        ("update tenant set document = replace(document, '\"acme\"', '\"acme\" ')", "acme: "),
        ("delete from keyring; delete from tenant", "acme: tenant acme: its record is gone"),
        (
            "update audit_event set record = replace(record, 'anonymous', 'keyward') where position = 0",
            "record 1: it was written",
        ),
        (
            "update audit_event set tenant = 'other' where position = 1",
            "record 1: its row is filed under another tenant",
        ),
        ("delete from audit_event where position = 0", "record 1: it says that it is record 1"),
    ] {
        edit(&installation, statement).await;
        let text = refusal(&installation, &database);
        assert!(text.contains("nothing was moved") && text.contains(named), "{statement}: {text}");
        fs::write(file(&installation), &good).expect("put back");
    }
    fs::write(file(&installation), &older).expect("put back");
    let text = refusal(&installation, &database);
    assert!(text.contains("acme: keyring acme ES256: it was put back") && text.contains("accept-store"), "{text}");
    fs::write(file(&installation), &good).expect("put back");
    assert_moves(installation, &database, &acme).await;
}

/// A database in which whoever moves there stands still at a certain point, for as long as this shell stays open.
struct StandStill {
    database: Database,
    shell: Shell,
}

/// Behind the first records of the administration log.
const WHILE_COPYING: &str = "trigger trap after insert on audit_event for each statement";
/// When everything was done and the commit was asked for.
const AT_THE_COMMIT: &str =
    "constraint trigger trap after insert on audit_event deferrable initially deferred for each row";

impl StandStill {
    fn of(database: Database, point: &str) -> Self {
        database.set_trap("audit_event", point, "perform pg_advisory_xact_lock_shared(7); return null;");
        let mut shell = database.shell();
        shell.ask("select pg_advisory_lock(7);");
        Self { database, shell }
    }

    /// Begins to move there, up to that point.
    fn begin(&self, installation: &Installation) -> Child {
        let mut moving = migrate(installation).stderr(Stdio::piped()).spawn().expect("it runs");
        let begun = Instant::now();
        while self.database.psql("select count(*) from pg_locks where locktype = 'advisory' and not granted") == "0" {
            assert!(moving.try_wait().expect("a child").is_none(), "it ended before");
            assert!(begun.elapsed() < WAIT_MAX, "it does not come so far");
            std::thread::sleep(POLL);
        }
        moving
    }

    /// Lets everybody go on, and waits until nobody is left.
    fn end(self) -> Database {
        drop(self.shell);
        let begun = Instant::now();
        while self.database.psql("select count(*) from pg_stat_activity where application_name = 'keyward'") != "0" {
            assert!(begun.elapsed() < WAIT_MAX, "somebody is still there");
            std::thread::sleep(POLL);
        }
        self.database.remove_trap();
        self.database
    }

    /// Cuts the connection of whoever moves there.
    fn cut(&self) {
        // Other tests have databases on the same server.
        self.database.psql(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where application_name = 'keyward' and datname = current_database()",
        );
    }
}

fn ended(moving: Child) -> (bool, String) {
    let output = moving.wait_with_output().expect("it ends");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn killed(mut moving: Child) {
    moving.kill().expect("it runs");
    moving.wait().expect("it was killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_in_the_middle_was_not_begun() {
    let (mut installation, acme) = prepare().await;
    let server = postgresql::Server::start();
    let ends: [fn(&StandStill, &postgresql::Server, Child); 3] = [
        |still, _, moving| {
            still.cut();
            let (moved, text) = ended(moving);
            assert!(!moved && text.contains("the store is not available"), "{text}");
        },
        |_, server, moving| {
            server.kill_and_start_again();
            let (moved, text) = ended(moving);
            assert!(!moved && text.contains("the store is not available"), "{text}");
        },
        |_, _, moving| killed(moving),
    ];
    for end in ends {
        let still = StandStill::of(server.database(), WHILE_COPYING);
        installation = installation.with_database(&still.database.url());
        let moving = still.begin(&installation);
        end(&still, &server, moving);
        let database = still.end();
        assert_empty(&database);
        installation = assert_holds(installation, &acme).await;
    }
    assert_moves(installation, &server.database(), &acme).await;
}

/// Until it is known whether the store was moved, nobody uses it: the same command again says so, or moves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_at_the_commit_was_done_or_is_done_by_the_next() {
    let (installation, acme) = prepare().await;
    let still = StandStill::of(Database::fresh(), AT_THE_COMMIT);
    let installation = installation.with_database(&still.database.url());
    let moving = still.begin(&installation);
    still.cut();
    let (moved, text) = ended(moving);
    assert!(!moved && text.contains("whether the store was moved is not known"), "{text}");
    let database = still.end();
    assert_empty(&database);
    assert_waits(installation, &database, |text| text.contains("holds from now on"), &acme).await;

    let (installation, acme) = prepare().await;
    let still = StandStill::of(Database::fresh(), AT_THE_COMMIT);
    let installation = installation.with_database(&still.database.url());
    killed(still.begin(&installation));
    // The database goes on with what it was asked for.
    let database = still.end();
    assert_eq!(database.psql("select count(*) from meta"), "1");
    assert_waits(installation, &database, |text| text.contains("holds already"), &acme).await;
}

/// The file is not served; `keyward migrate` says this, and the database is.
async fn assert_waits(installation: Installation, database: &Database, says: fn(&str) -> bool, tenant: &Tenant) {
    let installation = on_file(installation);
    let (served, text) = said(installation.command("serve"));
    assert!(!served && text.contains("if `keyward migrate` was interrupted, run it again"), "{text}");
    let installation = installation.with_database(&database.url());
    let (moved, text) = said(migrate(&installation));
    assert!(moved && says(&text), "{text}");
    assert_signs(&installation.serve(), tenant).await;
}
