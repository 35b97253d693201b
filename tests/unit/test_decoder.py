"""The decoder: what it sees, its size, that it learns, resumes, and does without the compiler; the MFU's arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bench.bench_decoder import measure, run
from bench.ratio import Skipped
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from tests.checkpoint_rules import checkpoints
from tests.memory_store import MemoryStore

from aifactory.errors import TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.recipes.base import Stopped
from aifactory.recipes.decoder import Decoder, DecoderParameters, Sequences, fit, new_decoder, next_token_loss
from aifactory.settings import REPOSITORY
from aifactory.training.mfu import flops_per_token, peak_flops, utilisation
from aifactory.training.stop import StopSignal

TINY: dict[str, Any] = {
    "layers": 2, "heads": 2, "width": 16, "context": 8, "vocabulary": 32,
    "batch_rows": 4, "epochs": 5, "learning_rate": 1e-2, "report_every": 1, "checkpoint_every": 3,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Where tensors are as small as here, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**change: Any) -> DecoderParameters:
    return DecoderParameters.model_validate(TINY | change)


def repeating(num_tokens: int = 97) -> torch.Tensor:
    """0 3 6 ... 30 1 4 ...: the next token follows from the one before; 12 sequences of 8."""
    return torch.arange(num_tokens) * 3 % 32


def losses_of(params: DecoderParameters, **given: Any) -> dict[int, float]:
    losses: dict[int, float] = {}
    fit(
        repeating(),
        params,
        seed=7,
        progress=lambda step, _, values: losses.update({step: values["train_loss"]}),
        **given,
    )
    return losses


def test_no_token_sees_a_later_one_and_every_one_sees_all_before() -> None:
    network = new_decoder(tiny(), 1, CPU).eval()
    tokens = torch.randint(32, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = network.logits(tokens)
        for changed in range(8):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 1) % 32
            after = network.logits(other)
            assert torch.equal(after[:, :changed], before[:, :changed])
            for later in range(changed, 8):
                assert not torch.allclose(after[:, later], before[:, later], atol=1e-7)


@pytest.mark.parametrize(
    ("vocabulary", "weights"),
    [(50257, 124_439_808), (50304, 124_475_904)],  # GPT-2 small as published, and padded
)
def test_the_defaults_have_the_size_of_gpt_2_small(vocabulary: int, weights: int) -> None:
    with torch.device("meta"):
        network = Decoder(DecoderParameters(vocabulary=vocabulary))
    assert network.num_weights == weights
    assert network.num_multiplied == weights - 1024 * 768


def test_an_untrained_one_knows_nothing_and_a_seed_is_a_network() -> None:
    tokens, targets = Sequences(repeating(), 8).take(torch.arange(12))
    first, same, other = (new_decoder(tiny(), seed, CPU)(tokens, targets).item() for seed in (1, 1, 2))
    assert first == same != other
    assert first == pytest.approx(torch.log(torch.tensor(32.0)).item(), abs=0.1)


def test_sequences_cut_the_stream_without_a_gap_and_targets_are_one_ahead() -> None:
    rows = Sequences(torch.arange(26), 8)
    assert rows.num_rows == 3
    tokens, targets = rows.take(torch.tensor([2, 0]))
    assert tokens.tolist() == [list(range(16, 24)), list(range(8))]
    assert targets.tolist() == [list(range(17, 25)), list(range(1, 9))]
    assert Sequences(torch.arange(24), 8).num_rows == 2, "the last token has none after it"


def test_it_learns_a_repeating_sequence() -> None:
    losses = losses_of(tiny(epochs=40))
    assert losses[1] > 3.3
    assert losses[120] < 0.3


def test_parts_of_a_batch_add_up_to_it() -> None:
    assert losses_of(tiny(accumulate=4)) == pytest.approx(losses_of(tiny()), abs=1e-5)


def test_bf16_is_near() -> None:
    exact, rounded = losses_of(tiny()), losses_of(tiny(precision="bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_training_that_was_stopped_goes_on_with_the_same_losses(stop_at: int) -> None:
    store, stop = MemoryStore(), StopSignal()
    whole, pieces = losses_of(tiny()), {}  # type: ignore[var-annotated]

    def note(step: int, _: int, values: Any) -> None:
        pieces[step] = values["train_loss"]
        stop.requested = step == stop_at

    place = checkpoints(store)
    place._stop = stop
    with pytest.raises(Stopped):
        fit(repeating(), tiny(), seed=7, progress=note, checkpoints=place)
    assert max(pieces) == stop_at
    kept = [body for key, body in store.objects.items() if key.endswith(".safetensors")]
    assert kept
    assert all(load_tensors(body)["model.tokens.weight"].shape == (32, 16) for body in kept)
    resumed = fit(repeating(), tiny(), seed=7, progress=note, checkpoints=checkpoints(store))
    assert pieces == whole
    uninterrupted = fit(repeating(), tiny(), seed=7).state_dict()
    assert all(torch.equal(t, uninterrupted[name]) for name, t in resumed.state_dict().items())


def test_a_checkpoint_of_other_tokens_is_not_taken_up() -> None:
    store, steps = MemoryStore(), []  # type: ignore[var-annotated]
    place = checkpoints(store)
    fit(repeating(), tiny(), seed=7, checkpoints=place)
    place.flush(10)
    assert store.objects
    other = repeating().flip(0)
    fit(other, tiny(), seed=7, progress=lambda step, *_: steps.append(step), checkpoints=checkpoints(store))
    assert steps[0] == 1


def test_a_loss_that_is_not_finite_is_a_defect() -> None:
    with pytest.raises(TrainingDefect) as caught:
        losses_of(tiny(learning_rate=1e30))
    assert caught.value.reason is ReasonCode.LOSS_NOT_FINITE


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="heads 3 do not divide width 16"):
        tiny(heads=3)


def test_a_training_does_not_load_torchs_compiler() -> None:
    program = f"""
