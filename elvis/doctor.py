"""Can this machine run elvis?   python -m elvis.doctor [--json] [--constraints]

    packages    the versions that are there against what elvis asks for and what it was tested with (constraints/tested.txt)
    machine     cores, memory, GPUs, shared memory, room on disks, open files, who may write where
    settings    variables of the environment that change what a run does, and those that name folders of data
    extras      what is not installed, and what it would give

A few seconds; of the heavy libraries only torch is imported. Exit code 2 with a problem that would stop a run; each problem comes with its fix.
A dataset is looked at by `python -m elvis.data doctor NAME root=DIR`.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from elvis import terminal
from elvis.data.cache import free_bytes, home
from elvis.errors import Words, run_cli
from elvis.notice import NOTICE

PACKAGE = "elvis-vlp"
EXTRAS = {  # what each gives; those of developers are not asked for
    "dicom": "DICOM files",
    "ct": "NIfTI volumes: chest CT",
    "llm": "report decoders that are large language models with LoRA",
    "metrics": "METEOR (with java)",
    "demo": "python -m downstream.grounding demo",
    "tensorboard": "curves in TensorBoard",
    "docs": "building the documentation",
}
SETTINGS = (
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "TMPDIR",
)  # fmt: skip
GIB = 2**30
ROOM = 1.0  # GiB: a run of the default config with its checkpoints takes far less
SHARED = 1.0  # GiB of /dev/shm: what a few loader workers hold of batches


@dataclass(frozen=True)
class Check:
    """What was looked at and found; `problem` "" = fine; `stops`: a run would end by it."""

    name: str
    found: str
    problem: str = ""
    fix: str = ""
    stops: bool = False


def examine(where: Path | None = None) -> list[Check]:
    """Everything, as a run started in the folder `where` (default: here) would meet it."""
    return [*packages(), *machine(), *places(where or Path.cwd()), *settings(os.environ), *extras()]


# -------------------------------------------------------------------------------------------------------- packages


def requirements(extra: str = "") -> list[Requirement]:
    """What elvis, or one of its extras, asks for on this machine. PackageNotFoundError where it is not installed."""
    listed = [Requirement(line) for line in distribution(PACKAGE).requires or ()]
    return [
        r
        for r in listed
        if (not extra and (r.marker is None or r.marker.evaluate({"extra": ""})))
        or (extra and r.marker is not None and not r.marker.evaluate({"extra": ""}) and r.marker.evaluate({"extra": extra}))
    ]


def tested() -> dict[str, str]:
    """Package -> the version that elvis was tested with."""
    inside = Path(__file__).with_name("tested.txt")  # of a wheel
    path = inside if inside.is_file() else Path(__file__).parents[1] / "constraints" / "tested.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))  # type: ignore[misc]


def constraints() -> str:
    """constraints/tested.txt: the versions that are here of every package that elvis or an extra asks for."""
    offered = distribution(PACKAGE).metadata.get_all("Provides-Extra") or []
    names = {canonicalize_name(r.name) for extra in ("", *offered) for r in requirements(extra)} - {PACKAGE}
    rows = (f"{name}=={Version(version(name)).public}" for name in sorted(names))
    head = "# The versions this release was tested with: pip install -c constraints/tested.txt elvis-vlp\n"
    made = f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}. Made by: python -m elvis.doctor --constraints\n"
    return head + made + "".join(f"{row}\n" for row in rows)


def packages() -> Iterator[Check]:
    given = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Check("python", given, "elvis needs 3.11 or newer" if old else "", "install Python 3.11" if old else "", old)
    try:
        asked = requirements()
    except PackageNotFoundError:
        yield Check("elvis", "not installed", "what it needs is not known", "pip install -e . in its folder", True)
        return
    yield Check("elvis", version(PACKAGE))
    fine: list[str] = []
    known = tested()
    for requirement in asked:
        name, there = canonicalize_name(requirement.name), _installed(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            what = "not installed" if there is None else f"{there} is outside of {requirement.specifier}"
            yield Check(name, there or "missing", what, f"pip install '{requirement}'", True)
        else:
            fine.append(name)
    other = [f"{name} {version(name)} ({known.get(name, 'not')} tested)" for name in fine if Version(version(name)).public != known.get(name)]
    said = f"other than tested: {', '.join(other)}" if other else "all as tested"
    yield Check("packages", f"{len(fine)} of {len(asked)} as asked for; {said}" if known else "what they were tested with is not known")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def extras() -> Iterator[Check]:
    for extra, gives in EXTRAS.items():
        try:
            missing = [r.name for r in requirements(extra) if _installed(r.name) is None]
        except PackageNotFoundError:
            return
        found = f"{gives}: not installed, {', '.join(missing)} missing; pip install 'elvis-vlp[{extra}]'" if missing else f"{gives}: installed"
        if extra == "metrics" and not missing and shutil.which("java") is None:
            found = f"{gives}: installed, but there is no java"
        yield Check(f"extra {extra}", found)


# --------------------------------------------------------------------------------------------------------- machine


def machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB memory" if hasattr(os, "sysconf") else ""
    yield Check("machine", f"{platform.system()} {platform.machine()}, {cores} cores{memory}")
    if _installed("torch") is not None:
        yield from devices(cores)
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free / GIB
        little = room < SHARED
        fix = "set data.workers=0, or docker run --shm-size=8g" if little else ""
        yield Check("shared memory", f"{room:.1f} GiB free", "too little for loader workers" if little else "", fix)
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 < files < 1024
    yield Check(
        "open files",
        str(files) if files > 0 else "unlimited",
        "few for loader workers" if few else "",
        "ulimit -n 4096" if few else "",
        files < 64 and few,
    )


def devices(cores: int) -> Iterator[Check]:
    """What torch sees."""
    import torch

    yield Check("threads", f"torch takes {torch.get_num_threads()}", *_threads(torch.get_num_threads(), cores))
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        fine = torch.cuda.get_device_capability(index)
        yield Check(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, sm_{fine[0]}{fine[1]}")
    if torch.backends.mps.is_available():
        yield Check("mps", "Apple GPU")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}, and sees none" if torch.version.cuda else "torch is built for CPU"
        yield Check("gpu", f"none ({built}): everything runs on the CPU")


def _threads(threads: int, cores: int) -> tuple[str, str]:
    return (f"more than the {cores} cores: slower", f"set OMP_NUM_THREADS={cores}") if threads > cores else ("", "")


def places(where: Path) -> Iterator[Check]:
    """Room, and leave to write, where runs, the cache and temporary files go."""
    for name, folder, fix in (
        ("folder", where, "go to another folder, or give --out=DIR"),
        ("cache", home(), "set ELVIS_CACHE to a folder of your own"),
        ("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder of your own"),
    ):
        room = free_bytes(folder) / GIB
        problem = f"nobody may write there as {_user()}" if not _writable(folder) else f"less than {ROOM:g} GiB free" if room < ROOM else ""
        yield Check(name, f"{folder}, {room:.1f} GiB free", problem, fix if problem else "", bool(problem))


def _user() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"


def _writable(folder: Path) -> bool:
    """Whether a file can be made there, or the folder itself; by trying, since a file system may be read-only."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def settings(environment: Mapping[str, str]) -> Iterator[Check]:
    """Variables that change a run; of the ELVIS_* ones, which configs may name, those that look like a path have to be there."""
    told = [f"{name}={environment[name]}" for name in SETTINGS if name in environment]
    yield Check("environment", ", ".join(told) or "nothing set that changes a run")
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    yield Check("hub", "offline: the hub's cache on this machine decides" if offline else "asked where a config names a checkpoint of a hub")
    for name, value in sorted(environment.items()):
        if name.startswith("ELVIS_") and name != "ELVIS_CACHE" and os.sep in value:
            there = Path(value).expanduser().exists()
            yield Check(name, value, "" if there else "no such file or folder", "" if there else f"mend {name}, or unset it", not there)


# --------------------------------------------------------------------------------------------------------- command


def text(checks: Sequence[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines = [f"{check.name:<{width}}  {check.found}" for check in checks]
    for check in checks:
        if check.problem:
            lines += [f"\n{'PROBLEM' if check.stops else 'note'}: {check.name}: {check.problem}", f"  {check.fix}"]
    stopping = sum(check.stops for check in checks)
    return "\n".join([*lines, "", f"{stopping} problem(s) that would stop a run" if stopping else "nothing that would stop a run", NOTICE])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Words(
        prog="python -m elvis.doctor", description="Can this machine run elvis? Of a dataset: python -m elvis.data doctor NAME root=DIR.",
        epilog="Exit code 2 with a problem that would stop a run.",
    )  # fmt: skip
    parser.add_argument("--constraints", action="store_true", help="print the versions that are here, as constraints/tested.txt has them")
    args = parser.parse_args(argv)
    if args.constraints:
        print(constraints(), end="")
        return 0
    checks = examine()
    stopped = any(check.stops for check in checks)
    terminal.tell(ok=not stopped, checks=[asdict(check) for check in checks])
    print(text(checks))
    return 2 if stopped else 0


if __name__ == "__main__":
    run_cli(main)
