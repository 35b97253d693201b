"""Who may ask the gateway: a file of the operator's with a client's name and key a line, `planner=...`.

Keys are in files of mode 0600 and in memory, never in a command line, an environment but a caller's own, or a log.
"""

from __future__ import annotations

import re
from pathlib import Path

from plant.errors import PlantError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(r"[!-~]{16,256}")


def parse_keys(text: str, source: Path) -> dict[str, str]:
    """Name of each client → its key; blank lines and those that begin with # say nothing.

    Args:
        text: content of the file.
        source: the file, for messages, which name its lines and never say what is in them.

    Raises:
        PlantError: a line is no name and key, a name or a key is there twice, or there is none.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition("=")
        if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
            raise PlantError(
                f"line {number} of {source} is no name=key: a name is up to 64 letters, digits, _, ., -, a key 16 to "
                "256 visible ASCII characters; `openssl rand -hex 24` makes one"
            )
        if name in found or key in found.values():
            raise PlantError(f"line {number} of {source} has a name or a key that an earlier line has; make it another")
        found[name] = key
    if not found:
        raise PlantError(
            f"{source} has no key, so nobody could ask: add a line name=key, or set AIF_SERVING_KEYS_FILE empty"
        )
    return found


def read_keys(path: Path) -> dict[str, str]:
    """The keys in a file that only its owner may read; see `parse_keys`.

    Raises:
        PlantError: it cannot be read, others may read it, or what is in it is not valid.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise PlantError(f"AIF_SERVING_KEYS_FILE: {path} cannot be read: {reason}") from None
    if mode & 0o077:
        raise PlantError(f"AIF_SERVING_KEYS_FILE: others may read {path} (mode {mode & 0o777:04o}); chmod 600 it")
    return parse_keys(text, path)
