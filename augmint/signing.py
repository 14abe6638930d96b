"""Signed bundles: who vouches for one, and whether those who open it trust them.

A key pair is two files of one line each: NAME.key, which is kept secret, and NAME.pub, which goes to whoever opens the
bundles. A file of trusted keys is such public lines together, with empty lines and comments after "#":

    augmint-public-key BASE64 NAME

`sign` writes signature.json beside the manifest. It is an Ed25519 signature (RFC 8032) over the bundle's digest, which
covers every file, and over who signed when: so neither can be altered. A bundle's digest is the same with and without.

Whom a signature is worth trusting from is the reader's decision alone: nothing in a bundle makes its own key trusted.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from augmint.bundle import SIGNATURE, BundleFiles, read_bundle
from augmint.errors import BundleError, UsageError
from augmint.files import replacing

__all__ = ["Key", "Signature", "Trust", "make_key", "read_key", "read_trust", "sign", "signature_of"]

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"
# Base64 of 32 and of 64 bytes, each in one way of writing it alone: no unused bits in the last digit.
_BYTES_32: Final = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
_BYTES_64: Final = r"[A-Za-z0-9+/]{85}[AQgw]=="
_LINE: Final = re.compile(rf"augmint-(public|private)-key ({_BYTES_32}) ({_NAME})")
_MOST_BYTES: Final = 1 << 20


class Signature(BaseModel):
    """What signature.json holds. `key` and `signature` are base64; `signed` is when, in UTC."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: Literal["augmint-signature"] = "augmint-signature"
    algorithm: Literal["ed25519"] = "ed25519"
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    key: Annotated[str, Field(pattern=rf"^{_BYTES_32}$")]
    signer: Annotated[str, Field(pattern=rf"^{_NAME}$")]
    signed: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
    signature: Annotated[str, Field(pattern=rf"^{_BYTES_64}$")]

    @property
    def key_id(self) -> str:
        return _id_of(self.key)


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair. `public` is base64, `private` 32 bytes."""

    name: str
    public: str
    private: bytes

    def __repr__(self) -> str:
        return f"Key({self.name!r}, {self.id!r})"

    @property
    def id(self) -> str:
        """16 hex digits that tell keys apart."""
        return _id_of(self.public)


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of a file: public key -> the name that the file gives it."""

    path: Path
    names: Mapping[str, str]

    def check(self, files: BundleFiles) -> Signature:
        """The bundle's signature, by one of these keys.

        Raises:
            BundleError: it has none ("bundle.unsigned"), a wrong one ("bundle.bad-signature"), or one by another key
                ("bundle.untrusted").
        """
        found = signature_of(files)
        if found is None:
            raise BundleError(
                f"{files.path} is not signed, and only bundles signed by a key of {self.path} are opened: sign it "
                "with `augmint sign`.",
                code="bundle.unsigned",
            )
        if found.key not in self.names:
            raise BundleError(
                f"{files.path} is signed with the key {found.key_id} (it says: of {found.signer}), which {self.path} "
                "does not hold: add its public line there, if you trust it.",
                code="bundle.untrusted",
            )
        return found


