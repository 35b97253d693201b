"""Signatures of packages: what was signed is taken, and nothing else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifactory.errors import PackageDefect
from aifactory.reasons import ReasonCode
from aifactory.signing import new_keys, sign, verify

PRIVATE, PUBLIC = new_keys()
BODIES = {"model.onnx": b"\x08\x07graph", "manifest.json": b'{"line": "small_line"}'}
SIGNATURE = sign(BODIES, PRIVATE)


def refused(bodies: dict[str, bytes], signature: bytes = SIGNATURE, public: str = PUBLIC) -> None:
    with pytest.raises(PackageDefect, match="here: ") as caught:
        verify(bodies, signature, public, "here")
    assert caught.value.reason is ReasonCode.PACKAGE_UNSIGNED


def test_what_was_signed_is_taken() -> None:
    verify(BODIES, SIGNATURE, PUBLIC, "here")
    assert b"PRIVATE KEY" in base64.b64decode(PRIVATE)
    assert b"PRIVATE" not in base64.b64decode(PUBLIC)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(BODIES)), st.integers(0, 6), st.integers(1, 255))
def test_one_changed_byte_is_refused(name: str, place: int, flip: int) -> None:
    body = bytearray(BODIES[name])
    body[place] ^= flip
    refused(BODIES | {name: bytes(body)})


def test_a_file_more_or_less_is_refused() -> None:
    refused(BODIES | {"more.bin": b""})
    refused({"model.onnx": BODIES["model.onnx"]})


def test_another_key_is_refused() -> None:
    refused(BODIES, public=new_keys()[1])
    refused(BODIES, sign(BODIES, new_keys()[0]))


@pytest.mark.parametrize("signature", [b"", b"{}", b"not json", SIGNATURE[:-40], b"\xff\xfe"])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    refused(BODIES, signature)
