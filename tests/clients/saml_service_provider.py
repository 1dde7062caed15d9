"""Reads SAML responses with pysaml2, as a service provider that trusts an identity provider by its metadata does.

Its arguments: the file of the metadata, the file of the response, and the service provider's entityID, its
AssertionConsumerService and the ID of the request that it sent. It prints what it read as one line of JSON:

    {"issuer": .., "subject": .., "attributes": {..}, "error": null}
"""

import base64
import json
import logging
import sys

from saml2 import BINDING_HTTP_POST
from saml2.client import Saml2Client
from saml2.config import SPConfig
from saml2.sigver import get_xmlsec_binary

# pysaml2 logs what it raises as well.
logging.disable()


def read(metadata, response, entity_id, consumer_service, request_id):
    config = SPConfig().load(
        {
            "entityid": entity_id,
            "xmlsec_binary": get_xmlsec_binary(),
            # Attributes by the names that the identity provider gives them.
            "allow_unknown_attributes": True,
            "metadata": {"local": [metadata]},
            "service": {
                "sp": {
                    "endpoints": {"assertion_consumer_service": [(consumer_service, BINDING_HTTP_POST)]},
                    "want_assertions_signed": True,
                    "want_response_signed": False,
                }
            },
        }
    )
    with open(response, "rb") as file:
        posted = base64.b64encode(file.read()).decode()
    answer = Saml2Client(config).parse_authn_request_response(posted, BINDING_HTTP_POST, {request_id: "/"})
    return {
        "issuer": answer.issuer(),
        "subject": answer.name_id.text,
        "attributes": answer.get_identity(),
        "error": None,
    }


try:
    print(json.dumps(read(*sys.argv[1:])))
except Exception as error:  # whatever it raises is its way to refuse; the test reads which
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
