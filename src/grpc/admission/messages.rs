//! What the messages say that access and audit logs are about. Each request belongs to one method: a new RPC is not compiled
//! until it is here, and has a row.

use super::super::proto::{
    BatchSignRequest, BatchSignResponse, Checkpoint, CreateTenantRequest, DeleteCustomSigningKeysRequest,
    DeleteTenantRequest, GetCheckpointRequest, GetCurrentKeyRequest, GetCurrentKeyResponse,
    GetCustomSigningKeysRequest, GetCustomSigningKeysResponse, GetSigningKeyRequest, GetTenantRequest,
    ListAuditEventsRequest, ListAuditEventsResponse, ListSigningKeysRequest, ListSigningKeysResponse,
    ListTenantsRequest, ListTenantsResponse, PutCustomSigningKeysRequest, PutCustomSigningKeysResponse,
    RevokeSigningKeyRequest, RotateSigningKeyRequest, RotateSigningKeyResponse, SignJwtRequest, SignJwtResponse,
    SignRequest, SignResponse, SigningKey, Tenant, UpdateTenantRequest, VerifyJwtRequest, VerifyJwtResponse,
    batch_sign_input, sign_request,
};
use crate::auth::methods::{self, Method};
use crate::domain::{Algorithm, Digest, Kid, Octets, TenantId};
use crate::jose::digest;
use crate::keyring::BATCH_INPUTS_MAX;

/// A request.
pub(in crate::grpc) trait Asks {
    /// Its method.
    const METHOD: &'static Method;

    /// Whose tenant it names, valid or not; empty for a method that is about no one tenant.
    fn tenant(&self) -> &str {
        ""
    }

    /// Which algorithm it names, if any.
    fn algorithm(&self) -> &str {
        ""
    }

    /// Which key it names, if any.
    fn kid(&self) -> &str {
        ""
    }

    /// What it calls itself, if anything.
    fn request_id(&self) -> &str {
        ""
    }

    /// SHA-256 of what is to be signed or taken in.
    fn input_sha256(&self) -> Option<Octets> {
        None
    }
}

/// An answer.
pub(in crate::grpc) trait Answers {
    /// The kid and the algorithm of the key that signed, if one did.
    fn signer(&self) -> Option<(&str, &str)> {
        None
    }
}

/// What a record says a call was about, as far as it is valid.
pub(in crate::grpc) struct About {
    pub(super) tenant: Option<TenantId>,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) kid: Option<Kid>,
}

impl About {
    pub(super) fn of(message: &impl Asks) -> Self {
        Self {
            tenant: message.tenant().parse().ok(),
            algorithm: message.algorithm().parse().ok(),
            kid: message.kid().parse().ok(),
        }
    }

    /// The same with the key that signed.
    pub(super) fn signed(self, answer: &impl Answers) -> Self {
        match answer.signer() {
            Some((kid, algorithm)) => {
                Self { kid: kid.parse().ok(), algorithm: algorithm.parse().ok(), tenant: self.tenant }
            }
            None => self,
        }
    }
}

macro_rules! asks {
    ($message:ident, $method:literal $(, $fact:ident = $field:ident)* $(; $input:expr)?) => {
        impl Asks for $message {
            const METHOD: &'static Method = methods::row_of($method);

            $(fn $fact(&self) -> &str {
                &self.$field
            })*

            $(fn input_sha256(&self) -> Option<Octets> {
                let input: fn(&Self) -> Option<Octets> = $input;
                input(self)
            })?
        }
    };
    ($message:ident, $method:literal in tenant) => {
        impl Asks for $message {
            const METHOD: &'static Method = methods::row_of($method);

            fn tenant(&self) -> &str {
                self.tenant.as_ref().map_or("", |tenant| &tenant.id)
            }
        }
    };
}

