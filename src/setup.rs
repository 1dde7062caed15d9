//! What is made once, before the service can run: the store, the service key and the file that pins it; and their opening.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::Keeper;
use crate::config::{AuditSettings, Config};
use crate::domain::{Event, ObjectId, PublicKey};
use crate::files::put_whole;
use crate::jose::BadPublicKey;
use crate::keyring::reconcile::{self, ReconcileError, Report};
use crate::keyring::{Attended, ServiceKey, new_object};
use crate::store::{Guard, LogReader, Restored, SqliteStore, Store as _, StoreError, TokenBinding};
use crate::token::{Found, KeySpec, Pkcs11Token, Token, TokenConfig, TokenError, TokenKey};

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
    /// The token, attended from the moment that [`Attended::attend`] runs.
    pub token: Arc<Attended>,
    /// The store, which believes what the service key sealed.
    pub store: Arc<SqliteStore>,
    /// The service key, on this token.
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
    let (store, pinned) = (&config.store_path, &config.service_key_path);
    let begun = pinned.with_extension("begun");
    let resuming = begun.exists();
    let exists = |path: &Path| {
        SetupError::Refused(format!("{} exists already; init makes everything new and touches nothing", path.display()))
    };
    if pinned.exists() {
        return Err(exists(pinned));
    }
    if store.exists() && !resuming {
        return Err(exists(store));
    }
    // 1. The intent: under which id the service key will be. A crash from here on leaves at most that id on the token.
    let object = if resuming { read_pin(&begun)?.cka_id } else { new_intent(&begun)? };
    // 2. The key. After a crash it is there, half there, or not there.
    let public_key = service_key(token, object).await?;
    // 3. The store, bound to the token. It appears whole or not at all.
    let identity = token.identity();
    let binding = TokenBinding { serial: identity.serial.clone(), label: identity.label.clone() };
    if !store.exists() {
        SqliteStore::create(store, &binding, &config.store_witness_path).await?;
    }
    let key = Arc::new(ServiceKey::new(Arc::clone(token) as _, object, public_key.clone())?);
    let made = SqliteStore::open(store, guard(config, &key)).await?;
    let bound = made.binding().await?;
    made.close().await;
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

fn new_intent(begun: &Path) -> Result<ObjectId, SetupError> {
    let file = ServiceKeyFile { cka_id: new_object(), public_key: None };
    write_pin(begun, &file)?;
    Ok(file.cka_id)
}

async fn service_key(token: &Arc<Pkcs11Token>, object: ObjectId) -> Result<PublicKey, SetupError> {
    let TokenKey { public, protection } = match token.find(object, ServiceKey::ALGORITHM).await? {
        Found::Key(key) => key,
        Found::Absent | Found::Remains => {
            token.destroy(object).await?;
            token.generate(object, KeySpec { algorithm: ServiceKey::ALGORITHM, rsa_bits: 0 }).await?
        }
    };
    if !protection.holds() {
        let text =
            "the token made a key that could leave it (SENSITIVE, EXTRACTABLE or LOCAL is wrong); use another token";
        return Err(SetupError::Refused(text.to_owned()));
    }
    let public = public.ok_or_else(|| SetupError::Refused("the token made a key without a public half".to_owned()))?;
    let key = ServiceKey::new(Arc::clone(token) as _, object, public.clone())?;
    match key.sign(b"keyward: test of the service key").await {
        Ok(_) => Ok(public),
        Err(TokenError::Mismatch(_)) => {
            Err(SetupError::Refused("the token's signatures do not verify; use another token".to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the token that serves the store. One that is away is looked for until it is there: what is published needs no token, and
/// a service that does not start for want of it would publish nothing. Blocks on the module.
///
/// # Errors
/// Those of the token, if it is there and not as it should be, or if there is no module or no store that names it.
pub async fn open_token(config: &Config) -> Result<Arc<Pkcs11Token>, SetupError> {
    // A path that leads nowhere is a mistake; a token that is away is not.
    tracing::info!(label = config.token.label, "opening the token");
    let may_come = config.token.module.exists() && config.store_path.exists();
    match Pkcs11Token::open(config.token.clone()) {
        Err(TokenError::Unavailable(_)) if may_come => {}
        opened => return Ok(Arc::new(opened?)),
    }
    // By serial number, so that no other token of this label is taken for it meanwhile.
    let binding = LogReader::open(&config.store_path).await?.binding().await?;
    let serial = config.token.serial.clone().or(Some(binding.serial));
    Ok(Arc::new(Pkcs11Token::attach(TokenConfig { serial, ..config.token.clone() })?))
}

/// Opens the store, sees that it belongs to the token, and reads the pinned service key.
///
/// # Errors
/// Says what is missing, or what does not fit together.
pub async fn open(config: &Config, token: &Arc<Pkcs11Token>) -> Result<Opened, SetupError> {
    let attended = Arc::new(Attended::new(Arc::clone(token) as _));
    let service_key = pinned_key(config, Arc::clone(&attended) as _)?;
    let store = SqliteStore::open(&config.store_path, guard(config, &service_key)).await?;
    let binding = store.binding().await?;
    let serial = &token.identity().serial;
    if binding.serial != *serial {
        return Err(SetupError::Refused(format!(
            "the store was made with token {} (serial {}), and this token has serial {serial}: its keys are not here; \
             correct token.label and token.serial",
            binding.label, binding.serial
        )));
    }
    Ok(Opened { token: attended, store: Arc::new(store), service_key })
}

/// Compares the store with what this replica has seen of it; with `accept`, makes it hold as it is.
///
/// # Errors
/// As [`open`].
pub async fn restore(config: &Config, token: &Arc<Pkcs11Token>, accept: Option<Event>) -> Result<Restored, SetupError> {
    let key = pinned_key(config, Arc::clone(token) as _)?;
    Ok(SqliteStore::restore(&config.store_path, guard(config, &key), accept).await?)
}

/// Compares the token with what the store accounts for; destroys the named objects, of which `event` tells. The report of what is
/// left.
///
/// # Errors
/// As [`open`], and if a named object must stay: then nothing was destroyed.
pub async fn reconcile(
    config: &Config,
    token: &Arc<Pkcs11Token>,
    objects: &[ObjectId],
    event: &Event,
) -> Result<Report, SetupError> {
    let Opened { store, service_key, .. } = open(config, token).await?;
    let done = async {
        let report = reconcile::reconcile(&**token, &*store, service_key.object()).await?;
        match objects {
            [] => Ok(report),
            objects => reconcile::destroy(&**token, &*store, report, objects, event).await,
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
    if !config.store_path.exists() {
        let text = format!("there is no store at {}; make one with `keyward init`", config.store_path.display());
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
            "there is no service key file {}; for a store that was in use, restore it from the backup: keyward init makes a \
             new one together with a new store",
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
