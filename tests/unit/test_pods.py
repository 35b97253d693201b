"""The pod as it is described, held against the schemas of Kubernetes versions that are in use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest

from aifactory.errors import Defect, InfrastructureFault, SpecError
from aifactory.line import Compute
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from orchestration import podfaults
from orchestration.pods import TASK_LABEL, Shape, describe, task_label

VERSIONS = ("1.31", "1.34", kubernetes_validate.latest_version())
TASK = {"dag_id": "a" * 100, "run_id": "scheduled__2026-11-21T00:00:00+00:00", "task_id": "train_challenger"}
GPUS = Compute(cpus=8, memory_gb=64, gpus=4, gpu_class="NVIDIA-H100-80GB-HBM3", node_labels={"pool": "spot"})


def settings(**changes: Any) -> Settings:
    return Settings(
        plant_id="p1", s3_endpoint="https://s3.example.com", mlflow_uri="https://mlflow.example.com",
        pod_priority_class="batch", pod_pull_secret="login", **changes,
    )  # fmt: skip


def pod(compute: Compute, **changes: Any) -> dict[str, Any]:
    arguments = ["--line", "flight_delay", "--order", "o", "--phase", "challenger"]
    return describe(
        settings(**changes), compute, Shape.of(compute), "aifactory.training", arguments, line="flight_delay", task=TASK
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compute", [Compute(), GPUS], ids=["cpu", "gpus"])
def test_it_is_a_pod_to_every_version(version: str, compute: Compute):
    kubernetes_validate.validate(pod(compute), version, strict=True)


def test_a_pod_with_a_wrong_field_is_not():
    wrong = pod(Compute())
    wrong["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_it_has_the_least_rights():
    spec = pod(Compute())["spec"]
    [container] = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_no_secret_is_in_it():
    text = str(pod(Compute(), s3_access_key="KEY1", s3_secret_key="KEY2", ledger_dsn="postgresql://KEY3"))
    assert "KEY" not in text
    assert "ai-factory-trainer" in text


def test_it_asks_for_what_the_line_says():
    described = pod(GPUS)["spec"]
    [container] = described["containers"]
    asked = {"cpu": "8000m", "memory": "64000M", "ephemeral-storage": "4000M", "nvidia.com/gpu": "4"}
    assert container["resources"] == {"requests": asked, "limits": asked}
    assert described["nodeSelector"] == {"pool": "spot", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert described["priorityClassName"] == "batch"
    [shared] = [v for v in described["volumes"] if v["name"] == "shared-memory"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "1000M"}


def test_the_shape_after_out_of_memory():
    assert Shape.of(Compute(memory_gb=4), larger=True).memory_gb == 8
    assert Shape.of(Compute(memory_gb=4, retry_memory_gb=5), larger=True).memory_gb == 5


def test_addresses_are_those_that_pods_reach():
    assert settings(pod_s3_endpoint="http://here").pod_s3_url == "http://here"
    assert Settings(pod_doorway="10.0.0.1", s3_port=8340).pod_s3_url == "http://10.0.0.1:8340"
    assert Settings(mlflow_port=5500).pod_mlflow_url == "http://127.0.0.1:5500"


def test_a_task_is_named_the_same_whatever_its_try():
    labels = pod(Compute())["metadata"]["labels"]
    assert labels[TASK_LABEL] == task_label(settings(), TASK)
    assert labels[TASK_LABEL] != task_label(settings(), TASK | {"run_id": "another"})
    assert all(len(value) <= 63 for value in labels.values())


def test_a_template_that_is_not_yaml(tmp_path: Path):
    template = tmp_path / "pod.yaml"
    template.write_text("kind: [")
    with pytest.raises(SpecError, match="is not YAML"):
        pod(Compute(), pod_template=template)
    with pytest.raises(SpecError, match="cannot be read"):
        pod(Compute(), pod_template=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        ({"reason": "Evicted", "message": "low on memory"}, ReasonCode.POD_EVICTED, InfrastructureFault),
        ({"reason": "NodeLost"}, ReasonCode.NODE_LOST, InfrastructureFault),
        ({"reason": "Preempting"}, ReasonCode.POD_PREEMPTED, InfrastructureFault),
        ({"reason": "OutOfmemory"}, ReasonCode.POD_EVICTED, InfrastructureFault),
        ({"condition": "PreemptionByScheduler", "exit": 143}, ReasonCode.POD_PREEMPTED, InfrastructureFault),
        ({"condition": "DeletionByTaintManager", "exit": 137}, ReasonCode.NODE_LOST, InfrastructureFault),
        ({"exit": 143}, ReasonCode.PROCESS_KILLED, InfrastructureFault),
        ({"exit": 137}, ReasonCode.PROCESS_KILLED, InfrastructureFault),
        ({"exit": 137, "ended": "OOMKilled"}, ReasonCode.OUT_OF_MEMORY, InfrastructureFault),
        ({"exit": 4}, ReasonCode.STORE_UNREACHABLE, InfrastructureFault),
        ({"exit": 3}, ReasonCode.TRAINING_FAILED, Defect),
        ({"exit": 1}, ReasonCode.TRAINING_FAILED, Defect),
        ({"exit": 128, "ended": "StartError"}, ReasonCode.POD_INVALID, Defect),
        ({"waiting": "CreateContainerConfigError", "message": "no secret s"}, ReasonCode.SECRET_MISSING, Defect),
        ({"waiting": "ErrImageNeverPull"}, ReasonCode.IMAGE_UNKNOWN, Defect),
        ({"waiting": "ErrImagePull", "message": "manifest unknown"}, ReasonCode.IMAGE_UNKNOWN, Defect),
        ({"waiting": "ErrImagePull", "message": "dial tcp: i/o timeout"}, ReasonCode.IMAGE_PULL, InfrastructureFault),
        ({}, ReasonCode.START_TIMEOUT, InfrastructureFault),
    ],
)  # fmt: skip
def test_why_a_pod_stopped(status: dict[str, Any], reason: ReasonCode, kind: type[Exception]):
    error = podfaults.fault_of("the work", ended(**status), [])
    assert error.reason is reason
    assert isinstance(error, kind)
    assert error.message.startswith("the work")


def test_a_pod_that_is_gone_was_preempted_where_an_event_says_so():
    event = SimpleNamespace(reason="Preempted", message="by a better pod")
    assert podfaults.fault_of("the work", None, [event]).reason is ReasonCode.POD_PREEMPTED
    assert podfaults.fault_of("the work", None, []).reason is ReasonCode.POD_DELETED


def ended(**status: Any) -> Any:
    """A pod as the API shows it, of the fields that are looked at."""
    finished = None
    if "exit" in status:
        finished = SimpleNamespace(exit_code=status["exit"], reason=status.get("ended", "Error"), message="last words")
    waiting = SimpleNamespace(reason=status["waiting"], message=status.get("message")) if "waiting" in status else None
    state = SimpleNamespace(name="base", state=SimpleNamespace(terminated=finished, waiting=waiting))
    condition = SimpleNamespace(
        type="DisruptionTarget", status="True", reason=status.get("condition"), message="the world"
    )
    resources = SimpleNamespace(limits={"memory": "4G"})
    return SimpleNamespace(
        metadata=SimpleNamespace(name="pod", deletion_timestamp=None),
        spec=SimpleNamespace(containers=[SimpleNamespace(image="trainer:1", resources=resources)]),
        status=SimpleNamespace(
            phase="Failed" if finished else "Pending",
            reason=status.get("reason"),
            message=status.get("message"),
            conditions=[condition] if "condition" in status else [],
            container_statuses=[state] if finished or waiting else [],
        ),
    )
