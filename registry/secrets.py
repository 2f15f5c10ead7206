"""Passwords in URLs: they are used, but neither stored nor shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from .errors import SettingsError

MASK = "***"
USER = re.compile(r"(://[^/?#@:]*):([^/?#]*)@")
TOKEN = re.compile(r"(^https?://)([^/?#@:]+)@")  # a name alone is a key there, as code hosts have it
KEY = re.compile(r"([?&;][^=&;#]*(?:pass|pwd|secret|token|key|credential|signature)[^=&;#]*)=([^&;#]*)", re.IGNORECASE)


def masked(url: str) -> str:
    """A URL with what may be a password or a key replaced, in its user or its query."""
    url = USER.sub(rf"\1:{MASK}@", url)
    url = TOKEN.sub(rf"\1{MASK}@", url)
    return KEY.sub(rf"\1={MASK}", url)


def without_secrets(text: str, url: str) -> str:
    """What a library says of a URL, without the passwords that are in it."""
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def check_url(url: str, option: str) -> None:
    """Raises SettingsError for a malformed URL, which is not repeated: a password may be what is wrong with it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        sound = "@" not in parts.path + parts.query or not re.match(r"https?|postgres", parts.scheme)
    except ValueError:
        sound = False
    if not sound:
        raise SettingsError(
            f"The URL of {option} is malformed. (It is not repeated here, as there may be a password in it.) Write "
            "characters such as / ? # @ % in a password as %2F %3F %23 %40 %25."
        )


def _secrets(url: str) -> Iterator[str]:
    for pattern in (USER, TOKEN, KEY):
        for match in pattern.finditer(url):
            if match[2] and match[2] != MASK:
                yield from {match[2], unquote(match[2])}
