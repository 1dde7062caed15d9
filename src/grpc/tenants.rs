use std::time::Duration;

use tonic::{Request, Response, Status, async_trait};

use super::proto::tenant_service_server::TenantService;
use super::proto::{
    self, CreateTenantRequest, DeleteTenantRequest, GetTenantRequest, ListTenantsRequest, ListTenantsResponse, Tenant,
    UpdateTenantRequest,
};
use super::{Admission, door, wire};
use crate::domain::{Algorithm, Domain, Issuer, Revision, RotationPolicy, TenantId};
use crate::keyring::{Error, TenantSpec, TenantUpdate};

/// So much of an unknown path is told, in characters.
const PATH_SHOWN_MAX: usize = 64;

/// More than there are fields: a longer mask is a mistake, and is not looked at.
const PATHS_MAX: usize = 32;

/// More than there are algorithms: a longer list is a mistake, and is not looked at.
const ALGORITHMS_MAX: usize = 16;

#[async_trait]
impl TenantService for Admission {
    async fn create_tenant(&self, request: Request<CreateTenantRequest>) -> Result<Response<Tenant>, Status> {
        self.call(request, |admitted, request| async move {
            let spec = spec(request)?;
            Ok(wire::tenant(admitted.keyrings().create_tenant(spec, &admitted.caller).await?))
        })
        .await
    }

    async fn get_tenant(&self, request: Request<GetTenantRequest>) -> Result<Response<Tenant>, Status> {
        self.call(request, |admitted, request| async move {
            let id: TenantId = door::required("id", &request.id)?;
            Ok(wire::tenant(admitted.keyrings().tenant(&id)?))
        })
        .await
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        self.call(request, |admitted, request| async move {
            let (size, after) = listing(&request)?;
            let page = admitted.keyrings().list_tenants(size, after.as_ref());
            Ok(ListTenantsResponse {
                tenants: page.tenants.into_iter().map(wire::tenant).collect(),
                next_page_token: page.next.map(|id| door::page_token(QUERY, id.as_str())).unwrap_or_default(),
            })
        })
        .await
    }

    async fn update_tenant(&self, request: Request<UpdateTenantRequest>) -> Result<Response<Tenant>, Status> {
        self.call(request, |admitted, request| async move {
            let wanted = request.tenant.ok_or_else(|| Error::invalid("tenant", "must be set"))?;
            let id: TenantId = door::required("tenant.id", &wanted.id)?;
            let present = admitted.keyrings().tenant(&id)?;
            let expected = if wanted.revision == 0 { present.revision } else { Revision::new(wanted.revision) };
            let mask = request.update_mask.unwrap_or_default().paths;
            let update = update(&wanted, &mask, present.policy)?;
            Ok(wire::tenant(admitted.keyrings().update_tenant(id, expected, update, &admitted.caller).await?))
        })
        .await
    }

    async fn delete_tenant(&self, request: Request<DeleteTenantRequest>) -> Result<Response<()>, Status> {
        self.call(request, |admitted, request| async move {
            let id = deletion(&request)?;
            admitted.keyrings().delete_tenant(id, &admitted.caller).await?;
            Ok(())
        })
        .await
    }
}

/// The query that page tokens are for: all tenants.
const QUERY: &str = "tenants";

pub(super) fn spec(request: CreateTenantRequest) -> Result<TenantSpec, Error> {
    let tenant = request.tenant.ok_or_else(|| Error::invalid("tenant", "must be set"))?;
    let policy = tenant.rotation_policy.unwrap_or_default();
    Ok(TenantSpec {
        id: door::required("tenant.id", &tenant.id)?,
        issuer: issuer(&tenant.issuer)?,
        token: door::optional("tenant.token", &tenant.token)?.unwrap_or_default(),
        custom_domain: custom_domain(&tenant.custom_domain)?,
        saml_sso_url: door::optional("tenant.saml_sso_url", &tenant.saml_sso_url)?,
        algorithms: algorithms(&tenant.algorithms)?,
        default_algorithm: door::optional("tenant.default_algorithm", &tenant.default_algorithm)?,
        policy: whole_policy(&policy)?,
    })
}

/// How many tenants are asked for, and after which one.
pub(super) fn listing(request: &ListTenantsRequest) -> Result<(usize, Option<TenantId>), Error> {
    let after = door::page_place(QUERY, &request.page_token)?;
    let after = after.map(|id| door::required::<TenantId>("page_token", &id)).transpose()?;
    Ok((door::page_size(request.page_size)?, after))
}

pub(super) fn deletion(request: &DeleteTenantRequest) -> Result<TenantId, Error> {
    let id: TenantId = door::required("id", &request.id)?;
    if request.confirm_id != request.id {
        let problem = "must be the same as id: every JWT of the tenant stops verifying, and there is no way back";
        return Err(Error::invalid("confirm_id", problem));
    }
    Ok(id)
}

// What is new must be plainer than what older versions took, and what they took is read as it is.

fn issuer(text: &str) -> Result<Option<Issuer>, Error> {
    const FIELD: &str = "tenant.issuer";
    let issuer: Option<Issuer> = door::optional(FIELD, text)?;
    issuer.as_ref().map_or(Ok(()), Issuer::has_plain_host).map_err(|problem| Error::invalid(FIELD, problem))?;
    Ok(issuer)
}

fn custom_domain(text: &str) -> Result<Option<Domain>, Error> {
    const FIELD: &str = "tenant.custom_domain";
    let domain: Option<Domain> = door::optional(FIELD, text)?;
    domain.as_ref().map_or(Ok(()), Domain::is_no_address).map_err(|problem| Error::invalid(FIELD, problem))?;
    Ok(domain)
}

