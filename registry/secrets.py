"""Passwords in URLs: they are used, but neither stored nor shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from .errors import SettingsError

MASK = "***"
USER = re.compile(r"(://[^/?#@:]*):([^/?#]*)@")
TOKEN = re.compile(r"(^https?://)([^/?#@:]+)@", re.IGNORECASE)  # a name alone is a key there, as code hosts have it
ARGUMENT = re.compile(r"([?&;#][^=&;#]*)=([^&;#]*)")
SECRET = re.compile(r"pass|pwd|secret|token|key|credential|sig|auth", re.IGNORECASE)


def masked(url: str) -> str:
    """A URL with what may be a password or a key replaced, in its user, its query or its fragment."""
    url = USER.sub(rf"\1:{MASK}@", url)
    url = TOKEN.sub(rf"\1{MASK}@", url)
    return ARGUMENT.sub(lambda match: f"{match[1]}={MASK}" if _is_secret(match) else match[0], url)


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
        sound = not parts.netloc or "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        sound = False
    if not sound:
        raise SettingsError(
            f"The URL of {option} is malformed. (It is not repeated here, as there may be a password in it.) Write "
            "characters such as / ? # @ % in a password as %2F %3F %23 %40 %25."
        )


def _is_secret(argument: re.Match[str]) -> bool:
    """Whether an argument's name, or what its value quotes, speaks of a secret: ODBC's whole string is one value."""
    return bool(SECRET.search(unquote(argument[0])))


def _secrets(url: str) -> Iterator[str]:
    matches = [*USER.finditer(url), *TOKEN.finditer(url), *filter(_is_secret, ARGUMENT.finditer(url))]
    for secret in (match[2] for match in matches if match[2] and match[2] != MASK):
        yield from {secret, unquote(secret)}
        if unquote(secret) != secret:
            yield from _secrets(f"?{unquote(secret)}")
