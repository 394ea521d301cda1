"""The method: data, causal effects, losses, training, evaluation. Never imports Prefect."""

import os

# Before torch is imported anywhere: OpenMP threads that wait shall soon sleep, not spin. With one other process on the
# same two cores, spinning made a training step ten times slower (4.1 s against 0.2 s); alone it changes little.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Also before torch: without it MKL rounds a product differently with the number of threads, and scoring workers, who
# share the cores, would write other last bits than one worker alone. It costs no time that can be measured.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

# And large tensors on large pages: a forward pass takes and gives back gigabytes, which the kernel otherwise clears
# 4 kB at a time (a third of the page faults, 4 % of the time of scoring).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
