"""What running communication beside compute costs: neither is free of the other."""

from __future__ import annotations

KERNEL_SLOWDOWN = 1.16
EXCHANGE_SLOWDOWN = 1.48
"""How much longer a matrix product and an all-reduce take while both run on one device: 256 MiB
all-reduces beside bf16 products of 8192³ on an A100 (openfabric-systems/simllm @ 9c2672c,
"A100 hardware envelope v1"); the only published pair found that names both factors."""


def overlapped(kernel: float, exchange: float) -> float:
    """Seconds of a kernel and an exchange that start together on one device.

    While both run, the kernel goes at 1/a and the exchange at 1/b of its rate (a and b as above).
    What is left of the longer one runs alone:

        exchange ends first:  t = b c + k - b c / a
        kernel ends first:    t = a k + c - a k / b

    Args:
        kernel: Seconds of the kernel alone, k.
        exchange: Seconds of the exchange alone, c.
    """
    a, b = KERNEL_SLOWDOWN, EXCHANGE_SLOWDOWN
    if b * exchange <= a * kernel:
        return kernel + b * exchange * (1 - 1 / a)
    return a * kernel + exchange - a * kernel / b
