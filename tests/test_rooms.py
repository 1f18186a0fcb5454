"""The rooms and their order (docs/architecture.md), read from the imports themselves. Run: pytest tests/test_rooms.py"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES_FOLDER, PACKAGE = ROOT / "app_pages", ROOT / "regcompare"
# Top to bottom: a room imports only from rows below its own.
ROOMS = (
    ("run",),
    ("study", "sweeps"),
    ("live",),
    ("worker",),
    ("report",),
    ("measurements", "insights"),
    ("figures", "tables"),
    ("cost", "ideas", "script"),
    ("stats",),
    ("pitfalls",),
    ("probes",),
    ("train",),
    ("model",),
    ("normpool", "data"),
    ("vision", "images"),
    ("store",),
    ("runfile", "schema"),
    ("layers",),
    ("config", "memory"),
)
ROW = {name: number for number, row in enumerate(ROOMS) for name in row}
FOUNDATION = {"regcompare"}  # the package itself: its version and nothing else
TORCH = {"torch", "torchvision", "mlxtend"}
# Functions in rooms that the page server loads, but run in training processes only: these may import torch when they are called.
TRAINING = {"regcompare.worker": {"train_stack", "warm_up", "measure"}, "regcompare.measurements": {"take"}}


class Import(NamedTuple):
    """One module imported at a place; `function` is the outermost function or method around it, empty at module level."""

    module: str
    function: str
    line: int


def path_of(module):
    """The file of a module of this project, None for any other."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


@cache
def tree_of(module):
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


@cache
def imports(module):
    """Every import of a module of ours, wherever it stands; `from package import name` is resolved to the module if it is one."""
    found = []

    def read(node, function):
        for child in ast.iter_child_nodes(node):
            inside = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not function:
                inside = getattr(child, "name", "lambda")
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, function, child.lineno) for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: imports are absolute"
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    found.append(Import(inner if path_of(inner) else child.module, function, child.lineno))
            if isinstance(child, ast.Call) and ast.unparse(child.func) in ("importlib.import_module", "import_module", "__import__"):
                named = child.args[0].value if child.args and isinstance(child.args[0], ast.Constant) else "?"
                found.append(Import(named, function, child.lineno))
            read(child, inside)

    read(tree_of(module), "")
    return tuple(found)


def ours(module):
    return path_of(module) is not None


def top(module):
    return module.partition(".")[0]


PACKAGE_MODULES = sorted(f"regcompare.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem != "__init__")
PAGE_MODULES = sorted(f"app_pages.{path.stem}" for path in PAGES_FOLDER.glob("*.py"))
NAVIGATED = {f"app_pages.{name}" for name in re.findall(r'st\.Page\(\s*"app_pages/(\w+)\.py"', (ROOT / "app.py").read_text("utf-8"))}
HELPERS = sorted(set(PAGE_MODULES) - NAVIGATED)


def served():
    """All modules of ours that the page server loads or may load, each with the way to it, and what they import from outside."""
    ways, outside, waiting = {}, [], [("app", ("app",)), *((page, (page,)) for page in PAGE_MODULES)]
    while waiting:
        module, way = waiting.pop(0)
        if module in ways:
            continue
        ways[module] = way
        for one in imports(module):
            if one.function in TRAINING.get(module, ()):
                continue
            if ours(one.module):
                waiting.append((one.module, (*way, one.module)))
            else:
                outside.append((way, one))
    return ways, outside


def test_what_is_read_here_is_all_there_is():
    """Else every test below would pass on an empty project."""
    assert {"regcompare.config", "regcompare.live", "regcompare.worker", "regcompare.train"} <= set(PACKAGE_MODULES)
    assert {"app_pages.lab", "app_pages.compare"} <= NAVIGATED <= set(PAGE_MODULES)
    assert "app_pages.shared" in HELPERS
    assert {one.module for one in imports("regcompare.vision")} >= {"torch"}
    assert Import("torch", "train_stack", 0) in {one._replace(line=0) for one in imports("regcompare.worker")}
    ways, _ = served()
    assert {"regcompare.live", "regcompare.worker", "regcompare.store", "regcompare.figures", "regcompare.config"} <= set(ways)


def test_no_folder_is_named_pages():
    """Beside st.navigation it breaks deep links on a fresh server."""
    assert not (ROOT / "pages").exists()


# Nothing that the page server loads imports torch


def test_pages_reach_no_torch():
    _, outside = served()
    found = [f"{' -> '.join(way)}:{one.line} imports {one.module}" for way, one in outside if top(one.module) in TORCH]
    assert not found, "\n".join(found)


def test_only_training_functions_are_left_out_of_that():
    """They exist, they import torch or what does, and nothing that a page server runs names them."""
    ways, _ = served()
    for module, names in TRAINING.items():
        if path_of(module) is None:
            continue
        inside = {one.function for one in imports(module)} & names
        defined = {node.name for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef)}
        assert inside == names & defined, module
    for module in set(ways) - set(TRAINING):
        nodes = list(ast.walk(tree_of(module)))
        taken = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module in TRAINING for alias in node.names}
        called = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
        used = taken & set().union(*TRAINING.values()) | called & {"train_stack", "warm_up"}
        assert not used, f"{module} names {used}"


