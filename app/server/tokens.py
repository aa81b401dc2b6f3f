"""Tokens by name: shown once, kept as salted hashes.

A token is 32 random bytes, so nobody can guess it and one round of SHA-256 is enough; a slow hash is for passwords that
people think up, and would cost each request its time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from ..faults import refuse, unknown
from ..output import write_text

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
PREFIX = "sfu"


class Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The part of the token that may be seen: it says which entry to compare with."""
    salt: str
    hash: str
    created: float


class TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: dict[str, Stored] = {}


class Read(NamedTuple):
    mark: tuple[int, int]
    tokens: dict[str, Stored]


class Tokens:
    """Those of one data folder. A change by another process is seen at the next question."""

    def __init__(self, home: Path) -> None:
        self.file = home / "tokens.json"
        self._read = Read((0, 0), {})

    def all(self) -> dict[str, Stored]:
        try:
            about = os.stat(self.file)
        except FileNotFoundError:
            return {}
        mark = (about.st_mtime_ns, about.st_ino)
        if mark != self._read.mark:
            try:
                found = TokenFile.model_validate_json(self.file.read_bytes()).tokens
            except ValidationError as error:
                raise refuse(
                    "tokens", str(self.file), "is damaged; delete it and add the tokens anew"
                ) from error
            self._read = Read(mark, found)
        return self._read.tokens

    def add(self, name: str) -> str:
        """The new token, which nobody can read again."""
        if not NAME.fullmatch(name):
            raise refuse(
                "name", name, "can't be a name; letters, digits and . _ - are allowed, as in my-laptop"
            )
        tokens = self.all()
        if name in tokens:
            raise refuse("name", name, "has a token; remove it first, or choose another name")
        id, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        token = f"{PREFIX}_{id}_{secret}"
        self._write({**tokens, name: Stored(id=id, salt=salt, hash=hashed(token, salt), created=time.time())})
        return token

    def remove(self, name: str) -> None:
        tokens = dict(self.all())
        if tokens.pop(name, None) is None:
            raise unknown("name", name, tokens, "`sfumato serve token list` shows the names")
        self._write(tokens)

    def owner(self, token: str) -> str | None:
        """The name of whoever has this token."""
        found = None
        for name, stored in self.all().items():
            same = hmac.compare_digest(hashed(token, stored.salt), stored.hash)  # all, in the same time
            found = name if same else found
        return found

    def _write(self, tokens: dict[str, Stored]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, TokenFile(tokens=dict(sorted(tokens.items()))).model_dump_json(indent=1))
        os.chmod(self.file, 0o600)


def hashed(token: str, salt: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + token.encode("utf-8", "surrogatepass")).hexdigest()
