"""Model FLOPs utilisation: the share of a GPU's peak that went into the arithmetic which the model itself asks for.

    FLOPs per token    6 N + 12 L H Q T      forward and backward pass of a decoder-only transformer
    MFU                tokens/s · FLOPs per token ÷ (peak FLOP/s of the device · number of devices)

N weights that multiply, L layers, H heads, Q width of a head, T tokens of a sequence. By Chowdhery et al. 2022 (PaLM,
arXiv 2204.02311, appendix B): what is computed twice to save memory does not count, and attention counts as if it
looked ahead, too. As in nanoGPT, N has the token embeddings where they are the output layer as well, and never the
position embeddings: those are looked up, not multiplied.
"""

from __future__ import annotations

import re

_PEAKS: tuple[tuple[str, float], ...] = (
    (r"GB200", 2500e12),
    (r"B200", 2250e12),
    (r"H100 NVL|H200 NVL", 835e12),
    (r"GH200|H200", 989e12),
    (r"H100 PCIe", 756e12),
    (r"H100", 989e12),
    (r"A100", 312e12),
    (r"A30", 165e12),
    (r"A10", 125e12),
    (r"L40S", 362e12),
    (r"L4", 121e12),
)
"""Words in a device's name, and its peak of dense bf16 products with sums in fp32, FLOP/s; the first that fits counts.

By NVIDIA's data sheets of the products: Blackwell, Grace Hopper, H200, H100, A100, A30, A10, L40S, L4; where one gives
the figure with sparsity alone, half of it. An H100 or H200 whose name has neither NVL nor PCIe is the SXM one.
"""


def flops_per_token(num_weights: int, layers: int, heads: int, head_width: int, sequence: int) -> int:
    """FLOPs of forward and backward pass for one token; see the module for what counts as a weight."""
    return 6 * num_weights + 12 * layers * heads * head_width * sequence


def peak_flops(device: str) -> float | None:
    """Peak of dense bf16 products, FLOP/s, of a GPU by its name in NVML and torch; None of one that is not known.

    A slice of a GPU (MIG) has a part of the peak that its name does not say, so it is not known.
    """
    if "MIG" in device.split():
        return None
    return next((peak for words, peak in _PEAKS if re.search(rf"\b({words})\b", device)), None)


def utilisation(tokens_per_s: float, flops_a_token: float, peak: float, devices: int = 1) -> float:
    """MFU, 0 to 1, of devices with this peak each, FLOP/s."""
    return tokens_per_s * flops_a_token / (peak * devices)
