//! The example of docs/saml.md, unchanged, against a real server; xmlsec1 verifies what it issues, as a relying party would:
//! with a certificate that it downloaded before, and with no trust in the one that comes with the document.

#[path = "../common/mod.rs"]
mod common;
mod party;
mod relay;

use common::short_policy;
use keyward::grpc::proto::KeyState;
use party::{AUDIENCE, ISSUER, RelyingParty, SUBJECT, TENANT, accepted, refused};
use relay::{Fault, Relay};

const FORMS: [&[&str]; 6] = [
    &["--input=digest"],
    &["--input=message"],
    &["--input=digest", "--response"],
    &["--input=message", "--response"],
    &["--input=digest", "--wsfed"],
    &["--input=message", "--wsfed"],
];

#[tokio::test(flavor = "multi_thread")]
async fn each_form_verifies_with_the_downloaded_certificate_and_with_no_other() {
    let party = RelyingParty::new().await;
    let certificate = party.download("cer.pem", &format!("/{TENANT}/pem"));
    let other_tenants = party.download("other.pem", "/demo/pem");

    for form in FORMS {
        let document = party.issue(form);
        party.accept(&document, &certificate);
        let key_info = format!("<ds:X509Certificate>{}</ds:X509Certificate>", party.current_certificate());
        assert!(document.contains(&key_info), "{form:?}: KeyInfo does not have the signing certificate: {document}");
        for value in [ISSUER, AUDIENCE, "zoë &amp; &lt;co&gt;", "InResponseTo=\"_request-1\""] {
            assert!(document.contains(value), "{form:?}: {value} is missing in {document}");
        }
        party.assert_valid(&document);
        for (option, root) in [("--response", "<samlp:Response "), ("--wsfed", "<t:RequestSecurityTokenResponse ")] {
            assert_eq!(document.contains(root), form.contains(&option), "{form:?}: {document}");
        }

        for (from, to) in [("zoë", "zoe"), (AUDIENCE, "https://other.example"), ("Version=\"2.0\"", "Version=\"2.1\"")]
        {
            party.refuse(&document.replace(from, to), &certificate, "data and digest do not match");
        }
        party.refuse(&document, &other_tenants, "signature verification failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_breaks_neither_what_was_issued_before_nor_who_has_the_next_certificate() {
    let mut party = RelyingParty::new().await;
    let before = party.issue(&["--input=digest"]);
    let (old, new) = (party.kid(KeyState::Current).await, party.kid(KeyState::Next).await);
    let new_certificate = party.download("next.pem", &format!("/{TENANT}/pem?kid={new}"));

    party.keyward.rotate_when_allowed(TENANT, "RS256").await;

    let old_certificate = party.download("previous.pem", &format!("/{TENANT}/pem?kid={old}"));
    party.accept(&before, &old_certificate);
    party.refuse(&before, &new_certificate, "signature verification failed");
    let after = party.issue(&["--input=digest"]);
    party.accept(&after, &new_certificate);
    party.refuse(&after, &old_certificate, "signature verification failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_provider_signs_the_user_in_through_a_rotation() {
    let mut party = RelyingParty::new().await;
    let metadata = party.metadata("before.xml");
    let before = party.issue(&["--response"]);
    assert_eq!(party.sign_in(&metadata, &before), Ok(SUBJECT.to_owned()));
    let changed = before.replace("zoë", "zoe");
    let refusal = party.sign_in(&metadata, &changed).expect_err("the subject is another");
    assert!(refusal.starts_with("SignatureError"), "{refusal}");

    party.keyward.rotate_when_allowed(TENANT, "RS256").await;

    // What the new key signs is taken by who read the metadata before, and what the old key signed by who reads it now.
    let after = party.issue(&["--response"]);
    assert_eq!(party.sign_in(&metadata, &after), Ok(SUBJECT.to_owned()));
    let metadata = party.metadata("after.xml");
    assert_eq!(party.sign_in(&metadata, &before), Ok(SUBJECT.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_between_certificate_and_signature_makes_it_begin_anew() {
    let party = RelyingParty::new().await;
    let new = party.kid(KeyState::Next).await;
    let certificate = party.download("next.pem", &format!("/{TENANT}/pem?kid={new}"));
    let relay = Relay::start(&party.keyward, Fault::RotateAfterGetCurrentKey).await;

    let issued = party.run(relay.address(), TENANT, &[]);
    let document = accepted(&issued);
    party.accept(document, &certificate);
    assert!(
        document.contains(&party.current_certificate()),
        "KeyInfo has the certificate of the key that signed: {document}"
    );
    assert_eq!(relay.calls(), ["GetCurrentKey", "Sign", "GetCurrentKey", "Sign"], "the first Sign was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_issued_with_a_damaged_signature_or_without_a_key() {
    let party = RelyingParty::new().await;
    let relay = Relay::start(&party.keyward, Fault::DamageSignature).await;
    refused(&party.run(relay.address(), TENANT, &[]), "damaged on its way");

    refused(&party.run(party.server.grpc(), "nobody", &[]), "NOT_FOUND");
    let mut keyward = party.keyward.clone();
    keyward.create_tenant("curves", &["ES256"], short_policy()).await;
    refused(&party.run(party.server.grpc(), "curves", &[]), "algorithm must be one of the tenant's: ES256");
}
