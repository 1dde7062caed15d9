//! What is made once, before the service can run: the store, the service key and the file that pins it; and their opening.

mod tokens;

pub use tokens::{OpenedTokens, open_tokens};

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::Keeper;
use crate::config::{AuditSettings, Config};
use crate::domain::{Event, ObjectId, PublicKey, TokenName};
use crate::files::put_whole;
use crate::jose::BadPublicKey;
use crate::keyring::reconcile::{self, ReconcileError, Report};
use crate::keyring::{CLOCK_SKEW_MIN, Canary, ServiceKey, Tokens, new_object};
use crate::store::{
    Guard, Loaded, Location, Moved, Restored, SqlStore, Store as _, StoreError, TokenBinding, Transfer, may_have_moved,
    postgres,
};
use crate::token::{Pkcs11Token, Token, TokenError, TokenIdentity};

/// Why the service cannot be set up or opened. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Something is in the way, or missing.
    #[error("{0}")]
    Refused(String),
    /// The token.
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// Token and store cannot be compared, or must not be changed.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The pinned service key is not one.
    #[error("the service key: {0}")]
    ServiceKey(#[from] BadPublicKey),
}

/// What a service runs on.
pub struct Opened {
    /// The tokens, each attended from the moment that somebody attends it.
    pub tokens: Arc<Tokens>,
    /// The store, which believes what the service key sealed.
    pub store: Arc<SqlStore>,
    /// The service key, on the home token.
    pub service_key: Arc<ServiceKey>,
}

/// The file that pins the service key. Whoever can change it can make the service believe another key (R15).
#[derive(Debug, Serialize, Deserialize)]
struct ServiceKeyFile {
    /// CKA_ID of the key on the token.
    cka_id: ObjectId,
    /// Its public half; not there while the key is being made.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKey>,
}

/// Makes store, service key and pin file. What an interrupted call left is taken up again; what is complete is refused.
///
/// # Errors
/// Says what is in the way, or what failed; the same call again goes on from there.
pub async fn init(config: &Config, token: &Arc<Pkcs11Token>) -> Result<(), SetupError> {
    let (store, pinned) = (&config.store, &config.service_key_path);
    let begun = pinned.with_extension("begun");
    let resuming = begun.exists();
    let exists = |what: &dyn fmt::Display| {
        SetupError::Refused(format!("{what} exists already; init makes everything new and touches nothing"))
    };
    if pinned.exists() {
        return Err(exists(&pinned.display()));
    }
    let is_made = store.is_taken().await?;
    if is_made && !resuming {
        return Err(exists(store));
    }
    // 1. The intent: under which id the service key will be. A crash from here on leaves at most that id on the token.
    let object = if resuming { read_pin(&begun)?.cka_id } else { new_intent(&begun)? };
    // The memory of a store is made before the store.
    if is_made && !config.store_witness_path.exists() {
        return Err(not_ours(config, &begun, object));
    }
    // 2. The key.
    let public_key = Canary::make(&**token, object).await?.public().clone();
    // 3. The store, bound to the token. It appears whole or not at all.
    let identity = token.identity();
    let binding = TokenBinding { serial: identity.serial.clone(), label: identity.label.clone() };
    if !is_made {
        store.create(&binding, &config.store_witness_path).await?;
    }
    let key = Arc::new(ServiceKey::new(Arc::clone(token) as _, object, public_key.clone())?);
    let made = store.open(guard(config, &key)).await?;
    let (bound, noted) = (made.binding().await, made.make_with(object).await);
    made.close().await;
    if let Err(StoreError::Conflict) = noted {
        return Err(not_ours(config, &begun, object));
    }
    noted?;
    let bound = bound?;
    if bound != binding {
        let text =
            format!("an interrupted init bound the store to the token of serial {}; go on with that one", bound.serial);
        return Err(SetupError::Refused(text));
    }
    // 4. The pin, which ends the set-up.
    let file = ServiceKeyFile { cka_id: object, public_key: Some(public_key) };
    write_pin(pinned, &file)?;
    fs::remove_file(&begun).map_err(|error| SetupError::File { path: begun.clone(), error })
}

fn not_ours(config: &Config, begun: &Path, object: ObjectId) -> SetupError {
    let (store, begun, witness) = (&config.store, begun.display(), config.store_witness_path.display());
    SetupError::Refused(format!(
        "somebody else ran init for {store} at the same time, and made it with another service key: remove {begun}, and {witness} if it is \
         there, copy service-key.json from there, and run `keyward join`. The key of this attempt, {object}, is nobody's: `keyward \
         reconcile` names it if it was made"
    ))
}

