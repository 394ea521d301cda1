"""Every setting of a run, one frozen model a stage: the YAML schema, the form in the Prefect UI and the record in a
manifest are all made from these classes.

Defaults are the paper's values (NextQuill, arXiv 2506.02368) unless a description says otherwise. A field tagged
`OPERATIONAL` says how a stage is run and never what it produces, so it takes no part in fingerprints.
"""

from nextquill_core.config.base import OPERATIONAL, MethodName, Section
from nextquill_core.config.data import IngestConfig, PrivacyConfig, PromptConfig, ProtocolConfig, RawInput
from nextquill_core.config.evaluate import EvaluateConfig
from nextquill_core.config.loading import Config, known_keys, load_config, parse_config
from nextquill_core.config.model import ModelConfig, TinyModelConfig
from nextquill_core.config.score import ScoreConfig, WeightsConfig
from nextquill_core.config.slurm import SlurmJob, SlurmJobs, StageName
from nextquill_core.config.train import CausalLossConfig, DeepSpeedConfig, LauncherConfig, LoraSettings, TrainConfig

__all__ = [
    "OPERATIONAL",
    "CausalLossConfig",
    "Config",
    "DeepSpeedConfig",
    "EvaluateConfig",
    "IngestConfig",
    "LauncherConfig",
    "LoraSettings",
    "MethodName",
    "ModelConfig",
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
