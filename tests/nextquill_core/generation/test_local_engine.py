"""The engine on a model of our own, against one token at a time without cache, padding or company."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nextquill_core.errors import ModelError
from nextquill_core.generation import local_engine
from nextquill_core.generation.decoding import COPE, DECODINGS, GREEDY, PAPER, SAMPLED, Contrast, Decoding, steering
from nextquill_core.generation.engines import BASE, CUT, STOPPED, Request, request_seed
from nextquill_core.generation.local_engine import TransformersEngine
from tests.models import FAMILIES, VOCABULARY, small_model
from tests.nextquill_core.generation.spelling import Numbers, speller

LIMIT = 12
STOPS = list(range(40))  # so that a tenth of all tokens end an answer, and answers have all lengths
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},  # shorter than the prompts
    "gemma2": {"sliding_window": 8, "final_logit_softcapping": 30.0},
}


def prompts(count: int = 12, seed: int = 0) -> list[list[int]]:
    """3 to 40 tokens each."""
    draw = random.Random(seed)
    return [[draw.randrange(40, VOCABULARY) for _ in range(draw.randint(3, 40))] for _ in range(count)]


def requests(count: int = 12) -> list[Request]:
    return [Request(f"C:u{number}", prompt) for number, prompt in enumerate(prompts(count))]


def lively(family: str = "qwen2", stops: Sequence[int] = STOPS) -> Any:
    """With weights so large that answers vary, and do not repeat their last token for ever."""
    settings = {"tie_word_embeddings": False, "initializer_range": 0.4} | SHAPES.get(family, {})
    model = small_model(family, **settings)
    model.generation_config.eos_token_id = list(stops)
    return model


def engine(model: Any, decoding: Decoding = GREEDY, **settings: Any) -> TransformersEngine:
    settings = {"max_new_tokens": LIMIT, "batch_tokens": 150} | settings
    return TransformersEngine(model, Numbers(), decoding, **settings)


def logits(model: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        found: list[float] = model(torch.tensor([ids])).logits[0, -1].float().tolist()
    return found


def definition(
    model: Any,
    request: Request,
    decoding: Decoding,
    *,
    steering: float | None = None,
    cope: bool = False,
    stops: Sequence[int] = STOPS,
) -> tuple[str, str]:
    """Ids and finish reason, from the definitions of penalty, contrast, nucleus and draw, in plain Python."""
    output: list[int] = []
    chance = torch.Generator().manual_seed(request_seed(0, request.key))
    while len(output) < (request.limit or LIMIT):
        scores = logits(model, request.prompt + output)
        if steering is not None and request.counterfactual is not None:
            away = logits(model, request.counterfactual + output)
            scores = [(1 + steering) * ours - steering * theirs for ours, theirs in zip(scores, away, strict=True)]
        if cope:
            with model.disable_adapter():
                task = logits(model, request.prompt + output)
            p_user, p_task = (torch.tensor(found).double().softmax(-1).tolist() for found in (scores, task))
            plausible = [p for p in p_user if p >= 0.1 * max(p_user)]
            scores = [
                math.log(ours / sum(plausible)) - 0.1 * math.log(theirs) if ours in plausible else -math.inf
                for ours, theirs in zip(p_user, p_task, strict=True)
            ]
        for token in set(request.prompt + output):
            penalty = decoding.repetition_penalty
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        token = max(range(len(scores)), key=lambda token: scores[token])
        if decoding.temperature:
            p = torch.tensor(scores).div(decoding.temperature).softmax(-1).tolist()
            kept, mass = set(), 0.0
            for likely in sorted(range(len(p)), key=lambda token: -p[token]):
                if mass < decoding.top_p:
                    kept.add(likely)
                    mass += p[likely]
            rest = mass * torch.rand((), generator=chance, dtype=torch.float64).item()
            for token in sorted(kept):
                rest -= p[token]
                if rest < 0:
                    break
        if token in stops:
            return " ".join(map(str, output)), STOPPED
        output.append(token)
    return " ".join(map(str, output)), CUT


def pairs(answers: Sequence[Any]) -> list[tuple[str, str]]:
    return [(answer.text, answer.finish_reason) for answer in answers]


@pytest.mark.parametrize("preset", DECODINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_the_definition_says_in_batches_of_any_size(family: str, preset: str) -> None:
    model, decoding = lively(family), DECODINGS[preset]
    expected = [definition(model, request, decoding) for request in requests()]
    for budget in (1, 150, 10**6):
        answers = engine(model, decoding, batch_tokens=budget).generate(requests())
        assert pairs(answers) == expected
        assert [answer.n_tokens for answer in answers] == [len(text.split()) for text, _ in expected]
    assert len({answer.n_tokens for answer in answers}) > 2  # rows left at different times


def test_long_answers_outgrow_the_room_beside_the_prompt() -> None:
    model = lively(stops=[0])
    asked = [Request(request.key, request.prompt, limit=80) for request in requests(2)]
    answers = engine(model, SAMPLED, max_new_tokens=80, batch_tokens=10**6).generate(asked)
    assert pairs(answers) == [definition(model, request, SAMPLED, stops=[0]) for request in asked]


@pytest.mark.parametrize("share", [1, 2, 4])
def test_rows_that_finished_may_stay_for_a_while(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine(lively(), PAPER).generate(requests())
    monkeypatch.setattr(local_engine, "SHARE", share)  # all, half or a quarter leave together
    staying = engine(lively(), PAPER)
    assert staying.generate(requests()) == expected
    assert staying.usage.answers == len(expected)


@pytest.mark.parametrize("decoding", [PAPER, SAMPLED])
def test_an_answer_does_not_depend_on_batch_order_or_what_was_answered_before(decoding: Decoding) -> None:
    model = lively()
    whole = engine(model, decoding, batch_tokens=10**6).generate(requests())
    alone = [engine(model, decoding).generate([request])[0] for request in requests()]
    assert whole == alone
    resumed = engine(model, decoding, batch_tokens=80)
    resumed.generate(requests()[9:])
    assert resumed.generate(requests()[4:9][::-1]) == whole[4:9][::-1]


def test_sampling_depends_on_the_seed_and_on_the_key() -> None:
    model, prompt = lively(stops=[0]), prompts(1)[0]
    same_prompt = [Request(f"u{number}", prompt) for number in range(6)]
    first = engine(model, SAMPLED).generate(same_prompt)
    assert len({answer.text for answer in first}) == 6
    assert engine(model, SAMPLED).generate(same_prompt) == first
    assert not set(first) & set(engine(model, SAMPLED, seed=1).generate(same_prompt))


@pytest.mark.parametrize("preset", DECODINGS)
@pytest.mark.parametrize("trained", [False, True], ids=["base", "adapter"])
def test_steering_is_the_definition_of_cos(trained: bool, preset: str) -> None:
    model, decoding = adapted(["default"]) if trained else lively(), DECODINGS[preset]
    asked = [
        Request(f"u{number}", ours, without if number % 4 else None)  # some are not steered
        for number, (ours, without) in enumerate(zip(prompts(), prompts(seed=1), strict=True))
    ]
    answers = engine(model, decoding, contrast=steering(2.0)).generate(asked)
    assert pairs(answers) == [definition(model, request, decoding, steering=2.0) for request in asked]
    assert pairs(answers) != [definition(model, request, decoding) for request in asked]


@pytest.mark.parametrize("preset", DECODINGS)
@pytest.mark.parametrize("trained", [False, True], ids=["base", "adapter"])
def test_steering_by_0_is_plain_decoding_and_by_minus_1_the_model_without_history(trained: bool, preset: str) -> None:
    model, decoding = adapted(["default"]) if trained else lively("llama"), DECODINGS[preset]
    without = prompts(seed=1)
    steered = [Request(f"u{number}", ours, without[number]) for number, ours in enumerate(prompts())]
    plain = engine(model, decoding).generate([Request(request.key, request.prompt) for request in steered])
    blind = engine(model, decoding).generate(
        [Request(request.key, request.counterfactual or []) for request in steered]
    )
    assert engine(model, decoding, contrast=steering(0.0)).generate(steered) == plain
    if decoding != PAPER:  # its penalty is on the tokens of the prompt with history
        assert engine(model, decoding, contrast=steering(-1.0)).generate(steered) == blind
    assert plain != blind


def test_steering_by_0_reads_no_second_prompt() -> None:
    unsteered = engine(lively(), PAPER, contrast=steering(0.0))
    asked = [Request(request.key, request.prompt, [50, 51]) for request in requests(4)]
    unsteered.generate(asked)
    assert unsteered.usage.prompt_tokens == sum(len(request.prompt) for request in asked)


@pytest.mark.parametrize("contrast", [steering(0.5), COPE], ids=["steering", "cope"])
@pytest.mark.parametrize("preset", DECODINGS)
def test_four_rows_together_give_what_each_gives_alone(preset: str, contrast: Contrast) -> None:
    model = adapted(["default", "ann", "bob", "cat"])
    asked = [
        Request(request.key, request.prompt, request.prompt if contrast is COPE else [50, 60 + number],
                ["ann", "bob", "cat", None][number], counterfactual_adapter=BASE if contrast is COPE else None)
        for number, request in enumerate(requests(4))
    ]  # fmt: skip
    together = engine(model, DECODINGS[preset], contrast=contrast, batch_tokens=10**6).generate(asked)
    assert together == [engine(model, DECODINGS[preset], contrast=contrast).generate([one])[0] for one in asked]
    assert len({answer.text for answer in together}) == 4


def test_two_branches_without_a_contrast_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="no contrast"):
        engine(small_model("qwen2")).generate([Request("u", [50], [60])])


def adapted(names: Sequence[str]) -> Any:
    """Different adapters, each strong enough to change the answer."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(lively(), settings, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("decoding", [PAPER, SAMPLED])
