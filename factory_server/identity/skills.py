"""Sign skill packs, so that what a store gives back is known to be what this factory took."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory_server.identity.keyfiles import private_directory, publish

KEY: Final = "key.pem"
FIRST: Final = "1"
PURPOSE: Final = b"hyperfactory skill pack 1\n"
"""A signature of ours for another purpose never counts as one of these."""
KEY_ID_CHARS: Final = 16


class SkillSigner:
    """Signs with the newest key of its directory; every key there verifies, for packs are kept for good."""

    def __init__(self, keys: dict[str, ed25519.Ed25519PrivateKey], newest: str) -> None:
        self._keys = keys
        self._newest = newest

    @classmethod
    def open(cls, directory: Path) -> SkillSigner:
        """Read the keys, or make the first; safe when several processes do so at once."""
        private_directory(directory)
        names = _names(directory)
        if not names:
            publish(directory / FIRST, {KEY: _new_key()})
            names = _names(directory)
        keys = {_id_of(key): key for key in (_load(directory / name / KEY) for name in names)}
        return cls(keys, list(keys)[-1])

    def sign(self, digest: str) -> tuple[str, bytes]:
        """The key's id and the signature."""
        return self._newest, self._keys[self._newest].sign(PURPOSE + digest.encode())

    def verify(self, digest: str, key_id: str, signature: bytes) -> bool:
        """Whether that key is ours and has signed this digest."""
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.public_key().verify(signature, PURPOSE + digest.encode())
        except InvalidSignature:
            return False
        return True


def _names(directory: Path) -> list[str]:
    return sorted((path.name for path in directory.iterdir() if path.name.isdigit()), key=int)


def _new_key() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(path: Path) -> ed25519.Ed25519PrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise TypeError(f"{path} holds no Ed25519 key")
    return key


def _id_of(key: ed25519.Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(public).hexdigest()[:KEY_ID_CHARS]
