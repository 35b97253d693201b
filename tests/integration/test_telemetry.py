"""What a training takes, as the real program tells it: in its result, in MLflow, in the ledger, over all attempts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.integration.test_checkpoints import interrupt, medium_line, steps_of

from aifactory.factory import Factory
from aifactory.ledger import EventKind
from aifactory.stages import train
from aifactory.training import attempts
from aifactory.training.run import candidate_prefix, result_key
from aifactory.training.telemetry import as_metrics
from aifactory.training.tracking import Tracker

pytestmark = pytest.mark.integration


def test_a_training_tells_what_all_of_its_attempts_took(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    priced = f.settings.model_copy(update={"unit_hour": 3.6, "energy_price_kwh": 0.5, "carbon_g_kwh": 400.0})
    object.__setattr__(f, "settings", priced)
    spec, order_id = medium_line(f, tmp_path)
    prefix = candidate_prefix(spec.line, order_id, "challenger")
    interrupt(f, spec, order_id, signal.SIGKILL)
    [killed] = attempts.read(f.store, prefix)
    assert killed.end == "running"
    log = interrupt(f, spec, order_id, signal.SIGTERM)
    made = train.train(f, spec, order_id, "challenger")

    _, stopped, last = attempts.read(f.store, prefix)
    assert (stopped.end, last.end) == ("stopped", "done")
    assert last.first_step == stopped.step >= steps_of(log, "INFO step")[-1]
    assert last.losses_s["REWORK"] == 0, "what was stopped by SIGTERM has saved its last step"
    for each in (stopped, last):
        assert each.productive_s + sum(each.losses_s.values()) == pytest.approx(each.wall_s)
        assert all(each.parts_s[part] > 0 for part in ("start", "read", "prepare", "compute", "data_wait"))
        assert each.money == pytest.approx(each.wall_s / 1000 + 0.5 * 1.2 * each.energy_kwh)
        assert each.grams_co2 == pytest.approx(400 * 1.2 * each.energy_kwh)

    assert last.losses_s["EXPORT"] > 0

    told = made["telemetry"]
    assert told == attempts.total([killed, stopped, last])
    assert told["num_attempts"] == 3
    assert told["energy_kwh"] > last.energy_kwh > 0
    assert told["wall_s"] > last.wall_s + stopped.wall_s
    assert told["losses_s"]["WAIT_FOR_PLACE"] > 0
    assert 0 < told["goodput"] < 1
    assert f.store.get_json(result_key(spec.line, order_id, "challenger"))["telemetry"] == told

    [passed] = f.ledger.events(line=spec.line, unit=f"{order_id}/challenger", kind=EventKind.PASSED)
    assert passed.detail["telemetry"] == told
    assert passed.gpu_s == told["gpu_s"]
    assert passed.energy_kwh == pytest.approx(told["energy_kwh"])
    assert passed.money == pytest.approx(told["money"])

    client = Tracker(f.settings, spec.line, order_id, "challenger")._client
    data = client.get_run(made["run_id"]).data
    shown = as_metrics(told)
    assert {name: data.metrics[name] for name in shown} == pytest.approx(shown)
    assert data.metrics["system/process_memory_megabytes"] > 50
    assert data.tags["energy_source"] == told["energy_source"]
    assert len(client.get_metric_history(made["run_id"], "step_time/compute_percentage")) >= 2

    assert train.train(f, spec, order_id, "challenger")["telemetry"] == told
    assert len(attempts.read(f.store, prefix)) == 3
    events = f.ledger.events(line=spec.line, unit=f"{order_id}/challenger", kind=EventKind.PASSED)
    assert sum(event.energy_kwh for event in events) == pytest.approx(told["energy_kwh"])