def test_each_request_has_its_own_adapter_and_none_is_the_base_model(decoding: Decoding) -> None:
    users = ("ann", "bob", "cat")
    model = adapted(users)
    asked = [
        Request(request.key, request.prompt, adapter=[*users, None, BASE][number % 5])
        for number, request in enumerate(requests())
    ]
    expected = []
    for request in asked:
        if request.adapter in users:
            model.set_adapter(request.adapter)
            expected.append(definition(model, request, decoding))
        else:
            with model.disable_adapter():
                expected.append(definition(model, request, decoding))
    model.set_adapter("ann")
    answers = engine(model, decoding, batch_tokens=10**6).generate(asked)
    assert pairs(answers) == expected
    assert engine(model, decoding, batch_tokens=1).generate(asked[::-1]) == answers[::-1]
    assert engine(model, decoding).generate(asked[3:4]) == answers[3:4]  # no row of this batch has an adapter
    base = engine(model, decoding).generate([Request(request.key, request.prompt) for request in asked])
    assert sum(one != other for one, other in zip(base, answers, strict=True)) > 4


def test_a_request_without_adapter_gets_the_one_of_a_trained_model() -> None:
    model = adapted(["default"])
    expected = [definition(model, request, PAPER) for request in requests(5)]
    assert pairs(engine(model, PAPER).generate(requests(5))) == expected
    with model.disable_adapter():
        assert [definition(model, request, PAPER) for request in requests(5)] != expected


