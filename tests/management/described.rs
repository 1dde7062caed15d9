use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use keyward::grpc::proto::RotationPolicy;
use serde_json::{Value, json};

use crate::common::http::{Answer, send};
use crate::common::short_policy;
use crate::house::{ALL_SCOPES, House, kid_that_is};

/// Answers that take a failure or a limit, which tests of their own bring about.
const BY_FAILURE: [&str; 5] = ["202", "413", "429", "500", "503"];

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_the_description_is_given() {
    // At acme a rotation is too early for half an hour.
    let lead = prost_types::Duration { seconds: 1800, nanos: 0 };
    let mut house = House::open_with(RotationPolicy { publish_lead: Some(lead), ..short_policy() }).await;
    house.clients.create_tenant("quick", &["ES256"], short_policy()).await;
    assert_eq!(house.rotate_when_allowed("quick", "/keys/signing/rotate").await.status, 201);
    let (jwt, none) = (house.jwt("nobody", ALL_SCOPES), house.jwt("acme", ""));
    let mut keys = house.issuer.jwks();
    keys["keys"][0]["kid"] = json!("mine");
    house.force_rotation("acme").await;
    let previous = kid_that_is("previous", &house.keys("acme"));
    let current = kid_that_is("current", &house.keys("acme"));
    let (one, revoke) = (format!("/keys/signing/{previous}"), format!("/keys/signing/{previous}/revoke"));
    house.put("acme", "/keys/custom-signing", keys.to_string().as_bytes());
    house.put("acme", "/keys/custom-signing", b"{}");
    for (method, path) in [
        ("GET", "/keys/signing"),
        ("GET", &one),
        ("POST", "/keys/signing/rotate"),
        ("PUT", &revoke),
        ("GET", "/keys/custom-signing"),
        ("PUT", "/keys/custom-signing"),
        ("DELETE", "/keys/custom-signing"),
    ] {
        house.call_as_admin(method, "acme", path);
        house.call(method, "acme", path, "garbage");
        house.call(method, "acme", path, &none);
        house.call(method, "nobody", path, &jwt);
        let url = format!("{}/acme/api/v2{path}", house.server.management());
        let twice = send(method, &url, &[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        house.description.hold(method, path, &twice);
    }
    house.call_as_admin("PUT", "acme", &format!("/keys/signing/{current}/revoke"));
    let unseen = house.description.unseen();
    let unseen: Vec<&String> =
        unseen.iter().filter(|answer| !BY_FAILURE.iter().any(|status| answer.ends_with(status))).collect();
    // Lost to another replica's change, every time: there is one process.
    assert_eq!(unseen, ["DELETE /keys/custom-signing 409", "PUT /keys/custom-signing 409"], "described, and not given");
}

/// docs/openapi.json, and what of it was seen in answers.
pub(crate) struct Description {
    document: Value,
    seen: BTreeSet<String>,
}

impl Description {
    pub(crate) fn read() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        let text = fs::read(file).expect("the description");
        Self { document: serde_json::from_slice(&text).expect("JSON"), seen: BTreeSet::new() }
    }

    /// The status is one that the description has for this call, with its headers and its body and no other.
    pub(crate) fn hold(&mut self, method: &str, path: &str, answer: &Answer) {
        assert_eq!(answer.header("cache-control"), "no-store", "{method} {path}: {answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{method} {path}: {answer:?}");
        let path = path.split('?').next().expect("split gives at least one part");
        let template = template(path);
        let status = answer.status.as_str();
        let operation = &self.document["paths"][&template][method.to_ascii_lowercase()];
        assert!(operation.is_object(), "{method} {template} is not described");
        let described = self.resolved(&operation["responses"][status]);
        assert!(described.is_object(), "{method} {template} does not describe {status}: {answer:?}");
        self.hold_headers(described, answer);
        self.hold_body(described, answer);
        self.seen.insert(format!("{method} {template} {status}"));
    }

    /// The scopes of a call, as the description has them.
    pub(crate) fn scopes(&self, method: &str, path: &str) -> Vec<&str> {
        let security = &self.document["paths"][template(path)][method.to_ascii_lowercase()]["security"][0]["jwt"];
        security.as_array().expect("scopes").iter().map(|scope| scope.as_str().expect("a text")).collect()
    }

    /// What the description has and no answer had so far, of the statuses that a test can bring about.
    pub(crate) fn unseen(&self) -> Vec<String> {
        let mut unseen = Vec::new();
        for (path, operations) in self.document["paths"].as_object().expect("paths") {
            for (method, operation) in operations.as_object().expect("operations") {
                for status in operation["responses"].as_object().expect("responses").keys() {
                    unseen.push(format!("{} {path} {status}", method.to_ascii_uppercase()));
                }
            }
        }
        unseen.retain(|answer| !self.seen.contains(answer));
        unseen
    }

    fn hold_headers(&self, described: &Value, answer: &Answer) {
        let none = serde_json::Map::new();
        let headers = described["headers"].as_object().unwrap_or(&none);
        for (name, header) in headers {
            let text = answer.header(name);
            if text.is_empty() {
                assert!(header["required"] != true, "{name} is missing: {answer:?}");
                continue;
            }
            let value = if header["schema"]["type"] == "integer" {
                json!(text.parse::<i64>().unwrap_or_else(|_| panic!("{name} is no number: {answer:?}")))
            } else {
                json!(text)
            };
            self.hold_value(&header["schema"], &value, name);
        }
        for name in answer.headers.keys().map(|name| name.as_str()) {
            let told = headers.keys().any(|told| told.eq_ignore_ascii_case(name));
            let about_limits = name.starts_with("x-ratelimit") || name == "www-authenticate" || name == "retry-after";
            assert!(told || !about_limits, "{name} is not described: {answer:?}");
        }
    }

    fn hold_body(&self, described: &Value, answer: &Answer) {
        let schema = &described["content"]["application/json"]["schema"];
        if schema.is_null() {
            assert!(answer.body.is_empty(), "a body that is not described: {answer:?}");
            return;
        }
        assert_eq!(answer.header("content-type"), "application/json", "{answer:?}");
        let body: Value = answer.json();
        self.hold_value(schema, &body, "the body");
        if body.get("statusCode").is_some() {
            assert_eq!(body["statusCode"], answer.status.as_u16(), "{answer:?}");
        }
    }

    fn hold_value(&self, schema: &Value, value: &Value, what: &str) {
        // References are relative to the document.
        let schema = json!({"allOf": [schema], "components": self.document["components"]});
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a JSON Schema");
        let problems: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(problems.is_empty(), "{what} is not as described: {problems:?} in {value}");
    }

    fn resolved<'a>(&'a self, described: &'a Value) -> &'a Value {
        match described["$ref"].as_str() {
            Some(reference) => {
                self.document.pointer(reference.trim_start_matches('#')).expect("a reference within the document")
            }
            None => described,
        }
    }
}

/// The path as the description writes it.
fn template(path: &str) -> String {
    match path.strip_prefix("/keys/signing/").map(|rest| rest.split('/').collect::<Vec<_>>()).as_deref() {
        None | Some(["rotate"]) => path.to_owned(),
        Some([_kid]) => "/keys/signing/{kid}".to_owned(),
        Some([_kid, call]) => format!("/keys/signing/{{kid}}/{call}"),
        Some(_) => panic!("{path} is not described"),
    }
}
