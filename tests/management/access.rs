use serde_json::{Value, json};

use crate::common::http::{Answer, send};
use crate::house::{ALL_SCOPES, DOMAIN, House, ISSUER, assert_refused, now, wait_until};

const LIST: &str = "/keys/signing";

/// Every call with the scopes that it needs; the kid is one that no tenant has.
const CALLS: [(&str, &str, &str); 7] = [
    ("GET", "/keys/signing", "read:signing_keys"),
    ("GET", "/keys/signing/nobody", "read:signing_keys"),
    ("POST", "/keys/signing/rotate", "create:signing_keys update:signing_keys"),
    ("PUT", "/keys/signing/nobody/revoke", "update:signing_keys"),
    ("GET", "/keys/custom-signing", "read:custom_signing_keys"),
    ("PUT", "/keys/custom-signing", "create:custom_signing_keys update:custom_signing_keys"),
    ("DELETE", "/keys/custom-signing", "delete:custom_signing_keys"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_own_scopes_and_all_of_them() {
    let mut house = House::open().await;
    for (method, path, needed) in CALLS {
        let needed: Vec<&str> = needed.split(' ').collect();
        assert_eq!(house.description.scopes(method, path), needed, "{method} {path} in docs/openapi.json");
        let granted = house.jwt("b2b", &needed.join(" "));
        let answer = house.call(method, "b2b", path, &granted);
        assert!(![401, 403].contains(&answer.status.as_u16()), "{method} {path}: {answer:?}");

        for missing in &needed {
            let others: Vec<&str> = ALL_SCOPES.split(' ').filter(|scope| scope != missing).collect();
            let near = [
                format!("x{missing}"),
                format!("{missing}s"),
                format!("{missing}:all"),
                missing.to_uppercase(),
                missing.replace(':', " "),
                "*".to_owned(),
            ];
            let jwt = house.jwt("b2b", &format!("{} {}", others.join(" "), near.join(" ")));
            let answer = house.call(method, "b2b", path, &jwt);
            assert_eq!(answer.status, 403, "{method} {path} without {missing}: {answer:?}");
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains(r#"error="insufficient_scope""#), "{challenge}");
            assert!(challenge.contains(&format!(r#"scope="{}""#, needed.join(" "))), "{challenge}");
            let body: Value = answer.json();
            assert_eq!(body["error"], "Forbidden");
            let message = body["message"].as_str().expect("a text");
            assert!(needed.iter().all(|scope| message.contains(scope)), "{message}");
        }
        let mut no_scope = house.claims("b2b", "");
        no_scope.as_object_mut().expect("an object").remove("scope");
        let jwt = house.issuer.jwt(&no_scope);
        assert_eq!(house.call(method, "b2b", path, &jwt).status, 403, "{method} {path} without scope");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_are_not_of_this_issuer_for_this_tenant_and_now_are_refused() {
    let mut house = House::open().await;
    let good = house.claims("acme", ALL_SCOPES);
    let other_tenant = house.audience("b2b");
    let audience = house.audience("acme");
    let with = |member: &str, value: Value| {
        let mut claims = good.clone();
        claims[member] = value;
        claims
    };
    let without = |member: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().expect("an object").remove(member);
        claims
    };
    for accepted in [
        good.clone(),
        with("aud", json!(["https://other.example/", audience])),
        with("nbf", json!(now() - 5)),
        // Clocks differ.
        with("nbf", json!(now() + 10)),
        with("exp", json!(now() - 10)),
        with("exp", json!(now() as f64 + 0.5)),
    ] {
        let jwt = house.issuer.jwt(&accepted);
        assert_eq!(house.call("GET", "acme", LIST, &jwt).status, 200, "{accepted}");
    }
    for refused in [
        with("exp", json!(now() - 60)),
        with("exp", json!("tomorrow")),
        without("exp"),
        with("nbf", json!(now() + 60)),
        with("iss", json!("https://issuer.example")),
        with("iss", json!("https://ISSUER.example/")),
        with("iss", json!(["https://issuer.example/"])),
        without("iss"),
        with("aud", json!(audience.trim_end_matches('/'))),
        with("aud", json!(format!("{audience}keys"))),
        with("aud", json!(audience.to_uppercase())),
        with("aud", json!(other_tenant)),
        with("aud", json!(format!("https://{DOMAIN}/api/v2/"))),
        with("aud", json!([])),
        with("aud", json!({ "aud": audience })),
        without("aud"),
        with("scope", json!(ALL_SCOPES.split(' ').collect::<Vec<_>>())),
        with("sub", json!(7)),
        json!([good]),
        json!("claims"),
    ] {
        let jwt = house.issuer.jwt(&refused);
        assert_refused(&house.call("GET", "acme", LIST, &jwt), &refused.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_tenant_exists_is_told_only_to_those_whose_jwt_is_for_it() {
    let mut house = House::open().await;
    let other = house.jwt("b2b", ALL_SCOPES);
    let exists = house.call("GET", "acme", LIST, &other);
    let unknown = house.call("GET", "nobody", LIST, &other);
    assert_refused(&exists, "another tenant's JWT");
    assert_eq!((exists.status, &exists.body), (unknown.status, &unknown.body));
    assert_eq!(exists.header("www-authenticate"), unknown.header("www-authenticate"));
    for name in ["ACME", "acme.", "-", "..%2facme", "acme%00"] {
        assert_eq!(house.call("GET", name, LIST, &other).body, exists.body, "{name}");
    }
    let on_domain = |host: &str| call_on(&house, host, &other);
    assert_eq!(on_domain(DOMAIN).body, on_domain("nobody.example.com").body);
    assert_eq!(on_domain(DOMAIN).status, 401);

    let own = house.jwt("nobody", ALL_SCOPES);
    let answer = house.call("GET", "nobody", LIST, &own);
    assert_eq!(answer.status, 404, "its caller may know: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_has_its_own_audience_however_the_host_is_written() {
    let house = House::open().await;
    let mut claims = house.claims("acme", "read:signing_keys");
    claims["aud"] = json!(format!("https://{DOMAIN}/api/v2/"));
    let jwt = house.issuer.jwt(&claims);
    let expected = {
        let url = format!("{}/acme/api/v2{LIST}", house.server.management());
        let jwt = house.jwt("acme", "read:signing_keys");
        send("GET", &url, &[("authorization", &format!("Bearer {jwt}"))]).body
    };
    for host in [DOMAIN, "login.example.com:8443", "LOGIN.Example.COM", "login.example.com.", "Login.example.com.:443"]
    {
        let answer = call_on(&house, host, &jwt);
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &expected), "{host}");
    }
    for host in ["example.com", "xlogin.example.com", "login.example.com.evil.example", "acme", "127.0.0.1:80"] {
        assert_eq!(call_on(&house, host, &jwt).status, 401, "{host}");
    }
    // The canonical path's JWT is not the domain's, nor the other way round.
    assert_eq!(call_on(&house, DOMAIN, &house.jwt("acme", ALL_SCOPES)).status, 401);
    let url = format!("{}/acme/api/v2{LIST}", house.server.management());
    let headers = [("authorization", format!("Bearer {jwt}")), ("host", DOMAIN.to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(send("GET", &url, &headers).status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_jwt_there_is_a_challenge_and_no_error_in_it() {
    let mut house = House::open().await;
    let url = format!("{}/acme/api/v2{LIST}", house.server.management());
    let jwt = house.jwt("acme", ALL_SCOPES);
    for headers in [
        vec![],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", format!("Basic {jwt}"))],
        vec![("authorization", jwt.clone())],
        vec![("x-authorization", format!("Bearer {jwt}"))],
        vec![("cookie", format!("access_token={jwt}"))],
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = send("GET", &url, &headers);
        house.description.hold("GET", LIST, &answer);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="keyward""#);
    }
    assert_eq!(send("GET", &format!("{url}?access_token={jwt}"), &[]).status, 401, "URLs are logged");
    let bearer = format!("bearer {jwt}");
    assert_eq!(send("GET", &url, &[("authorization", &bearer)]).status, 200, "the scheme has no case");
    let twice = send("GET", &url, &[("authorization", &bearer), ("authorization", &bearer)]);
    house.description.hold("GET", LIST, &twice);
    assert_eq!(twice.status, 400, "{twice:?}");
}

fn call_on(house: &House, host: &str, jwt: &str) -> Answer {
    let url = format!("{}/api/v2{LIST}", house.server.management());
    send("GET", &url, &[("host", host), ("authorization", &format!("Bearer {jwt}"))])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_in_the_log_of_calls_with_its_caller_where_there_is_one() {
    let mut house = House::open().await;
    let reader = house.jwt("acme", "read:signing_keys");
    assert_eq!(house.call("POST", "acme", "/keys/signing/rotate", &reader).status, 403);
    assert_eq!(house.call("GET", "acme", LIST, "no.jwt.this").status, 401);
    let recorded = |method: &str, result: &str, principals: Value| {
        let log = std::fs::read_dir(house.installation.dir().join("audit")).expect("the log's directory");
        let files = log.map(|entry| entry.expect("an entry").path());
        let segments = files.filter(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
        let text: String = segments.map(|file| std::fs::read_to_string(file).expect("UTF-8")).collect();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|record| {
            let about = (&record["method"], &record["result"], &record["tenant"]);
            about == (&json!(method), &json!(result), &json!("acme")) && record["principals"] == principals
        })
    };
    let ops = json!([format!("jwt:{ISSUER}#ops")]);
    wait_until("the record of a scope that is missing", || {
        recorded("POST /api/v2/keys/signing/rotate", "PERMISSION_DENIED", ops.clone())
    });
    wait_until("the record of a JWT that is none", || {
        recorded("GET /api/v2/keys/signing", "UNAUTHENTICATED", json!([]))
    });
}
