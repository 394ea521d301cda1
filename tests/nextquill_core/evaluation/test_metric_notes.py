"""What is said of the numbers: plain values, the versions behind them, and warnings where they are due."""

from __future__ import annotations

import json

from nextquill_core.evaluation.metric_notes import letters_note, settings
from nextquill_core.evaluation.unicode_words import Letters


def test_settings_are_plain_and_complete() -> None:
    found = settings()
    assert json.loads(json.dumps(found)) == found
    assert found["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert found["meteor"]["wordnet"] == "3.0"
    assert found["rouge"]["use_stemmer"] is False
    assert set(found) == {"rouge", "rouge_unicode", "meteor", "bleu", "length_ratio"}
    assert "Banerjee and Lavie 2005" in found["meteor"]["implementation"]
    more = settings(delta=0.05, bertscore={"encoder": "roberta-large", "layer": 17})
    assert more["bertscore"]["layer"] == 17
    preference = more["preference_log_likelihood"]
    assert preference["preference tokens"] == "effect of the newest reviews under the initial model above 0.05"
    other = settings(delta=0.05, effects="another model")["preference_log_likelihood"]
    assert other["preference tokens"] == "effect of the newest reviews under another model above 0.05"
    assert "under another model" in other["caution"]
    assert "no independent evidence" in other["caution"]
    counted = settings(letters={"Books": Letters(1, 0, 4)})
    assert counted["rouge"]["ignored_letters"] == {"Books": 0.25}
    assert counted["rouge_unicode"]["unspaced_letters"] == {"Books": 0.0}


def test_the_note_names_the_share_and_what_to_read() -> None:
    assert letters_note({"Books": 0.001}, {"Books": 0.0}) == ""
    note = letters_note({"Books": 0.001, "Книги": 0.973}, {"Books": 0.0, "Книги": 0.0})
    assert "97.3% in Книги" in note
    assert "Books" not in note
    assert "BLEU" not in note
    assert "BLEU's tokenizer (13a)" in letters_note({"all": 1.0}, {"all": 1.0})
