"""Words of any script by hand, against the standard tokenizer and a slow one; WordNet for METEOR without a download."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import punkt
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from nextquill_core.errors import UserError
from nextquill_core.evaluation import text_metrics
from nextquill_core.evaluation.metrics import choosing_metric, score_examples
from nextquill_core.evaluation.text_metrics import (
    PACKAGED_FILES,
    PIECE_CHARS,
    UNICODE,
    Letters,
    UnicodeTokenizer,
    WordNetError,
    build_data_folder,
    cache_folder,
    count_letters,
    lexnames,
    load_wordnet,
    rouge,
    spaced_words,
    tokenizer_name,
    word_tokenize,
)

STANDARD = DefaultTokenizer(use_stemmer=False)
ALPHABET = "abZ09_ .,'-éßñÅλЖдябشלअनกำไ漢字かカー한국ſﬁ①½😀\u0301\u200d\u00ad\u093f"
UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def slow_tokens(text: str) -> list[str]:
    """The same, character by character: a mark joins what it follows, an unspaced letter stands alone."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    tokens: list[str] = []
    joins = alone = False  # whether the previous token continues, and whether it is a single character
    for character in folded:
        kind, name = unicodedata.category(character), unicodedata.name(character, "")
        unspaced = name.startswith(UNSPACED_NAMES)
        if kind in ("Cf", "Me"):
            continue
        if kind[0] in "LN":
            if joins and not alone and not unspaced:
                tokens[-1] += character
            else:
                tokens.append(character)
            joins, alone = True, unspaced
        elif kind[0] == "M" and joins and (alone or not unspaced):
            tokens[-1] += character
        else:
            joins = alone = False
    return tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Прекрасная книга!", ["прекрасная", "книга"]),
        ("Υπέροχο ΒΙΒΛΊΟΣ", ["υπέροχο", "βιβλίοσ"]),  # final sigma and sigma are one letter
        ("كِتَاب رائع", ["كِتَاب", "رائع"]),
        ("ספר נפלא", ["ספר", "נפלא"]),
        ("अच्छी किताब", ["अच्छी", "किताब"]),
        ("좋은 책", ["좋은", "책"]),
        ("好书 very good", ["好", "书", "very", "good"]),
        ("すごい本だ", list("すごい本だ")),
        ("iPhone手机2024年", ["iphone", "手", "机", "2024", "年"]),
        ("ดีมาก", ["ดี", "ม", "า", "ก"]),
        ("Un café, s'il vous plaît", ["un", "café", "s", "il", "vous", "plaît"]),
        ("cafe\u0301", ["café"]),  # decomposed
        ("Straße ＡＢＣ１", ["strasse", "abc1"]),
        ("می\u200cخواهم co\u00adoperate", ["میخواهم", "cooperate"]),
        ("5\ufe0f\u20e3 stars ❤️", ["5", "stars"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
        ("😀 …", []),
    ],
)
def test_tokens_by_hand(text: str, tokens: list[str]) -> None:
    assert UNICODE.tokenize(text) == tokens


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_text_has_the_standard_tokens(text: str) -> None:
    assert UNICODE.tokenize(text) == STANDARD.tokenize(text)


@given(st.text(alphabet=ALPHABET, max_size=30))
def test_tokens_as_a_slow_reading_gives_them(text: str) -> None:
    assert UNICODE.tokenize(text) == slow_tokens(text)


@given(*[st.lists(st.sampled_from(["книга", "очень", "好书", "café", "ดี", "a", "1"]), min_size=1).map(" ".join)] * 2)
def test_rouge_is_what_rouge_score_makes_of_these_tokens(prediction: str, reference: str) -> None:
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=UnicodeTokenizer())
    expected = scorer.score(reference, prediction)
    assert rouge(prediction, reference, UNICODE) == pytest.approx([score.fmeasure for score in expected.values()])


def test_scores_by_hand() -> None:
    """Two of three words are right, the standard pair sees none; three of four characters, in order."""
    russian = score_examples(["очень хорошая книга"], ["хорошая новая книга"])
    assert (russian.value("rouge1"), russian.value("rougeL")) == (0, 0)
    assert russian.value("rouge1_unicode") == russian.value("rougeL_unicode") == pytest.approx(2 / 3)
    assert "rouge1_unicode" not in russian.keys
    assert "rouge1_unicode" in russian.with_unicode().keys
    chinese = score_examples(["这本书好"], ["这本书坏"])
    assert chinese.value("rouge1_unicode") == chinese.value("rougeL_unicode") == pytest.approx(3 / 4)
    assert chinese.statistics["length_ratio"].tolist() == [[4, 4]]
    # METEOR: P = R = 3/4 in one chunk of three: 3/4 · (1 − 0.5 / 27).
    assert chinese.value("meteor") == pytest.approx(0.75 * (1 - 0.5 / 27))


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Plain ASCII, 12!", Letters(0, 0, 12)),
        ("café", Letters(1, 0, 4)),
        ("книга 5", Letters(5, 0, 6)),
        ("书 ok", Letters(1, 1, 3)),
        ("“quotes” – ❤️ ☆", Letters(0, 0, 6)),
        ("", Letters()),
    ],
)
def test_letters_by_hand(text: str, letters: Letters) -> None:
    assert count_letters([text]) == letters
    assert letters.ignored_share == (letters.ignored / letters.total if letters.total else 0)


def test_words_are_cut_in_scripts_without_spaces_alone() -> None:
    assert spaced_words(["it", "'s", "Ёлка", "好书", ",", "！", "ok好"]) == [
        "it", "'s", "Ёлка", "好", "书", ",", "！", "ok", "好",
    ]  # fmt: skip


