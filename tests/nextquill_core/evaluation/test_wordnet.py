"""Tests for the offline WordNet and the word tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nltk
import pytest
from nltk.tokenize import punkt

from nextquill_core.errors import UserError
from nextquill_core.evaluation import wordnet
from nextquill_core.evaluation.wordnet import (
    PACKAGED_FILES,
    PIECE_CHARS,
    WordNetError,
    build_data_folder,
    cache_folder,
    lexnames,
    load_wordnet,
    tokenizer_name,
    word_tokenize,
)


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


def test_two_processes_at_once_make_one_folder(tmp_path: Path, source: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nextquill_core.evaluation.wordnet import build_data_folder as b; "
    )
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


def test_words_without_trained_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "has_punkt", lambda: False)
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
    monkeypatch.setattr(wordnet, "has_punkt", wordnet.has_punkt.__wrapped__)
    assert word_tokenize("Mr. Smith left. So did I.") == ["Mr.", "Smith", "left", ".", "So", "did", "I", "."]
    assert word_tokenize("Mr. Smith left. So did I.") == nltk.word_tokenize("Mr. Smith left. So did I.")
    assert tokenizer_name() == "nltk.word_tokenize with punkt_tab"


@pytest.mark.parametrize("text", ["word " * 30_000, "Stop. " * 8_000, "x" * (3 * PIECE_CHARS + 7)])
def test_long_text_keeps_every_character(text: str) -> None:
    words = word_tokenize(text)
    assert sum(map(len, words)) == sum(not char.isspace() for char in text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t", []),
        ("!", ["!"]),
        ("😀", ["😀"]),
        ("ספר נפלא", ["ספר", "נפלא"]),
        ("كتاب رائع.", ["كتاب", "رائع", "."]),
    ],
)
def test_unusual_text(text: str, words: list[str]) -> None:
    assert word_tokenize(text) == words