fn new_intent(begun: &Path) -> Result<ObjectId, SetupError> {
    let file = ServiceKeyFile { cka_id: new_object(), public_key: None };
    write_pin(begun, &file)?;
    Ok(file.cka_id)
}

/// Makes this replica's memory of a store that another replica made, of what is in it now.
///
/// # Errors
/// The store is of one process alone, or belongs to another token; the replica has a memory of it already; or what failed.
pub async fn join(config: &Config, token: &Arc<Pkcs11Token>) -> Result<Loaded, SetupError> {
    let Location::Postgres(settings) = &config.store else {
        let text = "a SQLite store has one process; replicas share a PostgreSQL database, which store.url names";
        return Err(SetupError::Refused(text.to_owned()));
    };
    let witness = &config.store_witness_path;
    if witness.exists() {
        let text = format!("{} is there: this replica has joined, and can serve", witness.display());
        return Err(SetupError::Refused(text));
    }
    let key = pinned_key(config, Arc::clone(token) as _)?;
    let store = postgres::join(settings, guard(config, &key)).await?;
    let joined = async {
        is_of(&store, token.identity(), key.object()).await?;
        // Follows the administration log to its end, which is remembered, too.
        store.probe().await?;
        Ok(store.load_all().await?)
    };
    let joined = joined.await;
    store.close().await;
    if joined.is_err() {
        // It was not there before, and what it says would pass for a whole one.
        fs::remove_file(witness).map_err(|error| SetupError::File { path: witness.clone(), error })?;
    }
    joined
}

/// Moves the store in the SQLite file `from` to the database of the configuration, with `event` as the next record of the
/// administration log. `None` if it is there already: an earlier call moved it, and perhaps could not say so.
///
/// # Errors
/// The configuration names no database, or one that is not empty; the store is in use, belongs to another token, or is not believed;
/// or what failed. The same call again moves it, or says that it is done.
pub async fn migrate(
    config: &Config,
    from: &Path,
    token: &Arc<Pkcs11Token>,
    event: Event,
) -> Result<Option<Moved>, SetupError> {
    let Location::Postgres(target) = &config.store else {
        let text = "a store is moved into a PostgreSQL database: name it by store.url, in the place of store.path";
        return Err(SetupError::Refused(text.to_owned()));
    };
    let key = pinned_key(config, Arc::clone(token) as _)?;
    if may_have_moved(&config.store_witness_path, target)? && config.store.is_taken().await? {
        let store = config.store.open(guard(config, &key)).await?;
        // The one that was seen, and not another's.
        let seen = async {
            is_of(&store, token.identity(), key.object()).await?;
            Ok(store.probe().await?)
        };
        let seen = seen.await;
        store.close().await;
        return seen.map(|()| None);
    }
    let transfer = Transfer::open(from, target, guard(config, &key)).await?;
    let moved = async {
        is_of(transfer.source(), token.identity(), key.object()).await?;
        leaves_room(&transfer.source().load_all().await?)?;
        Ok(Some(transfer.carry_out(event).await?))
    };
    let moved = moved.await;
    transfer.close().await;
    moved
}

/// Sees that policies leave room for replicas' clocks, and for what they do to reach the others.
fn leaves_room(loaded: &Loaded) -> Result<(), SetupError> {
    let tenants = loaded.records.iter().map(|record| &record.tenant);
    let short = tenants.filter(|tenant| tenant.delete_time.is_none() && tenant.policy.clock_skew < CLOCK_SKEW_MIN);
    let short: Vec<&str> = short.map(|tenant| tenant.id.as_str()).collect();
    if short.is_empty() {
        return Ok(());
    }
    Err(SetupError::Refused(format!(
        "nothing was moved: where replicas share the store, clock_skew must be at least {} s, and it is less for {}; serve the file \
         and raise it by UpdateTenant (publish_lead with it), then migrate",
        CLOCK_SKEW_MIN.as_secs(),
        short.join(", ")
    )))
}

/// Sees that the store belongs to this token, and was made with this service key.
async fn is_of(store: &SqlStore, token: &TokenIdentity, service_key: ObjectId) -> Result<(), SetupError> {
    let (binding, serial) = (store.binding().await?, &token.serial);
    if binding.serial != *serial {
        return Err(SetupError::Refused(format!(
            "the store was made with token {} (serial {}), and this token has serial {serial}: its keys are not here; \
             correct token.label and token.serial",
            binding.label, binding.serial
        )));
    }
    match store.service_key().await? {
        Some(noted) if noted != service_key.to_string() => Err(SetupError::Refused(format!(
            "the store was made with the service key {noted}, and service_key.file names {service_key}: take the file from whoever ran \
             init, or from the backup"
        ))),
        _ => Ok(()),
    }
}

