"""Issues a SAML 2.0 assertion, alone or in a SAML or WS-Federation response, signed by a key on Keyward's token.

    pip install grpcio grpcio-tools lxml
    python sign_assertion.py --keyward 127.0.0.1:50051 --tenant demo --issuer https://idp.example.com \
        --audience https://sp.example.com --recipient https://sp.example.com/acs --subject alice@example.com

The XML is on standard output. docs/saml.md explains each step.
"""

import argparse
import base64
import hashlib
import secrets
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
from lxml import etree
from lxml.builder import ElementMaker

# The contract, compiled as it is read. A service of your own compiles it once, when it is built.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
keyward, services = grpc.protos_and_services("keyward/v1/signing_service.proto")

PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
DS = "http://www.w3.org/2000/09/xmldsig#"
TRUST = "http://schemas.xmlsoap.org/ws/2005/02/trust"
POLICY = "http://schemas.xmlsoap.org/ws/2004/09/policy"
ADDRESSING = "http://www.w3.org/2005/08/addressing"
UTILITY = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"

EXCLUSIVE_C14N = "http://www.w3.org/2001/10/xml-exc-c14n#"
ENVELOPED_SIGNATURE = DS + "enveloped-signature"
RSA_SHA256 = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"
SHA256 = "http://www.w3.org/2001/04/xmlenc#sha256"

saml = ElementMaker(namespace=SAML, nsmap={"saml": SAML})
protocol = ElementMaker(namespace=PROTOCOL, nsmap={"samlp": PROTOCOL})
ds = ElementMaker(namespace=DS, nsmap={"ds": DS})
trust = ElementMaker(namespace=TRUST, nsmap={"t": TRUST})
policy = ElementMaker(namespace=POLICY, nsmap={"wsp": POLICY})
addressing = ElementMaker(namespace=ADDRESSING, nsmap={"wsa": ADDRESSING})
utility = ElementMaker(namespace=UTILITY, nsmap={"wsu": UTILITY})

# How long the bearer has to present the assertion. Not above the tenant's max_token_ttl: a replaced key's certificate is
# published for that long, and little longer.
LIFE = timedelta(minutes=5)
# How far the relying party's clock may be behind ours.
CLOCK_SKEW = timedelta(minutes=1)
CALL_TIMEOUT_SECS = 10
# Keys rotate rarely: a second rotation in the middle of two calls is no longer chance.
ATTEMPTS_MAX = 3


class NotIssued(Exception):
    """Why there is no assertion."""


def main():
    options = parse_options()
    with grpc.insecure_channel(options.keyward) as channel:
        try:
            assertion = issue(services.SigningServiceStub(channel), options)
        except NotIssued as error:
            raise SystemExit(str(error)) from None
        except grpc.RpcError as error:
            raise SystemExit(f"Keyward did not sign: {error.code().name}: {error.details()}") from None
    document = options.wrap(assertion, options)
    sys.stdout.buffer.write(etree.tostring(document, xml_declaration=True, encoding="UTF-8"))


def issue(keyward_stub, options):
    """A signed assertion whose KeyInfo has the certificate of the very key that signed."""
    for _ in range(ATTEMPTS_MAX):
        # 1. The certificate is part of the document, so ask for the key first and pin it in the second call.
        request = keyward.GetCurrentKeyRequest(tenant=options.tenant, algorithm="RS256")
        key = keyward_stub.GetCurrentKey(request, timeout=CALL_TIMEOUT_SECS).key
        assertion = unsigned_assertion(options)
        try:
            insert_signature(assertion, key, lambda octets: sign(keyward_stub, key, octets, options.input))
            return assertion
        except grpc.RpcError as error:
            # 2. FAILED_PRECONDITION: a rotation came between the calls. The new key has another certificate: begin anew.
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
    raise NotIssued(f"the signing key changed {ATTEMPTS_MAX} times in a row; look at the tenant's rotations")


def insert_signature(assertion, key, sign_octets):
    """Puts an enveloped signature (XML Signature 1.1, section 6.6.4) into the assertion, where SAML's schema wants it."""
    # The signature is not there yet, which is what the enveloped-signature transform makes of it for the verifier.
    digest = hashlib.sha256(canonical(assertion)).digest()
    signed_info = ds.SignedInfo(
        ds.CanonicalizationMethod(Algorithm=EXCLUSIVE_C14N),
        ds.SignatureMethod(Algorithm=RSA_SHA256),
        ds.Reference(
            ds.Transforms(ds.Transform(Algorithm=ENVELOPED_SIGNATURE), ds.Transform(Algorithm=EXCLUSIVE_C14N)),
            ds.DigestMethod(Algorithm=SHA256),
            ds.DigestValue(base64_text(digest)),
            URI="#" + assertion.get("ID"),
        ),
    )
    # What RSA signs is SignedInfo in its canonical form; the assertion is covered by the digest in it.
    signature = ds.Signature(
        signed_info,
        ds.SignatureValue(base64_text(sign_octets(canonical(signed_info)))),
        ds.KeyInfo(ds.X509Data(ds.X509Certificate(bare_base64(key.certificate_pem)))),
    )
    assertion.find(f"{{{SAML}}}Issuer").addnext(signature)


