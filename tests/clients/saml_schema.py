"""Holds the one SAML assertion of a document against the schemas of SAML 2.0 and XML Signature, as pysaml2 has them.

Its one argument is the document's file. Exit status 0: valid; otherwise the reason is on standard error.
"""

import sys

from lxml import etree
from saml2.xml.schema import XMLSchemaError, validate

assertions = list(etree.parse(sys.argv[1]).getroot().iter("{urn:oasis:names:tc:SAML:2.0:assertion}Assertion"))
if len(assertions) != 1:
    sys.exit(f"{len(assertions)} assertions")
try:
    validate(etree.tostring(assertions[0], encoding="unicode", with_tail=False))
except XMLSchemaError as error:
    sys.exit(f"not as the schema has it: {error.args[0]['error']}")