asks!(SignJwtRequest, "/keyward.v1.SigningService/SignJwt", tenant = tenant, algorithm = algorithm; |message| {
    sha256(&message.claims_json)
});
asks!(SignRequest, "/keyward.v1.SigningService/Sign", tenant = tenant, algorithm = algorithm, kid = kid; |message| {
    let (sign_request::Input::Message(octets) | sign_request::Input::Digest(octets)) = message.input.as_ref()?;
    sha256(octets)
});
asks!(BatchSignRequest, "/keyward.v1.SigningService/BatchSign", tenant = tenant, algorithm = algorithm, kid = kid; |message| {
    // Of the concatenated SHA-256 of each: whoever has the inputs can make it, in whatever pieces they have them.
    if message.inputs.len() > BATCH_INPUTS_MAX {
        return None;
    }
    let mut each = Vec::with_capacity(message.inputs.len() * Digest::Sha256.octets());
    for input in &message.inputs {
        let (batch_sign_input::Input::Message(octets) | batch_sign_input::Input::Digest(octets)) = input.input.as_ref()?;
        each.extend_from_slice(&digest(Digest::Sha256, octets));
    }
    sha256(&each)
});
asks!(VerifyJwtRequest, "/keyward.v1.SigningService/VerifyJwt", tenant = tenant);
asks!(GetCurrentKeyRequest, "/keyward.v1.SigningService/GetCurrentKey", tenant = tenant, algorithm = algorithm);
asks!(ListSigningKeysRequest, "/keyward.v1.KeyService/ListSigningKeys", tenant = tenant, algorithm = algorithm);
asks!(GetSigningKeyRequest, "/keyward.v1.KeyService/GetSigningKey", tenant = tenant, kid = kid);
asks!(
    RotateSigningKeyRequest,
    "/keyward.v1.KeyService/RotateSigningKey",
    tenant = tenant,
    algorithm = algorithm,
    kid = expected_current_kid,
    request_id = request_id
);
asks!(RevokeSigningKeyRequest, "/keyward.v1.KeyService/RevokeSigningKey", tenant = tenant, kid = kid);
asks!(GetCustomSigningKeysRequest, "/keyward.v1.KeyService/GetCustomSigningKeys", tenant = tenant);
asks!(PutCustomSigningKeysRequest, "/keyward.v1.KeyService/PutCustomSigningKeys", tenant = tenant; |message| {
    sha256(message.jwks_json.as_bytes())
});
asks!(DeleteCustomSigningKeysRequest, "/keyward.v1.KeyService/DeleteCustomSigningKeys", tenant = tenant);
asks!(CreateTenantRequest, "/keyward.v1.TenantService/CreateTenant" in tenant);
asks!(GetTenantRequest, "/keyward.v1.TenantService/GetTenant", tenant = id);
asks!(ListTenantsRequest, "/keyward.v1.TenantService/ListTenants");
asks!(UpdateTenantRequest, "/keyward.v1.TenantService/UpdateTenant" in tenant);
asks!(DeleteTenantRequest, "/keyward.v1.TenantService/DeleteTenant", tenant = id);
asks!(ListAuditEventsRequest, "/keyward.v1.AuditService/ListAuditEvents", tenant = tenant);
asks!(GetCheckpointRequest, "/keyward.v1.AuditService/GetCheckpoint");

macro_rules! answers {
    ($($message:ty),* $(,)?) => {
        $(impl Answers for $message {})*
    };
}

answers!(
    VerifyJwtResponse,
    GetCurrentKeyResponse,
    ListSigningKeysResponse,
    SigningKey,
    RotateSigningKeyResponse,
    GetCustomSigningKeysResponse,
    PutCustomSigningKeysResponse,
    Tenant,
    ListTenantsResponse,
    ListAuditEventsResponse,
    Checkpoint,
    (),
);

macro_rules! signed_answers {
    ($($message:ty),*) => {
        $(impl Answers for $message {
            fn signer(&self) -> Option<(&str, &str)> {
                Some((&self.kid, &self.algorithm))
            }
        })*
    };
}

signed_answers!(SignJwtResponse, SignResponse, BatchSignResponse);

fn sha256(octets: &[u8]) -> Option<Octets> {
    Some(Octets(digest(Digest::Sha256, octets)))
}
