"""What the repository may not contain, what it may depend on, and that it reaches no network.

The scan reads the syntax tree of every Python file with its imports resolved, so `from torch import load as read` is torch.load.
Each rule has snippets that it must find and others that it must pass: a scan that finds nothing is red.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from elvis import checkpoints, pretrain

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("elvis", "downstream", "benchmarks", "tests") for p in (ROOT / top).rglob("*.py")) + sorted(ROOT.glob("hubconf.py"))


# ----------------------------------------------------------------------------------------------------------- scan


class Source:
    """A parsed file. `name(node)`: the full dotted name of what an expression refers to, by the imports of the file; "" for anything else."""

    def __init__(self, text: str, path: str = "") -> None:
        self.nodes, self.path = list(ast.walk(ast.parse(text))), path
        self.imported: dict[str, str] = {}
        self.modules: list[tuple[int, str]] = []  # (line, every module or member that is imported)
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.modules.append((node.lineno, alias.name))
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    self.modules.append((node.lineno, f"{node.module}.{alias.name}"))
        self.calls = [(node, self.name(node.func)) for node in self.nodes if isinstance(node, ast.Call)]

    def name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.name(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""


def keyword(call: ast.Call, name: str) -> Any:
    """The constant a call gives as `name`; None without one, ... for what only a run tells."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return None if value is None else value.value if isinstance(value, ast.Constant) else ...


def called(*names: str) -> Callable[[Source], Iterator[int]]:
    return lambda source: (call.lineno for call, name in source.calls if name in names)


def without(keyword_name: str, value: object, *names: str) -> Callable[[Source], Iterator[int]]:
    """Calls of these names that do not say keyword_name=value."""
    return lambda source: (call.lineno for call, name in source.calls if name in names and keyword(call, keyword_name) != value)


def says(keyword_name: str, *allowed: object) -> Callable[[Source], Iterator[int]]:
    """Calls of anything that give `keyword_name` another value than these (`...`: one that is computed)."""
    return lambda source: (call.lineno for call, _ in source.calls if keyword(call, keyword_name) not in (None, *allowed))


PICKLES = ("dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle")


def pickled(source: Source) -> Iterator[int]:
    """Any module of pickles. Of `pickle` itself the names of its errors are allowed, and in tests a round trip: values go to workers so."""
    yield from (line for line, name in source.modules if name.partition(".")[0] in PICKLES)
    yield from (call.lineno for call, name in source.calls if name.endswith((".read_pickle", ".to_pickle")))
    if not any(name.partition(".")[0] in ("pickle", "_pickle") for _, name in source.modules):
        return
    dumped = {id(call) for call, name in source.calls if name == "pickle.dumps"}
    assigned = [node for node in source.nodes if isinstance(node, ast.Assign) and id(node.value) in dumped]
    copies = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    fine = ["pickle.UnpicklingError", "pickle.PicklingError", "pickle.PickleError"]
    round_trips: set[int] = set()
    if source.path.startswith("tests/"):
        fine.append("pickle.dumps")
        for call, name in source.calls:
            given = call.args[0] if name == "pickle.loads" and len(call.args) == 1 else None
            if id(given) in dumped or (isinstance(given, ast.Name) and given.id in copies):
                round_trips.add(id(call.func))
    for node in source.nodes:
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in round_trips:
            name = source.name(node)
            if name.startswith(("pickle.", "_pickle.")) and name not in fine:
                yield node.lineno


