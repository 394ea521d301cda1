"""The offline base model: a byte-level BPE tokenizer and a small Qwen3, trained in about two minutes on two cores.

It is trained on base profiles alone, that is, on reviews older than every target of any split: each review is the
answer to a prompt, with the user's earlier reviews as history or without. So the model has seen both kinds of prompt,
and nothing that it is later scored, trained or tested on. The result is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nextquill_core.config.model import TinyModelConfig
from nextquill_core.errors import DataError
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.model.loading import quiet_libraries
from nextquill_core.progress import Progress, silent
from nextquill_core.prompts import REVIEW, Wording, build_prompt
from nextquill_core.schemas import Review
from nextquill_core.tokens import UserTextTokenizer

STOP, PAD = "<|endoftext|>", "<|pad|>"
IGNORED = -100


def train_tiny_model(
    profiles: Sequence[Sequence[Review]],
    config: TinyModelConfig,
    folder: Path,
    *,
    max_history: int,
    max_tokens: int,
    seed: int,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    wording: Wording = REVIEW,
) -> dict[str, float]:
    """Train tokenizer and model on base profiles and save them to `folder`.

    Interrupted training resumes at its checkpoint and ends with the same bytes. Tokenizer and token sequences are
    computed again, because they depend on the profiles and the settings alone.

    Args:
        profiles: Each user's base profile, oldest review first.
        config: Shape of the model and settings of its training.
        folder: Folder that becomes a Hugging Face model folder.
        max_history: Maximum number of earlier reviews in a prompt.
        max_tokens: Tokens of a document that are used, the last ones of a longer document.
        seed: Seed of the weights, the histories and the batches.
        progress: Receives each optimizer step.
        checkpoint: Checkpoint to resume from and to write; None writes no checkpoint.
        wording: Words of the prompts.

    Returns:
        Facts for the manifest: `parameters`, `documents`, and `final_loss`, the mean loss of the last tenth of the
        steps in nats per token.

    Raises:
        DataError: No profile has a review.
    """
    quiet_libraries()
    progress(0, config.steps, "training the tokenizer")
    documents = list(pretraining_documents(profiles, max_history, seed, wording))
    if not documents:
        raise DataError("no base profile has a review to learn from", "model.name_or_path: tiny", "ingest more users")
    progress(0, 0, phase="training the tokenizer")
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in documents], config.vocab_size)
    rows = _encode(tokenizer, documents, max_tokens)
    torch.manual_seed(seed)
    model = tiny_qwen3(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    losses = _pretrain(model, rows, config, seed, progress, checkpoint)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "documents": len(documents),
        "final_loss": sum(tail) / len(tail),
    }


def pretraining_documents(
    profiles: Sequence[Sequence[Review]], max_history: int, seed: int, wording: Wording = REVIEW
) -> Iterator[tuple[str, str]]:
    """Yield (prompt, answer) for each review: once without history, and once with history, if there is any.

    Args:
        profiles: Each user's reviews, oldest first.
        max_history: Maximum number of earlier reviews in a prompt.
        seed: Seed of how many are shown.
        wording: Words of the prompts.
    """
    choice = random.Random(seed)  # noqa: S311 - a seeded draw, not a secret
    for profile in profiles:
        for position, review in enumerate(profile):
            yield build_prompt(review.item, review.rating, review.title, (), wording=wording), review.text
            if position:
                shown = choice.randint(1, max(1, max_history))
                history = profile[max(0, position - shown) : position]
                yield build_prompt(review.item, review.rating, review.title, history, wording=wording), review.text


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, which encodes any text and decodes it to the same bytes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[STOP, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=STOP, pad_token=PAD)


def tiny_qwen3(config: TinyModelConfig, vocabulary: int, stop_id: int, pad_id: int) -> Qwen3ForCausalLM:
    """Return a randomly initialised Qwen3 with tied embeddings.

    Not a Qwen2: transformers 5 loads that type with Qwen2's own splitting of text, whatever `tokenizer.json` says.

    Args:
        config: Shape of the model.
        vocabulary: Number of embedding rows.
        stop_id: Token that ends a document.
        pad_id: Token that pads a batch.
    """
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.hidden_size // config.heads,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            # About 1/√hidden: with the usual 0.02, attention starts so flat at this width that the model does not learn
            # to use the history within the budget. It then gains 0.00 nats on the demo's taste words, with this 0.37.
            initializer_range=0.9 / math.sqrt(config.hidden_size),
            bos_token_id=None,
            eos_token_id=stop_id,
            pad_token_id=pad_id,
        )
    )


def _encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[tuple[str, str]], limit: int) -> list[list[int]]:
    """Return prompt, answer and stop token of each document as ids, of a longer document the last `limit` ids."""
    text = UserTextTokenizer(tokenizer)
    prompts, answers = (text.encode(texts) for texts in zip(*documents, strict=True))
    return [
        [*prompt, *answer, tokenizer.eos_token_id][-limit:] for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _pretrain(
    model: Qwen3ForCausalLM,
    rows: Sequence[list[int]],
    config: TinyModelConfig,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> list[float]:
    """Train the model in place and return the loss of each step in nats per token."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    losses: list[float] = checkpoint.restore(model, optimizer) if checkpoint else []
    resumed = f", resumed at step {len(losses)}" if losses else ""
    # The order of the batches follows from the seed, so the number of steps is also the position in it.
    batches = islice(_batches(rows, config.batch_tokens, seed), len(losses), None)
    model.train()
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _warmup_then_cosine(step, config.steps)
        ids_BT, labels_BT = _padded(next(batches))
        loss = _loss(model, ids_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if checkpoint:
            checkpoint.write_if_due(model, optimizer, losses)
        progress(step + 1, config.steps, f"loss {losses[-1]:.3f}{resumed}")
    return losses


def _loss(model: Qwen3ForCausalLM, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the tokens of a batch, nats.

    Rows are padded at their ends, which no earlier token sees, so attention needs no mask, and padding gets no logits:
    a fifth less time than with both.
    """
    states_BTD = model.model(input_ids=ids_BT).last_hidden_state[:, :-1]
    next_BT = labels_BT[:, 1:]
    kept = next_BT != IGNORED
    return nn.functional.cross_entropy(model.lm_head(states_BTD[kept]), next_BT[kept])


def _warmup_then_cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(rows: Sequence[list[int]], batch_tokens: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield batches of rows of similar length without end, each of about `batch_tokens` tokens with padding."""
    choice = random.Random(seed)  # noqa: S311 - a seeded draw, not a secret
    while True:
        order = sorted(choice.sample(range(len(rows)), len(rows)), key=lambda index: len(rows[index]) // 32)
        batches: list[list[list[int]]] = [[]]
        for index in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(rows[index]) > batch_tokens:
                batches.append([])
            batches[-1].append(rows[index])
        choice.shuffle(batches)
        yield from batches


def _padded(batch: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return (ids, labels) of a batch, int64, shape (B, T) each."""
    width = max(map(len, batch))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in batch])
    return ids, labels
