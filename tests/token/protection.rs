//! A private key cannot leave the token: asked past Keyward, with the user logged in, the token refuses.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use keyward::domain::{Algorithm, ObjectId};
use keyward::token::Token;

use crate::contract::{fresh_object, spec};
use crate::home::{Module, direct_session, with_token};

/// Every attribute that holds a part of a private key.
const SECRETS: [AttributeType; 8] = [
    AttributeType::PrivateExponent,
    AttributeType::Prime1,
    AttributeType::Prime2,
    AttributeType::Exponent1,
    AttributeType::Exponent2,
    AttributeType::Coefficient,
    AttributeType::Value,
    AttributeType::Seed,
];

#[test]
fn no_private_key_leaves_the_token() {
    with_token("protection::no_private_key_leaves_the_token", |_, token| async move {
        let module = Module::of_this_process();
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| module.has(*algorithm)) {
            let object = fresh_object();
            token.generate(object, spec(algorithm)).await.unwrap();
            let session = direct_session();
            let private = private_key(&session, object, algorithm);
            no_attribute_shows_it(&session, private, algorithm);
            nothing_wraps_it(&session, private, algorithm);
            nothing_loosens_it(&session, private, algorithm);
            it_does_nothing_but_sign(&session, private, algorithm);
            nobody_sees_it_without_a_login(&session, object, algorithm);
        }
    });
}

fn private_key(session: &Session, object: ObjectId, algorithm: Algorithm) -> ObjectHandle {
    let class = if algorithm.has_public_keys() { ObjectClass::PRIVATE_KEY } else { ObjectClass::SECRET_KEY };
    session.find_objects(&[Attribute::Class(class), Attribute::Id(object.octets().to_vec())]).unwrap()[0]
}

fn no_attribute_shows_it(session: &Session, private: ObjectHandle, algorithm: Algorithm) {
    assert!(session.get_attributes(private, &SECRETS).unwrap().is_empty(), "{algorithm}");
    let shown = session.get_attribute_info(private, &SECRETS).unwrap();
    for (attribute, info) in SECRETS.iter().zip(&shown) {
        assert!(
            matches!(info, AttributeInfo::Sensitive | AttributeInfo::TypeInvalid | AttributeInfo::Unavailable),
            "{algorithm}: {attribute} is {info:?}"
        );
    }
    // The key has secrets to hide in the first place.
    assert!(shown.iter().any(|info| matches!(info, AttributeInfo::Sensitive)), "{algorithm}: {shown:?}");
}

fn nothing_wraps_it(session: &Session, private: ObjectHandle, algorithm: Algorithm) {
    let wrapping = session
        .generate_key(
            &Mechanism::AesKeyGen,
            &[Attribute::ValueLen(32.into()), Attribute::Token(false), Attribute::Wrap(true), Attribute::Encrypt(true)],
        )
        .unwrap();
    let extractable = [
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Extractable(true),
        Attribute::Encrypt(true),
    ];
    let extractable = session.generate_key(&Mechanism::AesKeyGen, &extractable).unwrap();
    // Those that the token has; they do wrap what may be wrapped.
    let mut mechanisms = vec![Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad];
    mechanisms.retain(|mechanism| session.wrap_key(mechanism, wrapping, extractable).is_ok());
    assert!(!mechanisms.is_empty(), "nothing wraps at all");
    for mechanism in mechanisms {
        let refused = session.wrap_key(&mechanism, wrapping, private);
        // Kryoptic names the function as the reason for most key pairs, and wraps no ML-DSA key at all.
        let is_refusal = matches!(
            refused,
            Err(Error::Pkcs11(
                RvError::KeyUnextractable | RvError::KeyFunctionNotPermitted | RvError::FunctionNotSupported,
                _
            ))
        );
        assert!(is_refusal, "{algorithm}: {refused:?}");
    }
}

fn nothing_loosens_it(session: &Session, private: ObjectHandle, algorithm: Algorithm) {
    for loose in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        let set = session.update_attributes(private, std::slice::from_ref(&loose));
        assert!(set.is_err(), "{algorithm}: {loose:?} was set");
        let copied = session.copy_object(private, &[Attribute::Token(false), loose.clone()]);
        assert!(copied.is_err(), "{algorithm}: copied with {loose:?}");
    }
}

fn it_does_nothing_but_sign(session: &Session, private: ObjectHandle, algorithm: Algorithm) {
    let common = [Attribute::Sign(true), Attribute::Decrypt(false), Attribute::Unwrap(false), Attribute::Derive(false)];
    let own = if algorithm.has_public_keys() {
        vec![Attribute::SignRecover(false)]
    } else {
        vec![Attribute::Verify(false), Attribute::Encrypt(false), Attribute::Wrap(false)]
    };
    let wanted: Vec<Attribute> = common.into_iter().chain(own).collect();
    let usages: Vec<AttributeType> = wanted.iter().map(Attribute::attribute_type).collect();
    assert_eq!(session.get_attributes(private, &usages).unwrap(), wanted, "{algorithm}");
}

fn nobody_sees_it_without_a_login(session: &Session, object: ObjectId, algorithm: Algorithm) {
    session.logout().unwrap();
    let shown = session.find_objects(&[Attribute::Id(object.octets().to_vec())]).unwrap();
    assert_eq!(shown.len(), usize::from(algorithm.has_public_keys()), "{algorithm}: the public key alone");
}