import sys, torch
from aifactory.recipes.decoder import DecoderParameters, fit
fit(torch.arange(97) % 32, DecoderParameters(**{TINY}), seed=1)
assert not {{"torch._dynamo", "torch._inductor"}} & set(sys.modules)
"""
    env = {"PYTHONPATH": str(REPOSITORY / "include")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def test_a_compiler_finds_one_whole_graph_in_it() -> None:
    """`fullgraph` refuses what falls back to Python within a pass. No machine code is made."""
    params = tiny(precision="bf16")
    network = new_decoder(params, 1, CPU)
    batch = Sequences(repeating(), 8).take(torch.arange(12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = next_token_loss(network, batch)
        network.compile(backend="aot_eager", fullgraph=True)
        compiled = next_token_loss(network, batch)
    compiled.backward()
    assert compiled.item() == pytest.approx(plain.item(), abs=1e-3)
    assert network.state_dict().keys() == new_decoder(params, 1, CPU).state_dict().keys(), "as a checkpoint has them"
    assert network.tokens.weight.grad.abs().sum() > 0


def test_flops_of_a_token_by_hand() -> None:
    """6 · 123 653 376 = 741 920 256 and 12 · 12 · 12 · 64 · 1024 = 113 246 208."""
    assert flops_per_token(124_439_808 - 1024 * 768, 12, 12, 64, 1024) == 741_920_256 + 113_246_208


def test_utilisation_by_hand() -> None:
    """100 000 · 855 166 464 = 85.5 TFLOP/s, of 312."""
    assert utilisation(100_000, 855_166_464, 312e12) == pytest.approx(0.27409, abs=1e-5)
    assert utilisation(800_000, 855_166_464, 312e12, devices=8) == pytest.approx(0.27409, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
    ],
)
def test_peaks_by_name(name: str, peak: float) -> None:
    assert peak_flops(name) == peak


@pytest.mark.parametrize(
    "name", ["NVIDIA H20", "NVIDIA A10G", "NVIDIA L40", "Tesla V100-SXM2-16GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", ""]
)
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_flops(name) is None


@pytest.mark.parametrize("parts", [1, 2])
def test_the_bench_measures_two_loops_that_do_the_same(parts: int) -> None:
    measured = measure(tiny(epochs=1, report_every=20, accumulate=parts), CPU, num_steps=4, num_rounds=3)
    assert len(measured.ours_losses) == 4
    assert measured.ours_losses == pytest.approx(measured.bare_losses, abs=1e-6)
    assert len(set(measured.ours_losses)) == 4
    assert len(measured.ours_s) == len(measured.bare_s) == 3
    assert 0 < measured.ratio < math.inf
    assert measured.num_tokens == 4 * 4 * 8
    assert measured.tokens_per_s > 0


def test_the_bench_skips_where_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Skipped, match="needs an NVIDIA GPU"):
        run()
