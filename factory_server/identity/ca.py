"""The factory's certificate authority: a root that signs an issuing CA, which signs everybody's leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from factory_server.identity.keyfiles import private_directory, publish
from wire.identity import Identity, agent_authority, agent_spiffe

AGENT_TTL_S: Final = 3600.0
PART_TTL_S: Final = 86_400.0
ROOT_TTL_DAYS: Final = 3650
ISSUING_TTL_DAYS: Final = 365
# A fresh leaf must be valid on a host whose clock is a little behind.
BACKDATE_S: Final = 60.0
COMMON_NAME_MAX_CHARS: Final = 64

KEY: Final = "key.pem"
CERTIFICATE: Final = "cert.pem"

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Signer:
    """A CA's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


class CertificateAuthority:
    """Issues leaves; the bundle that peers trust is the roots."""

    def __init__(self, issuing: _Signer, roots_pem: bytes, now: Clock) -> None:
        self._issuing = issuing
        self._now = now
        self.bundle_pem = roots_pem

    @classmethod
    def open(cls, directory: Path, *, now: Clock = utc_now) -> CertificateAuthority:
        """Read the authority of this directory, or make it; safe when several processes do so at once.

        `root/` is needed only to make `issuing/` and can be kept elsewhere but for its certificate. A PEM file
        in `more-roots/` is trusted as well: the other root, while one replaces the other.
        """
        private_directory(directory)
        issuing = directory / "issuing"
        if not issuing.exists():
            _make_authority(directory, now())
        roots = [directory / "root" / CERTIFICATE, *sorted((directory / "more-roots").glob("*.pem"))]
        return cls(_load(issuing), b"".join(path.read_bytes() for path in roots), now)

    def issue(
        self,
        spiffe: str,
        dns_names: Sequence[str],
        *,
        ttl_s: float,
        client: bool = True,
        server: bool = True,
        generation: int = 0,
    ) -> Identity:
        """A fresh key and its certificate chain; `generation` is an agent's."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._now()
        ends = min(now + timedelta(seconds=ttl_s), self._issuing.certificate.not_valid_after_utc)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_subject(spiffe, generation))
            .issuer_name(self._issuing.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=BACKDATE_S))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_purposes(client, server)), critical=False)
            .add_extension(_names(spiffe, dns_names), critical=False)
            .add_extension(_authority(self._issuing), critical=False)
            .sign(self._issuing.key, hashes.SHA256())
        )
        chain = leaf.public_bytes(serialization.Encoding.PEM) + self._issuing.pem
        return Identity(certificate_pem=chain, key_pem=_key_pem(key), ca_pem=self.bundle_pem)

    def issue_agent(self, crew: str, name: str, generation: int, *, ttl_s: float = AGENT_TTL_S) -> Identity:
        """The certificate of one instance of an agent."""
        return self.issue(
            agent_spiffe(crew, name), [agent_authority(name, crew)], ttl_s=ttl_s, generation=generation
        )


def half_life(certificate_pem: bytes) -> datetime:
    """When half of a certificate's life is over: time to renew it."""
    leaf = x509.load_pem_x509_certificate(certificate_pem)
    begins = leaf.not_valid_before_utc + timedelta(seconds=BACKDATE_S)
    return begins + (leaf.not_valid_after_utc - begins) / 2


def _make_authority(directory: Path, now: datetime) -> None:
    root_home, issuing_home = directory / "root", directory / "issuing"
    if not root_home.exists():
        publish(root_home, _files(_authority_certificate("Hyper Agent Factory root", None, now)))
    issuing = _authority_certificate("Hyper Agent Factory issuing CA", _load(root_home), now)
    publish(issuing_home, _files(issuing))


def _authority_certificate(name: str, parent: _Signer | None, now: datetime) -> _Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + timedelta(days=ISSUING_TTL_DAYS if parent else ROOT_TTL_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if parent else 1), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if parent is not None:
        builder = builder.add_extension(_authority(parent), critical=False)
    return _Signer(builder.sign(parent.key if parent else key, hashes.SHA256()), key)


def _load(directory: Path) -> _Signer:
    key = serialization.load_pem_private_key((directory / KEY).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"cannot sign with '{directory / KEY}': it is no P-256 key")
    return _Signer(x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes()), key)


def _files(signer: _Signer) -> dict[str, bytes]:
    return {KEY: _key_pem(signer.key), CERTIFICATE: signer.pem}


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _subject(spiffe: str, generation: int) -> x509.Name:
    # For people; programs read the URI. The generation is read from here, so nothing else may look like it.
    name = spiffe.rsplit("/", 1)[1][:COMMON_NAME_MAX_CHARS]
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if generation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"g{generation}"))
    return x509.Name(attributes)


def _names(spiffe: str, dns_names: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe)]
    return x509.SubjectAlternativeName([*names, *(x509.DNSName(name) for name in dns_names)])


def _authority(signer: _Signer) -> x509.AuthorityKeyIdentifier:
    found = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _purposes(client: bool, server: bool) -> list[x509.ObjectIdentifier]:
    client_auth = [ExtendedKeyUsageOID.CLIENT_AUTH] if client else []
    server_auth = [ExtendedKeyUsageOID.SERVER_AUTH] if server else []
    return client_auth + server_auth


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
