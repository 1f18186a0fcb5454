"""The documents say what is there: every file, every option, every link."""

import re
import subprocess
import sys
import tomllib

import pytest
from serving import ROOT

from regcompare import __version__

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def tracked():
    """The project's own files; a source copy without git is taken as it lies."""
    found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [name for name in found.stdout.splitlines() if (ROOT / name).exists()]


def test_the_readme_has_a_line_for_every_file():
    named = set(re.findall(r"`([^`\s]+)`", README.split("## Every file")[1]))
    for name in tracked():
        folder = name.partition("/")[0] + "/"
        known = name in named or folder in named or any(name.startswith(entry) for entry in named if entry.endswith("/"))
        assert known or name in ("README.md", ".gitignore", "docs/lab.png"), f"{name} has no line in the README"
    for name in named:
        if "/" in name or name.endswith((".py", ".md")):
            assert (ROOT / name).exists(), f"the README names {name}, which is not there"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_every_option_in_the_documents_exists():
    done = subprocess.run([sys.executable, "-m", "regcompare.run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    real = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    for path in DOCUMENTS:
        for line in path.read_text().splitlines():
            if "regcompare.run" in line:
                assert set(re.findall(r"(?<!\S)--[a-z][a-z-]+", line)) <= real, line


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    head = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project["version"] == __version__ == head[1]


def test_what_users_install_is_pinned():
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*", line) for line in lines), name


def test_published_run_files_stay_small_and_whole():
    from regcompare.runfile import RunFile

    files = sorted((ROOT / "cache" / "published").glob("*.safetensors"))
    assert len(files) == 17
    assert sum(path.stat().st_size for path in files) < 20_000_000
    for path in files:
        run_file = RunFile.from_bytes(path.read_bytes())
        assert run_file.config.key() in path.name
        assert len(run_file.config.seeds) == 8


def test_no_local_path_and_no_secret_in_the_tree():
    """Nothing of one machine in a tracked text file."""
    wrong = re.compile(r"/(?:root|home/\w+|work)/|(?:token|password|api_key)\s*=\s*['\"]\w{12,}", re.IGNORECASE)
    for name in tracked():
        if not name.endswith((".safetensors", ".png")):
            found = wrong.search((ROOT / name).read_text(errors="replace"))
            assert found is None or name == "tests/test_docs.py", f"{name}: {found[0]}"