/// Opens the store, sees that it belongs to the tokens, and reads the pinned service key.
///
/// # Errors
/// Says what is missing, or what does not fit together.
pub async fn open(config: &Config, opened: &OpenedTokens) -> Result<Opened, SetupError> {
    let mut further = opened.by_name();
    let home = further.remove(&TokenName::default()).expect("it is among them");
    let tokens = Tokens::new(home, further);
    let service_key = pinned_key(config, Arc::clone(tokens.home()) as _)?;
    let store = config.store.open(guard(config, &service_key)).await?;
    is_of(&store, opened.home.identity(), service_key.object()).await?;
    opened.check(config, &store).await?;
    Ok(Opened { tokens, store: Arc::new(store), service_key })
}

/// Compares the store with what this replica has seen of it; with `accept`, makes it hold as it is.
///
/// # Errors
/// As [`open`].
pub async fn restore(config: &Config, token: &Arc<Pkcs11Token>, accept: Option<Event>) -> Result<Restored, SetupError> {
    let key = pinned_key(config, Arc::clone(token) as _)?;
    Ok(config.store.restore(guard(config, &key), accept).await?)
}

/// Compares the tokens with what the store accounts for; destroys the named objects, of which `event` tells. The report of what is
/// left.
///
/// # Errors
/// As [`open`], and if a named object must stay: then nothing was destroyed.
pub async fn reconcile(
    config: &Config,
    tokens: &OpenedTokens,
    objects: &[ObjectId],
    event: &Event,
) -> Result<Report, SetupError> {
    let Opened { store, service_key, .. } = open(config, tokens).await?;
    let tokens = tokens.by_name();
    let done = async {
        let report = reconcile::reconcile(&tokens, &*store, service_key.object()).await?;
        match objects {
            [] => Ok(report),
            objects => reconcile::destroy(&tokens, &*store, report, objects, event).await,
        }
    };
    let done = done.await;
    store.close().await;
    Ok(done?)
}

fn guard(config: &Config, key: &Arc<ServiceKey>) -> Guard {
    Guard { seals: Arc::clone(key) as _, witness: config.store_witness_path.clone() }
}

/// The service key, as its file pins it.
fn pinned_key(config: &Config, token: Arc<dyn Token>) -> Result<Arc<ServiceKey>, SetupError> {
    if !config.store.may_be_there() {
        let text = format!("there is no store at {}; make one with `keyward init`", config.store);
        return Err(SetupError::Refused(text));
    }
    let (object, public) = pinned(&config.service_key_path)?;
    Ok(Arc::new(ServiceKey::new(token, object, public)?))
}

/// The public half of the service key, from the file that pins it. Asks no token.
///
/// # Errors
/// The file is missing or incomplete.
pub fn service_public_key(path: &Path) -> Result<PublicKey, SetupError> {
    pinned(path).map(|(_, public)| public)
}

fn pinned(path: &Path) -> Result<(ObjectId, PublicKey), SetupError> {
    let pin = read_pin(path)?;
    let incomplete = || SetupError::Refused(format!("{} is incomplete; run keyward init again", path.display()));
    Ok((pin.cka_id, pin.public_key.ok_or_else(incomplete)?))
}

/// Opens the audit logs of this replica, whose origins name the service key.
///
/// # Errors
/// They cannot be written, or are not what was written.
pub fn open_audit(config: &Config, key: &ServiceKey) -> Result<Keeper, String> {
    let AuditSettings { log, checkpoint_every } = &config.audit;
    Keeper::open(log, key.public(), *checkpoint_every).map_err(|error| error.to_string())
}

fn read_pin(path: &Path) -> Result<ServiceKeyFile, SetupError> {
    let file = |error| SetupError::File { path: path.to_owned(), error };
    let text = fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => SetupError::Refused(format!(
            "there is no service key file {}; copy it from another replica or, for a store that was in use, restore it from the \
             backup: keyward init makes a new one together with a new store",
            path.display()
        )),
        _ => file(error),
    })?;
    serde_json::from_slice(&text).map_err(|error| file(error.into()))
}

fn write_pin(path: &Path, pin: &ServiceKeyFile) -> Result<(), SetupError> {
    // No secret: whoever verifies audit logs reads it.
    let write = || put_whole(path, ".keyward-init-", 0o644, &serde_json::to_vec_pretty(pin)?);
    write().map(drop).map_err(|error| SetupError::File { path: path.to_owned(), error })
}