@pytest.mark.parametrize("preset", DECODINGS)
def test_cope_contrasts_each_user_s_adapter_with_the_base_model(preset: str) -> None:
    users, decoding = ("ann", "bob", "cat"), DECODINGS[preset]
    model = adapted(users)
    asked = [
        Request(request.key, request.prompt, request.prompt, users[number % 3], counterfactual_adapter=BASE)
        for number, request in enumerate(requests())
    ]
    expected, plain = [], []
    for request in asked:
        model.set_adapter(request.adapter)
        expected.append(definition(model, request, decoding, cope=True))
        plain.append(definition(model, request, decoding))
    model.set_adapter("ann")
    for budget in (1, 150, 10**6):
        assert pairs(engine(model, decoding, contrast=COPE, batch_tokens=budget).generate(asked)) == expected
    assert expected != plain


def test_an_adapter_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="no adapter 'dan'"):
        engine(adapted(["ann"])).generate([Request("u", [50], adapter="dan")])
    with pytest.raises(ModelError, match="no adapter 'dan'"):
        engine(small_model("qwen2")).generate([Request("u", [50], adapter="dan")])
    with pytest.raises(ModelError, match="no adapter 'dan'"):
        engine(adapted(["ann"]), contrast=COPE).generate([Request("u", [50], [50], counterfactual_adapter="dan")])


