//! The token room against real modules: SoftHSM and Kryoptic.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer, in its functions too")]

mod contract;
mod failures;
mod home;
mod protection;

use std::sync::Arc;

use aws_lc_rs::hmac;
use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use keyward::domain::{Algorithm, ObjectId};
use keyward::token::{Found, Isolation, KeyRef, Pkcs11Token, SignInput, Token, TokenConfig, TokenError, provision};

use contract::{fresh_object, input, soon, spec, verify};
use home::{LABEL, Module, PIN, SO_PIN, alone, alone_on, config, direct_session, module, runtime, with_token};

/// Mounts the contract suite on the modules that have it, on threads and in processes: one test for each algorithm.
macro_rules! contract_holds {
    ($($test:ident: $algorithm:ident on $modules:expr,)*) => {$(
        #[test]
        fn $test() {
            alone_on(&$modules, stringify!($test), |home| {
                home.provision();
                runtime().block_on(async {
                    for isolation in [Isolation::Thread, Isolation::Process] {
                        let token = Pkcs11Token::open(TokenConfig { isolation, ..config(PIN) }).unwrap();
                        contract::holds(&token, Algorithm::$algorithm).await;
                    }
                });
            });
        }
    )*};
}

contract_holds! {
    contract_holds_for_rs256: RS256 on Module::ALL,
    contract_holds_for_rs384: RS384 on Module::ALL,
    contract_holds_for_rs512: RS512 on Module::ALL,
    contract_holds_for_ps256: PS256 on Module::ALL,
    contract_holds_for_ps384: PS384 on Module::ALL,
    contract_holds_for_ps512: PS512 on Module::ALL,
    contract_holds_for_es256: ES256 on Module::ALL,
    contract_holds_for_es384: ES384 on Module::ALL,
    contract_holds_for_es512: ES512 on Module::ALL,
    contract_holds_for_eddsa: EdDSA on Module::ALL,
    contract_holds_for_ml_dsa_44: MlDsa44 on [Module::Kryoptic],
    contract_holds_for_ml_dsa_65: MlDsa65 on [Module::Kryoptic],
    contract_holds_for_ml_dsa_87: MlDsa87 on [Module::Kryoptic],
    contract_holds_for_hs256: HS256 on Module::ALL,
}

#[test]
fn half_a_pair_is_remains_until_it_is_destroyed() {
    with_token("half_a_pair_is_remains_until_it_is_destroyed", |_, token| async move {
        // A token that loses its last key past Keyward looks like one that is away: there is another.
        token.generate(fresh_object(), spec(Algorithm::ES256)).await.unwrap();
        for lost in [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY] {
            let object = fresh_object();
            let made = token.generate(object, spec(Algorithm::ES256)).await.unwrap();
            let session = direct_session();
            let half = [Attribute::Class(lost), Attribute::Id(object.octets().to_vec())];
            let handles = session.find_objects(&half).unwrap();
            assert_eq!(handles.len(), 1);
            session.destroy_object(handles[0]).unwrap();

            assert_eq!(token.find(object, Algorithm::ES256).await.unwrap(), Found::Remains);
            let key = Arc::new(KeyRef { object, algorithm: Algorithm::ES256, public: made.public, tenant: None });
            let refused = token.sign(&key, vec![input(Algorithm::ES256, b"half")], soon()).await;
            assert!(matches!(refused, Err(TokenError::Unavailable(_))), "R8: {refused:?}");
            token.destroy(object).await.unwrap();
            assert_eq!(token.find(object, Algorithm::ES256).await.unwrap(), Found::Absent);
        }
    });
}

#[test]
fn keys_outlive_the_process_that_made_them() {
    alone("keys_outlive_the_process_that_made_them", |home| {
        home.provision();
        let object = fresh_object();
        let first = home.open(PIN).unwrap();
        let identity = first.identity().clone();
        let public = runtime().block_on(async { first.generate(object, spec(Algorithm::EdDSA)).await.unwrap().public });
        let key = Arc::new(KeyRef { object, algorithm: Algorithm::EdDSA, public, tenant: None });
        first.close();
        let closed = runtime().block_on(first.sign(&key, vec![input(Algorithm::EdDSA, b"closed")], soon()));
        assert!(matches!(closed, Err(TokenError::Unavailable(_))), "{closed:?}");
        drop(first);

        let second = Pkcs11Token::open(TokenConfig { serial: Some(identity.serial.clone()), ..config(PIN) }).unwrap();
        assert_eq!(second.identity(), &identity);
        let signatures =
            runtime().block_on(second.sign(&key, vec![input(Algorithm::EdDSA, b"again")], soon())).unwrap();
        verify(Algorithm::EdDSA, key.public.as_ref(), b"again", &signatures[0]).unwrap();
    });
}

#[test]
fn many_keys_sign_at_once_while_others_are_generated() {
    with_token("many_keys_sign_at_once_while_others_are_generated", |_, token| async move {
        many_sign_while_others_are_generated(Arc::new(token)).await;
    });
}

