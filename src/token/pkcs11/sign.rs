//! Signing on one session.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::failure::Failure;
use super::index::Index;
use super::module::Module;
use super::session::{OpenSession, WorkerSession};
use super::{attributes, mechanism};
use crate::domain::{ObjectId, PublicKey};
use crate::token::{KeyRef, SignInput, TokenError};

/// Most keys whose handles one session remembers, and that have numbers between a service and its processes: four for each of
/// 4,096 keyrings. Beyond that it starts anew, which costs one search for each key in use.
pub(in crate::token) const KEYS_MAX: usize = 16_384;

/// Signs every input with one key, in order: all or nothing.
pub(in crate::token) fn sign(
    session: &mut WorkerSession,
    key: &Arc<KeyRef>,
    inputs: &[SignInput],
    deadline: Instant,
) -> Result<Vec<Vec<u8>>, TokenError> {
    // Before anything else, so that a backlog of late jobs does not set the recovery going.
    if Instant::now() >= deadline {
        return Err(TokenError::Late);
    }
    let data = inputs.iter().map(|input| mechanism::data(key.algorithm, input)).collect::<Result<Vec<_>, _>>()?;
    session.attempt(Some(deadline), |module, open| sign_all(module, open, key, &data, deadline))
}

fn sign_all(
    module: &Module,
    open: &mut OpenSession,
    key: &Arc<KeyRef>,
    data: &[Cow<'_, [u8]>],
    deadline: Instant,
) -> Result<Vec<Vec<u8>>, Failure> {
    let handle = find_key(module, open, key)?;
    let signing = mechanism::signing(key.algorithm);
    let len = mechanism::signature_len(key.public.as_ref());
    let mut signatures = Vec::with_capacity(data.len());
    for data in data {
        // A batch whose caller has gone must not hold up the others.
        if Instant::now() >= deadline {
            return Err(Failure::Answer(TokenError::Late));
        }
        let signature = open.session.sign(&signing, handle, data)?;
        if signature.len() != len {
            return Err(Failure::Refused(TokenError::Mismatch(format!(
                "C_Sign returned {} octets for {} with key {}",
                signature.len(),
                key.algorithm,
                key.object
            ))));
        }
        signatures.push(signature);
    }
    Ok(signatures)
}

/// The private key's handle; before the first use, and whenever another record names the same object, what the token
/// holds is compared with what the record says.
fn find_key(module: &Module, open: &mut OpenSession, key: &Arc<KeyRef>) -> Result<ObjectHandle, Failure> {
    if let Some((handle, compared)) = open.keys.get(&key.object)
        && (Arc::ptr_eq(compared, key) || (compared.public == key.public && compared.algorithm == key.algorithm))
    {
        return Ok(*handle);
    }
    let handle = compare_key(module, open, key)?;
    if open.keys.len() >= KEYS_MAX {
        open.keys.clear();
    }
    open.keys.insert(key.object, (handle, Arc::clone(key)));
    Ok(handle)
}

fn compare_key(module: &Module, open: &OpenSession, key: &KeyRef) -> Result<ObjectHandle, Failure> {
    let KeyRef { object, algorithm, ref public, .. } = *key;
    let mismatch = |what: &str| Err(Failure::Answer(TokenError::Mismatch(format!("key {object}: {what}"))));
    let session = &open.session;
    let signing = find_one(module, open, key, attributes::signing_class(algorithm))?;
    // SoftHSM's C_SignInit takes a mechanism that does not fit the key; so it is looked at here.
    if attributes::read_kind(session, signing)?.1 != Some(mechanism::key_type(algorithm)) {
        return mismatch("it is not of the type that the algorithm takes");
    }
    // Before the first use as after generation: what somebody put in the key's place can show neither (R1).
    if !attributes::read_protection(session, signing, module.identity())?.holds() {
        return mismatch("it is not protected as it was when it was generated");
    }
    let Some(public) = public else {
        return if attributes::is_whole_secret(session, signing)? { Ok(signing) } else { mismatch("it is not whole") };
    };
    let verifying = find_one(module, open, key, ObjectClass::PUBLIC_KEY)?;
    if attributes::read_public(session, verifying, algorithm)?.as_ref() != Some(public) {
        return mismatch("its public half is not the recorded one");
    }
    if let PublicKey::Rsa { n, .. } = public
        && attributes::read_modulus(session, signing)?.as_ref() != Some(n)
    {
        return mismatch("the modulus of its private half is not the recorded one");
    }
    module.saw_key();
    Ok(signing)
}

/// The one object of a class under the key's id: from the index of the token's objects, or by a search.
fn find_one(module: &Module, open: &OpenSession, key: &KeyRef, class: ObjectClass) -> Result<ObjectHandle, Failure> {
    let session = &open.session;
    if let Some(handle) = indexed(module, session, key.object, class)? {
        return Ok(handle);
    }
    let asked = Instant::now();
    let found = session.find_objects(&[Attribute::Class(class), attributes::under(key.object)])?;
    module.index().searched(asked.elapsed());
    match found.as_slice() {
        [handle] => Ok(*handle),
        [] => {
            // Either the key is not there or the token is not. The second can be mended.
            module.check_for_keys(session)?;
            Err(Failure::Answer(TokenError::Unavailable(format!("C_FindObjects: no {class} under {}", key.object))))
        }
        _ => Err(Failure::Answer(TokenError::Mismatch(format!("more than one {class} under {}", key.object)))),
    }
}

/// What the index has, if it still is what it was when it was listed.
fn indexed(
    module: &Module,
    session: &Session,
    object: ObjectId,
    class: ObjectClass,
) -> Result<Option<ObjectHandle>, Failure> {
    let mut index = module.index();
    if index.find(object, class).is_none() && index.pays() {
        let begun = Instant::now();
        if let Err(failure) = index.list(session) {
            index.failed(begun.elapsed());
            tracing::debug!(?failure, "the token's objects cannot be listed; keys are searched for");
        }
    }
    let Some(handle) = index.find(object, class) else { return Ok(None) };
    if attributes::read_place(session, handle) == Some((class, object)) {
        return Ok(Some(handle));
    }
    // Objects were destroyed, and perhaps others have their handles.
    *index = Index::default();
    Ok(None)
}
