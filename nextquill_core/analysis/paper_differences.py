"""Differences between a run and the paper or its official code, in sentences, from the run's configuration.

"The paper" is the text of its first version (NextQuill, arXiv 2506.02368 v1); what differs in the second is named as
such. Where the official code differs from the text, the published numbers are most likely the code's, so the sentences
name both. The defaults of the configuration are the paper's
settings, so that each is written down once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextquill_core.analysis.published import CATEGORIES, NAMES, OFFICIAL, PRESET, TEST_USERS, TOPIC_WRITING
from nextquill_core.config import Config
from nextquill_core.generation.decoding import COPE
from nextquill_core.methods.registry import BASE_ENCODER, METHODS, Method

PAPER = Config().model_dump(mode="json")
"""The paper's settings by key: the defaults."""
GLOBAL_BATCH = 64  # 16 per GPU in the official code, on the paper's four GPUs
COMPARED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Data protocol": (
        "ingest.protocol",
        (
            "name", "min_text_chars", "min_user_reviews", "max_user_reviews", "min_item_users", "n_targets",
            "min_profile_reviews", "min_profile_item_users", "min_description_chars", "max_description_chars",
        ),
    ),
    "Cleaning of texts": ("ingest.clean", ("html",)),
    "Prompts": ("prompt", ("max_history", "max_prompt_tokens", "max_target_tokens")),
    "Weights": ("weights", ("policy", "delta", "high", "low")),
    "Training": ("train", ("epochs", "weight_decay", "warmup_ratio", "max_grad_norm", "lora.dropout")),
    "Personal adapters": ("evaluate.personal", ("r", "alpha", "learning_rate", "epochs")),
    "Evaluation": ("evaluate", ("split", "paper_max_new_tokens")),
}  # fmt: skip
"""Keys whose defaults are the paper's values: the section and its keys, by the label of their sentence."""
SCORERS: Mapping[str, str] = {
    "initial": "θ0, once, before training, as the paper's first version says; its second takes a model that was "
    "trained on the data",
    "adapter": "adapters cross-fitted by user, once, before training; the paper's first version takes θ0, its second a "
    "model that was trained on the data",
    "trained": "a contextsft adapter of all users, once, before training; it has seen the examples that it scores. The "
    "paper's first version takes θ0, its second a model that was trained on the data",
}
"""What stored weights come from, by `score.effect_source`. What the second version does is known second-hand."""


def setting_differences(
    config: Mapping[str, Any], *, template: str = "plain", users: Mapping[str, int] | None = None
) -> list[str]:
    """Return the differences that matter when our numbers are read beside the published ones.

    Args:
        config: A configuration as JSON values (`Config.model_dump(mode="json")`).
        template: The template that the prompts have: plain or chat.
        users: Number of test users by category, where known.

    Returns:
        One or two sentences each, the most important first.
    """
    named = [METHODS[name] for name in config["evaluate"]["methods"]]
    methods = [*named, *(METHODS[method.adapter] for method in named if method.adapter)]
    parts = (
        _base(config["model"]),
        _data(config, users or {}),
        _training(config, methods),
        _baselines(config),
        _prompts(config, template, methods),
        _evaluation(config),
    )
    return [sentence for part in parts for sentence in part]


def _base(model: Mapping[str, Any]) -> Iterator[str]:
    published = PAPER["model"]["name_or_path"]
    if model["name_or_path"] == "tiny":
        yield (
            f"The base model is the small offline one, pretrained on these users' own base profiles; the paper's is "
            f"{published}. The numbers show that the pipeline works, and nothing about the method."
        )
    elif model["name_or_path"] != published:
        yield f"The base model is {model['name_or_path']}; the paper's is {published}."
    if model["dtype"] != PAPER["model"]["dtype"]:
        yield f"The model computes in {model['dtype']}; the paper's in {PAPER['model']['dtype']}."