def make_key(name: str, folder: str | os.PathLike[str]) -> tuple[Key, Path, Path]:
    """Make a key pair, as NAME.key (which its owner alone may read) and NAME.pub; returns it and the two files.

    Raises:
        UsageError: the name cannot be one, or the files are there already.
    """
    if not re.fullmatch(_NAME, name):
        raise UsageError(f"{name!r} cannot be a key's name: up to 64 letters, digits, '.', '_', '-' and '@'.")
    private = secrets.token_bytes(32)
    key = Key(name, _public_of(private), private)
    secret, public = Path(folder) / f"{name}.key", Path(folder) / f"{name}.pub"
    lines = {
        secret: f"augmint-private-key {base64.b64encode(private).decode()} {name}\n",
        public: f"augmint-public-key {key.public} {name}\n",
    }
    for path in lines:
        if path.exists():
            raise UsageError(f"{path} exists already: choose another name or --out.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, line in lines.items():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if path == secret else 0o644)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(line)
    return key, secret, public


def read_key(path: str | os.PathLike[str]) -> Key:
    """The key pair of a NAME.key file.

    Raises:
        UsageError: it is not there, or no such file; the message never holds what is in it.
    """
    lines = _read_lines(Path(path))
    if len(lines) != 1 or lines[0][0] != "private":
        raise UsageError(f"{path} holds no private key: give the NAME.key that `augmint key NAME` made.")
    _, text, name = lines[0]
    private = base64.b64decode(text)
    return Key(name, _public_of(private), private)


def read_trust(path: str | os.PathLike[str]) -> Trust:
    """The public keys of a file.

    Raises:
        UsageError: it is not there, holds none, or something else.
    """
    lines = _read_lines(Path(path))
    if not lines:
        raise UsageError(f"{path} holds no key: put lines of NAME.pub files there, that `augmint key NAME` made.")
    if any(kind == "private" for kind, _, _ in lines):
        raise UsageError(f"{path} holds a private key, which nobody else may see: put the line of its NAME.pub there.")
    return Trust(Path(path), {key: name for _, key, name in lines})


def sign(path: str | os.PathLike[str], key: Key, *, now: datetime | None = None) -> Signature:
    """Sign a bundle, once it has been checked; a signature that it has is replaced.

    Args:
        path: the bundle's directory.
        key: see `read_key`.
        now: when; by default the clock says.

    Raises:
        BundleError: it is refused, see `augmint.bundle.read_bundle`.
    """
    digest = read_bundle(path).digest
    when = f"{(now or datetime.now(UTC)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    made = (
        _ed25519().Ed25519PrivateKey.from_private_bytes(key.private).sign(_message(digest, key.public, key.name, when))
    )
    signature = Signature(
        digest=digest, key=key.public, signer=key.name, signed=when, signature=base64.b64encode(made).decode()
    )
    with replacing(Path(path) / SIGNATURE) as file:
        file.write((signature.model_dump_json(indent=1) + "\n").encode("ascii"))
    return signature


def signature_of(files: BundleFiles) -> Signature | None:
    """A bundle's signature, which is of this bundle and by the key that it names; None: it is not signed.

    Raises:
        BundleError: it has one that is not ("bundle.bad-signature").
    """
    if files.signature is None:
        return None
    path = files.path / SIGNATURE
    try:
        found = Signature.model_validate_json(files.signature)
    except ValidationError:
        raise BundleError(f"{path} is no signature: sign the bundle again.", code="bundle.bad-signature") from None
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        if found.digest != files.digest:
            raise InvalidSignature
        public = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(found.key))
        public.verify(base64.b64decode(found.signature), _message(found.digest, found.key, found.signer, found.signed))
    except (InvalidSignature, ValueError):
        raise BundleError(
            f"{path} is not the signature of this bundle: one of the two was altered; sign it again, if you trust it.",
            code="bundle.bad-signature",
        ) from None
    return found


def _message(digest: str, key: str, signer: str, signed: str) -> bytes:
    """What is signed: the first line says what for, so that it can be taken for nothing else."""
    return f"augmint bundle signature 1\n{digest}\n{key}\n{signer}\n{signed}\n".encode("ascii")


def _public_of(private: bytes) -> str:
    public = _ed25519().Ed25519PrivateKey.from_private_bytes(private).public_key()
    return base64.b64encode(public.public_bytes_raw()).decode()


def _id_of(public: str) -> str:
    return hashlib.sha256(base64.b64decode(public)).hexdigest()[:16]


def _read_lines(path: Path) -> list[tuple[str, str, str]]:
    """(public or private, base64, name) of every line."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is too large for a file of keys: `augmint key NAME` makes one.")
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise UsageError(
            f"the keys in {path} cannot be read ({error.strerror}): `augmint key NAME` makes some."
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no file of keys: `augmint key NAME` makes one.") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = _LINE.fullmatch(" ".join(words.split()))
        if match is None:
            raise UsageError(f"{path}, line {number}, is no key: `augmint key NAME` makes such lines.")
        found.append((match[1], match[2], match[3]))
    return found


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise UsageError('Signatures need cryptography: pip install "augmint[local]".') from None
    return ed25519
