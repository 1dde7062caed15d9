"""Reads SAML metadata with pysaml2, as a service provider does: fetched from its address, its signature checked with xmlsec1
against a certificate that was got otherwise.

Arguments: the metadata's URL, the entity id, a PEM file with the certificate. Prints one line of JSON: the signing
certificates in order (base64 without white space) and the addresses for requests by HTTP redirect; or {"error": ...}.
"""

import json
import shutil
import sys

from saml2 import BINDING_HTTP_REDIRECT
from saml2.config import SPConfig
from saml2.mdstore import MetadataStore


def read(url, entity_id, certificate):
    config = SPConfig()
    config.load({"entityid": "https://sp.example/metadata", "xmlsec_binary": shutil.which("xmlsec1")})
    store = MetadataStore([], config)
    store.load("remote", url=url, cert=certificate)
    certificates = ["".join(text.split()) for _, text in store.certs(entity_id, "idpsso", "signing")]
    services = store.single_sign_on_service(entity_id, BINDING_HTTP_REDIRECT)
    return {"certificates": certificates, "locations": [service["location"] for service in services]}


try:
    print(json.dumps(read(*sys.argv[1:])))
except Exception as error:  # what a service provider would log, whatever it is
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