def sign(keyward_stub, key, octets, input_kind):
    """RSASSA-PKCS1-v1_5 with SHA-256 over the octets, by this key and no other."""
    # Either way it is the same signature: send the message if it is short, the digest if it is long or confidential.
    octets = hashlib.sha256(octets).digest() if input_kind == "digest" else octets
    request = keyward.SignRequest(
        tenant=key.tenant, algorithm=key.algorithm, kid=key.kid, input_crc32c=crc32c(octets), **{input_kind: octets}
    )
    answer = keyward_stub.Sign(request, timeout=CALL_TIMEOUT_SECS)
    if not answer.verified_input_crc32c or answer.signature_crc32c != crc32c(answer.signature):
        raise NotIssued("the request or the signature was damaged on its way; nothing was issued")
    return answer.signature


def unsigned_assertion(options):
    """An assertion for one bearer, one recipient and one audience (SAML Profiles 2.0, section 4.1.4.2)."""
    now = datetime.now(timezone.utc)
    expiry = instant(now + LIFE)
    bearer = {"Recipient": options.recipient, "NotOnOrAfter": expiry}
    if options.in_response_to:
        bearer["InResponseTo"] = options.in_response_to
    assertion = saml.Assertion(
        saml.Issuer(options.issuer),
        saml.Subject(
            saml.NameID(options.subject, Format="urn:oasis:names:tc:SAML:1.1:nameid-format:unspecified"),
            saml.SubjectConfirmation(
                saml.SubjectConfirmationData(bearer),
                Method="urn:oasis:names:tc:SAML:2.0:cm:bearer",
            ),
        ),
        saml.Conditions(
            saml.AudienceRestriction(saml.Audience(options.audience)),
            NotBefore=instant(now - CLOCK_SKEW),
            NotOnOrAfter=expiry,
        ),
        saml.AuthnStatement(
            saml.AuthnContext(saml.AuthnContextClassRef("urn:oasis:names:tc:SAML:2.0:ac:classes:unspecified")),
            AuthnInstant=instant(now),
        ),
        ID=unique_id(),
        Version="2.0",
        IssueInstant=instant(now),
    )
    if options.attribute:
        attributes = [
            # Relying parties tell names apart by their format, too; "basic" is for names without a registry.
            saml.Attribute(
                saml.AttributeValue(value), Name=name, NameFormat="urn:oasis:names:tc:SAML:2.0:attrname-format:basic"
            )
            for name, value in options.attribute
        ]
        assertion.append(saml.AttributeStatement(*attributes))
    return assertion


def bare_assertion(assertion, _options):
    return assertion


def saml_response(assertion, options):
    """What the browser SSO profile posts as `SAMLResponse`, in base64. The assertion goes in as it was signed."""
    response = protocol.Response(
        saml.Issuer(options.issuer),
        protocol.Status(protocol.StatusCode(Value="urn:oasis:names:tc:SAML:2.0:status:Success")),
        assertion,
        ID=unique_id(),
        Version="2.0",
        IssueInstant=assertion.get("IssueInstant"),
        Destination=options.recipient,
    )
    if options.in_response_to:
        response.set("InResponseTo", options.in_response_to)
    return response


def federation_response(assertion, options):
    """What WS-Federation posts as `wresult` (WS-Trust of February 2005). The assertion goes in as it was signed."""
    conditions = assertion.find(f"{{{SAML}}}Conditions")
    return trust.RequestSecurityTokenResponse(
        trust.Lifetime(
            utility.Created(assertion.get("IssueInstant")),
            utility.Expires(conditions.get("NotOnOrAfter")),
        ),
        policy.AppliesTo(addressing.EndpointReference(addressing.Address(options.audience))),
        trust.RequestedSecurityToken(assertion),
        trust.TokenType(SAML),
        trust.RequestType(TRUST + "/Issue"),
        trust.KeyType("http://schemas.xmlsoap.org/ws/2005/05/identity/NoProofKey"),
    )


def canonical(element):
    """Exclusive canonicalisation without comments: the same octets wherever the element stands."""
    return etree.tostring(element, method="c14n", exclusive=True, with_comments=False)


def unique_id():
    """128 random bits, behind the "_" that makes an xs:ID of them (SAML Core 2.0, section 1.3.4)."""
    return "_" + secrets.token_hex(16)


def instant(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def base64_text(octets):
    return base64.b64encode(octets).decode()


def bare_base64(certificate_pem):
    """The PEM's body: its lines without the first and the last."""
    return "".join(certificate_pem.strip().splitlines()[1:-1])


def crc32c(octets):
    """CRC-32C (Castagnoli). Short inputs need no faster one; the packages crc32c and google-crc32c have it in C."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def name_and_value(text):
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keyward", default="127.0.0.1:50051", help="address and port of Keyward's gRPC")
    parser.add_argument("--tenant", required=True, help="whose key signs; the tenant must have RS256")
    parser.add_argument("--issuer", required=True, help="the identity provider's entityID")
    parser.add_argument("--audience", required=True, help="the relying party's entityID, or wtrealm")
    parser.add_argument("--recipient", required=True, help="where the browser posts it: AssertionConsumerService or wreply")
    parser.add_argument("--subject", required=True, help="the NameID of who signed in")
    parser.add_argument("--in-response-to", help="the ID of the AuthnRequest that this answers")
    parser.add_argument(
        "--attribute", action="append", default=[], type=name_and_value, metavar="NAME=VALUE"
    )
    parser.add_argument("--input", choices=["digest", "message"], default="digest", help="what Sign is given")
    wraps = parser.add_mutually_exclusive_group()
    wraps.add_argument("--response", dest="wrap", action="store_const", const=saml_response, help="in a SAML Response")
    wraps.add_argument(
        "--wsfed", dest="wrap", action="store_const", const=federation_response, help="in WS-Federation's response"
    )
    parser.set_defaults(wrap=bare_assertion)
    return parser.parse_args()


if __name__ == "__main__":
    main()
