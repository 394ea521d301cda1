"""The offline base model: a byte-level BPE tokenizer and a small Qwen2, trained in about two minutes on two cores.

It learns from base profiles alone, that is, from reviews older than every target of any split: each is written again
as the answer to a prompt, with the user's earlier reviews as history or without, so the model meets both kinds of
prompt and has seen nothing that it will be scored, trained or tested on. What it leaves is an ordinary Hugging Face
folder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nextquill_core.errors import DataError
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.model.control_tokens import UserTextTokenizer
from nextquill_core.model.loading import quiet_libraries
from nextquill_core.progress import Progress, silent
from nextquill_core.prompts import build_prompt
from nextquill_core.schemas import Review

STOP, PAD = "<|endoftext|>", "<|pad|>"
IGNORED = -100


@dataclass(frozen=True)
class TinySpec:
    """Shape and training of the model; see `TinyModelConfig` for the meaning and default of each field."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    steps: int
    batch_tokens: int
    learning_rate: float
    max_history: int
    max_tokens: int
    seed: int


def train_tiny_model(
    profiles: Sequence[Sequence[Review]],
    spec: TinySpec,
    folder: Path,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> dict[str, float]:
    """Train tokenizer and model on base profiles and save them to `folder`.

    Training that was interrupted resumes at its checkpoint and ends in the same bytes. Tokenizer and token sequences
    are computed again: they depend on the profiles and the settings alone.

    Args:
        profiles: Each user's base profile, oldest first.
        spec: Shape and training.
        folder: Becomes a Hugging Face model folder.
        progress: Receives each optimizer step.
        checkpoint: Where training resumes and what it writes; None writes no checkpoint.

    Returns:
        Facts for the manifest: parameters, documents, the loss of the last tenth of the steps (nats a token).

    Raises:
        DataError: There is no text to learn from.
    """
    quiet_libraries()
    progress(0, spec.steps, "training the tokenizer")
    documents = list(pretraining_documents(profiles, spec.max_history, spec.seed))
    if not documents:
        raise DataError("no base profile has a review to learn from", "model.name_or_path: tiny", "ingest more users")
    progress(0, 0, phase="training the tokenizer")
    tokenizer = train_tokenizer([prompt + answer for prompt, answer in documents], spec.vocab_size)
    rows = _encode(tokenizer, documents, spec.max_tokens)
    torch.manual_seed(spec.seed)
    model = tiny_qwen2(spec, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    losses = _pretrain(model, rows, spec, progress, checkpoint)
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
    profiles: Sequence[Sequence[Review]], max_history: int, seed: int
) -> Iterator[tuple[str, str]]:
    """(prompt, answer) for each review of each profile: once without history, and once with, if there is one."""
    choice = random.Random(seed)  # noqa: S311 - a seeded draw, not a secret
    for profile in profiles:
        for position, review in enumerate(profile):
            yield build_prompt(review.item, review.rating, review.title, ()), review.text
            if position:
                shown = choice.randint(1, max(1, max_history))
                history = profile[max(0, position - shown) : position]
                yield build_prompt(review.item, review.rating, review.title, history), review.text


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded and comes back byte for byte."""
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


def tiny_qwen2(spec: TinySpec, vocabulary: int, stop_id: int, pad_id: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of the given shape, embeddings tied."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.hidden_size * 11 // 4 // 8 * 8,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=max(1, spec.heads // 2),
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            # About 1/√hidden: with the usual 0.02, attention starts so flat at this width that no recipe within the
            # budget learned to look at the history: it then gains 0.00 nats on the demo's taste words, with this 0.37.
            initializer_range=0.9 / math.sqrt(spec.hidden_size),
            bos_token_id=None,
            eos_token_id=stop_id,
            pad_token_id=pad_id,
        )
    )


def _encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[tuple[str, str]], limit: int) -> list[list[int]]:
    """Prompt, answer and stop token of each document as ids; of a longer one its last `limit`."""
    text = UserTextTokenizer(tokenizer)
    prompts, answers = (text.encode(texts) for texts in zip(*documents, strict=True))
    return [
        [*prompt, *answer, tokenizer.eos_token_id][-limit:] for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _pretrain(
    model: Qwen2ForCausalLM,
    rows: Sequence[list[int]],
    spec: TinySpec,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> list[float]:
    """Train the model in place and return the loss of each step in nats a token."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(0.9, 0.98))
    losses = checkpoint.restore(model, optimizer) if checkpoint else []
    resumed = f", resumed at step {len(losses)}" if losses else ""
    # The order of the batches follows from the seed, so the number of steps is also the position in it.
    batches = islice(_batches(rows, spec.batch_tokens, spec.seed), len(losses), None)
    model.train()
    for step in range(len(losses), spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * _warmup_then_cosine(step, spec.steps)
        ids_BT, labels_BT = _padded(next(batches))
        loss = model(input_ids=ids_BT, attention_mask=(labels_BT != IGNORED).long(), labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if checkpoint:
            checkpoint.write_if_due(model, optimizer, losses)
        progress(step + 1, spec.steps, f"loss {losses[-1]:.3f}{resumed}")
    return losses


def _warmup_then_cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(rows: Sequence[list[int]], batch_tokens: int, seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of rows, each about `batch_tokens` tokens with padding; rows of like length go together."""
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
    """(ids, labels) of a batch, each of shape (B, T)."""
    width = max(map(len, batch))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in batch])
    return ids, labels