def _data(config: Mapping[str, Any], users: Mapping[str, int]) -> Iterator[str]:
    categories = [raw["category"] for raw in config["ingest"]["inputs"]]
    published = {name: NAMES.get(name, name) for name in categories}
    if others := [name for name in categories if published[name] not in (*CATEGORIES, TOPIC_WRITING)]:
        yield f"Not among the paper's categories: {', '.join(others)}."
    if len(categories) > 1:
        yield (
            f"One adapter a method is trained on all {len(categories)} categories together; the paper trains a data "
            "set at a time."
        )
    if TOPIC_WRITING in published.values():
        yield (
            "Topic Writing of LongLaMP is the fourth data set of the paper's second version. Its protocol, its prompts "
            "and which of the two splits it measures are not known to us."
        )
    if set(published.values()) != {TOPIC_WRITING}:
        if config["ingest"]["source"] != PAPER["ingest"]["source"]:
            yield f"The data are read from {config['ingest']['source']}; the paper's are Amazon Reviews 2023."
        yield from _unlike("Data protocol", config)
    yield from _unlike("Cleaning of texts", config)
    for category in categories:
        count = users.get(category)
        if category in TEST_USERS and count is not None and count != TEST_USERS[category]:
            yield f"{category} has {count:,} test users; the paper's has {TEST_USERS[category]:,}."


def _objectives(methods: Sequence[Method]) -> tuple[bool, bool, bool]:
    """Return whether a method trains with the configured normalisation, weights, and L_p."""
    trained = [method.training for method in methods if method.training]
    normalized = any("normalization" not in training.fixed for training in trained)
    weighted = any(
        training.weighted and not training.policy and "weights_from" not in training.fixed for training in trained
    )
    return normalized, weighted, any(training.causal and "alpha" not in training.fixed for training in trained)


def _training(config: Mapping[str, Any], methods: Sequence[Method]) -> Iterator[str]:
    train, official = config["train"], METHODS[OFFICIAL] in methods
    if not any(method.training or method.personal for method in methods):
        return
    normalized, weighted, causal = _objectives(methods)
    lora = train["lora"]
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    yield (
        f"Training is LoRA (r {lora['r']}, alpha {lora['alpha']}, {targets}), as the paper says, which states "
        "no rank; the official code has LoRA commented out and trains every weight."
    )
    published_lr = PAPER["train"]["learning_rate"]
    if train["learning_rate"] == published_lr:
        yield (
            f"The learning rate is the paper's {published_lr:g}, which the official code gives to full fine-tuning; "
            "a LoRA adapter moves little at it (1e-4 is usual)."
        )
    else:
        yield f"The learning rate is {train['learning_rate']:g}; the paper's is {published_lr:g}."
    if weighted and train["weights_from"] == "live":
        yield (
            "Preference weights come from the model that is being trained, as in the official code; the paper says "
            "from θ0, once, before training."
        )
    elif weighted:
        yield (
            f"Preference weights come from {SCORERS[config['score']['effect_source']]}; the official code takes them "
            "from the model that is being trained."
        )
    if weighted or official:
        yield from _unlike("Weights", config)
    if causal:
        how = "weighted by ω (Eq. 6)" if train["causal_loss"]["weighted"] else "unweighted"
        yield (
            f"L_p is {how} with α = {train['alpha']:g}; the paper has α in 0.01, 0.05, 0.1, and the official code "
            "leaves L_p unweighted with α = 0.1."
        )
        yield from _causal_loss(train["causal_loss"])
    if normalized or any(method.personal for method in methods):
        yield from _normalization(train["normalization"])
    if official:
        yield (
            f"`{OFFICIAL}` has the official code's objective: weights from the model in training, L_n of each sample "
            "divided by its own Σω and averaged, L_p unweighted, α = 0.1. The other settings of training are shared."
        )
    if METHODS["mce-dce"] in methods:
        yield (
            "The method mce-dce is the row MCE-DCE alignment of the paper's second version as we read it: every token "
            "counts 1 in L_n, and L_p is weighted."
        )
    yield from _unlike("Training", config)
    if train["global_batch"] != GLOBAL_BATCH:
        yield (
            f"A step is over {train['global_batch']} examples; the official code's is over 16 a GPU, which on the "
            f"paper's four makes {GLOBAL_BATCH}."
        )
    yield "Each example trains once an epoch; the official data hold every sample twice."


