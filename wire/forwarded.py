"""Read the client certificate that the gateway forwards where it ended the TLS connection itself."""

from __future__ import annotations

import base64
import binascii
import hashlib
import urllib.parse

from cryptography import x509
from cryptography.x509.oid import NameOID

from wire.errors import Unauthenticated
from wire.peers import FORWARDED_MAX_CHARS, Peer, make_peer

_DELIMITERS = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")


def read_forwarded(header: str) -> Peer:
    """The leaf of `x-forwarded-tls-client-cert`: PEM without delimiters, or escaped PEM; the leaf comes first."""
    if len(header) > FORWARDED_MAX_CHARS:
        raise _invalid()
    text = urllib.parse.unquote(header)
    for delimiter in _DELIMITERS:
        text = text.replace(delimiter, ",")
    leaf = "".join(next((part for part in text.split(",") if part.strip()), "").split())
    try:
        der = base64.b64decode(leaf, validate=True)
        return _peer(der, x509.load_der_x509_certificate(der))
    except (binascii.Error, ValueError, x509.ExtensionNotFound) as error:
        raise _invalid() from error


def _peer(der: bytes, certificate: x509.Certificate) -> Peer:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise _invalid()
    digest = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
    return make_peer(uris[0], _generation(certificate), digest)


def _generation(certificate: x509.Certificate) -> int:
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME):
        text = str(attribute.value)
        if text.startswith("g") and text[1:].isascii() and text[1:].isdigit():
            return int(text[1:])
    return 0


def _invalid() -> Unauthenticated:
    return Unauthenticated("the forwarded client certificate cannot be read", reason="CERTIFICATE_INVALID")
