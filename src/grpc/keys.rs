use tonic::{Request, Response, Status, async_trait};

use super::proto::key_service_server::KeyService;
use super::proto::{
    DeleteCustomSigningKeysRequest, GetCustomSigningKeysRequest, GetCustomSigningKeysResponse, GetSigningKeyRequest,
    KeyState as WireState, ListSigningKeysRequest, ListSigningKeysResponse, PutCustomSigningKeysRequest,
    PutCustomSigningKeysResponse, RevokeSigningKeyRequest, RotateSigningKeyRequest, RotateSigningKeyResponse,
    SigningKey,
};
use super::{Admission, door, wire};
use crate::domain::{Algorithm, KeyState, ObjectId, Trigger};
use crate::keyring::{Error, ListKeys, ListedState, RotateKeys};

/// As many states as there are.
const STATES_MAX: usize = 7;

#[async_trait]
impl KeyService for Admission {
    async fn list_signing_keys(
        &self,
        request: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let (query, list) = listing(&request)?;
            let page = admitted.keyrings().list_keys(&list)?;
            let next = page.next.map(|(algorithm, object)| door::page_token(&query, &format!("{algorithm} {object}")));
            Ok(ListSigningKeysResponse {
                keys: page.keys.into_iter().map(wire::signing_key).collect(),
                next_page_token: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_signing_key(&self, request: Request<GetSigningKeyRequest>) -> Result<Response<SigningKey>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            let key = admitted.keyrings().key(&tenant, &door::required("kid", &request.kid)?)?;
            Ok(wire::signing_key(key))
        })
        .await
    }

    async fn rotate_signing_key(
        &self,
        request: Request<RotateSigningKeyRequest>,
    ) -> Result<Response<RotateSigningKeyResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let rotate = rotation(&request)?;
            let rotated = admitted.keyrings().rotate(rotate, &admitted.caller).await?;
            Ok(RotateSigningKeyResponse {
                current: Some(wire::signing_key(rotated.current)),
                next: rotated.next.map(wire::signing_key),
                previous: rotated.previous.map(wire::signing_key),
            })
        })
        .await
    }

    async fn revoke_signing_key(
        &self,
        request: Request<RevokeSigningKeyRequest>,
    ) -> Result<Response<SigningKey>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            let key =
                admitted.keyrings().revoke(tenant, door::required("kid", &request.kid)?, &admitted.caller).await?;
            Ok(wire::signing_key(key))
        })
        .await
    }

    async fn get_custom_signing_keys(
        &self,
        request: Request<GetCustomSigningKeysRequest>,
    ) -> Result<Response<GetCustomSigningKeysResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            Ok(GetCustomSigningKeysResponse { jwks_json: admitted.keyrings().custom_keys(&tenant)? })
        })
        .await
    }

    async fn put_custom_signing_keys(
        &self,
        request: Request<PutCustomSigningKeysRequest>,
    ) -> Result<Response<PutCustomSigningKeysResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            let jwks_json = admitted.keyrings().put_custom_keys(tenant, &request.jwks_json, &admitted.caller).await?;
            Ok(PutCustomSigningKeysResponse { jwks_json })
        })
        .await
    }

    async fn delete_custom_signing_keys(
        &self,
        request: Request<DeleteCustomSigningKeysRequest>,
    ) -> Result<Response<()>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            admitted.keyrings().delete_custom_keys(tenant, &admitted.caller).await?;
            Ok(())
        })
        .await
    }
}

/// Which keys are asked for, and the query that page tokens are for.
pub(super) fn listing(request: &ListSigningKeysRequest) -> Result<(String, ListKeys), Error> {
    if request.states.len() > STATES_MAX {
        return Err(Error::invalid("states", "must name each state once"));
    }
    let query = format!("keys {} {} {:?}", request.tenant, request.algorithm, request.states);
    let list = ListKeys {
        tenant: door::required("tenant", &request.tenant)?,
        algorithm: door::optional("algorithm", &request.algorithm)?,
        states: states(&request.states)?,
        page_size: door::page_size(request.page_size)?,
        after: door::page_place(&query, &request.page_token)?.map(|place| parse_place(&place)).transpose()?,
    };
    Ok((query, list))
}

pub(super) fn rotation(request: &RotateSigningKeyRequest) -> Result<RotateKeys, Error> {
    Ok(RotateKeys {
        tenant: door::required("tenant", &request.tenant)?,
        algorithm: door::optional("algorithm", &request.algorithm)?,
        trigger: Trigger {
            manual: true,
            force: request.force,
            revoke_replaced: request.revoke_replaced,
            expected_current: door::optional("expected_current_kid", &request.expected_current_kid)?,
            request_id: door::optional("request_id", &request.request_id)?,
            ..Trigger::default()
        },
    })
}

fn states(states: &[i32]) -> Result<Vec<ListedState>, Error> {
    let parse = |(index, state): (usize, &i32)| match WireState::try_from(*state) {
        Ok(WireState::Pending) => Ok(ListedState::Pending),
        Ok(WireState::Abandoned) => Ok(ListedState::Abandoned),
        Ok(WireState::Next) => Ok(ListedState::Key(KeyState::Next)),
        Ok(WireState::Current) => Ok(ListedState::Key(KeyState::Current)),
        Ok(WireState::Previous) => Ok(ListedState::Key(KeyState::Previous)),
        Ok(WireState::Revoked) => Ok(ListedState::Key(KeyState::Revoked)),
        Ok(WireState::Destroyed) => Ok(ListedState::Key(KeyState::Destroyed)),
        Ok(WireState::Unspecified) | Err(_) => {
            let problem = "must be a state of a key, such as KEY_STATE_CURRENT; leave states empty for all";
            Err(Error::invalid(&format!("states[{index}]"), problem))
        }
    };
    states.iter().enumerate().map(parse).collect()
}

fn parse_place(place: &str) -> Result<(Algorithm, ObjectId), Error> {
    let parts = place
        .split_once(' ')
        .and_then(|(algorithm, object)| Some((algorithm.parse().ok()?, ObjectId::try_from(object.to_owned()).ok()?)));
    parts.ok_or_else(|| Error::invalid("page_token", "must be the next_page_token of the answer before"))
}
