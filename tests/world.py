"""A small synthetic category and settings with which the whole pipeline takes a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nextquill_core.config import Config, parse_config


def small_settings(folder: Path, store: Path) -> dict[str, Any]:
    """Settings of a quick run on the sample in `folder`."""
    return {
        "store": str(store),
        "model": {
            "name_or_path": "tiny",
            "dtype": "float32",
            "tiny": {  # trained for a second, so that it writes words; with 12 steps it writes line ends alone
                "vocab_size": 600,
                "hidden_size": 32,
                "layers": 2,
                "heads": 2,
                "steps": 40,
                "batch_tokens": 1024,
                "learning_rate": 1e-2,
            },
        },
        "ingest": {
            "inputs": [
                {"category": "Small", "reviews": str(folder / "reviews.jsonl"), "items": str(folder / "items.jsonl")}
            ],
            "protocol": {"n_targets": 4},  # two examples to train on for each user, not eight
        },
        "prompt": {"max_history": 2, "max_prompt_tokens": 512, "max_target_tokens": 96},
        "train": {
            "epochs": 1,
            "learning_rate": 1e-3,
            "global_batch": 10,
            "batch_tokens": 6000,
            "checkpoint_every": 2,
            "lora": {"r": 4, "alpha": 8},
            "launcher": {"processes": 1},
        },
        "evaluate": {
            "methods": ["qwen", "contextsft", "nextquill"],
            "max_new_tokens": 8,
            "paper_max_new_tokens": 8,
            "control": "none",
            "bootstrap_samples": 200,
        },
    }


def small_config(folder: Path, store: Path, **changes: Any) -> Config:
    """The same as a `Config`; `train={"alpha": 0.1}` changes single keys of a section."""
    settings = small_settings(folder, store)
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    return parse_config(settings, "the test")


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path