fn algorithms(names: &[String]) -> Result<Vec<Algorithm>, Error> {
    if names.len() > ALGORITHMS_MAX {
        return Err(Error::invalid("tenant.algorithms", "must name each algorithm once"));
    }
    let parse = |(index, name): (usize, &String)| door::required(&format!("tenant.algorithms[{index}]"), name);
    names.iter().enumerate().map(parse).collect()
}

pub(super) fn update(wanted: &Tenant, mask: &[String], present: RotationPolicy) -> Result<TenantUpdate, Error> {
    let fields = "issuer, custom_domain, saml_sso_url, algorithms, default_algorithm, rotation_policy or a field of rotation_policy";
    if mask.is_empty() {
        return Err(Error::invalid("update_mask", format!("must name what to change: {fields}")));
    }
    if mask.len() > PATHS_MAX {
        return Err(Error::invalid("update_mask", "must name each field once"));
    }
    let policy = wanted.rotation_policy.unwrap_or_default();
    let mut update = TenantUpdate::default();
    let mut changed_policy = None;
    for path in mask {
        match path.as_str() {
            "issuer" => {
                let issuer = issuer(&wanted.issuer)?;
                update.issuer = Some(issuer.ok_or_else(|| Error::invalid("tenant.issuer", "must be set"))?);
            }
            "custom_domain" => {
                update.custom_domain = Some(custom_domain(&wanted.custom_domain)?);
            }
            "saml_sso_url" => update.saml_sso_url = Some(door::optional("tenant.saml_sso_url", &wanted.saml_sso_url)?),
            "algorithms" => update.algorithms = Some(algorithms(&wanted.algorithms)?),
            "default_algorithm" => {
                update.default_algorithm = Some(door::required("tenant.default_algorithm", &wanted.default_algorithm)?);
            }
            "token" => {
                let problem =
                    "cannot be changed: a tenant's keys stay on the token that they were made on; make another tenant";
                return Err(Error::invalid("tenant.token", problem));
            }
            "rotation_policy" => changed_policy = Some(whole_policy(&policy)?),
            path => {
                let field = path.strip_prefix("rotation_policy.").and_then(PolicyField::of_name);
                let field = field.ok_or_else(|| {
                    let shown: String = path.chars().take(PATH_SHOWN_MAX).collect();
                    Error::invalid("update_mask", format!("has {shown:?}, and must name only {fields}"))
                })?;
                let base = changed_policy.take().unwrap_or_else(|| present.clone());
                changed_policy = Some(field.copy(&policy, base)?);
            }
        }
    }
    update.policy = changed_policy;
    Ok(update)
}

/// A policy with the defaults where `wire` says nothing.
fn whole_policy(wire: &proto::RotationPolicy) -> Result<RotationPolicy, Error> {
    let mut policy = RotationPolicy::default();
    for field in PolicyField::ALL {
        policy = field.copy(wire, policy)?;
    }
    if wire.publish_lead.is_none() {
        policy.publish_lead = policy.publish_lead.max(policy.jwks_max_age + policy.clock_skew);
    }
    Ok(policy)
}

/// One field of a rotation policy on the wire.
#[derive(Clone, Copy)]
struct PolicyField {
    name: &'static str,
    read: fn(&proto::RotationPolicy) -> Option<prost_types::Duration>,
    write: fn(&mut RotationPolicy) -> Option<&mut Duration>,
}

impl PolicyField {
    const ALL: [Self; 7] = [
        Self {
            name: "max_token_ttl",
            read: |wire| wire.max_token_ttl,
            write: |policy| Some(&mut policy.max_token_ttl),
        },
        Self { name: "jwks_max_age", read: |wire| wire.jwks_max_age, write: |policy| Some(&mut policy.jwks_max_age) },
        Self { name: "clock_skew", read: |wire| wire.clock_skew, write: |policy| Some(&mut policy.clock_skew) },
        Self { name: "publish_lead", read: |wire| wire.publish_lead, write: |policy| Some(&mut policy.publish_lead) },
        Self {
            name: "rotation_period",
            read: |wire| wire.rotation_period,
            write: |policy| Some(&mut policy.rotation_period),
        },
        Self {
            name: "destroy_delay",
            read: |wire| wire.destroy_delay,
            write: |policy| Some(&mut policy.destroy_delay),
        },
        // The one field that is no duration.
        Self { name: "auto_revoke", read: |_| None, write: |_| None },
    ];

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name == name)
    }

    /// `base` with this field as `wire` has it; its default if it is not set.
    fn copy(self, wire: &proto::RotationPolicy, mut base: RotationPolicy) -> Result<RotationPolicy, Error> {
        let mut default = RotationPolicy::default();
        let Some(place) = (self.write)(&mut base) else {
            base.auto_revoke = wire.auto_revoke.unwrap_or(default.auto_revoke);
            return Ok(base);
        };
        let unset = (self.write)(&mut default).map_or(Duration::ZERO, |value| *value);
        *place = (self.read)(wire).map_or(Ok(unset), |value| self.duration(value))?;
        Ok(base)
    }

    fn duration(self, value: prost_types::Duration) -> Result<Duration, Error> {
        // Looked at first: the conversion of the least seconds there are overflows.
        let positive = Some(value).filter(|value| value.seconds >= 0 && value.nanos >= 0);
        let duration = positive.and_then(|value| Duration::try_from(value).ok());
        let duration = duration.filter(|duration| duration.subsec_nanos().is_multiple_of(1_000_000));
        duration.ok_or_else(|| {
            let field = format!("tenant.rotation_policy.{}", self.name);
            Error::invalid(&field, "must not be negative, and be in whole milliseconds")
        })
    }
}
