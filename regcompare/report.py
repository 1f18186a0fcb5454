"""A study as one standalone HTML page: Problems 1 to 5 in order, with tables, figures, verdicts and the command that makes it again.

No content network: plotly.js is inside (4.6 MB), so the file opens offline and prints as it stands.
"""

import html
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from regcompare import __version__, figures, insights, tables
from regcompare.config import FACTORIAL, PRESET_TITLES, RunConfig, format_seeds, label, preset_of, setting_title
from regcompare.ideas import CO_ADAPTATION, COVARIATE_SHIFT, Idea
from regcompare.runfile import BN_ARRAYS, Arrays, RunFile
from regcompare.stats import Comparison, compare_all, interaction
from regcompare.store import Run

METRIC = "test_accuracy"
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d222b; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #d5d9e0; padding-top: 1.2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block; overflow-x: auto; }
th, td { border: 1px solid #d5d9e0; padding: .3rem .6rem; text-align: left; } th { background: #f4f5f7; }
figure { margin: 1rem 0; } figcaption, .note { color: #59616e; font-size: .88rem; } blockquote { margin: 0; color: #59616e; }
code { background: #f4f5f7; padding: .1rem .3rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } figure, table, li { break-inside: avoid; } }
</style><script>$plotly</script></head><body>
<h1>$title</h1>
<p class="note">$made</p>
$body
</body></html>
""")


Measures = Mapping[str, Sequence[tuple[Run, Arrays]]]
PROBLEM1 = ("silencing", "activation_drift")  # the measurements beside its two ideas


def report(runs: Sequence[Run], records: Sequence[RunFile], measures: Measures | None = None, now: datetime | None = None) -> str:
    """The page for finished runs, in the order given, with their records in the same order; `measures`: those of PROBLEM1.

    Raises:
        ValueError: there is no finished run.
    """
    if not runs or len(runs) != len(records):
        raise ValueError(f"a report needs finished runs, each with its record, got {len(runs)} and {len(records)}")
    metrics = tables.arms(runs, METRIC)
    found = compare_all(metrics, METRIC)
    parts = [_summary(runs), _problem1(measures or {})]
    parts += [_problem2(runs, records), _problem3(runs, records, found), _problem4(found), _problem5(runs, found), _method(runs, records)]
    made = f"Made by regcompare {__version__} on {(now or datetime.now(UTC)):%Y-%m-%d %H:%M} UTC. {setting_title(runs[0].config)}."
    title = "Batch normalization or dropout?"
    return PAGE.substitute(title=title, plotly=get_plotlyjs(), made=html.escape(made), body="\n".join(parts))


def command(configs: Sequence[RunConfig]) -> str:
    """The command line that trains these recipes again, if they differ in their preset only; else one for each."""
    return " && ".join(dict.fromkeys(_commands(configs)))


def _commands(configs: Sequence[RunConfig]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for config in configs:
        options = [
            "--dataset",
            config.dataset,
            "--epochs",
            str(config.epochs),
            "--batch-size",
            str(config.batch_size),
            "--lr",
            f"{config.lr:g}",
        ]
        options += ["--optimizer", config.optimizer, "--seeds", format_seeds(config.seeds)]
        options += ["--dropout-order", config.dropout_order] if config.dropout_order == "before" else []
        options += ["--train-size", str(config.train_size)] if config.train_size else []
        name = preset_of(config.model_copy(update={"dropout_order": "after"}))
        if name:
            lines.setdefault(shlex.join(options), []).append(f"--preset {name}")
        else:
            net = ["--input-norm", config.input_norm, "--hidden-bn", ",".join(config.batch_norm) or "none"]
            rates = ",".join(f"{place}={rate:g}" for place, rate in config.dropout.rates().items())
            lines[shlex.join(net + (["--dropout", rates] if rates else []) + options)] = []
    return [" ".join(["python -m regcompare.run", *presets, options]) for options, presets in lines.items()]


def _summary(runs: Sequence[Run]) -> str:
    results = figures.arm_results([(run.config, run.summary or {}) for run in runs])
    together = interaction(tables.arms(runs, METRIC), METRIC)
    table = tables.results_table(runs).to_html(index=False, border=0)
    verdict = f"<p><strong>{html.escape(together.verdict)}</strong></p>" if together else ""
    return (
        f"<h2>In short</h2>{_paragraph(figures.overview_sentence(results, runs[0].config))}{verdict}"
        f"{_figure(figures.overview(results), figures.overview_alt(results))}{table}"
        '<p class="note">Mean ± half the 95 % interval over seeds (Student\'s t), whole split, eval mode.</p>'
    )


def _problem1(measures: Measures) -> str:
    text = _question("Problem 1", "Explain co-adaptation and internal covariate shift.")
    drawn = ((CO_ADAPTATION, insights.silencing, insights.silencing_sentence), (COVARIATE_SHIFT, insights.shift, insights.shift_sentence))
    for name, (idea, figure, sentence) in zip(PROBLEM1, drawn, strict=True):
        text += _idea(idea)
        if found := measures.get(name):
            items = [insights.Measured(run.config, arrays) for run, arrays in found]
            words = sentence(items)
            text += _figure(figure(items), words) + _paragraph(words)
            text += f'<p class="note">Measured on {html.escape(setting_title(found[0][0].config))}.</p>'
    return text


def _problem2(runs: Sequence[Run], records: Sequence[RunFile]) -> str:
    text = _question("Problem 2", "Standard input normalization, batch norm in the hidden layers: what are the learned parameters?")
    record = _of("standard-bn", runs, records)
    if record is None:
        return text + _missing("standard-bn")
    table = tables.parameters_table(record).to_html(index=False, border=0)
    note = '<p class="note">Mean over channels ± half the 95 % interval over seeds.</p>'
    return (
        text
        + table
        + note
        + _violins([record])
        + f'<p class="note">{html.escape(figures.violins_sentence([record], record.config.epochs))}</p>'
    )


def _problem3(runs: Sequence[Run], records: Sequence[RunFile], found: Sequence[Comparison]) -> str:
    text = _question("Problem 3", "Batch norm on the input too: the distributions, and did it improve performance?")
    pair = [record for name in ("standard-bn", "input-bn") if (record := _of(name, runs, records))]
    if len(pair) < 2:
        return text + _missing("standard-bn and input-bn")
    curves = ""
    for metric in ("test_accuracy", "train_accuracy", "test_loss", "train_loss"):
        items = [figures.curve(record, metric) for record in pair]
        curves += _figure(figures.curves(items, metric), figures.curves_alt(items, metric))
    return text + _verdicts(found, [("input-bn", "standard-bn")]) + _violins(pair) + curves


def _problem4(found: Sequence[Comparison]) -> str:
    text = _question("Problem 4", "Dropout without batch norm (0.2 at the input, 0.5 hidden), against Problems 2 and 3.")
    return text + _verdicts(found, [("dropout", "standard-bn"), ("dropout", "input-bn"), ("dropout", "baseline")])


def _problem5(runs: Sequence[Run], found: Sequence[Comparison]) -> str:
    text = _question("Problem 5", "Batch norm and dropout together, against each alone: do the benefits add up?")
    text += _verdicts(found, [("bn-dropout", "dropout"), ("bn-dropout", "standard-bn"), ("bn-dropout", "baseline")])
    sides = tables.arms(runs, METRIC)
    together = interaction(sides, METRIC)
    if together is None:
        return text + _missing(", ".join(FACTORIAL))
    plot = _figure(figures.interaction_plot(sides, METRIC), together.verdict)
    return (
        text + f"<p><strong>{html.escape(together.verdict)}</strong></p>" + plot + _figure(figures.forest(found), figures.forest_alt(found))
    )


def _method(runs: Sequence[Run], records: Sequence[RunFile]) -> str:
    numbers = tables.comparisons_table(compare_all(tables.arms(runs, METRIC), METRIC))
    versions = {f"{name} {value}" for record in records for name, value in record.facts.get("versions", {}).items()}
    recipe = tables.recipe_differences([run.config for run in runs])
    arms = "".join(
        f"<li>{html.escape(run.label)}: {html.escape(PRESET_TITLES.get(run.preset or '', 'a recipe of its own'))}</li>" for run in runs
    )
    tests = numbers.to_html(index=False, border=0, float_format="%.4g")
    again = html.escape(command([run.config for run in runs]))
    return (
        f"<h2>How it was measured</h2><ul>{arms}</ul>{recipe.to_html(border=0)}{tests}"
        '<p class="note">Every difference is taken seed by seed (paired t) where the arms share seeds, else by Welch\'s test; '
        "p values after Holm over all pairs. The interval says how the mean would vary with other seeds, not with other images.</p>"
        f"<p>Made with {html.escape(', '.join(sorted(versions)))}. To train it again:</p><p><code>{again}</code></p>"
    )


def _of(name: str, runs: Sequence[Run], records: Sequence[RunFile]) -> RunFile | None:
    return next((record for run, record in zip(runs, records, strict=True) if run.preset == name), None)


def _question(title: str, text: str) -> str:
    return f"<h2>{title}</h2><blockquote>{html.escape(text)}</blockquote>"


def _idea(idea: Idea) -> str:
    return f"<h3>{idea.title}</h3>{_paragraph(idea.text)}<p class='note'>{html.escape(' '.join(idea.sources))}</p>"


def _paragraph(text: str) -> str:
    """Text with the **bold** words of the pages' Markdown."""
    parts = html.escape(text).split("**")
    return "<p>" + "".join(f"<strong>{part}</strong>" if i % 2 else part for i, part in enumerate(parts)) + "</p>"


def _missing(names: str) -> str:
    return f'<p class="note">Not answered: this study has no arm {html.escape(names)}.</p>'


def _verdicts(found: Sequence[Comparison], pairs: Sequence[tuple[str, str]]) -> str:
    chosen = [one.verdict for pair in pairs for one in found if {one.a, one.b} == set(pair)]
    items = "".join(f"<li>{html.escape(verdict)}</li>" for verdict in chosen)
    return f"<ul>{items}</ul>" if items else _missing(" and ".join(sorted({name for pair in pairs for name in pair})))


def _violins(records: Sequence[RunFile]) -> str:
    names = ", ".join(f"{label(record.config)}: n = {len(record.config.seeds)} seeds" for record in records)
    note = f'<p class="note">All seeds together ({html.escape(names)}); up to six channels are shown as points.</p>'
    drawn = ((figures.violins(records, array), figures.violins_alt(records, array)) for array in BN_ARRAYS)
    # which seed and channel a point is would double the file
    return "".join(_figure(figure.update_traces(customdata=None, hovertemplate=None), alt) for figure, alt in drawn) + note


def _figure(figure: go.Figure, alt: str) -> str:
    figure.update_layout(template="plotly_white", font_color="#1d222b")
    content = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return f'<figure role="img" aria-label="{html.escape(alt, quote=True)}">{content}</figure>'
