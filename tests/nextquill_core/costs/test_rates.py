"""Times from rates, by hand, and where each rate is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.costs.cards import CARDS, Card
from nextquill_core.costs.rates import Measured, Rates, card_rates, read_measured
from nextquill_core.costs.shape import KNOWN, ModelShape
from nextquill_core.costs.work import Answers, Work
from nextquill_core.errors import UserError

SHAPE = ModelShape(10, 4, 8, 2, 2, 1, 2)
"""Body: 2 layers × (4·4 + 2·4·2 + 4·4 + 3·4·8 = 144) = 288; head: 40; 8 numbers in the cache of a position."""
RATES = Rates("one", forward=100, training=10, step_s=1.0, row_s=0.1, positions=100, source="")


def test_the_time_of_a_step_is_the_sum_of_its_kinds_of_work() -> None:
    assert RATES.seconds(Work(forward=300, training=50), 0) == 3 + 5
    assert RATES.seconds(Work(loads=2), 3e9) == 2 * (10 + 3), "10 s to start, and a second for each GB"
    assert RATES.seconds(Work(processes=1), 3e9) == 15 + 3
    assert RATES.seconds(Work(processor=9, stored=9), 3e9) == 0


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [
        (Answers(4, 10, 50, prompt=15), 10 * (1 + 4 * 0.1)),  # four rows of 25 positions fit
        (Answers(8, 10, 50, prompt=15), 20 * (1 + 4 * 0.1)),  # the same, twice as long
        (Answers(4, 10, 50, prompt=40), 20 * (1 + 2 * 0.1)),  # two rows of 50 positions
        (Answers(4, 10, 50, prompt=15, branches=2), 20 * (1 + 2 * 2 * 0.1)),  # two rows, each with two branches
        (Answers(1, 10, 50, prompt=500), 10 * (1 + 0.1)),  # one row always goes
    ],
)
def test_the_time_to_decode_follows_from_the_rows_that_fit(answers: Answers, seconds: float) -> None:
    assert RATES.seconds(Work(answers=(answers,)), 0) == pytest.approx(seconds)


def test_texts_that_run_to_their_limit_take_longer() -> None:
    work = Work(answers=(Answers(2, 10, 30, prompt=20),))
    assert RATES.seconds(work, 0) == pytest.approx(10 * 1.2)
    assert RATES.seconds(work, 0, longest=True) == pytest.approx(30 * 1.2), "two rows of 50 positions"


def test_without_a_measurement_a_rate_is_scaled_from_a_cpu_and_says_so() -> None:
    card = Card("A100", products=1000, bandwidth=100, memory=2000)
    found = card_rates(card, SHAPE, number_bytes=2, context=5, known=())
    assert found.forward == pytest.approx(1000 * 0.92 * 0.75)
    assert found.training == pytest.approx(1000 * 0.6 * 0.75)
    assert found.step_s == pytest.approx(2 * 328 / 70), "656 bytes of weights at 0.7 of the bandwidth"
    assert found.row_s == pytest.approx(8 * 2 * 5 / 70 + 2 * 328 / 690)
    assert found.positions == pytest.approx((2000 - 656) / 2 / 16)
    assert found.source == (
        "scoring scaled from a CPU (0.69 of the data sheet: 0.92 × an assumed 0.75); training scaled from a CPU "
        "(0.45 of the data sheet: 0.6 × an assumed 0.75); decoding assumed (0.7 of the bandwidth, 0.5 ms a layer at "
        "least)"
    )


def test_a_small_model_decodes_no_faster_than_its_kernels_are_launched() -> None:
    assert card_rates(CARDS["H200"], SHAPE, 2, 5, ()).step_s == 2 * 0.5e-3


def test_a_measured_card_counts_and_others_are_scaled_from_it(tmp_path: Path) -> None:
    lines = [
        {"stage": "score", "chip": "NVIDIA H200", "share_of_data_sheet": 0.5},
        {"stage": "train", "chip": "NVIDIA H200", "share_of_data_sheet": 0.4},
        {"stage": "generate", "chip": "NVIDIA H200", "share_of_bandwidth": 0.25},
        {"stage": "train", "chip": "NVIDIA A100-SXM4-80GB", "share_of_data_sheet": 0.3},
        {"stage": "score", "chip": "cpu", "share_of_data_sheet": None},
    ]
    path = tmp_path / "rates.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = read_measured(path)
    assert known[-1] == Measured("A100", "train", 0.3)
    shape = KNOWN["Qwen/Qwen2.5-3B"]
    h200, a100 = (card_rates(CARDS[name], shape, 2, 2000, known) for name in ("H200", "A100"))
    assert (h200.forward, h200.training) == (pytest.approx(0.5 * 989e12), pytest.approx(0.4 * 989e12))
    assert h200.step_s == pytest.approx(2 * shape.parameters / (0.25 * 4.8e12)), "no assumed time of a launch"
    assert (a100.forward, a100.training) == (pytest.approx(0.5 * 312e12), pytest.approx(0.3 * 312e12))
    assert h200.source.count("measured") == 3
    assert a100.source == (
        "scoring scaled from the H200 by the data sheets (0.50 of both); training measured (0.30 of the data sheet); "
        "decoding scaled from the H200 by the data sheets (0.25 of both)"
    )


@pytest.mark.parametrize("text", ['{"stage": "score", "chip": "cpu"}\n', ""])
def test_a_file_without_a_known_card_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="no line measures one of A100, H100, H200, L40S, B200"):
        read_measured(path)
