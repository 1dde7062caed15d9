"""Verifies JWTs with PyJWT as a resource server that knows one issuer does: by a JWKS that it fetched once.

One request a line on stdin, one answer a line on stdout, both JSON:

    {"jwks_uri": .., "host": .., "issuer": .., "audience": .., "algorithm": .., "jwt": ..}
    {"kid": .., "claims": {..}, "error": null}

`host` is sent as the Host header: custom domains have no DNS here. The JWKS is never fetched again.
"""

import json
import sys
from functools import cache

import jwt

FETCH_TIMEOUT_SECS = 10
NEVER_SECS = 3600


@cache
def jwks(uri, host):
    return jwt.PyJWKClient(
        uri, headers={"Host": host}, lifespan=NEVER_SECS, cooldown_duration=NEVER_SECS, timeout=FETCH_TIMEOUT_SECS
    )


def verified(request):
    key = jwks(request["jwks_uri"], request["host"]).get_signing_key_from_jwt(request["jwt"])
    claims = jwt.decode(
        request["jwt"],
        key,
        algorithms=[request["algorithm"]],
        issuer=request["issuer"],
        audience=request["audience"],
        options={"require": ["exp", "iss", "aud", "sub"]},
    )
    return {"kid": key.key_id, "claims": claims, "error": None}


for line in sys.stdin:
    try:
        answer = verified(json.loads(line))
    except Exception as error:  # whatever it raises is its way to refuse; the test reads which
        answer = {"kid": None, "claims": None, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
