"""Environment variables that torch reads when it is imported; entry points set them first.

A variable that the user has set stays as it is.
"""

from __future__ import annotations

import os

TORCH_VARIABLES = {
    # OpenMP threads that wait soon sleep instead of spinning. With one other process on the same two cores, spinning
    # made a training step ten times slower (4.1 s against 0.2 s); without one it changes little.
    "GOMP_SPINCOUNT": "2000",
    # Without it, MKL rounds a product differently for another number of threads, so several scoring workers that share
    # the cores would compute other last bits than a single worker. It costs no measurable time.
    "MKL_CBWR": "AVX2,STRICT",
    # Large tensors on large pages: a forward pass allocates and frees gigabytes, which the kernel otherwise clears 4 kB
    # at a time (a third of the page faults, 4 % of the time of scoring).
    "THP_MEM_ALLOC_ENABLE": "1",
}


def set_torch_variables() -> None:
    """Set the variables for this process and its children; has an effect on this process only before torch is imported.

    Scores of several workers equal those of one worker to the last bit only if every process has these variables.
    """
    for name, value in TORCH_VARIABLES.items():
        os.environ.setdefault(name, value)


def share_keys_of_heads() -> None:
    """Let heads that share keys and values read them in place, in processes that compute on a CPU only.

    transformers copies them for each head where there is a mask, because some accelerators need that. On a CPU the
    results are equal to the last bit, masked attention takes a third less time, and training keeps no copies. A process
    that generates from padded batches does without, because single tokens have a faster way.
    """
    os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