def unsafe_yaml(source: Source) -> Iterator[int]:
    """yaml.load with another loader than a safe one, or a class of this file that is made of one."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    safe |= {node.name for node in source.nodes if isinstance(node, ast.ClassDef) and any(source.name(base) in safe for base in node.bases)}
    for call, name in source.calls:
        if name in ("yaml.load", "yaml.load_all"):
            loader = call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg == "Loader"), None)
            if loader is None or source.name(loader) not in safe:
                yield call.lineno
        elif name in ("yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"):
            yield call.lineno


def unpacked(source: Source) -> Iterator[int]:
    """Archives taken out without the filter that keeps a member inside its folder."""
    for call, name in source.calls:
        member = call.func.attr if isinstance(call.func, ast.Attribute) else name
        if member in ("extractall", "unpack_archive") and keyword(call, "filter") != "data":
            yield call.lineno


NETWORK = ("requests", "httpx", "aiohttp", "urllib.request", "urllib3", "socket", "http.client", "huggingface_hub", "torch.hub", "ftplib", "smtplib")


def at_import(source: Source) -> Iterator[int]:
    """Calls into the network that run when the file is imported: outside every function."""
    calls = [call for call, name in source.calls if name.startswith(tuple(f"{n}." for n in NETWORK))]
    functions = [node for node in source.nodes if calls and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    bodies = [part for node in functions for part in (node.body if isinstance(node.body, list) else [node.body])]
    inside = {id(child) for part in bodies for child in ast.walk(part)}
    yield from (call.lineno for call in calls if id(call) not in inside)


GATHERED = ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list", "recv_object_list")

# rule -> (what it looks for, snippets it must find, snippets it must pass)
RULES: dict[str, tuple[Callable[[Source], Iterator[int]], tuple[str, ...], tuple[str, ...]]] = {
    "torch.load without weights_only=True": (
        without("weights_only", True, "torch.load", "torch.serialization.load"),
        ("import torch\ntorch.load(f)", "from torch import load as read\nread(f, weights_only=safe)",
         "import torch as t\nt.load(f, weights_only=False)"),
        ("import torch\ntorch.load(f, weights_only=True)", "import json\njson.load(f)"),
    ),
    "weights_only=False": (
        says("weights_only", True),
        ("thing.load(f, weights_only=False)", "create(weights_only=0)", "create(weights_only=maybe)"),
        ("create(weights_only=True)",),
    ),
    "code of a checkpoint": (
        called("torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.package.PackageImporter", "torch.export.load"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "from torch import jit\njit.load(f)"),
        ("import torch\ntorch.jit.script(f)",),
    ),
    "pickle": (
        pickled,
        ("import pickle\npickle.load(f)", "from pickle import loads\nloads(b)", "import dill", "from joblib import load", "import marshal, json",
         "import shelve", "import pandas\npandas.read_pickle(f)", "import pickle\npickle.loads(pickle.dumps(x))"),
        ("import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",),
    ),
    "np.load without allow_pickle=False": (
        without("allow_pickle", False, "numpy.load"),
        ("import numpy as np\nnp.load(f)", "from numpy import load\nload(f, allow_pickle=True)"),
        ("import numpy as np\nnp.load(f, allow_pickle=False)",),
    ),
    "eval, exec or compile of text": (
        called("eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile"),
        ("eval(text)", "exec(text)", "import builtins\nbuiltins.eval(text)", "compile(text, 'f', 'exec')"),
        ("model.eval()", "import re\nre.compile('a')", "import torch\ntorch.compile(f)"),
    ),
    "yaml without a safe loader": (
        unsafe_yaml,
        ("import yaml\nyaml.load(f)", "import yaml\nyaml.load(f, Loader=yaml.Loader)", "from yaml import load, FullLoader\nload(f, FullLoader)",
         "import yaml\nyaml.unsafe_load(f)"),
        ("import yaml\nyaml.safe_load(f)", "import yaml\nyaml.load(f, Loader=yaml.CSafeLoader)",
         "import yaml\nclass Mine(yaml.SafeLoader): ...\nyaml.load(f, Mine)"),
    ),
    "a shell": (
        called("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        ("import os\nos.system(c)", "from os import popen\npopen(c)", "import subprocess as s\ns.getoutput(c)"),
        ("import subprocess\nsubprocess.run(['ls'])", "import platform\nplatform.system()"),
    ),
    "shell=True": (says("shell", False), ("import subprocess\nsubprocess.run(c, shell=True)", "run(c, shell=maybe)"), ("run(c, shell=False)",)),
    "trust_remote_code": (
        says("trust_remote_code", False),
        ("AutoModel.from_pretrained(n, trust_remote_code=True)", "f(trust_remote_code=flag)"),
        ("f(trust_remote_code=False)",),
    ),
    "an archive without filter='data'": (
        unpacked,
        ("archive.extractall(folder)", "import shutil\nshutil.unpack_archive(f)", "archive.extractall(folder, filter='tar')"),
        ("archive.extractall(folder, filter='data')", "archive.extractfile(member)"),
    ),
    "tempfile.mktemp": (
        called("tempfile.mktemp"),
        ("import tempfile\ntempfile.mktemp()", "from tempfile import mktemp as m\nm()"),
        ("import tempfile\ntempfile.mkdtemp()",),
    ),
    "the network at import": (
        at_import,
        ("import requests\nX = requests.get(u)", "from urllib.request import urlopen\nclass A:\n    b = urlopen(u)",
         "import httpx\ndef f(x=httpx.get(u)): ...", "from huggingface_hub import hf_hub_download\nhf_hub_download('a', 'b')"),
        ("import requests\ndef f():\n    return requests.get(u)", "import urllib.parse\nurllib.parse.quote(u)"),
    ),
    "objects pickled between ranks": (
        called(*(f"torch.distributed.{name}" for name in GATHERED)),
        ("import torch.distributed as dist\ndist.all_gather_object(a, b)", "from torch import distributed\ndistributed.broadcast_object_list(a)"),
        ("import torch.distributed as dist\ndist.all_gather(a, b)",),
    ),
}  # fmt: skip

# (file, rule) -> how often, and why it may
EXCEPTIONS = {
    ("elvis/distributed.py", "objects pickled between ranks"): (1, "lists of ids between the processes of one run; no file is read"),
    ("tests/test_docs.py", "eval, exec or compile of text"): (2, "the Python of our own README and pages is run to show that it works"),
    ("tests/test_interop_export.py", "code of a checkpoint"): (1, "a file that the test itself has written a line before"),
}  # fmt: skip


def found(text: str, path: str = "") -> list[tuple[str, int]]:
    """(rule, line) of everything a file may not contain."""
    source = Source(text, path)
    return [(rule, line) for rule, (look, _, _) in RULES.items() for line in look(source)]


def test_no_file_runs_what_it_is_given_or_reads_a_pickle() -> None:
    assert len(FILES) > 300
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        for rule, line in found(path.read_text(encoding="utf-8"), name):
            seen[name, rule] += 1
            lines += [f"{name}:{line}: {rule}"] if (name, rule) not in EXCEPTIONS else []
    assert lines == []
    assert seen == {place: count for place, (count, _) in EXCEPTIONS.items()}, "an exception that is no longer needed, or is needed more often"


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_what_was_planted_and_passes_what_is_right(rule: str) -> None:
    look, bad, good = RULES[rule]
    assert bad
    assert good
    for snippet in bad:
        assert list(look(Source(snippet, "elvis/planted.py"))), snippet
    for snippet in good:
        assert found(snippet, "elvis/planted.py") == [], snippet


def test_a_test_may_send_a_value_through_a_pickle_and_read_no_other() -> None:
    for mine in ("import pickle\nassert pickle.loads(pickle.dumps(x)) == x", "import pickle\nd = pickle.dumps(x)\nassert pickle.loads(d) == x"):
        assert found(mine, "tests/test_x.py") == []
        assert found(mine, "elvis/x.py") != []
    assert found("import pickle\npickle.loads(path.read_bytes())", "tests/test_x.py") == [("pickle", 2)]


# ------------------------------------------------------------------------------------------------------- licences

PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0",
    "Python-2.0", "Unlicense", "Zlib",
    "MPL-2.0",  # its duties are those of who changes its own files: we do not
}  # fmt: skip
WORDS = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache-2": "Apache-2.0", "apache 2": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0", "apache software license": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "bsd license": "BSD", "new bsd": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "freebsd": "BSD-2-Clause", "isc license": "ISC", "isc license (iscl)": "ISC", "mit license": "MIT", "the mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0", "historical permission notice and disclaimer (hpnd)": "MIT-CMU",
}  # fmt: skip
NAMED = {  # name or pattern -> why it may lie in an installation although its metadata does not say so
    "nvidia-*": "the CUDA libraries that torch's own Linux wheels bring; closed, and free to use under NVIDIA's terms; a CPU build of torch has none",
    "cuda-toolkit": "an empty package of NVIDIA's that names the others",
    "pycocoevalcap": "metadata says UNKNOWN; its repository has the licence of coco-caption (BSD); an extra, for METEOR alone",
}
OURS, EXTRAS = "elvis-vlp", ("dicom", "ct", "llm", "metrics", "demo", "tensorboard", "docs", "dev")


def accepted(expression: str) -> bool:
    """Whether an SPDX expression leaves a permissive choice: of OR one side, of AND both, of WITH the licence itself."""
    words = re.findall(r"[()]|[^\s()]+", expression)

    def either() -> bool:
        fine = both()
        while words[:1] == ["OR"]:
            words.pop(0)
            fine = both() or fine
        return fine

    def both() -> bool:
        fine = one()
        while words[:1] == ["AND"]:
            words.pop(0)
            fine = one() and fine
        return fine

    def one() -> bool:
        if not words:
            return False
        word = words.pop(0)
        if word == "(":
            fine = either()
            return words[:1] == [")"] and bool(words.pop(0)) and fine
        if words[:1] == ["WITH"]:
            del words[:2]
        return word in PERMISSIVE

    return either() and not words


def stated(metadata: Message) -> list[str]:
    """Every licence a package's metadata states, as SPDX where the words are known: the expression alone, else classifiers and a short field."""
    if expression := metadata.get("License-Expression"):
        return [expression]
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    field = (metadata.get("License") or "").strip()
    first = [line.strip() for line in field.splitlines() if line.strip()][:1]
    said = [c for c in classifiers if c != "OSI Approved"]
    said += first if first and ("\n" not in field or not said) and first != ["UNKNOWN"] else []
    return [WORDS.get(word.lower(), word) for word in said]


