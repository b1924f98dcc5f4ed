"""What is common to the objects of a store."""

import json
import os
import re

from blake3 import blake3

NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63}")
NUMBER = re.compile(r"0|[1-9][0-9]*")


class Damage(Exception):
    """An object is not what it must be; the message names it."""


def require(condition, name, what):
    if not condition:
        raise Damage(f"{name}: {what}")


def read(store, name):
    try:
        with open(os.path.join(store, name), "rb") as file:
            return file.read()
    except OSError as error:
        raise Damage(f"{name}: {error.strerror}") from None


def numbers(folder):
    """The entries of a folder whose names are numbers, ascending."""
    return sorted(int(name) for name in os.listdir(folder) if NUMBER.fullmatch(name)) if os.path.isdir(folder) else []


def identity(what, *names):
    return blake3(b"\0".join([f"farside {what} v1".encode(), *(name.encode() for name in names)]))[:16]


def described_as(store, name, what):
    """A JSON object of this format, in version 1."""
    try:
        described = json.loads(read(store, name))
    except ValueError:
        raise Damage(f"{name}: not JSON") from None
    require((described.get("format"), described.get("version")) == (what, 1), name, f"not version 1 of a {what}")
    return described
