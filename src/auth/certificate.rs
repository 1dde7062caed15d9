use crate::domain::Principal;
use crate::x509::SubjectNames;

/// Longest name taken from a certificate, in octets: SPIFFE ids have at most 2048.
const NAME_BYTES_MAX: usize = 2048;

/// Why a client certificate, valid as it may be, proves nobody. A sentence for whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NamesNobody(&'static str);

/// Whom a certificate proves: its one URI; the one DNS name of a certificate without URIs; where `common_name` is allowed, the
/// one common name of a certificate with neither. Addresses and mailboxes name nobody. DNS names are in lower case.
///
/// # Errors
/// What the certificate must have. Two names are as bad as none: which one counts would be the reader's choice.
pub fn principal_of(der: &[u8], common_name: bool) -> Result<Principal, NamesNobody> {
    let names = SubjectNames::of_certificate(der).map_err(|_| {
        NamesNobody("the client certificate's names cannot be read; its subject alternative names must stand once")
    })?;
    let principal = match (&*names.uris, &*names.dns, &*names.common_names) {
        ([uri], _, _) => Principal::Uri(uri.clone()),
        ([], [name], _) => Principal::Dns(name.to_ascii_lowercase()),
        ([], [], [name]) if common_name => Principal::CommonName(name.clone()),
        ([_, _, ..], _, _) => {
            return Err(NamesNobody(
                "the client certificate must have exactly one URI among its subject alternative names",
            ));
        }
        ([], [_, _, ..], _) => {
            let problem = "the client certificate must have exactly one URI or, without a URI, exactly one DNS name among its \
                           subject alternative names";
            return Err(NamesNobody(problem));
        }
        ([], [], _) if common_name => {
            return Err(NamesNobody(
                "the client certificate must have a URI or a DNS name among its subject alternative names, or one common name",
            ));
        }
        ([], [], _) => {
            return Err(NamesNobody(
                "the client certificate must have a URI or a DNS name among its subject alternative names",
            ));
        }
    };
    if is_plain(&principal) {
        Ok(principal)
    } else {
        Err(NamesNobody(
            "the client certificate's name must have 1 to 2048 octets, visible ASCII where it is a URI or a DNS name",
        ))
    }
}

/// Names that are compared with grants and stand in logs: no empty ones, and none with letters that cannot be seen.
fn is_plain(principal: &Principal) -> bool {
    let (name, plain) = match principal {
        Principal::Uri(name) | Principal::Dns(name) => (name, name.bytes().all(|byte| byte.is_ascii_graphic())),
        Principal::CommonName(name) => (name, !name.chars().any(char::is_control)),
        Principal::Anonymous | Principal::Keyward | Principal::Unix(_) | Principal::Jwt { .. } => return true,
    };
    plain && (1..=NAME_BYTES_MAX).contains(&name.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::test_certificate as certificate;

    const URI: u8 = 6;
    const DNS: u8 = 2;
    const EMAIL: u8 = 1;
    const IP: u8 = 7;

    #[test]
    fn one_uri_or_else_one_dns_name_proves_somebody() {
        let proven = |alternatives: &[(u8, &[u8])], common_name| {
            principal_of(&certificate(&["c"], alternatives), common_name).map(|principal| principal.to_string())
        };
        assert_eq!(proven(&[(URI, b"spiffe://a/b")], false).unwrap(), "uri:spiffe://a/b");
        assert_eq!(
            proven(&[(DNS, b"x.example"), (URI, b"spiffe://a/b"), (DNS, b"y.example")], true).unwrap(),
            "uri:spiffe://a/b"
        );
        assert_eq!(
            proven(&[(DNS, b"X.example"), (EMAIL, b"a@b"), (IP, &[127, 0, 0, 1])], false).unwrap(),
            "dns:x.example"
        );
        assert_eq!(proven(&[], true).unwrap(), "cn:c");
        assert_eq!(proven(&[(IP, &[127, 0, 0, 1])], true).unwrap(), "cn:c");
        for nobody in [
            vec![],
            vec![(IP, &[127_u8, 0, 0, 1][..]), (EMAIL, b"a@b")],
            vec![(URI, b"spiffe://a/b"), (URI, b"spiffe://a/c")],
            vec![(URI, b"spiffe://a/b"), (URI, b"spiffe://a/b"), (DNS, b"x.example")],
            vec![(DNS, b"x.example"), (DNS, b"y.example")],
            vec![(URI, b"spiffe://a/b\0")],
            vec![(URI, b"")],
            vec![(DNS, b"x.example\n")],
        ] {
            assert!(proven(&nobody, false).is_err(), "{nobody:?}");
        }
        assert!(proven(&[(DNS, b"x.example"), (DNS, b"y.example")], true).is_err());
        assert!(principal_of(&certificate(&["a", "b"], &[]), true).is_err());
        assert!(principal_of(&certificate(&[], &[]), true).is_err());
        assert!(principal_of(b"no certificate", true).is_err());
    }
}
