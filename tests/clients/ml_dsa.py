"""Checks ML-DSA keys and JWTs with the cryptography package, whose OpenSSL shares no code with Keyward.

One request a line on stdin, one answer a line on stdout, both JSON:

    {"jwk": .., "jwt": .., "public_key_pem": ..}
    {"cryptography": {"valid": .., "error": ..}}

The JWT's signature is by the key of the JWK, whose `kid` is its thumbprint; the PEM and the certificate in x5c hold the same key, and the certificate is
signed by it.
"""

import base64
import hashlib
import json
import sys

from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_der_x509_certificate

PUBLIC_KEYS = {
    "ML-DSA-44": mldsa.MLDSA44PublicKey,
    "ML-DSA-65": mldsa.MLDSA65PublicKey,
    "ML-DSA-87": mldsa.MLDSA87PublicKey,
}


def octets(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check(jwk, jwt, public_key_pem):
    assert jwk["kty"] == "AKP", jwk["kty"]
    key = PUBLIC_KEYS[jwk["alg"]].from_public_bytes(octets(jwk["pub"]))

    # RFC 7638 over the members that RFC 9964 requires.
    members = json.dumps({member: jwk[member] for member in ("alg", "kty", "pub")}, separators=(",", ":"))
    assert octets(jwk["kid"]) == hashlib.sha256(members.encode()).digest(), "the kid is no thumbprint"

    signed, signature = jwt.rsplit(".", 1)
    header = json.loads(octets(signed.split(".")[0]))
    assert (header["alg"], header["kid"]) == (jwk["alg"], jwk["kid"]), header
    key.verify(octets(signature), signed.encode())

    assert load_pem_public_key(public_key_pem.encode()) == key, "the PEM holds another key"
    [certificate] = map(load_der_x509_certificate, map(base64.b64decode, jwk["x5c"]))
    assert certificate.public_key() == key, "the certificate holds another key"
    key.verify(certificate.signature, certificate.tbs_certificate_bytes)


for line in sys.stdin:
    verdict = {"valid": True, "error": None}
    try:
        check(**json.loads(line))
    except Exception as error:  # the test reads which
        verdict = {"valid": False, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"cryptography": verdict}), flush=True)
