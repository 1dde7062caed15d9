//! Certificates in DER: of clients, and in `x5c` of custom keys. A client's was verified before, but its names are whatever its
//! authority let pass.
#![no_main]

use keyward::auth::principal_of;
use keyward::domain::{Certificate, Principal};
use keyward::x509::{self, SubjectNames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    assert_proves_one(der);

    let readable = x509::public_key_of(der).is_ok();
    let certificate = Certificate::new(der.to_vec());
    // What is shown of a certificate is shown of whatever octets stand in a record.
    assert_eq!(x509::fingerprint(&certificate).replace(':', ""), x509::thumbprint(&certificate));
    assert!(x509::pem(&certificate).ends_with("-----END CERTIFICATE-----\n"));
    let pkcs7 = x509::pkcs7_pem(&certificate);
    assert!(pkcs7.is_empty() || pkcs7.starts_with("-----BEGIN PKCS7-----"));
    assert!(readable || pkcs7.is_empty(), "a message of certificates around something that is none");
});

/// Whoever is proved is the one of that kind; a common name counts only where it is allowed and nothing else is there.
fn assert_proves_one(der: &[u8]) {
    let names = SubjectNames::of_certificate(der);
    for common_name in [false, true] {
        let Ok(principal) = principal_of(der, common_name) else { continue };
        let names = names.as_ref().expect("names were read");
        match &principal {
            Principal::Uri(uri) => assert_eq!(names.uris, std::slice::from_ref(uri)),
            Principal::Dns(name) => {
                assert!(names.uris.is_empty() && names.dns.len() == 1 && names.dns[0].eq_ignore_ascii_case(name));
            }
            Principal::CommonName(name) => {
                assert!(common_name && names.uris.is_empty() && names.dns.is_empty());
                assert_eq!(names.common_names, std::slice::from_ref(name));
            }
            other => panic!("a certificate proves {other}"),
        }
        let text = principal.to_string();
        assert!(text.len() <= 4 + 2048 && !text.contains(char::is_control));
        assert_eq!(text.parse().as_ref(), Ok(&principal), "a log or a grant would name another");
    }
}
