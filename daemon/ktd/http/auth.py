"""The API key of the OpenAI front."""

from __future__ import annotations

import hmac
from collections.abc import Mapping


class KeyCheck:
    """Compares a bearer token with the key in constant time; without a key everybody may."""

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def accepts(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers may pass."""
        if self._key is None:
            return True
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = token.strip().encode(errors="surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._key)
