use std::collections::BTreeSet;
use std::str::FromStr as _;

use bytes::{Buf as _, BufMut as _};
use http::uri::PathAndQuery;
use keyward::auth::methods::{Access, METHODS};
use keyward::grpc::proto;
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::common::tools;
use crate::stand::{Stand, reason};

/// A method of the contract, as its descriptor says.
struct Described {
    /// As HTTP/2 has it.
    path: String,
    input: DescriptorProto,
    is_keywards: bool,
}

#[test]
fn every_method_has_one_row_and_every_row_a_method() {
    let described: Vec<String> = described().into_iter().map(|method| method.path).collect();
    let rows: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    let (described_set, rows_set): (BTreeSet<&str>, BTreeSet<&str>) =
        (described.iter().map(String::as_str).collect(), rows.iter().copied().collect());
    assert_eq!(rows_set, described_set);
    assert_eq!((rows.len(), described.len()), (rows_set.len(), described_set.len()), "one stands twice");
    for row in &METHODS {
        let keywards = row.name.starts_with("/keyward.");
        assert_eq!(keywards, matches!(row.access, Access::Roles(_)), "{}", row.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_what_has_rows_and_reflection_is_for_callers_with_a_name() {
    let stand = Stand::open(true).await;
    let ca = stand.authority.certificate();
    let list = |headers: &[String]| {
        let mut grpcurl = tools::grpcurl();
        grpcurl.args(["-servername", "localhost", "-cacert", ca.to_str().expect("UTF-8")]);
        headers.iter().for_each(|header| {
            grpcurl.args(["-H", header]);
        });
        grpcurl.args([stand.server.grpc(), "list"]).output().expect("grpcurl starts")
    };
    let refused = list(&[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Unauthenticated"), "{refused:?}");
    // Whoever they are, and whatever they may do.
    let shown = list(&[format!("authorization: Bearer {}", stand.jwt(""))]);
    let served: BTreeSet<String> = String::from_utf8(shown.stdout).expect("UTF-8").lines().map(str::to_owned).collect();
    let rows = METHODS.iter().filter_map(|method| method.name[1..].split_once('/'));
    // Each version of reflection tells of itself alone.
    let rows = rows.filter(|(service, _)| !service.contains("v1alpha"));
    assert_eq!(
        served,
        rows.map(|(service, _)| service.to_owned()).collect(),
        "{:?}",
        String::from_utf8_lossy(&shown.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_is_closed_to_those_who_have_no_role_for_it() {
    let stand = Stand::open(true).await;
    let anybody = stand.dial(None).connect().await.expect("a connection");
    let other = stand.jwt("issuer:b2b operator:b2b");
    for method in described().iter().filter(|method| method.is_keywards) {
        let path = &method.path;
        let none = call(&anybody, method, "acme", None).await.expect_err(path);
        assert_eq!((none.code(), &*reason(&none)), (Code::Unauthenticated, "NO_CREDENTIALS"), "{path}");
        let exists = call(&anybody, method, "acme", Some(&other)).await.expect_err(path);
        assert_eq!((exists.code(), &*reason(&exists)), (Code::PermissionDenied, "ROLE_MISSING"), "{path}");
        let told = |status: &Status| (status.code(), status.message().to_owned(), status.details().to_vec());
        let unknown = call(&anybody, method, "nobody", Some(&other)).await.expect_err(path);
        assert_eq!(told(&exists), told(&unknown), "{path}");
        let record = stand.record(path, |record| record["method"] == **path && record["result"] == "PERMISSION_DENIED");
        assert_eq!(record["principals"], serde_json::json!(["jwt:https://issuer.example/#caller-1"]), "{path}");
        stand.record(path, |record| record["method"] == **path && record["result"] == "UNAUTHENTICATED");
    }
    let health = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    unary(&anybody, health, Vec::new(), None).await.expect("health is for everybody");
    for unserved in [
        "/keyward.v1.SigningService/SignAll",
        "/keyward.v1.SigningService/Sign/",
        "/keyward.v1.SigningService/",
        "/keyward.v1.SigningService",
        "/keyward.v1.SigningServices/Sign",
        "/keyward.v1.signingservice/Sign",
        "/keyward.v1.KeyService",
        "/",
    ] {
        let path = PathAndQuery::from_static(unserved);
        let status = unary(&anybody, path, Vec::new(), Some(&stand.jwt("admin"))).await.expect_err(unserved);
        assert_eq!(status.code(), Code::Unimplemented, "{unserved}: {status:?}");
    }
}

/// Every method that is served, by the descriptors that reflection serves.
fn described() -> Vec<Described> {
    let sets = [
        (proto::DESCRIPTORS, true),
        (tonic_health::pb::FILE_DESCRIPTOR_SET, false),
        (tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, false),
        (tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET, false),
    ];
    let mut all = Vec::new();
    for (set, is_keywards) in sets {
        let files = FileDescriptorSet::decode(set).expect("descriptors").file;
        let messages: Vec<(String, DescriptorProto)> = files
            .iter()
            .flat_map(|file| {
                file.message_type
                    .iter()
                    .map(|message| (format!(".{}.{}", file.package(), message.name()), message.clone()))
            })
            .collect();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let (_, input) =
                        messages.iter().find(|(name, _)| name == method.input_type()).expect("its message");
                    all.push(Described { path, input: input.clone(), is_keywards });
                }
            }
        }
    }
    all
}

/// Calls a method with a message of nothing but the tenant, wherever the message has it.
async fn call(channel: &Channel, method: &Described, tenant: &str, jwt: Option<&str>) -> Result<(), Status> {
    let mut message = Vec::new();
    let field = |name: &str| method.input.field.iter().find(|field| field.name() == name);
    if let Some(field) = field("tenant").or_else(|| field("id")) {
        let text = |number: i32, text: &[u8]| {
            let tag = u8::try_from(number << 3 | 2).expect("a small number");
            [&[tag, u8::try_from(text.len()).expect("a short text")], text].concat()
        };
        let is_message = field.r#type() == prost_types::field_descriptor_proto::Type::Message;
        // Tenant.id.
        let value = if is_message { text(1, tenant.as_bytes()) } else { tenant.as_bytes().to_vec() };
        message = text(field.number(), &value);
    }
    unary(channel, PathAndQuery::from_str(&method.path).expect("a path"), message, jwt).await
}

async fn unary(channel: &Channel, path: PathAndQuery, message: Vec<u8>, jwt: Option<&str>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(message);
    if let Some(jwt) = jwt {
        request.metadata_mut().insert("authorization", format!("Bearer {jwt}").parse().expect("ASCII"));
    }
    grpc.unary(request, path, Octets).await.map(drop)
}

/// Messages as they are on the wire.
#[derive(Default)]
struct Octets;

impl Codec for Octets {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Octets {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Octets {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut octets = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut octets);
        Ok(Some(octets))
    }
}
