"""The same promises against the real S3, and the real program stopped, killed and started again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.checkpoint_rules import CheckpointRules

from aifactory.factory import Factory

pytestmark = pytest.mark.integration


@pytest.fixture
def store(factory: Factory) -> Any:
    return factory.store


class TestInS3(CheckpointRules):
    pass
