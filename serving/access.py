"""Who may ask for what: bearer tokens with scopes and quotas, or this machine alone.

A token is 256 random bits, made by `augmint token` and shown once; the file keeps its SHA-256. (A slow hash protects
passwords, which people choose; nobody guesses 256 bits.) The file is read again when it changes, so that tokens are
added and taken back without a restart. Without a file only connections to a loopback address are answered, under a
loopback name: a web page that made its own name point here (DNS rebinding) is refused.

Knows headers and addresses, nothing of ASGI, images or answers.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from augmint.errors import ServiceError, UsageError
from augmint.files import replacing

__all__ = ["AccessError", "Caller", "Door", "Scope", "Token", "add_token", "is_loopback", "read_tokens", "remove_token"]

log = logging.getLogger("augmint")

Scope = Literal["generate", "admin"]
PREFIX: Final = "augmint_"
_LOOK_EVERY_S: Final = 1.0
_MOST_TOKENS: Final = 1000
_MOST_BYTES: Final = 1 << 20
_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"


class AccessError(ServiceError):
    """`challenge` is the answer's WWW-Authenticate; None where no token would help."""

    def __init__(self, message: str, *, code: str, challenge: str | None = None) -> None:
        super().__init__(message, code=code)
        self.challenge = challenge


class Token(BaseModel):
    """One entry of the file. `images_per_day` None: as many as the service makes; `expires`: the last day it holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=8)] = ["generate"]
    images_per_day: Annotated[int, Field(ge=1, lt=2**53)] | None = None
    expires: Annotated[str, Field(pattern=_DATE)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    tokens: Annotated[list[Token], Field(max_length=_MOST_TOKENS)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request is from: a token's name, or an address where no tokens are asked for."""

    name: str
    images_per_day: int | None = None


# ---------------------------------------------------------------------------------------------- the file