def test_choices_use_the_metric_that_sees_the_letters() -> None:
    russian, accents = count_letters(["хорошая книга"]), count_letters(["a good café where one can sit and read"])
    assert choosing_metric("rouge1", russian) == "rouge1_unicode"
    assert choosing_metric("rougeL", russian) == "rougeL_unicode"
    assert choosing_metric("meteor", russian) == "meteor"
    assert choosing_metric("rouge1", accents) == "rouge1", "1 of 31 letters"


def test_words_without_trained_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_metrics, "has_punkt", lambda: False)
    assert word_tokenize("It's great. I'd buy it (again)!") == (
        ["It", "'s", "great", ".", "I", "'d", "buy", "it", "(", "again", ")", "!"]
    )
    assert "punkt_tab is not installed" in tokenizer_name()


def test_words_with_trained_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data installed, the words are `nltk.word_tokenize`'s: its abbreviations keep their full stop."""
    parameters = punkt.PunktParameters()
    parameters.abbrev_types.add("mr")
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    punkt.save_punkt_params(parameters, str(folder))
    monkeypatch.setattr(nltk.tokenize, "_get_punkt_tokenizer", lambda language: punkt.PunktTokenizer(language))
    monkeypatch.setattr(text_metrics, "has_punkt", text_metrics.has_punkt.__wrapped__)
    assert word_tokenize("Mr. Smith left. So did I.") == ["Mr.", "Smith", "left", ".", "So", "did", "I", "."]
    assert word_tokenize("Mr. Smith left. So did I.") == nltk.word_tokenize("Mr. Smith left. So did I.")
    assert tokenizer_name() == "nltk.word_tokenize with punkt_tab"


@pytest.mark.parametrize("text", ["word " * 30_000, "Stop. " * 8_000, "x" * (3 * PIECE_CHARS + 7)])
def test_long_text_keeps_every_character(text: str) -> None:
    found = word_tokenize(text)
    assert sum(map(len, found)) == sum(not char.isspace() for char in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("!", ["!"]),
        ("😀", ["😀"]),
        ("ספר נפלא", ["ספר", "נפלא"]),
        ("كتاب رائع.", ["كتاب", "رائع", "."]),
    ],
)
def test_unusual_text(text: str, expected: list[str]) -> None:
    assert word_tokenize(text) == expected


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name in PACKAGED_FILES:
        (folder / name).write_text(name)
    return folder


def test_synonyms_are_found() -> None:
    names = {lemma.name() for synset in load_wordnet().synsets("wonderful") for lemma in synset.lemmas()}
    assert {"wonderful", "marvelous", "wondrous"} <= names
    assert load_wordnet().get_version() == "3.0"


def test_lexicographer_files_agree_with_the_synsets() -> None:
    """Each synset's data line carries the number of its file; the table turns it into the name."""
    reader = load_wordnet()
    assert reader.synset("dog.n.01").lexname() == "noun.animal"
    assert reader.synset("rain.v.01").lexname() == "verb.weather"
    assert reader.synset("quickly.r.01").lexname() == "adv.all"


def test_lexnames_has_the_documented_form() -> None:
    lines = lexnames().splitlines()
    assert len(lines) == 45
    assert (lines[0], lines[5], lines[43], lines[44]) == (
        "00\tadj.all\t3",
        "05\tnoun.animal\t1",
        "43\tverb.weather\t2",
        "44\tadj.ppl\t3",
    )


def test_folder_holds_real_files_and_is_reused(tmp_path: Path, source: Path) -> None:
    folder = build_data_folder(tmp_path / "cache", source)
    corpus = folder / "corpora" / "wordnet"
    assert {path.name for path in corpus.iterdir()} == {*PACKAGED_FILES, "lexnames"}
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in corpus.iterdir())
    assert (corpus / "index.sense").read_text() == "index.sense"
    before = corpus.stat().st_mtime_ns
    assert build_data_folder(folder, source / "gone") == folder
    assert corpus.stat().st_mtime_ns == before


@pytest.mark.process
def test_two_processes_at_once_make_one_folder(tmp_path: Path, source: Path) -> None:
    code = "import sys; from pathlib import Path; "
    code += "from nextquill_core.evaluation.text_metrics import build_data_folder as b; "
    code += "sys.stdin.read(); [b(Path(sys.argv[1]) / str(i), Path(sys.argv[2])) for i in range(40)]"
    arguments = [sys.executable, "-c", code, str(tmp_path / "cache"), str(source)]
    processes = [subprocess.Popen(arguments, stdin=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # both have started; now both go
    assert [process.wait(60) for process in processes] == [0, 0]
    for number in range(40):
        (corpus,) = (tmp_path / "cache" / str(number) / "corpora").iterdir()  # and nothing half made beside it
        assert len(list(corpus.iterdir())) == len(PACKAGED_FILES) + 1


def test_missing_file_is_one_line_with_a_remedy(tmp_path: Path, source: Path) -> None:
    (source / "index.sense").unlink()
    with pytest.raises(WordNetError) as caught:
        build_data_folder(tmp_path / "cache", source)
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == (
        f"{source}: METEOR needs WordNet 3.0, and index.sense is not there; "
        "apt-get install wordnet-base wordnet-sense-index, or python -m nltk.downloader wordnet"
    )
    assert not (tmp_path / "cache").exists()


def test_cache_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WordNetError, match="XDG_CACHE_HOME"):
        build_data_folder(tmp_path / "file", source)


def test_no_wordnet_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(WordNetError, match="apt-get install"):
        load_wordnet(tmp_path, source=tmp_path / "nowhere")


def test_cache_folder_respects_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nextquill" / "nltk_data"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")
    assert cache_folder() == Path.home() / ".cache" / "nextquill" / "nltk_data"
