"""How the numbers of an evaluation are made, and what to know when reading them, in words."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from sacrebleu.metrics import BLEU

from nextquill_core.evaluation.metrics import (
    BERTSCORE,
    CHOSEN_BY_ABOVE,
    LIKELIHOOD,
    METEOR_ALPHA,
    METEOR_BETA,
    METEOR_GAMMA,
    PREFERENCE_LIKELIHOOD,
    SHOWN_ABOVE,
)
from nextquill_core.evaluation.unicode_words import Letters
from nextquill_core.evaluation.wordnet import load_wordnet, tokenizer_name

METEOR_VARIANT = (
    "NLTK's, with the parameters of Banerjee and Lavie 2005; on real reviews the same matches give about 0.06 less "
    "with those of METEOR 1.5 (0.85, 0.2, 0.6) and about 0.06 more with those of Lavie and Agarwal 2007 (0.81, 0.83, "
    "0.28), so compare with NLTK's values only"
)
PREFERENCE_NOTE = (
    "measured on tokens that the effects of history under {effects} chose; training with preference weights raises the "
    "weight of such tokens, so this favours methods that train with them (nextquill, norm-only) and is no independent "
    "evidence"
)


def settings(
    *,
    delta: float | None = None,
    effects: str = "the initial model",
    bertscore: Mapping[str, Any] | None = None,
    letters: Mapping[str, Letters] | None = None,
) -> dict[str, Any]:
    """How the numbers are made, as JSON values; to be printed with every table of them.

    Args:
        delta: δ of the preference tokens, where likelihoods were measured.
        effects: The model whose effects of history choose the preference tokens, in words.
        bertscore: The encoder, where there was one: `bertscore.BertEncoder.settings`.
        letters: Of the reference reviews, by category.

    Raises:
        WordNetError: There is no WordNet.
    """
    bleu = BLEU()
    bleu.corpus_score(["a"], [["a"]])  # sacreBLEU signs only what it has scored
    optional: dict[str, Any] = {}
    if bertscore is not None:
        optional[BERTSCORE] = {"value": "F1 of greedy matching, mean over examples, no idf, no rescaling", **bertscore}
    if delta is not None:
        optional[LIKELIHOOD] = {"value": "nats a token of the true review, its stop token among them"}
        optional[PREFERENCE_LIKELIHOOD] = {
            "value": "nats a token over preference tokens of the true review",
            "preference tokens": f"effect of the newest reviews under {effects} above {delta:g}",
            "caution": PREFERENCE_NOTE.format(effects=effects),
        }
    shares: dict[str, Any] = {}
    if letters is not None:
        for name, share in (("ignored", "ignored_share"), ("unspaced", "unspaced_share")):
            shares[name] = {category: round(getattr(found, share), 6) for category, found in letters.items()}
    return {
        "rouge": {
            "package": _version("rouge-score"),
            "value": "F-measure, mean over examples, 0 to 1",
            "use_stemmer": False,
            "tokens": "[a-z0-9]+ of the lower-cased text",
            **({"ignored_letters": shares["ignored"]} if shares else {}),
        },
        "rouge_unicode": {
            "value": "as rouge, with tokens of every script; in metrics.json where rouge ignores more than "
            f"{SHOWN_ABOVE:.1%} of the letters and digits, in examples.parquet always",
            "tokens": "runs of letters, digits and marks after NFKC and case folding; one character in scripts "
            "without spaces between words",
            **({"unspaced_letters": shares["unspaced"]} if shares else {}),
        },
        "meteor": {
            "package": _version("nltk"),
            "value": "mean over examples, 0 to 1",
            "implementation": METEOR_VARIANT,
            "alpha": METEOR_ALPHA,
            "beta": METEOR_BETA,
            "gamma": METEOR_GAMMA,
            "wordnet": load_wordnet().get_version(),
            "tokenizer": tokenizer_name(),
        },
        "bleu": {
            "package": _version("sacrebleu"),
            "value": "corpus score, 0 to 100",
            "signature": str(bleu.get_signature()),
        },
        "length_ratio": {
            "value": "words of all predictions over words of all references",
            "tokenizer": tokenizer_name(),
            "scripts without spaces": "one word a character, for METEOR too",
        },
        **optional,
    }


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def letters_note(ignored: Mapping[str, float], unspaced: Mapping[str, float]) -> str:
    """Return a warning that the standard ROUGE ignores much of the reference reviews, or "".

    Args:
        ignored: Share of the letters and digits that it ignores, by category.
        unspaced: Share of the letters in scripts without spaces between words, by category.
    """
    shown = {category: share for category, share in ignored.items() if share > SHOWN_ABOVE}
    if not shown:
        return ""
    listed = ", ".join(f"{share:.1%} in {category}" for category, share in shown.items())
    note = (
        "ROUGE-1 and ROUGE-L as published count only the letters a to z and digits. Of the letters and digits of the "
        f"reference reviews they ignore {listed}. Read ROUGE-1 (Unicode) and ROUGE-L (Unicode), which count every "
        "script."
    )
    if any(share > CHOSEN_BY_ABOVE for share in unspaced.values()):
        note += (
            " BLEU's tokenizer (13a) takes a run of characters without spaces, as in Chinese, Japanese or Thai, for "
            "one word."
        )
    return note
