"""Presets, seeds, and the arithmetic between logits and the next token."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from nextquill_core.generation.decoding import (
    COPE,
    DECODINGS,
    SANE_CANDIDATES,
    Contrast,
    Decoding,
    next_tokens,
    nucleus,
    penalised,
    steering,
)
from nextquill_core.generation.engines import request_seed
from tests.conftest import REPO


def test_presets_go_by_their_names_and_the_candidates_are_among_them() -> None:
    assert {name: preset.name for name, preset in DECODINGS.items()} == {name: name for name in DECODINGS}
    assert set(SANE_CANDIDATES) <= set(DECODINGS)
    assert DECODINGS["paper"].greedy
    assert DECODINGS["paper"].repetition_penalty == 1.2
    assert (DECODINGS["sampled"].temperature, DECODINGS["sampled"].top_p) == (0.6, 0.9)
    assert not DECODINGS["sampled"].greedy


@pytest.mark.process
def test_a_plan_reads_the_presets_without_torch() -> None:
    modules = "nextquill_core.generation.decoding, nextquill_core.generation.engines"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


def test_seeds_depend_on_run_and_key_and_fit_31_bits() -> None:
    seeds = {request_seed(seed, key) for seed in (0, 1) for key in ("a", "b", "1/a", "😀")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    # The first four bytes of sha256("0/C:u1:7"), without the last bit; another value would change stored answers.
    assert request_seed(0, "C:u1:7") == 353_552_307
    assert request_seed(42, "😀") == 1_767_601_398


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    logits = torch.tensor([[2.4, -1.0, 3.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalised(logits, seen, 1.2)[0].tolist() == pytest.approx([2.0, -1.2, 3.0, -2.0])


def test_steering_by_0_and_minus_1_gives_either_branch_to_the_last_bit() -> None:
    torch.manual_seed(0)
    ours, without = torch.randn(3, 50) * 7, torch.randn(3, 50) * 7
    assert torch.equal(steering(0.0)(ours, without), ours)
    assert torch.equal(steering(-1.0)(ours, without), without)


def test_steering_multiplies_by_the_ratio_of_the_probabilities() -> None:
    # p_h = (1/2, 1/4, 1/4), p_0 = (1/4, 1/4, 1/2), λ = 1: p ∝ p_h²/p_0 = (1, 1/4, 1/8), whatever each branch's shift.
    ours, without = torch.tensor([[2.0, 1.0, 1.0]]).log() + 3, torch.tensor([[1.0, 1.0, 2.0]]).log() - 5
    p = steering(1.0)(ours, without).softmax(-1)[0]
    assert p.tolist() == pytest.approx([8 / 11, 2 / 11, 1 / 11])


def test_only_steering_by_0_needs_no_second_branch() -> None:
    assert steering(0.0).neutral
    assert not any(one.neutral for one in (steering(0.25), steering(-1.0), COPE, Contrast(1.0, 0.0, 0.1)))


def test_cope_divides_by_a_power_of_the_task_s_probability_among_plausible_tokens() -> None:
    # p_user = (20, 10, 3, 2, 1)/36: a tenth of the likeliest is 2. p_task = (4, 1, 1, 1, 1)/8, whatever the shifts are.
    user = torch.tensor([[20.0, 10.0, 3.0, 2.0001, 1.0]]).log() + 3
    task = torch.tensor([[4.0, 1.0, 1.0, 1.0, 1.0]]).log() - 5
    p = COPE(user, task).softmax(-1)[0]
    shares = [20 / 4**0.1, 10, 3, 2.0001, 0]
    assert p.tolist() == pytest.approx([share / sum(shares) for share in shares])


def test_a_penalty_on_cope_multiplies_log_probabilities_whatever_the_shift_of_the_logits_is() -> None:
    """The likeliest token was seen: ln(20/35) − 0.1 · ln(1/2) = −0.4903 becomes −0.5884, above ln(10/35) + 0.2079.

    Raw logits would be divided: with the shifts below (5.9957 + 0.3614) / 1.2 is less than 5.3026 + 0.5.
    """
    user = torch.tensor([[20.0, 10.0, 3.0, 2.0001, 1.0]]).log()
    task = torch.tensor([[4.0, 1.0, 1.0, 1.0, 1.0]]).log()
    seen = torch.tensor([[True, False, True, False, True]])
    for shift, other in ((3.0, -5.0), (-40.0, 7.0)):
        found = penalised(COPE(user + shift, task + other), seen, 1.2)[0]
        assert found[:4].tolist() == pytest.approx([-0.588362, -1.044819, -2.698583, -2.654207], abs=1e-4)
        assert found[4] == -math.inf
        assert next_tokens(found[None], DECODINGS["paper"]).tolist() == [0]


def test_a_token_that_is_not_plausible_stays_so_under_penalty_and_in_draws() -> None:
    user, task = torch.tensor([[5.0, 4.0, -3.0]]), torch.tensor([[5.0, 4.0, -90.0]])
    logits = penalised(COPE(user, task), torch.tensor([[True, True, False]]), 1.2)
    assert logits[0, 2] == -math.inf
    uniform = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert next_tokens(logits, Decoding("test", "", temperature=9.0), uniform).tolist() == [1]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.5, [1]), (0.6, [1, 3]), (0.81, [1, 3]), (0.82, [0, 1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_the_mass(top_p: float, kept: list[int]) -> None:
    p = torch.tensor([[0.125, 0.5, 0.0625, 0.3125]])
    found = nucleus(p, top_p)[0]
    assert found.nonzero()[:, 0].tolist() == kept
    assert torch.equal(found[kept], p[0, kept])


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    # At temperature 0.5 the probabilities (1/7, 2/7, 4/7) become (1, 4, 16)/21.
    logits = torch.tensor([[1.0, 2.0, 4.0]]).log()
    decoding = Decoding("test", "", temperature=0.5)
    for uniform, token in ((0.0, 0), (0.99 / 21, 0), (1.01 / 21, 1), (4.99 / 21, 1), (5.01 / 21, 2), (1 - 2**-53, 2)):
        drawn = next_tokens(logits, decoding, torch.tensor([uniform], dtype=torch.float64))
        assert drawn.tolist() == [token], uniform


def test_draws_have_the_right_frequencies_and_never_leave_the_nucleus() -> None:
    # (0.4, 0.3, 0.2, 0.1): the nucleus of 0.85 is the first three, in the ratio 4 : 3 : 2.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(30_000, 4)
    uniform = torch.rand(30_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = next_tokens(logits, Decoding("test", "", temperature=1.0, top_p=0.85), uniform)
    counts = torch.bincount(drawn, minlength=4).tolist()
    assert counts[3] == 0
    for count, p in zip(counts, (4 / 9, 3 / 9, 2 / 9), strict=False):
        assert abs(count - 30_000 * p) < 4 * math.sqrt(30_000 * p * (1 - p))
