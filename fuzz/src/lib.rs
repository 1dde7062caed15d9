//! What the targets' properties have in common.

use std::collections::HashMap;
use std::sync::LazyLock;

use keyward::grpc::proto::DESCRIPTORS;
use keyward::keyring::{Error, Violation};
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A value that stands for a secret. The dictionaries and seeds have it, so it gets into every corner of an input; no answer
/// may quote it.
pub const SECRET: &str = "5ecret-Va1ue";

/// Every method of the contract, by its short name. The first octet of an input of `grpc_messages` is a place in this list:
/// append, and never reorder.
pub const METHODS: [&str; 19] = [
    "SignJwt",
    "Sign",
    "BatchSign",
    "VerifyJwt",
    "GetCurrentKey",
    "ListSigningKeys",
    "GetSigningKey",
    "RotateSigningKey",
    "RevokeSigningKey",
    "GetCustomSigningKeys",
    "PutCustomSigningKeys",
    "DeleteCustomSigningKeys",
    "CreateTenant",
    "GetTenant",
    "ListTenants",
    "UpdateTenant",
    "DeleteTenant",
    "ListAuditEvents",
    "GetCheckpoint",
];

/// Octets of an answer's status that every client takes: gRPC implementations begin at 8 KiB for all headers together.
const STATUS_OCTETS_MAX: usize = 6 * 1024;

/// The refusal of a request is one for its sender: it names fields that the contract has, and its status fits into headers.
pub fn assert_is_for_the_sender(method: &str, error: Error) {
    let Error::Invalid(violations) = &error else { panic!("a request alone leads to {error:?}") };
    assert!(!violations.is_empty(), "refused for no reason");
    for Violation { field, problem } in violations {
        assert!(CONTRACT.has(method, field), "{method} has no field {field}");
        assert!(problem.starts_with("must") || problem.starts_with("is ") || problem.starts_with("has "), "{problem}");
    }
    let status = Status::from(error);
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    assert!(details.error_info().is_some_and(|info| info.domain == "keyward" && !info.reason.is_empty()));
    assert!(details.bad_request().is_some_and(|bad| !bad.field_violations.is_empty()));
    assert_fits_headers(&status);
}

/// Text travels percent-encoded, which takes three octets for one where it is not plain ASCII, and details in base64.
pub fn assert_fits_headers(status: &Status) {
    let plain = |octet: u8| octet.is_ascii_graphic() && octet != b'%' || octet == b' ';
    let text: usize = status.message().bytes().map(|octet| if plain(octet) { 1 } else { 3 }).sum();
    let octets = text + status.details().len().div_ceil(3) * 4;
    assert!(octets <= STATUS_OCTETS_MAX, "a status of {octets} octets");
}

/// Octets in base64 with padding (RFC 4648 section 4), as signed notes have them.
#[must_use]
pub fn base64(octets: &[u8]) -> String {
    keyward::x509::base64(&keyward::domain::Certificate::new(octets.to_vec()))
}

/// Messages, their fields, and the message that a field holds; methods and the message that they take.
struct Contract {
    messages: HashMap<String, HashMap<String, Option<String>>>,
    methods: HashMap<String, String>,
}

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("compiled with the binary");
    let mut contract = Contract { messages: HashMap::new(), methods: HashMap::new() };
    for file in &set.file {
        for message in &file.message_type {
            contract.add(&format!(".{}.{}", file.package(), message.name()), message);
        }
        for method in file.service.iter().flat_map(|service| &service.method) {
            contract.methods.insert(method.name().to_owned(), method.input_type().to_owned());
        }
    }
    for method in contract.methods.keys() {
        assert!(
            METHODS.contains(&method.as_str()),
            "{method} is new: add it to METHODS here and to src/grpc/fuzzing.rs"
        );
    }
    contract
});

impl Contract {
    fn add(&mut self, name: &str, message: &DescriptorProto) {
        let held = |field: &prost_types::FieldDescriptorProto| {
            (field.r#type() == Type::Message).then(|| field.type_name().to_owned())
        };
        let mut fields: HashMap<_, _> =
            message.field.iter().map(|field| (field.name().to_owned(), held(field))).collect();
        fields.extend(message.oneof_decl.iter().map(|oneof| (oneof.name().to_owned(), None)));
        self.messages.insert(name.to_owned(), fields);
    }

    /// Whether `path`, such as `inputs[3].digest`, leads to a field of what `method` takes.
    fn has(&self, method: &str, path: &str) -> bool {
        let mut message = self.methods.get(method).cloned();
        path.split('.').all(|step| {
            let name = step.split_once('[').map_or(step, |(name, _)| name);
            let field = message.take().and_then(|message| self.messages.get(&message)?.get(name).cloned());
            field.is_some_and(|held| {
                message = held;
                true
            })
        })
    }
}
