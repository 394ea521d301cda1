"""The page of studies: results.json as sentences, tables and figures; every number comes from there.

Sentences are chosen by the numbers: a difference is stated where its corrected p-value is below 0.05, and otherwise the
page says that none was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from nextquill_core.analysis.figures import difference_panels, png
from nextquill_core.analysis.result_tables import NOTHING, SIGNIFICANT, p_value_text, signed
from nextquill_core.analysis.verdict import BETTER, UNCLEAR, WORSE, listed
from nextquill_core.evaluation.metrics import LIKELIHOOD, METRICS, PERSONAL_GAIN

Row = Mapping[str, Any]
Study = Mapping[str, Any]
HEADLINES = (PERSONAL_GAIN, LIKELIHOOD)
"""The metrics that decide: how much more likely a user's own history makes the true review than a stranger's, and how
likely the true review is."""
INDEPENDENT = ("_crossfit", "_exact")
"""Endings of metrics whose preference tokens another model than that of the training weights has chosen."""
UNIT = " nats a token"


def render(document: Mapping[str, Any], images: str) -> str:
    """Return the page as Markdown.

    Args:
        document: The content of results.json.
        images: Folder of the figures, relative to the page.
    """
    environment = Environment(
        loader=PackageLoader("nextquill_core.analysis", "."),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell,
        "listed": listed,
        "code": lambda names: listed(f"`{name}`" for name in names),
    }
    helpers = (aim, difference_table, effects_answer, figure_names, gains, overrides_text, pair_sentence, pairs_of,
               shown_metrics, summary, threats, value_table)  # fmt: skip
    environment.globals |= {helper.__name__: helper for helper in helpers}
    text = environment.get_template("results.md.j2").render(studies=document["studies"], images=images)
    return text.rstrip() + "\n"


def figures(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the figures of all studies as PNG files, by file name."""
    found: dict[str, bytes] = {}
    for study in document["studies"]:
        for name, (rows, reference) in _drawn(study).items():
            metrics = [key for key in HEADLINES if any(row["metric"] == key for row in rows)]
            found[name] = png(difference_panels(rows, metrics, reference))
    return found


def figure_names(study: Study) -> dict[str, str]:
    """Return the file names of a study's figures, by the table that they show."""
    return {name.rpartition("-")[2].removesuffix(".png"): name for name in _drawn(study)}


def _drawn(study: Study) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """Return the rows of each figure, and what they are compared with, by the figure's file name."""
    found: dict[str, tuple[list[dict[str, Any]], str]] = {}
    for name, key in (("parts", "parts"), ("variants", "variants_val")):
        rows = [
            {**row, "label": row["method"] if name == "parts" else row["candidate"], "significant": significant(row)}
            for row in study["tables"].get(key, {}).get("comparisons", [])
            if row["reference"] == study["reference"]
            and row["metric"] in HEADLINES
            and row["method"] not in study["decoding_methods"]
        ]
        if rows:
            found[f"results-{study['name']}-{name}.png"] = rows, study["reference"]
    return found


def significant(comparison: Row) -> bool:
    """Return whether a difference remains significant after correction."""
    return bool(comparison["p_adjusted"] < SIGNIFICANT)


