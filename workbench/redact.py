"""Keys and passwords: kept out of configs, and taken out of what is written."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|WEBHOOK)$", re.IGNORECASE)
"""How the environment variables are called whose values nobody should read."""
SHORTEST = 8
"""Shorter values are words like `none`, which servers of one's own are given for a key."""
UNLIKELY = 16
"""So long a value is in a config because somebody put the secret there, not by chance."""
CALLED_SECRET = re.compile(
    r"(?:api|access|secret|private|auth)[_-]?(?:key|token)|token|secret|passw(?:or)?d", re.IGNORECASE
)
KINDS = {
    "an address with a name and a password": r"\w://[^/\s:@]*:[^/\s@]+@",
    "an address with a key in it": r"[?&](?:[\w-]*key|[\w-]*token|secret|passw(?:or)?d|sig|signature)=[^&\s]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an authorization header": r"\b(?:Bearer|Basic) [\w+/=.-]{16,}",
    "a key": r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{20,}|gsk_\w{20,}|nvapi-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|A(?:KI|SI)A[A-Z0-9]{16}"
    r"|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)",
}  # fmt: skip
"""What secrets look like: those of the hub, of providers, of version control, JSON Web Tokens."""
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def secret_values() -> list[str]:
    """The values of the environment's secrets, longest first."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def redacted(text: str) -> str:
    """The text, with what looks like a secret, and every secret of the environment, taken out."""
    for value in secret_values():
        text = text.replace(value, "[secret]")
    for kind, pattern in PATTERNS.items():
        if kind.startswith("an address with a name"):
            text = pattern.sub(lambda found: f"{found[0].split('://')[0]}://[secret]@", text)
        else:
            text = pattern.sub("[secret]", text)
    return text


def refuse_secrets(settings: Any, name: str = "") -> None:
    """Raise ValueError, without the value, where one of nested settings is a secret.

    Configs are files that are read, copied and shown; keys come from the environment.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if CALLED_SECRET.fullmatch(str(key).rsplit(".", 1)[-1]) and value:
                raise ValueError(_refusal(f"{name}.{key}".lstrip("."), "a key by its name"))
            refuse_secrets(value, f"{name}.{key}".lstrip("."))
            refuse_secrets(str(key), f"a name in {name}" if name else "the name of a setting")
    elif isinstance(settings, list | tuple):
        for value in settings:
            refuse_secrets(value, name)
    elif isinstance(settings, str):
        if any(value in settings for value in secret_values() if len(value) >= UNLIKELY):
            raise ValueError(_refusal(name, "a secret of the environment"))
        for kind, pattern in PATTERNS.items():
            if pattern.search(settings):
                raise ValueError(_refusal(name, kind))


def _refusal(name: str, kind: str) -> str:
    return (
        f"{name} holds {kind}, and a config may hold none, since it is stored and shown; leave it out and set it in "
        "the environment, as OPENAI_API_KEY or HF_TOKEN, before the queue's first run is launched"
    )


class _Redacting:
    """A text stream that takes secrets out of what goes through it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(redacted(text))

    def writelines(self, lines: list[str]) -> None:
        self.stream.writelines(map(redacted, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def redact_output() -> None:
    """From here on this process's standard output and error, its log among them, hold no secret.

    What compiled code writes to the file descriptor itself is not seen here.
    """
    if not isinstance(sys.stdout, _Redacting):
        sys.stdout, sys.stderr = _Redacting(sys.stdout), _Redacting(sys.stderr)
