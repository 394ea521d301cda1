"""The method: data, causal effects, losses, training, evaluation. Never imports Prefect."""

import os

# Before torch is imported anywhere: OpenMP threads that wait shall soon sleep, not spin. With one other process on the
# same two cores, spinning made a training step ten times slower (4.1 s against 0.2 s); alone it changes little.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
