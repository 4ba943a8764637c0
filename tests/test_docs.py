"""The documentation does what it says: blocks run, commands parse, links lead somewhere, generated pages are up to date, the site builds.

A block is python (run from top to bottom of its page, in a folder with runs/elvis_phantom and xrays/), console (every line that begins with "$ " is
checked), yaml (a config, or a part of one), or text. One that begins with "# not run: REASON" is only read by people.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image

from downstream.grounding.models import Pair
from elvis import config as configs
from elvis import pretrain
from elvis.errors import ElvisError
from tests.tiny import some_slow

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
QUICK = {"README.md", "docs/structures.md", "docs/phantoms.md"}  # whose python blocks run among the fast tests
LANGUAGES = {"python", "console", "yaml", "text", ""}
NOT_RUN = re.compile(r"# not run: \w.{5,}")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return not NOT_RUN.match(self.text)


def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text()
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(name, text.count("\n", 0, match.start()) + 2, match[1].strip(), match[2]) for match in found]


def of(language: str) -> list[Block]:
    return [block for name in NAMES for block in blocks(name) if block.language == language and block.runs]


# ------------------------------------------------------------------------------------------------------- what blocks are


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_of_a_language_that_is_checked_and_one_that_is_not_run_says_why(name: str) -> None:
    assert (ROOT / name).read_text().count("\n```") % 2 == 0, "a fence is not closed"
    for block in blocks(name):
        assert block.language in LANGUAGES, f"{name}:{block.line}: {block.language}"
        if block.text.startswith("# not run"):
            assert not block.runs, f"{name}:{block.line}: say why: # not run: REASON"
        elif block.language == "console":
            assert "$ " in block.text, f"{name}:{block.line}: no line begins with '$ '"


# ---------------------------------------------------------------------------------------------------------------- python


@pytest.fixture(scope="session")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run in runs/elvis_phantom and four films in xrays/."""
    from elvis.data.phantoms import PhantomImage, make_knobs
    from tests.test_pretrain import SMALL

    folder = tmp_path_factory.mktemp("docs")
    assert pretrain.main(["--quiet", "--out", str(folder / "runs/elvis_phantom"), *SMALL, "train.steps=1"]) == 0
    (folder / "xrays").mkdir()
    for index in range(4):
        film = PhantomImage(seed=0, split="test", index=index, size=96, knobs=make_knobs(level=1)).read()
        Image.fromarray(film[:, :80]).save(folder / "xrays" / f"{index}.png")
    return folder


def _segmentation(folder: Path) -> None:
    from downstream.segmentation.__main__ import main

    small = ["data.train=8", "data.val=4", "data.test=4", "data.size=64", "size=64", "page.cases=1", "resamples=20"]
    steps = ["train.steps=2", "train.evaluate_every=2", "train.checkpoint_every=2", "train.batch_size=4"]
    assert main(["train", "--config", "phantom", "--backbone", "elvis=runs/elvis_phantom", "--out", "OUT", "--quiet", *small, *steps]) == 0


def _reports(folder: Path) -> None:
    from downstream.reportgen.__main__ import main

    small = ["data.train=16", "data.val=4", "data.test=4", "page.cases=1", "resamples=20", "train.steps=2", "train.batch_size=8"]
    small += ["train.evaluate_every=2", "train.checkpoint_every=2", "pretraining.train.steps=1", "pretraining.train.batch_size=8"]
    small += ["pretraining.train.checkpoint_every=1", "pretraining.evaluate.limit=4"]
    assert main(["train", "--config", "mgrrg_phantom", "--quiet", *small]) == 0


BEFORE = {"docs/segmentation.md": _segmentation, "docs/reportgen.md": _reports}  # what a page's python blocks find in their folder beside that
WITH_PYTHON = [name for name in NAMES if any(block.language == "python" and block.runs for block in blocks(name))]