def read_tokens(path: Path) -> list[Token]:
    """The file's entries.

    Raises:
        UsageError: it is not there or not of this form; the message never holds what is in it.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is too large for a file of tokens: make one with `augmint token`.")
        found = _File.model_validate_json(path.read_bytes()).tokens
    except OSError as error:
        raise UsageError(
            f"the tokens in {path} cannot be read ({error.strerror}): make some with `augmint token NAME --file "
            f"{path}`."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{path} is no file of tokens ({where}: {first['msg'].lower()}): mend it.") from None
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in found]
        if len(set(values)) < len(values):
            raise UsageError(f"{path} has two tokens with the same {field}: remove one.")
    for token in found:
        if token.expires is not None:
            _day(token.expires, path)
    return found


def add_token(
    path: Path,
    name: str,
    *,
    scopes: Sequence[str] = ("generate",),
    images_per_day: int | None = None,
    expires: date | None = None,
) -> str:
    """Make a token, add its hash to the file (made where there is none, written by its owner alone), and return it:
    the only time that it is seen.

    Raises:
        UsageError: a name that is taken or cannot be, or a file that cannot be read.
    """
    tokens = read_tokens(path) if path.exists() else []
    if any(token.name == name for token in tokens):
        raise UsageError(f"{path} has a token named {name!r} already: choose another name, or --revoke it first.")
    if len(tokens) >= _MOST_TOKENS:
        raise UsageError(f"{path} has {_MOST_TOKENS} tokens, the most there may be: --revoke some.")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        added = Token.model_validate(
            {
                "name": name,
                "sha256": hashlib.sha256(secret.encode()).hexdigest(),
                "scopes": list(scopes),
                "images_per_day": images_per_day,
                "expires": None if expires is None else expires.isoformat(),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = "name" if first["loc"][:1] == ("name",) else str(first["loc"][0]).replace("_", "-")
        raise UsageError(
            f"this cannot be a token's {what}: names are up to 64 letters, digits, '.', '_', '-' and '@', scopes are "
            f"{' and '.join(get_args(Scope))}, images per day 1 or more."
        ) from None
    _write(path, [*tokens, added])
    return secret


def remove_token(path: Path, name: str) -> None:
    """Take a token back.

    Raises:
        UsageError: there is none of this name.
    """
    tokens = read_tokens(path)
    left = [token for token in tokens if token.name != name]
    if len(left) == len(tokens):
        names = ", ".join(token.name for token in tokens) or "none"
        raise UsageError(f"{path} has no token named {name!r}: there is {names}.")
    _write(path, left)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    document = {"tokens": [token.model_dump(mode="json", exclude_none=True) for token in tokens]}
    # Hashes of random bits give nothing away, and a container's own user must read them; to write is the owner's alone.
    with replacing(path, permissions=0o644) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())


def _day(text: str, path: Path) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{path}: {text!r} is not a day: write 2027-01-31.") from None


# ---------------------------------------------------------------------------------------------- the door


class Door:
    """Decides about every request. For one event loop.

    Args:
        tokens: the file; None: no tokens are asked for, and only this machine is answered.
        open_to_all: without a file, answer everybody.
        hosts: names that a request's Host may be; empty: any, or loopback's names where only this machine is answered.

    Raises:
        UsageError: the file cannot be read.
    """

    def __init__(self, tokens: Path | None, *, open_to_all: bool = False, hosts: Sequence[str] = ()) -> None:
        self._file = None if tokens is None else _Watched(tokens)
        self._open = open_to_all and tokens is None
        self._hosts = frozenset(name.lower() for name in hosts)

    @property
    def asks_for_tokens(self) -> bool:
        return self._file is not None

    @property
    def local_only(self) -> bool:
        return self._file is None and not self._open

    def check_place(self, server: str | None, host: bytes | None) -> None:
        """Of every request, whoever asks.

        Args:
            server: the address that the connection came in at; None where it is not known.
            host: the request's Host.

        Raises:
            AccessError: this service is not for that address or name.
        """
        name = _name_of(host)
        if self.local_only and not is_loopback(server):
            raise AccessError(
                "this service has no tokens and answers its own machine alone: start it with AUGMINT_TOKENS (a file "
                "that `augmint token` makes), or with AUGMINT_AUTH=off where something else guards it.",
                code="service.unauthorized",
                challenge='Bearer realm="augmint"',
            )
        allowed = self._hosts or (_LOCAL_NAMES if self.local_only else None)
        # Clients of HTTP/1.0 may have none, browsers always do.
        if allowed is not None and name is not None and name not in allowed and not self._is_own(name):
            raise AccessError("this service does not go by that name: check the address.", code="service.host")

    def admit(self, authorization: bytes | None, scope: Scope, client: str) -> Caller:
        """Whom the request is from.

        Args:
            authorization: the request's Authorization.
            scope: what the address asks for.
            client: address of the other side, the caller's name where no tokens are asked for.

        Raises:
            AccessError: no token, a wrong one, or one without the scope.
        """
        if self._file is None:
            return Caller(client)
        kind, _, secret = (authorization or b"").strip().partition(b" ")
        if kind.lower() != b"bearer" or not secret.strip():
            raise AccessError(
                "this service asks for a token: send it as Authorization: Bearer …",
                code="service.unauthorized",
                challenge='Bearer realm="augmint"',
            )
        token = self._file.find(secret.strip())
        if token is None:
            raise AccessError(
                "this token is not known here, or no longer holds: ask for another one.",
                code="service.unauthorized",
                challenge='Bearer realm="augmint", error="invalid_token"',
            )
        if scope not in token.scopes:
            raise AccessError(
                f"this token does not allow that: it needs the scope {scope}.",
                code="service.forbidden",
                challenge=f'Bearer realm="augmint", error="insufficient_scope", scope="{scope}"',
            )
        return Caller(token.name, token.images_per_day)

    def _is_own(self, name: str) -> bool:
        return self.local_only and is_loopback(name)


class _Watched:
    """A file of tokens, looked at once a second. One that became unreadable changes nothing, and is complained of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._look()
        self._tokens = read_tokens(path)
        self._looked = time.monotonic()

    def find(self, secret: bytes) -> Token | None:
        self._refresh()
        given = hashlib.sha256(secret).hexdigest()
        found = None
        for token in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.sha256, given):
                found = token
        if found is not None and found.expires is not None:
            today = datetime.now(UTC).date()
            return found if today <= date.fromisoformat(found.expires) else None
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self._tokens = read_tokens(self._path)
            log.info("%d tokens now hold", len(self._tokens))
        except UsageError as error:
            log.error("the tokens that held go on to hold: %s", error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


_LOCAL_NAMES: Final = frozenset({"localhost"})
_HOST: Final = re.compile(r"\[(?P<v6>[0-9a-fA-F:.]+)\](?::[0-9]+)?|(?P<name>[^:\[\]]*)(?::[0-9]+)?")


@lru_cache(maxsize=256)
def _name_of(host: bytes | None) -> str | None:
    """Host without its port and brackets; None where there is none, "" for one that is none."""
    if host is None or not host.strip():
        return None
    found = _HOST.fullmatch(host.decode("latin-1").strip())
    return (found["v6"] or found["name"]).lower().rstrip(".") if found else ""


@lru_cache(maxsize=256)
def is_loopback(address: str | None) -> bool:
    """Whether only this machine reaches it: 127.0.0.0/8, ::1, a Unix socket."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return address is not None and address.startswith("/")  # a Unix socket
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
