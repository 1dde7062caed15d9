//! The certificates, in the forms that SAML and WS-Federation partners ask for.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use axum::routing::get;
use url::form_urlencoded;

use super::address::{Addressed, not_found};
use super::public::document;
use crate::domain::{Certificate, Keyring, SigningKey};
use crate::keyring::Keyrings;
use crate::keyring::snapshot::{Document, TenantView};
use crate::x509;

/// How a certificate is handed out.
struct Form {
    content_type: &'static str,
    /// What the file is called after the tenant's id; `None`: shown, not downloaded.
    suffix: Option<&'static str>,
    write: fn(&Certificate) -> Vec<u8>,
}

/// DER (RFC 2585 section 4.1).
const CER: Form = Form {
    content_type: "application/pkix-cert",
    suffix: Some(".cer"),
    write: |certificate| certificate.der().to_vec(),
};

/// PEM (RFC 8555 section 9.1).
const PEM: Form = Form {
    content_type: "application/pem-certificate-chain",
    suffix: Some(".pem"),
    write: |certificate| x509::pem(certificate).into_bytes(),
};

/// Base64 alone, as SAML metadata has it.
const RAW_PEM: Form =
    Form { content_type: "text/plain", suffix: None, write: |certificate| x509::base64(certificate).into_bytes() };

/// PKCS#7, certificates only, as PEM.
const PB7: Form = Form {
    content_type: "application/x-pkcs7-certificates",
    suffix: Some(".pb7"),
    write: |certificate| x509::pkcs7_pem(certificate).into_bytes(),
};

/// SHA-1 in colon hex.
const FINGERPRINT: Form =
    Form { content_type: "text/plain", suffix: None, write: |certificate| x509::fingerprint(certificate).into_bytes() };

/// The certificate of the default algorithm's current key, or of the published key that `?kid=` names.
pub(super) fn routes() -> Router<Arc<Keyrings>> {
    let forms = [("/cer", &CER), ("/pem", &PEM), ("/rawpem", &RAW_PEM), ("/pb7", &PB7), ("/fingerprint", &FINGERPRINT)];
    forms.into_iter().fold(Router::new(), |router, (path, form)| {
        let handler = async move |to: Addressed, uri: Uri, headers: HeaderMap| certificate(&to, form, &uri, &headers);
        router.route(path, get(handler))
    })
}

fn certificate(to: &Addressed, form: &Form, uri: &Uri, headers: &HeaderMap) -> Response {
    let view = &*to.view;
    let named = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).find(|(name, _)| name == "kid");
    let (key, file) = match named {
        Some((_, kid)) => {
            let key = kid.parse().ok().and_then(|kid| view.key(&kid)).map(|(_, key)| key);
            (key.filter(|key| key.state.is_published()), format!("{}-{kid}", view.record.tenant.id))
        }
        None => (default_key(view), view.record.tenant.id.to_string()),
    };
    let Some(certificate) = key.and_then(|key| key.certificate.as_ref()) else {
        return not_found(
            "there is no such certificate: without ?kid= it is that of the default algorithm's current key, with it that \
             of a key in the JWKS; HS256 has none",
        );
    };
    let body = Document::new((form.write)(certificate));
    let mut response = document(view, to.late, &body, HeaderValue::from_static(form.content_type), headers);
    if let Some(suffix) = form.suffix {
        let disposition = format!("attachment; filename=\"{file}{suffix}\"");
        let disposition = HeaderValue::from_str(&disposition).expect("ids and kids are of letters, digits, - and _");
        response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}

fn default_key(view: &TenantView) -> Option<&SigningKey> {
    let default = view.record.tenant.default_algorithm;
    view.record.keyrings.iter().find(|keyring| keyring.algorithm == default).and_then(Keyring::current)
}
