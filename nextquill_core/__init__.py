"""The method: data, causal effects, losses, training, evaluation. Never imports Prefect."""
