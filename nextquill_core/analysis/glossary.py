"""The words of the report that a reader needs, each explained in a sentence or two."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Effect",
        "How much more probable the user's history makes a word that the user wrote: its probability with the history "
        "minus that without, between −1 and 1.",
    ),
    (
        "Exact effect",
        "The same difference computed from the rules by which a synthetic world writes reviews. No model takes part.",
    ),
    (
        "Preference token",
        "A token (a word or a part of one) with an effect above the threshold δ. Training weights such tokens more.",
    ),
    (
        "Own, stranger's, no history",
        "What a prompt shows beside the item: reviews of the user, of another user of the same category, or none.",
    ),
    (
        "Personal gain",
        "How much more likely a method finds the true review with the user's own history than with a stranger's. Only "
        "what is personal counts: a method that merely learned how reviews are written has none.",
    ),
    ("History gain", "The same against no history. It also counts what any user's reviews would give."),
    (
        "Log-likelihood",
        "The mean log-probability that a method gives to each token of the review that the user wrote. Closer to 0 is "
        "better.",
    ),
    (
        "Nats a token",
        "The unit of log-likelihoods and gains. A gain of 0.1 makes each token 1.11 times (e to the power of 0.1) as "
        "likely, on average.",
    ),
    (
        "Decoding preset",
        "How texts are generated. `sane`: without a repetition penalty, greedy or sampled, as chosen on the validation "
        "split. `paper`: as published, greedy with a repetition penalty of 1.2.",
    ),
    (
        "95 % interval",
        "The range of a number over resamples of the users (bootstrap). If the interval of a difference includes zero, "
        "other users could show no difference, or the opposite.",
    ),
    (
        "Paired difference",
        "Two methods on the same reviews of the same users, one minus the other.",
    ),
    (
        "Correction (Holm)",
        "Of many tests some succeed by chance. The p-values are corrected for all tests of a table.",
    ),
    (
        "ROUGE, METEOR, BLEU",
        "Overlap of a generated text with the true review in words and word sequences. They reward the right words and "
        "say little about the person.",
    ),
    (
        "Ceiling",
        "What the users themselves have, such as their share of words in their own style. A method that always takes "
        "the likeliest word can lie above it: its texts are more uniform than those of the person.",
    ),
    (
        "AUC",
        "How often an estimate ranks a word with an exact effect above δ before another: 0.5 is chance, 1 is always.",
    ),
)
