"""The command line, `python -m regcompare.run`: parse, call, print. stdout is the result, stderr the progress."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from regcompare.config import (
    HIDDEN_PLACES,
    PRESETS,
    BadInput,
    RegcompareError,
    RunConfig,
    describe,
    make_config,
    option_name,
    parse_dropout,
    parse_rate,
    preset_fields,
)

# typer shows click's usage errors; their base class has no public name.
USAGE_ERROR: type[Exception] = typer.BadParameter.__base__ or Exception
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
HELP = "Run python -m regcompare.run --help to see every option."
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Text = str | None


def _recipe(field: str) -> Any:
    return typer.Option(help=describe(field), rich_help_panel="Recipe", show_default=False)


def _where(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Where and how", show_default=False)


@app.command(
    help="Train LeNet-5 with batch normalization, dropout, both or neither, and compare. With no option: the assignment's five arms."
)
def main(
    study: Annotated[Text, typer.Option(help="'assignment' (its five arms), or a TOML file with [[arms]].", show_default=False)] = None,
    preset_names: Annotated[
        list[str] | None, typer.Option("--preset", help="An arm by name, repeatable: " + ", ".join(PRESETS) + ".", show_default=False)
    ] = None,
    dataset: Annotated[Text, _recipe("dataset")] = None,
    input_norm: Annotated[Text, _recipe("input_norm")] = None,
    hidden_bn: Annotated[Text, _recipe("batch_norm")] = None,
    input_dropout: Annotated[Text, typer.Option(help="Dropout rate of the input pixels.", rich_help_panel="Recipe")] = None,
    hidden_dropout: Annotated[Text, typer.Option(help="Dropout rate of all four hidden layers.", rich_help_panel="Recipe")] = None,
    dropout: Annotated[Text, _recipe("dropout")] = None,
    dropout_order: Annotated[Text, _recipe("dropout_order")] = None,
    epochs: Annotated[Text, _recipe("epochs")] = None,
    batch_size: Annotated[Text, _recipe("batch_size")] = None,
    lr: Annotated[Text, _recipe("lr")] = None,
    optimizer: Annotated[Text, _recipe("optimizer")] = None,
    seeds: Annotated[Text, _recipe("seeds")] = None,
    train_size: Annotated[Text, _recipe("train_size")] = None,
    data_dir: Annotated[Text, _where("Folder that holds MNIST/raw (default: REGCOMPARE_DATA_DIR, else cache/raw).")] = None,
    store: Annotated[Text, _where("Database URL (default: REGCOMPARE_STORE, else SQLite in cache/).")] = None,
    jobs: Annotated[Text, _where("Training processes (default: the cores); changes no number.")] = None,
    device: Annotated[str, _where("auto, cpu or cuda (default: auto).")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Train again what is in the store.", rich_help_panel="Where and how")] = False,
    export: Annotated[Text, _where("Write a run file (.safetensors) for each arm to this folder.")] = None,
    report: Annotated[Text, _where("Write the study as one standalone HTML page (.html).")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel="Where and how")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel="Where and how")] = False,
) -> None:
    recipe: dict[str, Any] = {
        "dataset": dataset,
        "input_norm": input_norm,
        "batch_norm": hidden_bn,
        "dropout_order": dropout_order,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "seeds": seeds,
        "train_size": train_size,
    }
    changes = {field: value for field, value in recipe.items() if value is not None}
    rates: dict[str, float] = {}
    if hidden_dropout is not None:
        rates |= dict.fromkeys(HIDDEN_PLACES, parse_rate(hidden_dropout, "--hidden-dropout"))
    if input_dropout is not None:
        rates["input"] = parse_rate(input_dropout, "--input-dropout")
    if dropout is not None:
        rates |= parse_dropout(dropout)
    for option, text in (("--study", study), ("--data-dir", data_dir), ("--store", store), ("--export", export), ("--report", report)):
        if text == "":
            raise BadInput(option, text, "a name that is not empty", f"Leave {option} out for what it is by default.")
    arms = choose_arms(study, preset_names or [], changes, rates)

    from regcompare import study as studies

    workers = parse_jobs(jobs)
    check_device(device)
    folder = writable_folder(export) if export is not None else None
    page = writable_page(report) if report is not None else None
    results = studies.run_study(arms, store_url=store, jobs=workers, data_dir=data_dir, device=device, force=force, quiet=quiet)
    if folder is not None:
        studies.export(results, folder, store)
    if page is not None:
        studies.write_report(results, page, store)
    sys.stdout.write(studies.to_json(results) + "\n" if json_output else studies.to_table(results))
    failed = [result for result in results if result.run.status != "done"]
    for result in failed:
        print(f"{result.run.label}: {result.run.status}. {result.run.error or ''}".rstrip(), file=sys.stderr)
    raise typer.Exit(EXIT_FAILED if failed else 0)


def choose_arms(study: str | None, names: list[str], changes: dict[str, Any], rates: dict[str, float]) -> list[RunConfig]:
    """The recipes that the options ask for, each once.

    Raises:
        BadInput: a study, a preset or a value is not allowed.
    """
    if study is not None and names:
        raise BadInput("--study", study, "used without --preset", "Use just one of --study and --preset.")
    if study not in (None, "assignment"):
        bases = read_study(Path(study))
    elif names:
        bases = [preset_fields(name) for name in names]
    elif study is None and (rates or changes.keys() & {"input_norm", "batch_norm"}):
        bases = [{}]  # a recipe of one's own
    else:
        bases = [preset_fields(name) for name in PRESETS]
    arms: dict[str, RunConfig] = {}
    for base in bases:
        config = make_config(base | changes)
        if rates:
            # the order again: it is kept only where a layer has both, which the rates may bring
            order = {field: value for field, value in (base | changes).items() if field == "dropout_order"}
            config = make_config({**config.model_dump(), "dropout": config.dropout.model_dump() | rates, **order})
        arms[config.key()] = config
    return list(arms.values())


def read_study(path: Path) -> list[dict[str, Any]]:
    """The arms of a TOML file: recipe fields for all at the top, then [[arms]] with a `preset` or fields of their own.

    Raises:
        BadInput: the file is absent, no TOML, not of that form, or an arm of it is not allowed.
    """
    way_out = "For example: epochs = 5, then [[arms]] with preset = 'dropout'."
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits, brackets without end
        raise BadInput("--study", str(path), f"valid TOML ({error})", way_out) from None
    except OSError as error:
        raise BadInput("--study", str(path), f"'assignment' or a TOML file that can be read ({error.strerror})", way_out) from None
    arms = content.pop("arms", None)
    if not isinstance(arms, list) or not arms or not all(isinstance(arm, dict) for arm in arms):
        raise BadInput("--study", str(path), "a TOML file with at least one [[arms]]", way_out)
    fields = {option_name(field): field for field in RunConfig.model_fields} | {"--preset": "preset"}
    bases = []
    for arm in arms:
        try:
            base = content | (preset_fields(arm.pop("preset")) if "preset" in arm else {}) | arm
            make_config(base)
        except BadInput as error:
            what = " ".join(fields.get(word, word) for word in error.what.split())
            raise BadInput(f"{what} in {path}", error.value, error.allowed, "Correct it in that file.") from None
        bases.append(base)
    return bases


def parse_jobs(text: str | None) -> int:
    """Training processes; the cores unless given.

    Raises:
        BadInput: it is no whole number from 1 to 256.
    """
    from regcompare.worker import cores

    if text is None:
        return cores()
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise BadInput("--jobs", text, "a whole number from 1 to 256", "For example: --jobs 2, or leave it out to use every core.")
    return int(text)


def check_device(device: str) -> None:
    """Refuse a device that is not one, or not here.

    Raises:
        BadInput: see above.
    """
    way_out = "Leave --device out to use a GPU where there is one."
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput("--device", device, "auto, cpu or cuda", way_out)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device", device, "auto or cpu on this machine: torch finds no CUDA device", way_out)


def writable_folder(text: str) -> Path:
    """The folder, made if it is not there; refused before anything trains.

    Raises:
        BadInput: it cannot be made or written to.
    """
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".regcompare-probe"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise BadInput("--export", text, f"a folder that can be written to ({reason})", "Name another folder.") from None
    return folder


def writable_page(text: str) -> Path:
    """The report's file, its folder made if it is not there; refused before anything trains.

    Raises:
        BadInput: it does not end in .html, or cannot be written to.
    """
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise BadInput("--report", text, "a file name that ends in .html", "For example: --report out.html.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):  # proves that it can be written, and leaves an older report as it is
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise BadInput("--report", text, f"a file that can be written to ({reason})", "Name another file.") from None
    return path


def command_line(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    code = EXIT_BAD_INPUT
    try:
        code = app(args=arguments, prog_name="python -m regcompare.run", standalone_mode=False) or 0  # Ctrl-C comes back as 130
    except RegcompareError as error:
        print(error, file=sys.stderr)
    except USAGE_ERROR as error:
        message = getattr(error, "format_message", error.__str__)().splitlines()[0].rstrip(".")
        print(f"{message}. {HELP}", file=sys.stderr)
    if code == EXIT_INTERRUPTED:
        print("Interrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(command_line())
