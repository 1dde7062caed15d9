"""Verifies JWTs with PyJWT and with joserfc, as services that trust an issuer do.

One request a line on stdin, one answer a line on stdout, both JSON:

    {"jwks_uri": .., "issuer": .., "algorithm": .., "jwt": .., "refetch": true | false}
    {"PyJWT": {"valid": .., "error": ..}, "joserfc": {"valid": .., "error": ..}}

A client keeps the JWKS that it fetched; `refetch` makes it fetch again first. `error` is null or "class: message".
"""

import json
import sys
import urllib.request
import warnings
from functools import cache

import joserfc.jwk
import joserfc.jwt
import jwt
from joserfc.errors import SecurityWarning

FETCH_TIMEOUT_SECS = 10

# "EdDSA" is the older name of Ed25519 (RFC 9864), and the one that every client knows.
warnings.simplefilter("ignore", SecurityWarning)


@cache
def pyjwt_jwks(jwks_uri):
    return jwt.PyJWKClient(jwks_uri, timeout=FETCH_TIMEOUT_SECS)


def verify_with_pyjwt(request):
    jwks = pyjwt_jwks(request["jwks_uri"])
    if request["refetch"]:
        jwks.fetch_data()
    key = jwks.get_signing_key_from_jwt(request["jwt"])
    jwt.decode(
        request["jwt"],
        key,
        algorithms=[request["algorithm"]],
        issuer=request["issuer"],
        options={"require": ["exp", "iss"]},
    )


joserfc_jwks = {}


def verify_with_joserfc(request):
    # joserfc fetches nothing itself; its users do as here.
    jwks_uri = request["jwks_uri"]
    if request["refetch"] or jwks_uri not in joserfc_jwks:
        with urllib.request.urlopen(jwks_uri, timeout=FETCH_TIMEOUT_SECS) as answer:
            joserfc_jwks[jwks_uri] = joserfc.jwk.KeySet.import_key_set(json.load(answer))
    decoded = joserfc.jwt.decode(request["jwt"], joserfc_jwks[jwks_uri], algorithms=[request["algorithm"]])
    registry = joserfc.jwt.JWTClaimsRegistry(
        exp={"essential": True}, iss={"essential": True, "value": request["issuer"]}
    )
    registry.validate(decoded.claims)


def verdict(verify, request):
    try:
        verify(request)
    except Exception as error:  # whatever a client raises is its way to refuse; the test reads which
        return {"valid": False, "error": f"{type(error).__name__}: {error}"}
    return {"valid": True, "error": None}


for line in sys.stdin:
    request = json.loads(line)
    answer = {
        "PyJWT": verdict(verify_with_pyjwt, request),
        "joserfc": verdict(verify_with_joserfc, request),
    }
    print(json.dumps(answer), flush=True)