def _normalization(name: str) -> Iterator[str]:
    official = "the official code divides each sample by its own Σω and averages"
    if name == "sequence":
        yield f"Losses are normalised by sequence (Eq. 5); {official}."
    elif name == "weight":
        yield f"Losses are divided by the step's Σω, as in MIRROR's re-implementation; {official}."
    elif name == "sample_tokens":
        yield f"The loss of each sample is divided by its number of tokens, as in PerCE; {official}."


def _causal_loss(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings["target"] != "label":
        yield f"L_p has the target {settings['target']}; Eq. 6 has the label."
    if settings["counterfactual_grad"] != "through":
        yield "The branch without history does not learn from L_p; in the official code it does."


def _baselines(config: Mapping[str, Any]) -> Iterator[str]:
    evaluate = config["evaluate"]
    methods, encoder = evaluate["methods"], evaluate["retrieval"]["encoder"]
    published = PAPER["evaluate"]["retrieval"]["encoder"]
    if "contriever" in methods and encoder != published:
        used = "the base model's own hidden states" if encoder == BASE_ENCODER else encoder
        yield f"The method contriever retrieves with {used}; the paper's with {published}."
    if "llm-trsr" in methods:
        summaries = evaluate["summaries"]
        yield (
            f"Summaries are of blocks of {summaries['block']} reviews, beside the {summaries['newest']} newest as they "
            "are: sizes of our choice."
        )
    if "cos" in methods:
        yield (
            "The method cos samples, as its authors do, where the others are greedy; how strongly it steers is chosen "
            "on val."
        )
    for name in methods:
        if adapter := METHODS[name].adapter:
            yield (
                f"The method {name} is not the paper's: it decodes the adapter of {adapter} as cos decodes the base "
                f"model, under the same presets as {adapter}; how strongly is chosen on val."
            )
    if any(METHODS[name].personal for name in methods):
        yield from _unlike("Personal adapters", config)
        yield (
            "Personal adapters learn from one user's reviews each, on an adapter trained on other users; the official "
            "loop of OPPU never empties its list of examples, so an adapter also learns from the users before."
        )
    if "cope" in methods:
        yield (
            f"The method cope contrasts as its authors' code does (weight {COPE.theirs:g}, plausibility "
            f"{COPE.plausibility:g}); their stage of DPO is left out."
        )


def _prompts(config: Mapping[str, Any], template: str, methods: Sequence[Method]) -> Iterator[str]:
    yield from _unlike("Prompts", config)
    if template == "plain":
        yield "Prompts are plain text; the official code's have the chat markup."
    yield (
        "A prompt that is too long loses whole past reviews, oldest first; the official code cuts the end, and with it "
        "the rating, the review's title and where the answer starts."
    )
    if any(_objectives(methods)[1:]):
        yield (
            "The prompt without history does not mention one; the official code writes “None” under a prompt that "
            "promises past reviews."
        )
    yield "The true review is never in a test prompt; the official test-set builder leaves it inside the input."


def _evaluation(config: Mapping[str, Any]) -> Iterator[str]:
    evaluate = config["evaluate"]
    yield from _unlike("Evaluation", config)
    if PRESET in evaluate["decoding"]:
        yield (
            "Padding is masked and not penalised; the official evaluation gives no mask although padding and stop "
            "token are one, so that a model reads its padding."
        )
    else:
        yield f"The preset {PRESET!r} was not run: nothing here was decoded as the published numbers were."
    yield f"One run, seed {config['seed']}; the official code sets no seed, and the paper has no intervals."


def _unlike(label: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence on all settings of a label that have another value than the paper's."""
    section, keys = COMPARED[label]
    found = []
    for key in keys:
        ours, published = (_value(settings, f"{section}.{key}") for settings in (config, PAPER))
        if ours != published:
            found.append(f"{key} {_shown(ours)} (published: {_shown(published)})")
    if found:
        yield f"{label}: {', '.join(found)}."


def _value(config: Mapping[str, Any], key: str) -> Any:
    return functools.reduce(lambda section, name: section[name], key.split("."), config)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
