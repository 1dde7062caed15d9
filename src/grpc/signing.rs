use tonic::{Request, Response, Status, async_trait};

use super::proto::signing_service_server::SigningService;
use super::proto::{
    BatchSignInput, BatchSignRequest, BatchSignResponse, GetCurrentKeyRequest, GetCurrentKeyResponse, SignJwtRequest,
    SignJwtResponse, SignRequest, SignResponse, SignatureFormat, VerifyJwtRequest, VerifyJwtResponse, batch_sign_input,
    sign_request,
};
use super::{Admission, door, wire};
use crate::domain::Algorithm;
use crate::keyring::{BATCH_INPUTS_MAX, Error, Input, ListedState, ecdsa_curve};
use crate::x509;

#[async_trait]
impl SigningService for Admission {
    async fn sign_jwt(&self, request: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let choice = door::choice(&request.tenant, &request.algorithm, "")?;
            if request.claims_json.is_empty() {
                return Err(Error::invalid("claims_json", "must be set: the octets of one JSON object").into());
            }
            let signed =
                admitted.keyrings().sign_jwt(&choice, &request.claims_json, &request.r#type, admitted.deadline).await?;
            Ok(SignJwtResponse { jwt: signed.value, kid: signed.kid.into(), algorithm: signed.algorithm.to_string() })
        })
        .await
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let choice = door::choice(&request.tenant, &request.algorithm, &request.kid)?;
            let format = Format::parse(request.signature_format)?;
            let verified_input_crc32c = request.input_crc32c.is_some();
            let signed = admitted.keyrings().sign(&choice, vec![input(request)?], admitted.deadline).await?;
            let signature = format.write(signed.algorithm, signed.value)?.remove(0);
            Ok(SignResponse {
                signature_crc32c: crc32c::crc32c(&signature),
                signature,
                kid: signed.kid.into(),
                algorithm: signed.algorithm.to_string(),
                verified_input_crc32c,
            })
        })
        .await
    }

    async fn batch_sign(&self, request: Request<BatchSignRequest>) -> Result<Response<BatchSignResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let choice = door::choice(&request.tenant, &request.algorithm, &request.kid)?;
            let format = Format::parse(request.signature_format)?;
            let signed = admitted.keyrings().sign(&choice, inputs(request.inputs)?, admitted.deadline).await?;
            Ok(BatchSignResponse {
                signatures: format.write(signed.algorithm, signed.value)?,
                kid: signed.kid.into(),
                algorithm: signed.algorithm.to_string(),
            })
        })
        .await
    }

    async fn verify_jwt(&self, request: Request<VerifyJwtRequest>) -> Result<Response<VerifyJwtResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let tenant = door::required("tenant", &request.tenant)?;
            if request.jwt.is_empty() {
                return Err(Error::invalid("jwt", "must be set: a JWT in compact serialization").into());
            }
            let verdict = admitted.keyrings().verify_jwt(&tenant, &request.jwt, admitted.deadline).await?;
            let mut response = VerifyJwtResponse {
                valid: verdict.problem.is_none(),
                reason: verdict.problem.unwrap_or_default(),
                claims_json: verdict.claims,
                ..VerifyJwtResponse::default()
            };
            if let Some((kid, algorithm, state)) = verdict.key {
                response.kid = kid.into();
                response.algorithm = algorithm.to_string();
                response.key_state = wire::state(ListedState::Key(state)).into();
            }
            Ok(response)
        })
        .await
    }

    async fn get_current_key(
        &self,
        request: Request<GetCurrentKeyRequest>,
    ) -> Result<Response<GetCurrentKeyResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let key = admitted.keyrings().current_key(&door::choice(&request.tenant, &request.algorithm, "")?)?;
            Ok(GetCurrentKeyResponse { key: Some(wire::signing_key(key)) })
        })
        .await
    }
}

/// What is to be signed, with the name of its field; it is as the caller sent it, where the caller says how to tell.
pub(super) fn input(request: SignRequest) -> Result<(String, Input), Error> {
    let (field, input) = match request.input {
        Some(sign_request::Input::Message(octets)) => ("message", Input::Message(octets)),
        Some(sign_request::Input::Digest(octets)) => ("digest", Input::Digest(octets)),
        None => return Err(Error::invalid("input", "must be set: either message or digest")),
    };
    if let Some(stated) = request.input_crc32c {
        let (Input::Message(octets) | Input::Digest(octets)) = &input;
        if crc32c::crc32c(octets) != stated {
            let problem =
                format!("is not the CRC32C of {field} as it arrived; it was damaged on its way: send it again");
            return Err(Error::invalid("input_crc32c", problem));
        }
    }
    Ok((field.to_owned(), input))
}

pub(super) fn inputs(inputs: Vec<BatchSignInput>) -> Result<Vec<(String, Input)>, Error> {
    let count = inputs.len();
    if !(1..=BATCH_INPUTS_MAX).contains(&count) {
        return Err(Error::invalid("inputs", format!("must be 1 to {BATCH_INPUTS_MAX}, not {count}")));
    }
    let parse = |(index, input): (usize, BatchSignInput)| match input.input {
        Some(batch_sign_input::Input::Message(octets)) => {
            Ok((format!("inputs[{index}].message"), Input::Message(octets)))
        }
        Some(batch_sign_input::Input::Digest(octets)) => Ok((format!("inputs[{index}].digest"), Input::Digest(octets))),
        None => Err(Error::invalid(&format!("inputs[{index}].input"), "must be set: either message or digest")),
    };
    inputs.into_iter().enumerate().map(parse).collect()
}

/// How signatures are to be written.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Raw,
    Der,
}

impl Format {
    pub(super) fn parse(format: i32) -> Result<Self, Error> {
        match SignatureFormat::try_from(format) {
            Ok(SignatureFormat::Unspecified | SignatureFormat::Raw) => Ok(Self::Raw),
            Ok(SignatureFormat::Der) => Ok(Self::Der),
            Err(_) => Err(Error::invalid("signature_format", "must be SIGNATURE_FORMAT_RAW or SIGNATURE_FORMAT_DER")),
        }
    }

    fn write(self, algorithm: Algorithm, signatures: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Error> {
        let Self::Der = self else { return Ok(signatures) };
        let curve = ecdsa_curve(algorithm).ok_or_else(|| {
            Error::invalid("signature_format", format!("must not be DER: signatures of {algorithm} have one form only"))
        })?;
        let der = signatures.iter().map(|signature| x509::ecdsa_der(signature, curve));
        der.collect::<Option<_>>().ok_or_else(|| Error::Internal("a signature is not r || s".to_owned()))
    }
}