/// Several processes on one token: with SoftHSM a directory of files, with Kryoptic a database.
#[test]
fn many_keys_sign_at_once_in_processes_while_others_are_generated() {
    alone("many_keys_sign_at_once_in_processes_while_others_are_generated", |home| {
        home.provision();
        runtime().block_on(async {
            let config = TokenConfig { isolation: Isolation::Process, ..config(PIN) };
            many_sign_while_others_are_generated(Arc::new(Pkcs11Token::open(config).unwrap())).await;
        });
    });
}

async fn many_sign_while_others_are_generated(token: Arc<Pkcs11Token>) {
    let mut keys = Vec::new();
    for _ in 0..3 {
        let object = fresh_object();
        let public = token.generate(object, spec(Algorithm::ES256)).await.unwrap().public;
        keys.push(Arc::new(KeyRef { object, algorithm: Algorithm::ES256, public, tenant: None }));
    }
    let generating = tokio::spawn({
        let token = Arc::clone(&token);
        async move {
            for _ in 0..3 {
                token.generate(fresh_object(), spec(Algorithm::RS256)).await.unwrap();
            }
        }
    });
    // Fewer at once than the queue holds: QueueFull has its own test.
    let mut signing = tokio::task::JoinSet::new();
    for number in 0..48 {
        let (token, key) = (Arc::clone(&token), Arc::clone(&keys[number % keys.len()]));
        signing.spawn(async move {
            for round in 0..10 {
                let message = format!("{number} {round}");
                let inputs = vec![input(Algorithm::ES256, message.as_bytes())];
                let signatures = token.sign(&key, inputs, soon()).await.unwrap();
                verify(Algorithm::ES256, key.public.as_ref(), message.as_bytes(), &signatures[0]).unwrap();
            }
        });
    }
    signing.join_all().await;
    generating.await.unwrap();
}

#[test]
fn the_token_is_found_by_label_and_serial_number() {
    alone("the_token_is_found_by_label_and_serial_number", |home| {
        let open = |label: &str, serial: Option<&str>| {
            Pkcs11Token::open(TokenConfig { label: label.into(), serial: serial.map(Into::into), ..config(PIN) })
        };
        let first = provision(&module(), LABEL, &SO_PIN.into(), &PIN.into()).unwrap();
        assert_eq!(first.label, LABEL);
        let again = provision(&module(), LABEL, &SO_PIN.into(), &PIN.into());
        assert!(matches!(again, Err(TokenError::Mismatch(_))), "{again:?}");

        let error = open("other", None).unwrap_err();
        assert!(matches!(&error, TokenError::Unavailable(text) if text.contains(LABEL)), "{error}");
        let error = open(LABEL, Some("0123")).unwrap_err();
        assert!(matches!(&error, TokenError::Unavailable(text) if text.contains(&first.serial)), "{error}");
        assert_eq!(open(LABEL, None).unwrap().identity(), &first);

        // A second token of the same label, which Keyward would not make.
        let other = provision(&module(), "other", &SO_PIN.into(), &PIN.into()).unwrap();
        let pkcs11 = Pkcs11::new(module()).unwrap();
        let locking = cryptoki::context::CInitializeFlags::OS_LOCKING_OK;
        pkcs11.initialize(cryptoki::context::CInitializeArgs::new(locking)).unwrap();
        let mut second = None;
        for slot in pkcs11.get_slots_with_initialized_token().unwrap() {
            if pkcs11.get_token_info(slot).unwrap().serial_number() == other.serial {
                pkcs11.init_token(slot, &SO_PIN.into(), LABEL).unwrap();
                let session = pkcs11.open_rw_session(slot).unwrap();
                session.login(cryptoki::session::UserType::So, Some(&SO_PIN.into())).unwrap();
                session.init_pin(&PIN.into()).unwrap();
                // Kryoptic gives a token a new number with its new label.
                second = Some(pkcs11.get_token_info(slot).unwrap().serial_number().to_owned());
            }
        }
        let second = second.expect("the token is found by its number");
        pkcs11.finalize().unwrap();
        let error = home.open(PIN).unwrap_err();
        let lists_both = |text: &str| text.contains(&first.serial) && text.contains(&second);
        assert!(matches!(&error, TokenError::Mismatch(text) if lists_both(text)), "{error}");
        assert_eq!(open(LABEL, Some(&second)).unwrap().identity().serial, second);
    });
}

#[test]
fn what_a_module_lacks_is_told_and_refused() {
    with_token("what_a_module_lacks_is_told_and_refused", |_, token| async move {
        let (module, support) = (Module::of_this_process(), token.mechanisms().await.unwrap());
        assert_eq!(support.len(), Algorithm::ALL.len());
        for (algorithm, support) in support {
            assert_eq!(support.is_ok(), module.has(algorithm), "{algorithm}: {support:?}");
            if let Err(lacks) = support {
                assert!(lacks.contains("CKM_ML_DSA_KEY_PAIR_GEN and CKM_ML_DSA"), "{lacks}");
                let refused = token.generate(fresh_object(), spec(algorithm)).await;
                assert!(matches!(refused, Err(TokenError::Unsupported(_))), "{refused:?}");
            }
        }
    });
}

