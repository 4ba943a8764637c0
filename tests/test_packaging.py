"""What is shipped: every file that the code reads lies in the wheel, constraints and third parties are those of pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from elvis import __version__, doctor
from tests.test_supply_chain import accepted

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    requirement
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    if canonicalize_name(requirement.name) != doctor.PACKAGE
]
DATA = {  # files beside the code that are no Python, and the configs
    path.relative_to(ROOT).as_posix()
    for top in ("elvis", "downstream", "configs")
    for path in (ROOT / top).rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
}


def test_no_file_that_the_code_reads_is_ignored_by_git_and_so_left_out_of_a_wheel() -> None:
    assert {"elvis/page.html.jinja", "elvis/data/lexicon.yaml", "elvis/py.typed", "configs/pretrain/elvis_phantom.yaml"} <= DATA
    git = subprocess.run(["git", "check-ignore", "--stdin"], input="\n".join(sorted(DATA)), capture_output=True, text=True, cwd=ROOT)
    if git.returncode == 128:
        pytest.skip("not a git checkout")
    assert git.stdout == ""


@pytest.mark.slow
def test_the_wheel_holds_every_file_the_code_reads_and_the_sdist_what_tests_need(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"elvis/{name}" if name.startswith("configs/") else name for name in DATA} | {"elvis/tested.txt"}
    code = {path.relative_to(ROOT).as_posix() for top in ("elvis", "downstream") for path in (ROOT / top).rglob("*.py")}
    assert wanted | code <= names
    assert {name.partition("/")[0] for name in names} == {"elvis", "downstream", f"elvis_vlp-{__version__}.dist-info"}
    listed = subprocess.run(["tar", "-tzf", str(sdist)], capture_output=True, text=True, check=True).stdout.splitlines()
    inside = {name.partition("/")[2] for name in listed}
    assert {"tests/tiny.py", "constraints/tested.txt", "configs/pretrain/elvis_phantom.yaml", "LICENSE", "CITATION.cff", "CHANGELOG.md"} <= inside
    assert not any(name.startswith((".venv", ".git/", "runs/")) for name in inside)


def test_the_constraints_name_one_version_of_everything_that_is_asked_for_and_it_is_in_its_range() -> None:
    known = doctor.tested()
    assert set(known) == {canonicalize_name(requirement.name) for requirement in ASKED}, (
        "python -m elvis.doctor --constraints > constraints/tested.txt"
    )
    assert [f"{r} is not {known[canonicalize_name(r.name)]}" for r in ASKED if not r.specifier.contains(known[canonicalize_name(r.name)])] == []


def test_third_parties_are_those_of_pyproject_with_a_licence_each() -> None:
    text = (ROOT / "THIRD_PARTY.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| (?:runtime|extra \w+) \| (.+) \|$", text, re.MULTILINE))
    assert set(rows) == {canonicalize_name(requirement.name) for requirement in ASKED}
    assert [name for name, licence in rows.items() if not accepted(licence)] == ["pycocoevalcap"]
    for name in ("albumentationsX", "pylibjpeg-libjpeg"):
        assert f"| {name} |" in text.split("## Not used")[1]


def test_versions_and_licence_are_said_alike_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"] == __version__
    assert cited["license"] == PROJECT["license"] == "Apache-2.0"
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()


def test_pre_commit_fetches_nothing() -> None:
    found = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in found["repos"]] == ["local"]
    assert {hook["language"] for hook in found["repos"][0]["hooks"]} == {"system"}
