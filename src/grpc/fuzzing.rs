//! The way from octets to the domain without a connection, for the targets in `fuzz/`. It is in no build but theirs
//! (`--cfg fuzzing`), and calls what the services call, in the same order.

use prost::Message;

use super::{audit, door, keys, proto, signing, tenants};
use crate::domain::{Kid, RotationPolicy, TenantId};
use crate::keyring::{Choice, Error, Input, ListKeys, RotateKeys, TenantSpec, TenantUpdate};
use crate::tlog::Log;

/// What one request says in the domain's words.
#[derive(Debug)]
pub enum Asked {
    /// A signature over claims; they are not looked at yet.
    SignJwt(Choice),
    /// Signatures, each with the name of its field.
    Sign(Choice, Vec<(String, Input)>),
    /// Keys.
    ListKeys(ListKeys),
    /// A rotation.
    Rotate(RotateKeys),
    /// Something about a tenant, or about one of its keys.
    Named(TenantId, Option<Kid>),
    /// The current key.
    Current(Choice),
    /// Tenants: how many, and after which one.
    ListTenants(usize, Option<TenantId>),
    /// Events of an audit log: how many.
    Events(usize),
    /// The latest checkpoint of an audit log.
    Checkpoint(Log),
    /// A new tenant.
    Create(TenantSpec),
    /// A changed tenant.
    Update(TenantId, TenantUpdate),
}

/// Reads the octets of one request as the service does that takes `method`, a name such as `SignJwt`.
///
/// `None`: there is no such method, or the octets are not its message.
///
/// # Errors
/// What the caller would be told.
#[must_use]
pub fn ask(method: &str, octets: &[u8]) -> Option<Result<Asked, Error>> {
    Some(match method {
        "SignJwt" => read(octets, |request: proto::SignJwtRequest| {
            door::choice(&request.tenant, &request.algorithm, "").map(Asked::SignJwt)
        })?,
        "Sign" => read(octets, |request: proto::SignRequest| {
            let choice = door::choice(&request.tenant, &request.algorithm, &request.kid)?;
            signing::Format::parse(request.signature_format)?;
            Ok(Asked::Sign(choice, vec![signing::input(request)?]))
        })?,
        "BatchSign" => read(octets, |request: proto::BatchSignRequest| {
            let choice = door::choice(&request.tenant, &request.algorithm, &request.kid)?;
            signing::Format::parse(request.signature_format)?;
            Ok(Asked::Sign(choice, signing::inputs(request.inputs)?))
        })?,
        "VerifyJwt" => read(octets, |request: proto::VerifyJwtRequest| named(&request.tenant, None))?,
        "GetCurrentKey" => read(octets, |request: proto::GetCurrentKeyRequest| {
            door::choice(&request.tenant, &request.algorithm, "").map(Asked::Current)
        })?,
        "ListSigningKeys" => read(octets, |request| Ok(Asked::ListKeys(keys::listing(&request)?.1)))?,
        "GetSigningKey" => {
            read(octets, |request: proto::GetSigningKeyRequest| named(&request.tenant, Some(&request.kid)))?
        }
        "RotateSigningKey" => read(octets, |request| keys::rotation(&request).map(Asked::Rotate))?,
        "RevokeSigningKey" => {
            read(octets, |request: proto::RevokeSigningKeyRequest| named(&request.tenant, Some(&request.kid)))?
        }
        "GetCustomSigningKeys" => {
            read(octets, |request: proto::GetCustomSigningKeysRequest| named(&request.tenant, None))?
        }
        "PutCustomSigningKeys" => {
            read(octets, |request: proto::PutCustomSigningKeysRequest| named(&request.tenant, None))?
        }
        "DeleteCustomSigningKeys" => {
            read(octets, |request: proto::DeleteCustomSigningKeysRequest| named(&request.tenant, None))?
        }
        "CreateTenant" => read(octets, |request| tenants::spec(request).map(Asked::Create))?,
        "GetTenant" => {
            read(octets, |request: proto::GetTenantRequest| Ok(Asked::Named(door::required("id", &request.id)?, None)))?
        }
        "ListTenants" => read(octets, |request| {
            let (size, after) = tenants::listing(&request)?;
            Ok(Asked::ListTenants(size, after))
        })?,
        "UpdateTenant" => read(octets, |request: proto::UpdateTenantRequest| {
            let wanted = request.tenant.ok_or_else(|| Error::invalid("tenant", "must be set"))?;
            let id = door::required("tenant.id", &wanted.id)?;
            let mask = request.update_mask.unwrap_or_default().paths;
            Ok(Asked::Update(id, tenants::update(&wanted, &mask, RotationPolicy::default())?))
        })?,
        "DeleteTenant" => read(octets, |request| Ok(Asked::Named(tenants::deletion(&request)?, None)))?,
        "ListAuditEvents" => read(octets, |request| Ok(Asked::Events(audit::listing(&request)?.size)))?,
        "GetCheckpoint" => {
            read(octets, |request: proto::GetCheckpointRequest| audit::log(request.log).map(Asked::Checkpoint))?
        }
        _ => return None,
    })
}

/// A page token for what begins after `place`.
#[must_use]
pub fn page_token(query: &str, place: &str) -> String {
    door::page_token(query, place)
}

/// The place in a page token that was given for this `query`.
///
/// # Errors
/// What the caller would be told.
pub fn page_place(query: &str, token: &str) -> Result<Option<String>, Error> {
    door::page_place(query, token)
}

fn read<M: Message + Default>(octets: &[u8], ask: fn(M) -> Result<Asked, Error>) -> Option<Result<Asked, Error>> {
    M::decode(octets).ok().map(ask)
}

fn named(tenant: &str, kid: Option<&str>) -> Result<Asked, Error> {
    let tenant = door::required("tenant", tenant)?;
    Ok(Asked::Named(tenant, kid.map(|kid| door::required("kid", kid)).transpose()?))
}
