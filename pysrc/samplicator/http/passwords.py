"""Passwords against their bcrypt hashes, at a bounded cost.

Purpose: a check takes a tenth of a second of CPU or more, on purpose; so one runs at a time, on a thread that gives way
to others, few may wait, and after one that failed there is a pause of several times its length. What was right or wrong
is remembered, not as text, until the users change: a program with a wrong password, which asks every few seconds, costs
nothing and is no guess. Invariants: a name that nobody has costs what a wrong password costs; memory is bounded. Called
by http.security. The only importer of bcrypt.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

REMEMBERED: Final = 64
WAITING: Final = 16
PAUSE: Final = 4.0
"""Times the length of a check that failed: so guessing has a fifth of a CPU at most."""
PAUSE_SECONDS: Final = 2.0
"""Longest pause."""
NICE: Final = 10
BCRYPT_BYTES: Final = 72
"""bcrypt looks at no more of a password."""
_NOBODY: Final = "$2b$%02d$" + "." * 21 + "u" + "." * 31


class Busy(Exception):
    """Too many checks wait."""


class Passwords:
    """The users of one web-config file. users: (name, hash)."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = dict(users)
        cost = max((int(text[4:6]) for text in self._users.values()), default=10)
        self._nobody = _NOBODY % cost
        self._secret = os.urandom(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._free_at = 0.0
        self._thread = ThreadPoolExecutor(1, "password", initializer=_give_way)

    def close(self) -> None:
        """No further check begins."""
        self._thread.shutdown(wait=False)

    def known(self, user: str, password: bytes) -> bool | None:
        """Whether this was right or wrong before; None = it was not checked lately. Costs nothing."""
        key = self._key(user, password)
        for right, table in ((True, self._right), (False, self._wrong)):
            if key in table:
                table.move_to_end(key)
                return right
        return None

    async def check(self, user: str, password: bytes) -> bool:
        """Whether it is right. Raises Busy."""
        if self._waiting >= WAITING:
            raise Busy
        self._waiting += 1
        try:
            async with self._turn:
                known = self.known(user, password)
                if known is not None:
                    return known
                await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
                loop, begun = asyncio.get_running_loop(), time.monotonic()
                hashed = self._users.get(user)
                try:
                    right = await loop.run_in_executor(self._thread, _matches, password, hashed or self._nobody)
                except RuntimeError:  # closed meanwhile: there are other users now
                    raise Busy from None
                if right and hashed is not None:
                    self._remember(self._right, self._key(user, password))
                    return True
                self._remember(self._wrong, self._key(user, password))
                now = time.monotonic()
                self._free_at = now + min(PAUSE * (now - begun), PAUSE_SECONDS)
                return False
        finally:
            self._waiting -= 1

    def _key(self, user: str, password: bytes) -> bytes:
        said = b"\0".join((user.encode(errors="surrogatepass"), password))
        return hmac.digest(self._secret, said, hashlib.sha256)

    def _remember(self, table: OrderedDict[bytes, None], key: bytes) -> None:
        table[key] = None
        if len(table) > REMEMBERED:
            table.popitem(last=False)


def _give_way() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _matches(password: bytes, hashed: str) -> bool:
    import bcrypt

    try:
        return bcrypt.checkpw(password[:BCRYPT_BYTES], hashed.encode())
    except ValueError:  # a NUL byte in the password
        return False
