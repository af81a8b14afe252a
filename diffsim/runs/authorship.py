"""Whether a run file was written by the user who opens it.

A run may name code of its author: a simulator, policy or optimizer in a file.  Such code is executed only if the
file carries a signature made with this user's own key, or if the user says so.  The key is a random file in the
user's configuration folder (HMAC-SHA256, RFC 2104); it never leaves the machine.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def signature(parts: Iterable[bytes]) -> str:
    """The signature of ``parts``, in their order; ``""`` where no key can be kept."""
    key = _key(make=True)
    return "" if key is None else _signed(key, parts)


def is_own(parts: Iterable[bytes], found: str) -> bool:
    """Whether ``found`` is this user's signature of ``parts``."""
    key = _key(make=False)
    return key is not None and hmac.compare_digest(_signed(key, parts), found)


def _signed(key: bytes, parts: Iterable[bytes]) -> str:
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        # With its length, so that moving a byte from one part to the next changes the signature.
        mac.update(len(part).to_bytes(8, "little") + part)
    return mac.hexdigest()


def _key_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "diffsim" / "author.key"


def _key(make: bool) -> bytes | None:
    """This user's key, made if there is none and ``make``; None if there is none."""
    try:
        file = _key_file()
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{secrets.token_hex(8)}")
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(32))
            try:
                os.link(temporary, file)  # fails if another process was faster: its key stands
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        key = file.read_bytes()
    except (OSError, RuntimeError):  # no home folder, or one that cannot be written
        return None
    return key if len(key) == 32 else None