def licensed(metadata: Message) -> bool:
    """Whether everything the metadata states is permissive, and it states something."""
    said = stated(metadata)
    return bool(said) and all(accepted(word) for word in said)


def closure(name: str, extras: tuple[str, ...]) -> dict[str, Message]:
    """The installed packages that `name` with `extras` asks for, and those they ask for, on this machine."""
    packages: dict[str, Message] = {}
    done: set[tuple[str, str]] = set()
    todo = [(name, ("", *extras))]
    while todo:
        asked, wanted = todo.pop()
        package = distribution(asked)
        key = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        packages[key] = package.metadata
        new = [extra for extra in wanted if (key, extra) not in done]
        done |= {(key, extra) for extra in new}
        for requirement in map(Requirement, package.requires or []):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in new):
                todo.append((requirement.name, ("", *sorted(requirement.extras))))
    return packages


def test_every_dependency_is_permissive_or_named_with_a_reason() -> None:
    packages = closure(OURS, EXTRAS)
    assert {"torch", "transformers", "albumentations", "pydicom", "hypothesis", "tokenizers"} <= set(packages)
    unfit = {name: stated(metadata) for name, metadata in packages.items() if not licensed(metadata)}
    assert {name: said for name, said in unfit.items() if not any(fnmatch.fnmatch(name, pattern) for pattern in NAMED)} == {}
    assert not {name for name in packages if fnmatch.fnmatch(name, "*albumentationsx*") or name == "pylibjpeg-libjpeg"}
    assert all("GPL" not in word.upper() for said in unfit.values() for word in said)  # no reason makes up for that


