"""Verifies JWTs of one issuer and has their claims signed by a Keyward tenant, with its custom domain as the issuer."""

import json
import sys
import time
from pathlib import Path

import grpc
import jwt

# The contract, compiled as it is read. A service of your own compiles it once, when it is built.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
keyward, services = grpc.protos_and_services("keyward/v1/signing_service.proto")

# Claims that are taken over; --carry-claim adds to them. Not jti, which is the issuer's, and not scope: what the issuer allows
# with its own services says nothing about these.
CARRIED_CLAIMS = {"sub", "client_id", "auth_time", "acr"}
# Claims that this proxy states itself, or that would not be true of the new JWT.
OWN_CLAIMS = {"iss", "aud", "exp", "iat", "nbf", "jti"}
# Asymmetric algorithms alone: with an HS256 in this list, whoever knows the public key could sign (RFC 8725 section 3.1).
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]

# An honest issuer's JWT is far shorter.
JWT_OCTETS_MAX = 8 * 1024
JWKS_TIMEOUT_SECS = 5
SIGN_TIMEOUT_SECS = 5


class Refusal(Exception):
    """An answer that is not the upstream's."""

    def __init__(self, status, problem, headers=()):
        super().__init__(problem)
        self.status, self.problem, self.headers = status, problem, dict(headers)


class Resigner:
    """Turns a JWT of the outside issuer into one of the tenant's custom domain."""

    def __init__(self, options):
        self.options = options
        # It keeps the set for its max-age, and asks again early, but not often, for a kid that it does not know.
        self.jwks = jwt.PyJWKClient(
            options.jwks_uri,
            lifespan=options.jwks_max_age_secs,
            cooldown_duration=options.jwks_cooldown_secs,
            timeout=JWKS_TIMEOUT_SECS,
        )
        # One channel for all calls: it connects once, and again by itself.
        self.signing = services.SigningServiceStub(grpc.insecure_channel(options.keyward))

    def resign(self, outside_jwt):
        claims = self.verified_claims(outside_jwt)
        now = int(time.time())
        carried = (CARRIED_CLAIMS | self.options.carry_claim) - OWN_CLAIMS
        resigned = {name: value for name, value in claims.items() if name in carried}
        resigned["sub"] = self.options.subject_prefix + claims["sub"]
        resigned["iss"] = f"https://{self.options.domain}"
        resigned["aud"] = self.options.upstream_audience or self.options.audience
        resigned["iat"] = now
        # Never longer than what was shown, and never longer than the upstream should go on without asking.
        resigned["exp"] = min(int(claims["exp"]), now + self.options.life_secs_max)
        if resigned["exp"] <= now:
            # It passed with the clock skew alone; nothing can be signed that lives until then.
            raise unauthorized("the JWT has expired")
        request = keyward.SignJwtRequest(tenant=self.options.tenant, claims_json=json.dumps(resigned).encode())
        try:
            return self.signing.SignJwt(request, timeout=SIGN_TIMEOUT_SECS).jwt
        except grpc.RpcError as error:
            # The reason is for the operator: a client can do nothing about it but come again.
            log(f"Keyward did not sign: {error.code().name}: {error.details()}")
            raise Refusal(503, "the request cannot be signed at the moment", {"Retry-After": "1"}) from None

    def verified_claims(self, outside_jwt):
        if len(outside_jwt) > JWT_OCTETS_MAX:
            raise unauthorized(f"the JWT is longer than {JWT_OCTETS_MAX} octets")
        try:
            # The algorithm is looked at before the kid is looked up: no request to the issuer for what is refused anyway.
            if jwt.get_unverified_header(outside_jwt).get("alg") not in ALGORITHMS:
                raise unauthorized(f"the JWT's alg must be one of {', '.join(ALGORITHMS)}")
            return jwt.decode(
                outside_jwt,
                self.verification_key(outside_jwt),
                algorithms=ALGORITHMS,
                issuer=self.options.issuer,
                audience=self.options.audience,
                leeway=self.options.clock_skew_secs,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise unauthorized(str(error)) from None

    def verification_key(self, outside_jwt):
        try:
            return self.jwks.get_signing_key_from_jwt(outside_jwt)
        except (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, json.JSONDecodeError) as error:
            log(f"the issuer's JWKS cannot be fetched: {error}")
            raise Refusal(503, "the JWT cannot be verified at the moment", {"Retry-After": "1"}) from None
        except jwt.PyJWKClientError:
            raise unauthorized("the JWT's kid names no key of the issuer's") from None


def unauthorized(problem):
    """RFC 6750 section 3.1. The description is a quoted string of visible ASCII."""
    words = "".join(letter if " " <= letter <= "~" and letter not in '"\\' else "'" for letter in problem)
    challenge = f'Bearer error="invalid_token", error_description="{words}"'
    return Refusal(401, problem, {"WWW-Authenticate": challenge})


def log(line):
    print(line, file=sys.stderr, flush=True)
