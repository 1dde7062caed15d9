//! Administration of the token: generate, find, destroy, list and probe, on a session of its own.
//!
//! One session, so that one key pair is generated at a time (SoftHSM fails now and then otherwise), and not a signer's, so
//! that signing does not wait for it.

use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::attributes::Templates;
use super::connect::identify;
use super::failure::Failure;
use super::module::Module;
use super::session::WorkerSession;
use super::{attributes, mechanism};
use crate::domain::{Algorithm, ObjectId};
use crate::token::task::{Ask, Told};
use crate::token::{Found, KeySpec, Support, TokenError, TokenIdentity, TokenKey, TokenObject};

/// Does what is asked.
pub(in crate::token) fn perform(session: &mut WorkerSession, ask: &Ask) -> Result<Told, TokenError> {
    Ok(match ask {
        Ask::Generate(object, spec) => Told::Generated(generate(session, *object, *spec)?),
        Ask::Find(object, algorithm) => Told::Found(find(session, *object, *algorithm)?),
        Ask::Destroy(object) => {
            destroy(session, *object)?;
            Told::Destroyed
        }
        Ask::List => Told::Objects(list(session)?),
        Ask::Probe => Told::Identity(probe(session)?),
        Ask::Mechanisms => Told::Mechanisms(mechanisms(session.module())?),
    })
}

fn generate(session: &mut WorkerSession, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
    let templates = attributes::templates(object, spec)?;
    let generation = mechanism::generation(spec.algorithm);
    // A crash or an error from here on leaves a pair, half a pair or nothing under an id that the caller has recorded.
    session.attempt_once(|module, open| {
        let session = &open.session;
        let made = match &templates {
            Templates::Pair { public, private } => {
                let (public, private) = session.generate_key_pair(&generation, public, private)?;
                read_pair(module, session, public, private, spec.algorithm)?
            }
            Templates::Secret(secret) => {
                let secret = session.generate_key(&generation, secret)?;
                read_secret(module, session, secret)?
            }
        };
        made.ok_or_else(|| {
            Failure::Answer(TokenError::Mismatch(format!("the generation made no key for {}", spec.algorithm)))
        })
    })
}

fn find(session: &mut WorkerSession, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
    session.attempt(None, |module, open| {
        let session = &open.session;
        let mut halves = Vec::new();
        for handle in session.find_objects(&[attributes::under(object)])? {
            halves.push((attributes::read_kind(session, handle)?, handle));
        }
        // By class, public before private (PKCS#11 v3.1 section 3.5).
        halves.sort_by_key(|((class, _), _)| *class == Some(ObjectClass::PRIVATE_KEY));
        let key_type = Some(mechanism::key_type(algorithm));
        let key = match halves.as_slice() {
            [
                ((Some(ObjectClass::PUBLIC_KEY), _), public),
                ((Some(ObjectClass::PRIVATE_KEY), private_type), private),
            ] if *private_type == key_type => read_pair(module, session, *public, *private, algorithm)?,
            [((Some(ObjectClass::SECRET_KEY), secret_type), secret)] if *secret_type == key_type => {
                read_secret(module, session, *secret)?
            }
            _ => None,
        };
        if let Some(key) = key {
            return Ok(Found::Key(key));
        }
        // Half a pair may be a whole one that was looked at without a login, and nothing may be a token that is away.
        module.check(session)?;
        Ok(if halves.is_empty() { Found::Absent } else { Found::Remains })
    })
}

fn destroy(session: &mut WorkerSession, object: ObjectId) -> Result<(), TokenError> {
    session.attempt(None, |module, open| {
        // The private key first: a crash in between leaves a public key that nothing signs for. Then whatever else has the id,
        // objects that were cut off before they had a class included. Idempotent, so that the ladder may start it again.
        let private = Attribute::Class(ObjectClass::PRIVATE_KEY);
        for (template, is_private) in
            [(vec![private, attributes::under(object)], true), (vec![attributes::under(object)], false)]
        {
            for handle in open.session.find_objects(&template)? {
                match open.session.destroy_object(handle) {
                    Ok(()) if is_private => module.destroyed_key(&open.session)?,
                    // Another replica was quicker, or the token is away; the look below tells.
                    Ok(()) | Err(Error::Pkcs11(RvError::ObjectHandleInvalid, _)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if !open.session.find_objects(&[attributes::under(object)])?.is_empty() {
            return Err(Failure::Away(format!("C_DestroyObject: objects are left under {object}")));
        }
        // A token that is away shows nothing either, and nothing would be destroyed (R8).
        module.check(&open.session)
    })
}

/// Every object that is kept on the token, in no order.
fn list(session: &mut WorkerSession) -> Result<Vec<TokenObject>, TokenError> {
    session.attempt(None, |module, open| {
        let session = &open.session;
        let mut objects = Vec::new();
        for handle in session.find_objects(&[Attribute::Token(true)])? {
            objects.push(attributes::read_object(session, handle)?);
        }
        module.check(session)?;
        Ok(objects)
    })
}

fn probe(session: &mut WorkerSession) -> Result<TokenIdentity, TokenError> {
    session.attempt(None, |module, open| {
        let shown = identify(module.pkcs11(), open.slot)?;
        if shown.serial != module.identity().serial {
            return Err(Failure::Away(format!("the slot holds another token, of serial number {}", shown.serial)));
        }
        module.check(&open.session)?;
        Ok(shown)
    })
}

/// For each algorithm whether the token can generate and sign, or what it lacks.
fn mechanisms(module: &Module) -> Result<Vec<Support>, TokenError> {
    let visit = module.visit()?;
    let mut supported = Vec::new();
    for algorithm in Algorithm::ALL {
        supported.push((algorithm, mechanism::support(module.pkcs11(), visit.slot, algorithm)?));
    }
    Ok(supported)
}

/// What both halves of a pair show, or `None` if they are not halves of a key of the algorithm.
fn read_pair(
    module: &Module,
    session: &Session,
    public: ObjectHandle,
    private: ObjectHandle,
    algorithm: Algorithm,
) -> Result<Option<TokenKey>, Failure> {
    let Some(public) = attributes::read_public(session, public, algorithm)? else { return Ok(None) };
    let protection = attributes::read_protection(session, private, module.identity())?;
    module.saw_key();
    Ok(Some(TokenKey { public: Some(public), protection }))
}

/// What a secret shows, which is how it is protected, or `None` if it is none of the full length: a generation that was cut
/// off may leave one that is empty, and would sign.
fn read_secret(module: &Module, session: &Session, secret: ObjectHandle) -> Result<Option<TokenKey>, Failure> {
    if !attributes::is_whole_secret(session, secret)? {
        return Ok(None);
    }
    let protection = attributes::read_protection(session, secret, module.identity())?;
    Ok(Some(TokenKey { public: None, protection }))
}