def test_the_closure_takes_the_extras_that_are_listed_in_pyproject() -> None:
    extras = set(distribution(OURS).metadata.get_all("Provides-Extra"))
    assert extras == set(EXTRAS), "install again, and mend EXTRAS"


def _metadata(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "fine"),
    [
        ({"License_Expression": "MIT"}, True),
        ({"License_Expression": "MIT", "License": "GPL"}, True),  # the expression is what counts
        ({"License_Expression": "GPL-3.0-only OR MIT"}, True),
        ({"License_Expression": "(GPL-3.0-only OR MIT) AND Apache-2.0 WITH LLVM-exception"}, True),
        ({"License_Expression": "GPL-3.0-only AND MIT"}, False),
        ({"License_Expression": "(MIT AND AGPL-3.0-only) OR LGPL-3.0-only"}, False),
        ({"License_Expression": "(MIT"}, False),
        ({"License_Expression": "MIT MIT"}, False),
        ({"License_Expression": "LicenseRef-NVIDIA-Proprietary"}, False),
        ({"License": "Apache 2.0"}, True),
        ({"License": "BSD 3-Clause License\n\n Copyright (c) 2021"}, True),
        ({"License": "Copyright 2020\nAll rights", "Classifier": "License :: OSI Approved :: BSD License"}, True),
        ({"License": "MIT", "Classifier": ["License :: OSI Approved", "License :: OSI Approved :: MIT License"]}, True),
        ({"License": "MIT", "Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, False),
        ({"License": "GNU Affero General Public License v3"}, False),
        ({"License": "AGPL-3.0\n\nlong text"}, False),
        ({"License": "Apache 2.0", "Classifier": "License :: Other/Proprietary License"}, False),
        ({"License": "UNKNOWN"}, False),
        ({"License": ""}, False),
        ({"Classifier": "Programming Language :: Python"}, False),
    ],
)
def test_what_metadata_says_of_a_licence_is_read(fields: dict[str, Any], fine: bool) -> None:
    assert licensed(_metadata(**fields)) is fine


# -------------------------------------------------------------------------------------------------------- network

IMPORT_ALL = """
import importlib, os, pkgutil, socket, sys
tried = []
class Blocked(socket.socket):
    def __new__(cls, *args, **options):
        return refuse("socket", *args)
def refuse(*what, **options):
    tried.append(what)
    raise OSError("no network here")
socket.socket, socket.create_connection, socket.getaddrinfo = Blocked, refuse, refuse
names = []
for top in ("elvis", "downstream"):
    names += [m.name for m in pkgutil.walk_packages(importlib.import_module(top).__path__, top + ".")]
for name in names:
    importlib.import_module(name)
assert len(names) > 150, len(names)
assert not tried, tried
"""


@pytest.mark.slow
def test_importing_every_module_opens_no_connection() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, timeout=120, cwd=ROOT)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No socket can be made, no name looked up. What was tried, also where the caller swallowed the refusal."""
    tried: list[str] = []

    def refuse(*what: object, **options: object) -> None:
        tried.append(" ".join(map(str, what)))
        raise OSError("no network here")

    class Blocked(socket.socket):
        def __init__(self, *what: object, **options: object) -> None:
            refuse("socket", *what)

    monkeypatch.setattr(socket, "socket", Blocked)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_training_loading_and_evaluating_open_no_connection(offline: list[str], tmp_path: Path) -> None:
    from downstream.grounding.__main__ import main
    from tests.test_pretrain import SMALL

    run, few = tmp_path / "run", ["data.train=12", "data.test=2"]
    steps = ["train.steps=2", "train.checkpoint_every=2", "evaluate.overlays=0", "data.val=2", "data.comp=2", "data.swap=2"]
    assert pretrain.main(["--out", str(run), "--quiet", *SMALL, *few, *steps]) == 0
    checkpoints.load_backbone(run)
    checkpoints.load_pretrained(run)
    out = tmp_path / "grounding"
    cases = ["data.size=64", *few, "data.comp=0", "data.decor=0", "data.swap=0", "splits=[test]", "resamples=20", "workers=0"]
    assert main(["evaluate", "--checkpoint", str(run), "--out", str(out), "--quiet", "--config", "phantom", *cases]) == 0
    assert (out / "results.json").is_file()
    assert offline == []


def test_a_connection_that_is_tried_is_seen(offline: list[str]) -> None:
    for tries in (lambda: socket.create_connection(("localhost", 1)), lambda: socket.socket(), lambda: socket.getaddrinfo("localhost", 1)):
        with pytest.raises(OSError, match="no network"):
            tries()
    assert len(offline) == 3
