"""A released package becomes a model repository in a real S3, or nothing does."""

from __future__ import annotations

import pytest
from tests.served import trained

from aifactory.errors import PackageDefect
from aifactory.factory import Factory
from aifactory.packaging import MODEL_FILE, write_package
from aifactory.reasons import ReasonCode
from aifactory.serving.kserveadapter import publish_repository
from aifactory.signing import SIGNATURE_FILE, sign_package

pytestmark = pytest.mark.integration

LINE, PREFIX = "flight_delay", "serving/flight_delay/repositories/3"


@pytest.fixture
def onnx(factory: Factory) -> bytes:
    body, manifest = trained("2013-01-01", "2013-01-22")
    write_package(factory.store, f"models/{LINE}/3", manifest, body, None)
    sign_package(factory.settings, factory.store, f"models/{LINE}/3")
    return body


def published(factory: Factory) -> dict[str, bytes]:
    return {o.key.removeprefix(f"{PREFIX}/"): factory.store.get(o.key) for o in factory.store.list(PREFIX)}


def test_a_released_version_is_laid_out_as_triton_wants_it(factory: Factory, onnx: bytes) -> None:
    assert publish_repository(factory.settings, factory.store, LINE, "3") == factory.store.uri(PREFIX)
    files = published(factory)
    assert set(files) == {f"{LINE}/config.pbtxt", f"{LINE}/3/model.onnx", f"{LINE}/3/identity.json"}
    assert files[f"{LINE}/3/model.onnx"] == onnx
    assert b"versions: [3]" in files[f"{LINE}/config.pbtxt"]
    publish_repository(factory.settings, factory.store, LINE, "3")
    assert published(factory) == files


@pytest.mark.parametrize("hurt", ["unsigned", "altered"])
def test_what_is_not_whole_and_signed_is_not_published(factory: Factory, onnx: bytes, hurt: str) -> None:
    if hurt == "unsigned":
        factory.store.delete(f"models/{LINE}/3/{SIGNATURE_FILE}")
    else:
        factory.store.put(f"models/{LINE}/3/{MODEL_FILE}", onnx[:-1] + bytes([onnx[-1] ^ 1]))
    with pytest.raises(PackageDefect) as caught:
        publish_repository(factory.settings, factory.store, LINE, "3")
    wanted = {"unsigned": ReasonCode.PACKAGE_UNSIGNED, "altered": ReasonCode.PACKAGE_INVALID}
    assert caught.value.reason is wanted[hurt]
    assert published(factory) == {}
