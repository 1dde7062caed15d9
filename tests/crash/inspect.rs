//! What stands on the token, held against what the store says. Run while no server has the two open.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use keyward::config::Config;
use keyward::domain::{KeyState, ObjectId};
use keyward::jose::{Verifier, digest};
use keyward::setup::{self, Opened};
use keyward::store::Store as _;
use keyward::token::{Found, Isolation, KeyRef, Pkcs11Token, SignInput, Token as _, TokenConfig};

use crate::common::Installation;

/// Tells the child which installation to look at.
pub(crate) const DIRECTORY_VARIABLE: &str = "KEYWARD_TEST_INSPECT";

const SIGN_WAIT_MAX: Duration = Duration::from_secs(30);

/// Runs [`inspect`] in a process of its own.
pub(crate) fn in_a_child(installation: &Installation) {
    let mut child = Command::new(std::env::current_exe().expect("this test's binary"));
    child
        .args(["--exact", "every_object_on_the_token_has_its_account_in_the_store", "--nocapture"])
        .env(DIRECTORY_VARIABLE, installation.dir())
        .env("SOFTHSM2_CONF", installation.softhsm_conf());
    let output = child.output().expect("this test's binary starts");
    let said = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
}

/// R6: each object is accounted for, each key that is not destroyed is a whole pair that signs, each that is destroyed is
/// gone, and so is what abandoned generations left.
pub(crate) async fn inspect(directory: &Path) {
    let config = Config::load(&directory.join("keyward.toml")).expect("the installation's configuration");
    let mut objects = objects(&config);
    // This program is no worker process.
    let threads = TokenConfig { isolation: Isolation::Thread, ..config.token.clone() };
    let token = Arc::new(Pkcs11Token::open(threads).expect("the token opens"));
    let tokens = Arc::clone(&token).into();
    let Opened { store, service_key, .. } = setup::open(&config, &tokens).await.expect("the store opens");
    let pair = (1, 1);
    assert_eq!(objects.remove(&service_key.object()), Some(pair), "the service key is a pair");
    let loaded = store.load_all().await.expect("the records can be read");
    assert_eq!(loaded.damaged, [], "every record is believed");
    for record in loaded.records {
        for keyring in record.keyrings {
            let name = format!("{} {}", keyring.tenant, keyring.algorithm);
            assert_eq!(keyring.pending, None, "{name} is at rest");
            assert!(keyring.abandoned.iter().all(|abandoned| abandoned.swept), "{name} is swept: {keyring:?}");
            for key in keyring.keys {
                if key.state == KeyState::Destroyed {
                    assert_eq!(objects.get(&key.object), None, "{name}: {} is destroyed", key.kid);
                    continue;
                }
                let whole = if keyring.algorithm.has_public_keys() { pair } else { (1, 0) };
                assert_eq!(objects.remove(&key.object), Some(whole), "{name}: {} is whole", key.kid);
                let found = token.find(key.object, keyring.algorithm).await.expect("the token answers");
                let Found::Key(found) = found else { panic!("{name}: {} is {found:?}", key.kid) };
                assert_eq!(found.public, key.public, "{name}: {} is the key that was published", key.kid);
                let message = b"after the crash".to_vec();
                let input = match keyring.algorithm.digest() {
                    Some(kind) => SignInput::Digest(digest(kind, &message)),
                    None => SignInput::Message(message.clone()),
                };
                let verifier = Verifier::of(keyring.algorithm, key.public.as_ref()).expect("a valid public key");
                let reference = Arc::new(KeyRef {
                    object: key.object,
                    algorithm: keyring.algorithm,
                    public: key.public,
                    tenant: None,
                });
                let signed = token.sign(&reference, vec![input], Instant::now() + SIGN_WAIT_MAX).await;
                let signature = signed.expect("the key signs").remove(0);
                let right = verifier.map_or(signature.len() == 32, |verifier| verifier.verify(&message, &signature));
                assert!(right, "{name}: {} signs", key.kid);
            }
        }
    }
    assert!(objects.is_empty(), "objects without an account: {objects:?}");
    store.close().await;
    token.close();
}

/// How many private keys or secrets, and how many public keys, stand under each CKA_ID.
fn objects(config: &Config) -> BTreeMap<ObjectId, (usize, usize)> {
    let pkcs11 = Pkcs11::new(&config.token.module).expect("the module loads");
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("the module initialises");
    let slots = pkcs11.get_slots_with_initialized_token().expect("the module lists its slots");
    let labelled =
        |slot: &cryptoki::slot::Slot| pkcs11.get_token_info(*slot).is_ok_and(|info| info.label() == config.token.label);
    let slot = slots.into_iter().find(labelled).expect("the token is there");
    let session = pkcs11.open_ro_session(slot).expect("a session");
    session.login(UserType::User, Some(&config.token.pin)).expect("the PIN is right");
    let mut objects: BTreeMap<ObjectId, (usize, usize)> = BTreeMap::new();
    for handle in session.find_objects(&[]).expect("the token lists its objects") {
        // What SoftHSM leaves when it is killed between making an object and naming it: nobody's key, and nobody can tell whose it
        // was to be. SoftHSM cannot read one that has not even a class.
        let attributes =
            match session.get_attributes(handle, &[AttributeType::Class, AttributeType::Id, AttributeType::Label]) {
                Err(Error::Pkcs11(RvError::AttributeValueInvalid, _)) => continue,
                attributes => attributes.expect("every object that has a class can be read"),
            };
        let empty = |attribute: &Attribute| match attribute {
            Attribute::Id(octets) | Attribute::Label(octets) => octets.is_empty(),
            _ => true,
        };
        if attributes.iter().all(empty) {
            continue;
        }
        let id = attributes.iter().find_map(|attribute| match attribute {
            Attribute::Id(id) => <[u8; 16]>::try_from(id.as_slice()).ok().map(ObjectId::new),
            _ => None,
        });
        let count =
            objects.entry(id.unwrap_or_else(|| panic!("an object without an id of ours: {attributes:?}"))).or_default();
        match attributes.iter().find_map(|attribute| match attribute {
            Attribute::Class(class) => Some(*class),
            _ => None,
        }) {
            Some(ObjectClass::PRIVATE_KEY | ObjectClass::SECRET_KEY) => count.0 += 1,
            Some(ObjectClass::PUBLIC_KEY) => count.1 += 1,
            other => panic!("an object that is no key: {other:?}"),
        }
    }
    drop(session);
    pkcs11.finalize().expect("the module finalises");
    objects
}