@pytest.mark.parametrize("name", some_slow(WITH_PYTHON, set(WITH_PYTHON) - QUICK))
def test_the_python_of_a_page_runs_from_top_to_bottom(name: str, around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(around, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    BEFORE.get(name, lambda folder: None)(tmp_path / "here")
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(name):
        if block.language == "python" and block.runs:
            code = "\n" * (block.line - 1) + block.text  # a traceback names the line of the page
            exec(compile(code, str(ROOT / name), "exec"), names)


# -------------------------------------------------------------------------------------------------------------- commands

CONFIGURED = ("elvis.pretrain", "downstream.grounding", "downstream.segmentation", "downstream.reportgen", "downstream.classification")
WITH_COMMANDS = [name for name in NAMES if any(block.language == "console" for block in blocks(name))]


def commands(name: str) -> list[str]:
    """The lines of a page that begin with "$ ", without what is said behind them."""
    lines = [line for block in blocks(name) if block.language == "console" and block.runs for line in block.text.splitlines()]
    return [re.split(r"\s+#\s|;", line.removeprefix("$ "))[0].strip() for line in lines if line.startswith("$ ")]


def check(command: str) -> None:
    """Fails where the command could not be typed: no such program, option, key, dataset, config or extra. Nothing is trained or read."""
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[:2] == ["pip", "install"]:
        assert set(re.findall(r"[\w-]+", command.partition("[")[2])) <= extras()
    else:
        assert words[0] in ("python", "torchrun"), "a program that no test knows"
        module, *rest = words[words.index("-m") + 1 :]
        if module in CONFIGURED:
            check_config(module, rest)
        elif module == "elvis.data":
            check_data(rest)
        else:
            check_help(module, rest)


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def check_config(module: str, words: list[str]) -> None:
    """Its own --print-config takes every option and key of the line."""
    named = module if module == "elvis.pretrain" else f"{module}.__main__"
    words = [word for word in words if word != "--resume"]  # which looks at a folder
    assert importlib.import_module(named).main([*words, "--print-config"]) == 0


def check_data(words: list[str]) -> None:
    """Options of the command itself, of the dataset, of phantoms."""
    from elvis.data import __main__ as data
    from elvis.data.datasets.phantom import phantom
    from elvis.data.phantoms import layouts
    from elvis.registry import DATASETS, check_call, keywords

    command, plain = words[0], [word for before, word in itertools.pairwise(words) if "=" in word or (word in DATASETS and before[:2] != "--")]
    name, options = data._read(plain)
    run = getattr(data, f"run_{command}")
    mine = {key: options.pop(key) for key in keywords(run) if key in options}
    assert not (wrong := check_call(command, run, mine)), wrong
    if "--layout" in words:
        assert words[words.index("--layout") + 1] in {"manifest", *layouts.layouts()}
    if command in ("doctor", "prepare") or name not in ("", "phantom"):
        assert not (wrong := DATASETS.check(name, {key.removeprefix("data."): value for key, value in options.items()})), wrong
    else:
        assert options.keys() <= {*data.KNOBS, *layouts.COUNTS, *keywords(phantom), *inspect.signature(layouts.export).parameters}, options


@functools.cache
def help_of(module: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_help(module: str, words: list[str]) -> None:
    """Any other program: its --help knows the options and the command of the line."""
    for word in [word.partition("=")[0] for word in words if word.startswith("--")] + [word for word in words[:1] if word.isalpha()]:
        assert word in help_of(module), f"{module}: {word}"
    assert help_of(module)


@pytest.mark.parametrize("name", some_slow(WITH_COMMANDS, set(WITH_COMMANDS) - {"docs/start.md", "docs/index.md"}))
def test_every_command_of_a_page_can_be_typed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands(name)
    for command in commands(name):
        try:
            check(command)
        except (ElvisError, AssertionError, SystemExit, AttributeError) as error:
            raise AssertionError(f"{name}: $ {command}\n{error}") from error


@pytest.mark.parametrize(
    "command", ["python -m elvis.pretrain --config elvis_cxr dta.root=X", "python -m elvis.data doctor mimic_cxr rot=X", "make tea"]
)
def test_a_command_that_is_wrong_is_found(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ElvisError, AssertionError)):
        check(command)


SETS = [name for name in NAMES if name.startswith("docs/datasets/") and "--layout" in (ROOT / name).read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_data_commands_of_a_set_run_on_phantoms_in_its_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elvis.data.__main__ import main

    monkeypatch.chdir(tmp_path)
    said = [shlex.split(command) for command in commands(name) if command.startswith("python -m elvis.data")]
    for words in sorted(said, key=lambda words: words[3] != "export"):  # first of all the files
        small = {"size=512": "size=64", "size=[240,480,480]": "size=[8,32,32]", "spacing=[1.5,0.75,0.75]": "spacing=[6,3,3]"}
        given = [small.get(word, re.sub(r"=(ROOT|REPORTS|IMAGES)$", "=TRY", word)) for word in words[3:]]
        more = ["resized=true"] if given[:2] == ["prepare", "nih_boxes"] else []  # the owner's are 1024 px
        assert main([*given, *more]) == 0, given
    assert (tmp_path / "READY/manifest.arrow").is_file()


# --------------------------------------------------------------------------------------------------- readme, yaml, links


def test_both_make_commands_stand_on_the_first_screen_and_in_the_makefile() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    targets = (ROOT / "Makefile").read_text()
    for command in ("make pretrain", "make test"):
        assert command in first
        assert f"\n{command.split()[1]}:" in targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_config_the_readme_names_is_shipped() -> None:
    named = re.findall(r"`((?:elvis|lovt|gloria|clip|core|real|mgrrg|structure)_\w+)`", (ROOT / "README.md").read_text())
    assert named
    for name in named:
        assert any(name in configs.shipped(task) for task in ("pretrain", "reportgen")), name


@pytest.mark.parametrize("name", sorted({block.page for block in of("yaml")}))
def test_the_yaml_of_a_page_is_a_config_or_a_part_of_one(name: str, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in of("yaml") if block.page == name):
        part = yaml.safe_load(block.text)
        if "pair" in block.text.splitlines()[0]:  # of two encoders, for grounding
            configs.build(part, Pair, where=name)
            continue
        base = part.pop("extends", "structure_ct_phantom.yaml" if "structure" in block.text else "elvis_phantom.yaml")
        assert base.removesuffix(".yaml") in configs.shipped()
        shutil.copytree(configs.folder() / "pretrain", tmp_path / str(number))
        (tmp_path / str(number) / "page.yaml").write_text(yaml.safe_dump({"extends": base, **part}))
        configs.load(str(tmp_path / str(number) / "page.yaml"))


def slug(heading: str) -> str:
    """The anchor of a heading, as code hosts and mkdocs make it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading.lower())
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text).strip())


@functools.cache
def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


LINKING = [*NAMES, *(name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LOG.md") if (ROOT / name).is_file())]


@pytest.mark.parametrize("name", LINKING)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_of_it(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), f"{name}: {target}"
        assert not anchor or anchor in anchors(found) or "." in anchor, f"{name}: {target}#{anchor}"


# ------------------------------------------------------------------------------------------------ made of the code, built


@pytest.mark.slow
def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"type: python docs/generate.py\n{done.stdout}{done.stderr}"


def test_every_dataset_has_a_page_that_the_table_of_all_links() -> None:
    from elvis.registry import DATASETS

    table = (ROOT / "docs/datasets.md").read_text()
    for key in (key for key in DATASETS if DATASETS.get(key).__module__.startswith("elvis.")):
        assert (ROOT / f"docs/datasets/{key}.md").is_file(), key
        assert f"[`{key}`](datasets/{key}.md)" in table, key


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    site = tmp_path / "site"
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loads = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:)?//[^>]*>", page.read_text())
        assert not loads, page
    assert "intra_modal" in (site / "search/search_index.json").read_text()
    assert (site / "repository/benchmarks/results/phantom_cpu.html").is_file(), "what lies outside docs/ is a page, too"


@pytest.mark.slow
def test_the_notebook_runs_and_was_committed_without_its_outputs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own libraries
        client.execute()
    assert (tmp_path / "runs/tour/index.html").is_file()
