"""The corpus that needs no network and no file: CPython's own documentation topics (PSF licence).

A topic is held out (the pocket pair never trained on it) by a hash of its name, the same in every Python version.
"""

import hashlib
from pydoc_data.topics import topics

#: The share of names that are held out.
_HELD_OUT = 0.12


def held_out(name: str) -> bool:
    """By the first four bytes of sha256(name)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) < _HELD_OUT * 2**32


def paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def fingerprint(paragraph: str) -> str:
    """What makes two paragraphs the same one: their words."""
    return " ".join(paragraph.split())


def held_out_documents() -> list[str]:
    """The held-out topics in order of name, each paragraph once: topics quote one another."""
    seen: set[str] = set()
    documents = []
    for name, text in sorted(topics.items()):
        if held_out(name):
            fresh = [part for part in paragraphs(text) if fingerprint(part) not in seen]
            seen.update(map(fingerprint, fresh))
            documents.append("\n\n".join(fresh))
    return documents


def documents() -> list[str]:
    """Held-out topics first, so that a short prompt or score never meets a text that was trained on; then the rest."""
    rest = [text for name, text in sorted(topics.items()) if not held_out(name)]
    return held_out_documents() + rest
