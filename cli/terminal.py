"""What may go to a terminal: names come from folders and catalogs, and may hold what a terminal takes for orders."""

from __future__ import annotations

import re
import sys

import click

# Control characters but for line feeds; what turns the direction of writing around; what ends a line elsewhere.
UNPRINTABLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Text of any number of lines, with escapes such as ``\\x1b`` in place of control characters."""
    return UNPRINTABLE.sub(_escaped, text)


def printable_line(text: str) -> str:
    """The same on one line."""
    return printable(text).replace("\n", r"\n")


def echo(text: str, *, err: bool = False) -> None:
    """A line on standard output or standard error."""
    click.echo(printable(text), err=err)


def show_what_can_be_shown() -> None:
    """Let no character end a command that the encoding of standard output or standard error does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
