"""The configuration: one frozen pydantic model per stage.

The YAML schema, the form in the Prefect UI, the reference page and the record in a manifest are all made from these
classes. Defaults are the paper's values (NextQuill, arXiv 2506.02368) unless a description says otherwise. A field
marked `OPERATIONAL` says how a stage runs and never what it makes, so it is not part of a fingerprint.
"""

from typing import TYPE_CHECKING, Any

from nextquill_core.config.base import OPERATIONAL, MethodName, Section
from nextquill_core.config.data import CleanConfig, IngestConfig, PrivacyConfig, PromptConfig, ProtocolConfig, RawInput
from nextquill_core.config.evaluate import EvaluateConfig
from nextquill_core.config.lora import LoraSettings
from nextquill_core.config.model import ModelConfig, TinyModelConfig
from nextquill_core.config.score import ScoreConfig, WeightsConfig
from nextquill_core.config.slurm import SlurmJob, SlurmJobs, StageName
from nextquill_core.config.train import (
    CausalLossConfig,
    DeepSpeedConfig,
    LauncherConfig,
    NormalLossConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from nextquill_core.config.loading import Config, known_keys, load_config, parse_config

__all__ = [
    "OPERATIONAL",
    "CausalLossConfig",
    "CleanConfig",
    "Config",
    "DeepSpeedConfig",
    "EvaluateConfig",
    "IngestConfig",
    "LauncherConfig",
    "LoraSettings",
    "MethodName",
    "ModelConfig",
    "NormalLossConfig",
    "PrivacyConfig",
    "PromptConfig",
    "ProtocolConfig",
    "RawInput",
    "ScoreConfig",
    "Section",
    "SlurmJob",
    "SlurmJobs",
    "StageName",
    "TinyModelConfig",
    "TrainConfig",
    "WeightsConfig",
    "known_keys",
    "load_config",
    "parse_config",
]


def __getattr__(name: str) -> Any:
    """Import `loading` on first use: workers read sections from orders and may have no PyYAML."""
    if name in ("Config", "known_keys", "load_config", "parse_config"):
        from nextquill_core.config import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