def crowded(model: Any, most: int) -> Any:
    """Runs out of memory when it reads more rows than this at a time."""

    def refuse(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        if len(options["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    return model


@pytest.mark.parametrize("decoding", [PAPER, SAMPLED])
def test_when_memory_runs_out_smaller_batches_give_the_same_answers(decoding: Decoding) -> None:
    expected = engine(lively(), decoding).generate(requests())
    poor = engine(crowded(lively(), 3), decoding, batch_tokens=10**6)
    told: list[int] = []
    assert poor.generate(requests(), told.append) == expected
    assert sum(told) == len(expected)
    assert poor.usage.retries == 2  # 12 rows, then 6, then 3
    assert poor.usage.answers == len(expected)
    poor.generate(requests())
    assert poor.usage.retries == 2  # it remembers


def test_after_memory_ran_out_no_row_hears_the_adapters_of_those_before() -> None:
    """PEFT leaves its hooks in place where a pass fails."""
    model = adapted(["default", "ann"])
    alone = requests()
    asked = [Request(request.key, request.prompt, adapter="ann") for request in alone]
    expected = engine(model, PAPER).generate(asked), engine(model, PAPER).generate(alone)
    crowded(model.get_base_model(), 3)
    poor = engine(model, PAPER, batch_tokens=10**6)
    assert (poor.generate(asked), poor.generate(alone)) == expected
    assert poor.usage.retries == 2


def test_without_memory_for_one_answer_the_error_says_so() -> None:
    with pytest.raises(ModelError, match="out of memory with one answer"):
        engine(crowded(small_model("qwen2"), 0)).generate(requests(3))


def test_other_errors_of_the_model_are_not_taken_for_it() -> None:
    model = small_model("qwen2")

    def refuse(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="shapes"):
        engine(model).generate(requests(3))


def test_answers_end_at_the_shorter_limit() -> None:
    model = lively(stops=[])
    asked = [Request("a", [50, 60]), Request("b", [50, 60], limit=5), Request("c", [50, 60], limit=99)]
    answers = engine(model, PAPER).generate(asked)
    assert [(answer.n_tokens, answer.finish_reason) for answer in answers] == [(12, CUT), (5, CUT), (12, CUT)]
    assert answers[0].text.startswith(answers[1].text)


def spelled(tokens: Sequence[int], tokenizer: Any, prompt: list[int], **settings: Any) -> tuple[str, int, str]:
    """The answer of a model that writes these tokens: text, length and why it ended."""
    settings = {"max_new_tokens": 99, "batch_tokens": 100} | settings
    used = TransformersEngine(speller(tokens, len(prompt), len(tokenizer)), tokenizer, GREEDY, **settings)
    (answer,) = used.generate([Request("u", prompt)])
    return answer.text, answer.n_tokens, answer.finish_reason


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_character_cut_in_two_is_left_out(limit: int, tiny_tokenizer: Any) -> None:
    tokens = tiny_tokenizer("😀")["input_ids"]
    assert len(tokens) == 4  # its bytes
    assert spelled(tokens, tiny_tokenizer, [7], max_new_tokens=limit) == ("", limit, CUT)


@pytest.mark.parametrize("text", ["😀👩‍👩‍👧 so fine", "ספר נפלא — كتاب رائع", "a  b ,  c .", "x"])
def test_what_the_model_spells_comes_back_intact(text: str, tiny_tokenizer: Any) -> None:
    tokens = [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]
    for prompt in ([7, 8, 9], [9, 9, 9]):
        assert spelled(tokens, tiny_tokenizer, prompt) == (text, len(tokens) - 1, STOPPED)


def test_a_model_that_stops_at_once_gives_an_empty_text(tiny_tokenizer: Any) -> None:
    assert spelled([tiny_tokenizer.eos_token_id], tiny_tokenizer, [7, 8, 9]) == ("", 0, STOPPED)


def test_an_answer_stops_where_the_template_ends_a_turn(tiny_tokenizer: Any) -> None:
    written = tiny_tokenizer("so fine")["input_ids"]
    turn_end = tiny_tokenizer("☀")["input_ids"][-1]
    tokens = [*written, turn_end, *written]
    stopped = spelled(tokens, tiny_tokenizer, [7, 8, 9], max_new_tokens=9, stop=turn_end)
    assert stopped == ("so fine", len(written), STOPPED)
    assert spelled(tokens, tiny_tokenizer, [7, 8, 9], max_new_tokens=9)[1] > len(written)


def test_no_requests_no_answers() -> None:
    assert engine(small_model("qwen2")).generate([]) == []


def test_usage_adds_up() -> None:
    model = lively()
    used = engine(model, PAPER, contrast=steering(1.0))
    asked = [Request(request.key, request.prompt, [50, 51]) for request in requests()]
    told: list[int] = []
    answers = used.generate(asked, told.append)
    assert sum(told) == used.usage.answers == 12
    assert used.usage.prompt_tokens == sum(len(request.prompt) + 2 for request in asked)
    assert used.usage.new_tokens == sum(answer.n_tokens for answer in answers)
    assert 0 < used.usage.first_token_seconds < 12 * used.usage.seconds
    assert used.usage.peak_bytes > 50_000_000  # torch alone
    before = used.usage.seconds
    used.generate(asked[:2])
    assert used.usage.answers == 14
    assert used.usage.seconds > before


def test_a_model_without_keys_and_values_is_refused() -> None:
    with pytest.raises(ModelError, match="keys and values"):
        engine(small_model("mamba"))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
def test_continuous_batching_gives_the_same_tokens(device: str) -> None:
    model = lively().to(device)
    attention = model.config._attn_implementation
    asked = [Request(request.key, request.prompt, limit=3 if number == 2 else None)
             for number, request in enumerate(requests(6))]  # fmt: skip
    told: list[int] = []
    continuous = engine(model, continuous=True)
    assert continuous.generate(asked, told.append) == engine(model).generate(asked)
    assert sum(told) == continuous.usage.answers == 6
    assert 0 < continuous.usage.first_token_seconds < 6 * continuous.usage.seconds
    assert model.config._attn_implementation == attention
