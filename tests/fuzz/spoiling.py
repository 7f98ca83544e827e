"""Good bytes with some of them cut off, changed, repeated, put in, or in another encoding."""

from __future__ import annotations

import random

_PUT_IN = (b"\0", b'"', b"\r", b"\n", b",", b"{", b"[", b"}", b":", b"\xff", b"null", b"9" * 400)


def spoiled(rng: random.Random, content: bytes) -> bytes:
    """One to three changes, at random."""
    for _ in range(rng.randint(1, 3)):
        content = _changed(rng, content)
    return content


def _changed(rng: random.Random, content: bytes) -> bytes:
    at = rng.randint(0, len(content))
    before, some, after = content[:at], content[at : at + 8], content[at + rng.randint(0, 8) :]
    kind = rng.choice(("cut", "left out", "noise", "put in", "again", "UTF-16", "twice", "empty"))
    if kind == "noise":
        return before + rng.randbytes(rng.randint(1, 4)) + after
    if kind == "put in":
        return before + rng.choice(_PUT_IN) + content[at:]
    if kind == "again":
        return before + some * 3 + content[at:]
    if kind == "UTF-16":
        return content.decode("latin-1").encode("utf-16")
    return {"cut": before, "left out": before + after, "twice": content * 2, "empty": b""}[kind]