def test_a_page_server_has_no_torch_in_memory():
    """The proof beside the reading: everything that pages import, in a process of its own."""
    modules = sorted({one.module for page in ("app", *PAGE_MODULES) for one in imports(page) if top(one.module) == "regcompare"})
    code = "; ".join(
        [
            "import importlib, sys, logging",
            "logging.disable(logging.CRITICAL)",
            f"[importlib.import_module(name) for name in {modules + HELPERS!r}]",
            "from regcompare.stats import Arm, binomial, compare_all",
            "compare_all([Arm(name, range(i, i + 4), (0.1, 0.3, i, 0.2)) for i, name in enumerate('abcdef')], 'test_loss')",
            "binomial(9, 10)",  # statistics, too, do without the two libraries
            "print(*sorted({'torch', 'torchvision', 'mlxtend', 'scipy.stats', 'statsmodels'} & set(sys.modules)))",
            f"print(len([name for name in {modules!r} if name in sys.modules]))",
        ]
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-2:] == ["", str(len(modules))]


def test_the_command_line_is_quick_to_ask():
    """`--help` and bad input wait for no torch: run imports it in functions only, and so does what it imports at the top."""
    waiting, seen = ["regcompare.run"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        top_level = [one.module for one in imports(module) if not one.function]
        assert not TORCH & {top(name) for name in top_level}, module
        waiting += [name for name in top_level if ours(name) and name not in seen]
    assert "regcompare.config" in seen


# Who knows what


@pytest.mark.parametrize(
    "room", ["figures", "stats", "store", "tables", "layers", "config", "runfile", "cost", "report", "train", "worker"]
)
def test_rooms_without_streamlit(room):
    assert "streamlit" not in {top(one.module) for one in imports(f"regcompare.{room}")}


@pytest.mark.parametrize("module", PACKAGE_MODULES)
def test_only_pages_know_streamlit(module):
    assert not {"streamlit", "app_pages", "app"} & {top(one.module) for one in imports(module)}


@pytest.mark.parametrize("room", ["figures", "stats", "config", "layers", "runfile", "train", "model", "data"])
def test_rooms_without_sql(room):
    """Neither by themselves nor through what they import."""
    waiting, seen = [f"regcompare.{room}"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        assert "sqlalchemy" not in {top(one.module) for one in imports(module)}, f"{room} reaches SQL through {module}"
        waiting += [one.module for one in imports(module) if ours(one.module) and one.module not in seen]


def test_numbers_know_no_picture_and_no_net():
    for room in ("stats", "config", "layers", "runfile", "store"):
        assert not {"plotly", "pandas", "torch", "starlette"} & {top(one.module) for one in imports(f"regcompare.{room}")}, room


# Imports go down


def test_nothing_imports_a_page():
    """Pages run top to bottom when they are shown; importing one would draw it."""
    for module in ["app", *PAGE_MODULES, *PACKAGE_MODULES]:
        found = {one.module for one in imports(module)} & NAVIGATED
        assert not found, f"{module} imports {found}"
    for path in (ROOT / "tests").glob("*.py"):
        assert not re.search(rf"^\s*(?:import|from) (?:{'|'.join(map(re.escape, NAVIGATED))})\b", path.read_text("utf-8"), re.M), path


def test_every_room_has_its_place():
    names = {module.partition(".")[2] for module in PACKAGE_MODULES}
    assert not names - set(ROW), f"give {names - set(ROW)} a row in ROOMS, and a line in docs/architecture.md"


@pytest.mark.parametrize("module", PACKAGE_MODULES)
def test_imports_go_down(module):
    name = module.partition(".")[2]
    for one in imports(module):
        if top(one.module) == "regcompare" and one.module not in FOUNDATION:
            below = one.module.split(".")[1]
            assert ROW[below] > ROW[name], f"{module}:{one.line} imports {one.module}, which is not below it"


# Nothing is unpickled

PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle"}
LOADERS = {"torch": {"load", "save"}, "joblib": {"load", "dump"}, "numpy": {"load"}, "pandas": {"read_pickle"}}


@pytest.mark.parametrize("module", ["app", *PAGE_MODULES, *PACKAGE_MODULES])
def test_nothing_is_unpickled(module):
    found = {top(one.module) for one in imports(module)} & PICKLERS
    assert not found, f"{module} imports {found}"
    names = unsafe_calls(tree_of(module))
    assert not names, f"{module} calls {names}"


def unsafe_calls(tree):
    """Calls that may pickle, under whatever name the module or the function was imported."""
    aliases, functions, found = {}, {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in LOADERS}
        if isinstance(node, ast.ImportFrom) and node.module in LOADERS:
            functions |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        full = functions.get(called) or f"{aliases.get(owner, owner)}.{name}"
        owner, _, name = full.rpartition(".")
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        safe = words.get("weights_only") == "True" or words.get("allow_pickle") == "False"
        if name in ("read_pickle", "to_pickle") or (name in LOADERS.get(owner, ()) and not safe):
            found.append(f"{called} in line {node.lineno}")
    return found


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("import torch\ntorch.load(p)", True),
        ("import torch as t\nt.save(x, p)", True),
        ("from torch import load as read\nread(p)", True),
        ("import torch\ntorch.load(p, weights_only=False)", True),
        ("import torch\ntorch.load(p, weights_only=True)", False),
        ("import joblib\njoblib.dump(x, p)", True),
        ("import numpy as np\nnp.load(p)", True),
        ("import numpy as np\nnp.load(p, allow_pickle=False)", False),
        ("frame.to_pickle(p)", True),
        ("from safetensors.numpy import load\nload(p)", False),
        ("import json\njson.load(p)", False),
    ],
)
def test_the_reading_finds_what_it_should(code, unsafe):
    assert bool(unsafe_calls(ast.parse(code))) == unsafe