def pairs_of(table: Row, method: str, reference: str, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the comparisons of a method with another one, turned around where the table has them the other way.

    Args:
        table: A table of results.json.
        method: The method.
        reference: What it is compared with.
        metrics: The metrics to return; empty for all.
    """
    found = []
    for row in table["comparisons"]:
        if metrics and row["metric"] not in metrics:
            continue
        if (row["method"], row["reference"]) == (method, reference):
            found.append(dict(row))
        elif (row["method"], row["reference"]) == (reference, method):
            turned = {"difference": -row["difference"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
            names = {"method": method, "reference": reference, "win_rate": 1 - row["win_rate"]}
            found.append({**row, **turned, **names})
    return found


def pair_sentence(comparisons: Sequence[Row]) -> str:
    """Return one sentence about a pair: where the first is above, where below, and where no difference was found.

    Args:
        comparisons: The comparisons of one pair, one for each metric.
    """
    if not comparisons:
        return "These two were not compared."
    method, reference = comparisons[0]["method"], comparisons[0]["reference"]
    outcomes = _by_outcome(comparisons)
    parts = [
        f"is {outcome} than `{reference}` in {listed(map(_stated, outcomes[outcome]))}"
        for outcome in (BETTER, WORSE)
        if outcomes[outcome]
    ]
    unclear = listed(map(_stated, outcomes[UNCLEAR]))
    if not parts:
        return f"`{method}`: no difference from `{reference}` was found in {unclear}."
    if outcomes[UNCLEAR]:
        parts.append(f"no difference was found in {unclear}")
    return f"`{method}` {'; '.join(parts)}."


def answer(table: Row, method: str, reference: str, metrics: Sequence[str]) -> str:
    """Return a short verdict about a pair in some metrics, without numbers.

    Args:
        table: A table of results.json.
        method: The method.
        reference: What it is compared with.
        metrics: The metrics.
    """
    rows = pairs_of(table, method, reference, metrics)
    if not rows:
        return "not measured"
    words = {BETTER: "wins", WORSE: "loses", UNCLEAR: "no difference"}
    return "; ".join(
        f"{words[outcome]} in {listed(_name(row['metric']) for row in found)}"
        for outcome, found in _by_outcome(rows).items()
        if found
    )


def aim(study: Study) -> dict[str, Any]:
    """Return whether the recommended setting reaches the aim on test, and which parts of it hold.

    The aim: better than the reference in personal gain and in the likelihood of all tokens, and worse in no metric of
    texts, all after correction.

    Returns:
        `reached` (None where it cannot be decided), `candidate`, `holds` and `fails` (parts of the aim in words), and
        `unknown` (parts that were not measured).
    """
    table = study["tables"].get("tuned")
    chosen = [found for choice in study["choices"] if choice["choice"] == "variants" for found in [choice["methods"]]]
    if not table or not chosen or study["method"] not in chosen[0]:
        return {"reached": None, "candidate": "", "holds": [], "fails": [], "unknown": ["the recommended setting"]}
    rows = {row["metric"]: row for row in pairs_of(table, study["method"], study["reference"])}
    holds, fails, unknown = [], [], []
    for key in HEADLINES:
        if key not in rows:
            unknown.append(_name(key))
        elif not significant(rows[key]):
            fails.append(f"not shown to be better in {_stated(rows[key])}")
        elif _better(rows[key]):
            holds.append(f"better in {_stated(rows[key])}")
        else:
            fails.append(f"worse in {_stated(rows[key])}")
    texts = [row for key, row in rows.items() if METRICS[key].judges_text]
    worse = _by_outcome(texts)[WORSE]
    if not texts:
        unknown.append("metrics of texts")
    elif worse:
        fails += [f"worse in {_stated(row)}" for row in worse]
    else:
        holds.append(f"not worse in any metric of texts ({listed(_name(row['metric']) for row in texts)})")
    reached = False if fails else None if unknown else True
    return {
        "reached": reached,
        "candidate": chosen[0][study["method"]]["candidate"],
        "holds": holds,
        "fails": fails,
        "unknown": unknown,
    }


def summary(study: Study) -> list[tuple[str, str]]:
    """Return each question with its answer in a few words."""
    tables, method, reference = study["tables"], study["method"], study["reference"]
    found: list[tuple[str, str]] = []
    if 1 in study["questions"]:
        best = max(study["effects"], key=lambda row: row["pearson"], default=None)
        text = (
            f"Pearson r {best['pearson']:.2f} with the exact effects "
            f"({best['setting']}; {best['model']}; {best['note']})"
            if best
            else "not measured"
        )
        found.append(("1. Are the effects right?", text))
    parts = tables.get("parts")
    if 2 in study["questions"]:
        verdicts = [
            f"`{name}` {answer(parts, name, reference, HEADLINES)}"
            for name in dict.fromkeys(row["method"] for row in (parts or {"rows": []})["rows"])
            if name not in study["decoding_methods"] and pairs_of(parts, name, reference)
        ]
        text = f"against `{reference}`: {'. '.join(verdicts)}" if verdicts else "not measured"
        found.append(("2. Which part does the work?", text))
    if 3 in study["questions"]:
        keys = gains(study)
        text = f"`{method}` against `{reference}`: {answer(parts, method, reference, keys)}" if parts and keys else ""
        found.append(("3. Where is the gain?", text or "personal gain was not measured"))
    if 4 in study["questions"]:
        verdicts = [
            f"`{name}` against `{method}`: {answer(parts, name, method, shown_metrics(parts, texts=True))}"
            for name in study["decoding_methods"]
            if parts and pairs_of(parts, name, method)
        ]
        found.append(("4. Does decoding use it?", ". ".join(verdicts) or "not measured"))
    if 5 in study["questions"]:
        what = aim(study)
        state = {True: "reaches the aim", False: "does not reach the aim", None: "cannot be judged by the aim"}
        chosen = (
            f"the setting chosen on val, `{what['candidate']}`," if what["candidate"] else "no setting was chosen; it"
        )
        found.append(("5. What else decides it?", f"{chosen} {state[what['reached']]}{_gain_on_val(study)}"))
    return found


def _gain_on_val(study: Study) -> str:
    """Return which settings raise the personal gain over the reference on val, and what that costs; "" if none does."""
    rows = study["tables"].get("variants_val", {}).get("comparisons", [])
    pairs = [row for row in rows if (row["method"], row["reference"]) == (study["method"], study["reference"])]
    at = {(row["candidate"], row["metric"]): row for row in pairs}
    gaining = [
        name for name, key in at if key == PERSONAL_GAIN and significant(at[name, key]) and _better(at[name, key])
    ]
    if not gaining:
        return ""
    told = "; ".join(
        f"`{name}`: {listed(_stated(at[name, key]) for key in HEADLINES if (name, key) in at)}" for name in gaining
    )
    return f". On val these settings raise the personal gain over `{study['reference']}`: {told}"


def effects_answer(study: Study) -> str:
    """Return how well the best model of question 1 finds the exact effects of the words that taste drew, and the base.

    Args:
        study: A study with rows of question 1; the first one is the base over these words.
    """
    base = study["effects"][0]
    best = max((row for row in study["effects"] if row["note"] == base["note"]), key=lambda row: row["pearson"])
    told = [f"r = {row['pearson']:.2f} and AUC = {row['auc']:.2f} under `{row['setting']}`" for row in (best, base)]
    return f"Over {base['note']}, the best agreement is {' against '.join(told if best is not base else told[:1])}."


def threats(study: Study) -> list[str]:
    """Return what limits the conclusions, one or two sentences each, by what was measured."""
    seeds, found = len(study["seeds"]), []
    if seeds == 1:
        found.append("There is one seed, so intervals are over users alone and say nothing about another training.")
    elif seeds < 5:
        found.append(
            f"With {seeds} seeds the bootstrap over seeds is coarse: it gives {seeds - 1}/{seeds} of their variance, "
            "so intervals are a little narrow."
        )
    if users := test_users(study):
        categories = listed(str(part["category"]) for part in study["data"])
        found.append(f"The data are {categories} with {users} test users; other domains and languages are not covered.")
    if study["settings"].get("base model") == "tiny":
        found.append(
            "The base model is the small offline one, trained on the base profiles of these users. The numbers say "
            "nothing about large models."
        )
    tried = max((len(study["candidates"][name]) for name in study["val_seeds"]), default=0)
    if study["choices"] and tried > 1:
        found.append(
            f"Settings were chosen on val among up to {tried} candidates, with at least "
            f"{min(study['val_seeds'].values())} of the seeds. The val value of the best is too high; test values of "
            "what was chosen are not affected."
        )
    keys = {row["metric"] for table in study["tables"].values() for row in table["rows"]}
    if any(circular(key) for key in keys):
        found.append(
            "Preference tokens that the effects under θ0 choose are the tokens that training weighted. Metrics on them "
            "are circular and no independent evidence."
        )
    steps = {count for counts in study["steps"].values() for count in counts}
    if len(steps) > 1:
        found.append(f"Trainings have different numbers of optimizer steps: {listed(map(str, sorted(steps)))}.")
    if "length_ratio" in keys:
        found.append(
            "Metrics of texts depend on length: answers that end where reviews end score higher. The length ratio "
            "stands beside them."
        )
    if study["missing"]:
        found.append(f"{len(study['missing'])} cells have not run; what depends on them is left out.")
    return found


def shown_metrics(table: Row, *, texts: bool | None = None) -> list[str]:
    """Return the metrics of a table.

    Args:
        table: A table of results.json.
        texts: True for metrics of generated texts, False for likelihoods and gains, None for all.
    """
    keys = [key for key in dict.fromkeys(row["metric"] for row in table["rows"]) if key in METRICS]
    return [key for key in keys if texts is None or METRICS[key].judges_text == texts]


def gains(study: Study) -> list[str]:
    """Return the metrics of question 3 that were measured: gains, and what is measured on preference tokens."""
    keys = shown_metrics(study["tables"]["parts"], texts=False) if "parts" in study["tables"] else []
    return [key for key in keys if "gain" in key or key.startswith("preference")]


def circular(metric: str) -> bool:
    """Return whether a metric is measured on the very tokens that training weighted."""
    return metric.startswith("preference") and not metric.endswith(INDEPENDENT)


def test_users(study: Study) -> int:
    """Return the number of users behind the test rows, or 0 without any."""
    return next((int(table["users"]) for table in study["tables"].values() if table["split"] == "test"), 0)


def value_table(table: Row, metrics: Sequence[str], methods: Sequence[str] = ()) -> str:
    """Return a Markdown table of lines by metrics with 95 % intervals.

    The best of each metric is bold, among the lines with most seeds.

    Args:
        table: A table of results.json.
        metrics: The columns.
        methods: The methods to show; empty for all.
    """
    rows = [row for row in table["rows"] if not methods or row["method"] in methods]
    lines = list(dict.fromkeys((row["method"], row["candidate"]) for row in rows))
    at = {(row["method"], row["candidate"], row["metric"]): row for row in rows}
    counts = {line: next(row["seeds"] for row in rows if (row["method"], row["candidate"]) == line) for line in lines}
    uneven = len(set(counts.values())) > 1
    head = ["method", "setting", *(["seeds"] * uneven), *map(_heading, metrics)]
    whole = [line for line in lines if counts[line] == max(counts.values())]
    body = []
    for line in lines:
        rivals = whole if line in whole else [line]  # the best is only looked for among rows with the same seeds
        cells = [
            _value(at.get((*line, key)), [at[*one, key] for one in rivals if (*one, key) in at]) for key in metrics
        ]
        body.append([f"`{line[0]}`", line[1], *([str(counts[line])] * uneven), *cells])
    return _markdown(head, body)


def difference_table(comparisons: Sequence[Row], label: str, metrics: Sequence[str]) -> str:
    """Return a Markdown table of differences with intervals and p-values; significant ones are bold.

    Args:
        comparisons: The comparisons.
        label: The column of the comparisons that names a line, `method` or `candidate`.
        metrics: The columns.
    """
    at = {(row[label], row["metric"]): row for row in comparisons}
    body = []
    for name in dict.fromkeys(row[label] for row in comparisons):
        found = [at.get((name, key)) for key in metrics]
        body.append([f"`{name}`" if label == "method" else name, *(_difference_cell(row) for row in found)])
    return _markdown([label, *map(_heading, metrics)], body)


def overrides_text(overrides: Mapping[str, Any]) -> str:
    """Return the values of a candidate as text, in YAML."""
    texts = (f"`{key}: {value if isinstance(value, str) else json.dumps(value)}`" for key, value in overrides.items())
    return ", ".join(texts) or "the base configuration as it is"


def _heading(key: str) -> str:
    return _name(key) + " (circular)" * circular(key)


def _better(comparison: Row) -> bool:
    up = METRICS[comparison["metric"]].higher_is_better
    return bool((comparison["difference"] > 0) == (up is not False))


def _by_outcome(comparisons: Iterable[Row]) -> dict[str, list[Row]]:
    """Return comparisons by what they show of the method; those without a significant difference are unclear."""
    found: dict[str, list[Row]] = {BETTER: [], WORSE: [], UNCLEAR: []}
    for row in comparisons:
        found[UNCLEAR if not significant(row) else BETTER if _better(row) else WORSE].append(row)
    return found


def _name(key: str) -> str:
    return METRICS[key].name if key in METRICS else key.replace("_", " ")


def _stated(row: Row) -> str:
    """Return a metric with the difference, its interval and its corrected p-value."""
    key = row["metric"]
    difference, low, high = _differences(row)
    unit = "" if METRICS[key].judges_text else UNIT
    return f"{_name(key)} ({difference} [{low}, {high}]{unit}, {p_value_text(row)})"


def _differences(row: Row) -> list[str]:
    """Return a difference and the ends of its interval as shown."""
    return [signed(row[name], METRICS[row["metric"]].decimals) for name in ("difference", "ci_low", "ci_high")]


def _value(row: Row | None, column: Sequence[Row]) -> str:
    if row is None:
        return NOTHING
    metric = METRICS[row["metric"]]
    value = metric.text(row["value"])
    if metric.higher_is_better is not None and len(column) > 1:
        best = (max if metric.higher_is_better else min)(other["value"] for other in column)
        value = f"**{value}**" if row["value"] == best else value
    return f"{value} [{metric.text(row['ci_low'])}, {metric.text(row['ci_high'])}]"


def _difference_cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    difference, low, high = _differences(row)
    return f"{f'**{difference}**' if significant(row) else difference} [{low}, {high}], {p_value_text(row)}"


def _cell(text: Any) -> str:
    """Return a text for a cell of a Markdown table."""
    return str(text).replace("|", r"\|").replace("\n", " ")


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
