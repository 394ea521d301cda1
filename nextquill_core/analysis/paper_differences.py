"""What a run does otherwise than the paper or its official code, in sentences, from the run's own configuration.

"The paper" is what its text states (NextQuill, arXiv 2506.02368); where the official code does something else than the
text, the published numbers are most likely the code's, so both are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextquill_core.analysis.published import CATEGORIES, PRESET, TEST_USERS
from nextquill_core.model.template_choice import choose_template

ENCODER = "facebook/contriever"
MODEL, DTYPE, LEARNING_RATE, GLOBAL_BATCH = "Qwen/Qwen2.5-3B", "bfloat16", 5e-6, 64
OFFICIAL = "nextquill-official"
TRAINED = frozenset(("sft", "oppu", "contextsft", "causal-only", "norm-only", "nextquill", OFFICIAL))
WEIGHTED, CAUSAL = frozenset(("norm-only", "nextquill")), frozenset(("causal-only", "nextquill"))

_PROTOCOL: Mapping[str, Any] = {
    "name": "dpl",
    "min_text_chars": 200,
    "min_user_reviews": 18,
    "max_user_reviews": 500,
    "min_item_users": 8,
    "n_targets": 10,
    "min_profile_reviews": 8,
    "min_profile_item_users": 5,
    "min_description_chars": 100,
    "max_description_chars": 2000,
}
_PROMPT: Mapping[str, Any] = {"max_history": 8, "max_prompt_tokens": 2048, "max_target_tokens": 2048}
_WEIGHTS: Mapping[str, Any] = {"policy": "threshold", "delta": 0.05, "high": 0.9, "low": 0.1}
_TRAINING: Mapping[str, Any] = {
    "epochs": 5,
    "weight_decay": 0.025,
    "warmup_ratio": 0.01,
    "max_grad_norm": 1.0,
    "lora.dropout": 0.05,
}
_EVALUATION: Mapping[str, Any] = {"split": "test", "paper_max_new_tokens": 2048}
_PERSONAL: Mapping[str, Any] = {"r": 8, "alpha": 8, "learning_rate": 1e-4, "epochs": 2}


def setting_differences(
    config: Mapping[str, Any], *, users: Mapping[str, int] | None = None, further: Sequence[str] = ()
) -> list[str]:
    """The differences that matter when our numbers are read beside the published ones.

    Args:
        config: A configuration as JSON values (`Config.model_dump(mode="json")`).
        users: Test users by category, where they are known.
        further: Sentences on what the configuration alone does not tell, such as which encoder retrieved.

    Returns:
        One sentence or two each, the most important first.
    """
    parts = (_base(config), _data(config, users or {}), _trained(config), _baselines(config), _prompts(config))
    return [*(sentence for part in parts for sentence in part), *_read(config), *further]


def _base(config: Mapping[str, Any]) -> Iterator[str]:
    model = config["model"]
    if model["name_or_path"] == "tiny":
        yield (
            f"The base model is the small offline one, pretrained on these users' own base profiles; the paper's is "
            f"{MODEL}. The numbers show that the pipeline works, and nothing about the method."
        )
    elif model["name_or_path"] != MODEL:
        yield f"The base model is {model['name_or_path']}; the paper's is {MODEL}."
    if model["dtype"] != DTYPE:
        yield f"The model computes in {model['dtype']}; the paper's in {DTYPE}."


def _data(config: Mapping[str, Any], users: Mapping[str, int]) -> Iterator[str]:
    categories = [raw["category"] for raw in config["ingest"]["inputs"]]
    strange = [name for name in categories if name not in CATEGORIES]
    if strange:
        yield f"Not among the paper's categories: {', '.join(strange)}."
    if len(categories) > 1:
        yield (
            f"One adapter a method is trained on all {len(categories)} categories together; the paper trains a data "
            "set at a time."
        )
    if config["ingest"]["source"] != "amazon-2023":
        yield f"The data are read from {config['ingest']['source']}; the paper's are Amazon Reviews 2023."
    yield from _unlike("Data protocol", config["ingest"]["protocol"], _PROTOCOL)
    for category in categories:
        count = users.get(category)
        if category in TEST_USERS and count is not None and count != TEST_USERS[category]:
            yield f"{category} has {count:,} test users; the paper's has {TEST_USERS[category]:,}."


def _trained(config: Mapping[str, Any]) -> Iterator[str]:
    methods, train = set(config["evaluate"]["methods"]), config["train"]
    if not methods & TRAINED:
        return
    lora = train["lora"]
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    yield (
        f"Training is LoRA (r {lora['r']}, alpha {lora['alpha']}, {targets}), as the paper says, which states "
        "no rank; the official code has LoRA commented out and trains every weight."
    )
    if train["learning_rate"] == LEARNING_RATE:
        yield (
            f"The learning rate is the paper's {LEARNING_RATE:g}, which the official code gives to full fine-tuning; a "
            "LoRA adapter moves little at it (1e-4 is usual)."
        )
    else:
        yield f"The learning rate is {train['learning_rate']:g}; the paper's is {LEARNING_RATE:g}."
    if methods & WEIGHTED and train["weights_from"] == "live":
        yield (
            "Preference weights come from the model that is being trained, as in the official code; the paper says "
            "from θ0, once, before training."
        )
    elif methods & WEIGHTED:
        source = "θ0" if config["score"]["effect_source"] == "initial" else "adapters cross-fitted by user"
        yield (
            f"Preference weights come from {source}, once, before training"
            f"{', as the paper says' if source == 'θ0' else ''}; the official code takes them from the model that is "
            "being trained."
        )
    if methods & (WEIGHTED | {OFFICIAL}):
        yield from _unlike("Weights", config["weights"], _WEIGHTS)
    if methods & CAUSAL:
        weighted = "weighted by ω (Eq. 6)" if train["causal_loss"]["weighted"] else "unweighted"
        yield (
            f"L_p is {weighted} with α = {train['alpha']:g}; the paper has α in 0.01, 0.05, 0.1, and the official code "
            "leaves L_p unweighted with α = 0.1."
        )
        yield from _causal_loss(train["causal_loss"])
    if methods & (TRAINED - {OFFICIAL}):
        yield from _normalization(train["normalization"])
    if OFFICIAL in methods:
        yield (
            f"`{OFFICIAL}` has the official code's objective: weights from the model in training, L_n of each sample "
            "divided by its own Σω and averaged, L_p unweighted, α = 0.1. The other settings of training are shared."
        )
    yield from _unlike("Training", train, _TRAINING)
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


def _causal_loss(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings["target"] != "label":
        yield f"L_p has the target {settings['target']}; Eq. 6 has the label."
    if settings["counterfactual_grad"] != "through":
        yield "The branch without history does not learn from L_p; in the official code it does."


def _baselines(config: Mapping[str, Any]) -> Iterator[str]:
    evaluate = config["evaluate"]
    methods, encoder = evaluate["methods"], evaluate["retrieval"]["encoder"]
    if "contriever" in methods and encoder != ENCODER:
        used = "the base model's own hidden states" if encoder == "base" else encoder
        yield f"The method contriever retrieves with {used}; the paper's with {ENCODER}."
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
    if "oppu" in methods:
        yield from _unlike("Personal adapters", evaluate["personal"], _PERSONAL)
        yield (
            "Personal adapters start from scratch for each user, on an adapter trained on other users; the official "
            "loop of OPPU goes on from the user before."
        )


def _prompts(config: Mapping[str, Any]) -> Iterator[str]:
    prompt = config["prompt"]
    yield from _unlike("Prompts", prompt, _PROMPT)
    model = config["model"]
    if choose_template(prompt["template"], model["name_or_path"], model["revision"]).name == "plain":
        yield "Prompts are plain text; the official code's have the chat markup."
    yield (
        "A prompt that is too long loses whole past reviews, oldest first; the official code cuts the end, and with it "
        "the rating, the review's title and where the answer starts."
    )
    if set(config["evaluate"]["methods"]) & (WEIGHTED | CAUSAL):
        yield (
            "The prompt without history does not mention one; the official code writes “None” under a prompt that "
            "promises past reviews."
        )
    yield "The true review is never in a test prompt; the official test-set builder leaves it inside the input."


def _read(config: Mapping[str, Any]) -> Iterator[str]:
    evaluate = config["evaluate"]
    yield from _unlike("Evaluation", evaluate, _EVALUATION)
    if PRESET in evaluate["decoding"]:
        yield (
            "Padding is masked and not penalised; the official evaluation gives no mask although padding and stop "
            "token are one, so that a model reads its padding."
        )
    else:
        yield f"The preset {PRESET!r} was not run: nothing here was decoded as the published numbers were."
    yield f"One run, seed {config['seed']}; the official code sets no seed, and the paper has no intervals."


def _unlike(label: str, settings: Mapping[str, Any], paper: Mapping[str, Any]) -> Iterator[str]:
    """One sentence of all settings that have another value than the paper's."""
    found = []
    for key, value in paper.items():
        ours: Any = settings
        for name in key.split("."):
            ours = ours[name]
        if ours != value:
            found.append(f"{key} {_shown(ours)} (published: {_shown(value)})")
    if found:
        yield f"{label}: {', '.join(found)}."


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