/// A generation that was killed can leave a secret without a value, which would sign.
#[test]
fn a_secret_that_is_not_whole_is_no_key_and_never_signs() {
    with_token("a_secret_that_is_not_whole_is_no_key_and_never_signs", |_, token| async move {
        token.generate(fresh_object(), spec(Algorithm::ES256)).await.unwrap();
        // Kryoptic takes no empty one.
        let lengths: &[usize] = if Module::of_this_process() == Module::Kryoptic { &[16] } else { &[0, 16] };
        for &length in lengths {
            let object = fresh_object();
            direct_session().create_object(&known_secret(object, &vec![7; length])).unwrap();
            assert_eq!(token.find(object, Algorithm::HS256).await.unwrap(), Found::Remains);
            let key = Arc::new(KeyRef { object, algorithm: Algorithm::HS256, public: None, tenant: None });
            let refused = token.sign(&key, vec![SignInput::Message(b"message".to_vec())], soon()).await;
            assert!(matches!(refused, Err(TokenError::Mismatch(_))), "{refused:?}");
            token.destroy(object).await.unwrap();
            assert_eq!(token.find(object, Algorithm::HS256).await.unwrap(), Found::Absent);
        }
    });
}

/// A secret of the test's own, put on the token past Keyward.
fn known_secret(object: ObjectId, secret: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sign(true),
        Attribute::Id(object.octets().to_vec()),
        Attribute::Value(secret.to_vec()),
    ]
}

#[test]
fn hs256_is_hmac_with_sha_256() {
    with_token("hs256_is_hmac_with_sha_256", |_, token| async move {
        // 1. The mechanism is HMAC with SHA-256: with a secret that the test knows, past Keyward.
        let (secret, session) = ([7_u8; 32], direct_session());
        let known = session.create_object(&known_secret(fresh_object(), &secret)).unwrap();
        let mac = session.sign(&Mechanism::Sha256Hmac, known, b"message").unwrap();
        assert_eq!(mac, hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), b"message").as_ref());

        // 2. Keyward's MAC is by this mechanism.
        let object = fresh_object();
        token.generate(object, spec(Algorithm::HS256)).await.unwrap();
        let key = Arc::new(KeyRef { object, algorithm: Algorithm::HS256, public: None, tenant: None });
        let macs = token.sign(&key, vec![SignInput::Message(b"message".to_vec())], soon()).await.unwrap();
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(object.octets().to_vec())];
        let handle = session.find_objects(&template).unwrap()[0];
        assert_eq!(macs, [session.sign(&Mechanism::Sha256Hmac, handle, b"message").unwrap()]);
    });
}

/// Whoever has the PIN can put a secret that they know in the place of Keyward's, and so make JWTs: it is not signed with.
#[test]
fn a_secret_that_was_imported_is_not_signed_with() {
    with_token("a_secret_that_was_imported_is_not_signed_with", |_, token| async move {
        let object = fresh_object();
        direct_session().create_object(&known_secret(object, &[7; 32])).unwrap();
        let key = Arc::new(KeyRef { object, algorithm: Algorithm::HS256, public: None, tenant: None });
        let refused = token.sign(&key, vec![SignInput::Message(b"message".to_vec())], soon()).await;
        assert!(matches!(refused, Err(TokenError::Mismatch(_))), "{refused:?}");
    });
}

/// Objects of other programs on the same token are not touched, however little they show of themselves.
#[test]
fn what_belongs_to_others_stays_on_the_token() {
    with_token("what_belongs_to_others_stays_on_the_token", |_, token| async move {
        token.generate(fresh_object(), spec(Algorithm::ES256)).await.unwrap();
        let session = direct_session();
        let aes =
            [Attribute::ValueLen(32.into()), Attribute::Token(true), Attribute::Wrap(true), Attribute::Unwrap(true)];
        let wrapping = session.generate_key(&Mechanism::AesKeyGen, &aes).unwrap();
        let extractable = [
            Attribute::ValueLen(32.into()),
            Attribute::Token(false),
            Attribute::Extractable(true),
            Attribute::Encrypt(true),
        ];
        let exported = session.generate_key(&Mechanism::AesKeyGen, &extractable).unwrap();
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, wrapping, exported).unwrap();
        // An unwrapped key without id and label: SoftHSM shows no length of it.
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Encrypt(true),
        ];
        let foreign = session.unwrap_key(&Mechanism::AesKeyWrap, wrapping, &wrapped, &template).unwrap();
        let data = [Attribute::Class(ObjectClass::DATA), Attribute::Token(true), Attribute::Destroyable(false)];
        session.create_object(&data).unwrap();
        let before = session.find_objects(&[]).unwrap().len();
        token.destroy(fresh_object()).await.unwrap();
        assert_eq!(direct_session().find_objects(&[]).unwrap().len(), before);
        session.get_attributes(foreign, &[AttributeType::KeyType]).unwrap();
    });
}
