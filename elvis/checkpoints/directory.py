"""The checkpoint directory on disk: written whole or not at all, claimed by one trainer, verified before it is believed.

    fill a stage beside the target -> sha256 of every file into manifest.json -> fsync files, then folders -> rename -> fsync the parent

A crash at any point leaves the old checkpoint or the new one: an old one of the same name is set aside (`.old-NAME`) between two
renames, and is taken for it by every reader until a writer has put it back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from types import EllipsisType
from typing import Any, TypeVar

from elvis.errors import CheckpointError, ConfigError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 << 20  # a larger one is none: 100 bytes a file
NEEDED = ("model.json", "model.safetensors", "preprocess.json")
STAGE, ASIDE, LOCK = ".stage-", ".old-", ".lock"
READ = (".json", ".safetensors", ".npy", ".pt", ".yaml", ".txt")  # suffixes of files that are parts of a checkpoint
HUB = "hf-hub:"  # what an id of the Hugging Face hub begins with, as timm and open_clip write it
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------- write


def write(target: Path, fill: Callable[[Path], None]) -> Path:
    """`fill(stage)` writes the files; then manifest, fsync, rename. An existing target is set aside, replaced whole, then removed.

    Raises CheckpointError for what the disk refuses (full, read-only, broken); what stood there before still stands.
    """
    target, stage, named = Path(target), None, False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_back(target)
        stage = Path(tempfile.mkdtemp(prefix=f"{STAGE}{target.name}-", dir=target.parent))
        fill(stage)
        _seal(stage)
        aside = _aside(target)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(target, aside)
        os.rename(stage, target)
        named = True
        _fsync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException as error:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
            _put_back(target)
        if reason := _refused(error):
            steps = sorted(path.name for path in target.parent.glob("step_*") if path.is_dir())
            stands = "; what stood there before is untouched" if target.exists() else f"; {steps[-1]} is untouched" if steps else ""
            stands = "; it is there, but may not outlive a power cut" if named else stands
            raise CheckpointError(f"cannot write {target}: {reason} ({_free(target)} free){stands}", "free space or mend permissions") from error
        raise
    return target


def _refused(error: BaseException) -> str:
    """What a disk refused, in a few words; "" for an error of another kind."""
    from safetensors import SafetensorError

    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # of a copied folder: source, target, why of each file
        return str(error.args[0][0][2])[:150]
    if isinstance(error, RuntimeError) and re.search("unexpected pos|PytorchStreamWriter|iostream|write", str(error)):
        return "torch could not write a file to its end"
    return (getattr(error, "strerror", None) or " ".join(str(error).split())[:150]) if isinstance(error, (OSError, SafetensorError)) else ""


def _seal(stage: Path) -> None:
    """The manifest of what lies in a stage, and everything on the disk."""
    files = sorted(p for p in stage.rglob("*") if p.is_file())
    hashes = {p.relative_to(stage).as_posix(): _sha256(p) for p in files}
    (stage / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": hashes}, indent=1))
    for path in (*files, stage / MANIFEST, *(p for p in stage.rglob("*") if p.is_dir()), stage):
        _fsync(path)
    stage.chmod(0o755)


def _aside(target: Path) -> Path:
    return target.with_name(f"{ASIDE}{target.name}")


def _put_back(target: Path) -> None:
    """What a crash or a failure between the two renames of `write` set aside becomes the checkpoint again."""
    if _aside(target).exists() and not target.exists():
        os.rename(_aside(target), target)


def _free(target: Path) -> str:
    folder = next((p for p in target.absolute().parents if p.exists()), Path("/"))
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MB"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step directories, and what a crash left half written."""
    sweep(folder)
    steps = sorted(p for p in folder.glob("step_*") if p.is_dir())
    for path in steps[: max(0, len(steps) - keep)]:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Put back what a crash set aside, delete what it left half written. For the one who has claimed the run."""
    for aside in folder.glob(f"{ASIDE}*"):
        _put_back(folder / aside.name.removeprefix(ASIDE))
    for path in (*folder.glob(f"{STAGE}*"), *folder.glob(f"{ASIDE}*")):
        shutil.rmtree(path, ignore_errors=True)


_claimed: set[Path] = set()  # by this process: a POSIX lock does not keep out its own process, and closing a second file of it ends the first


@contextlib.contextmanager
def claim(run: Path, active: bool = True, began: Path | EllipsisType | None = ...) -> Iterator[None]:
    """While open, `run` is this process's: another trainer there is a ConfigError. What crashes left among its checkpoints is swept.

    The lock is the kernel's (POSIX, so also over NFS) and ends with the process, however it ends; `.lock` only says who holds it.
    began: the `newest` checkpoint that was read before; a ConfigError where another trainer has gone on since.
    Not `active` (ranks that do not write), or claimed by this process already: nothing.
    """
    key = run.absolute()
    if (run / MANIFEST).is_file():
        raise ConfigError(f"{run} is a checkpoint: its own files would be overwritten", "give its run directory, or another --out")
    if not active or fcntl is None or key in _claimed:
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"cannot write to {run}: {error.strerror}", "choose another --out") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(f"{run}: this file system has no locks ({error.strerror})", "choose another --out") from error
            file.seek(0)
            raise ConfigError(
                f"another trainer is at work in {run} (process {file.read(20).strip() or '?'})", "wait for it, end it, or choose another --out"
            ) from None
        _claimed.add(key)
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            sweep(run / "checkpoints")
            if began is not ... and (now := newest(run)) != (began and began.with_name(began.name.removeprefix(ASIDE))):
                raise ConfigError(f"another trainer has gone on in {run} meanwhile, to {now and now.name}", "start again, with --resume")
            yield
        finally:
            _claimed.discard(key)


# ----------------------------------------------------------------------------------------------------------- read


def verify(path: Path, needed: Sequence[str] = NEEDED) -> dict[str, str]:
    """Every file of a checkpoint against its manifest; returns the hashes. Raises CheckpointError with the first bad file, or `needed` one.

    A file that the manifest does not know and that could be read for one that was verified is refused, too.
    """
    path = Path(path)
    for again in (True, True, False):  # a trainer may put another in its place meanwhile (`best`)
        before = _seal_of(path)
        try:
            return _verify(path, needed)
        except CheckpointError:
            if not again or _seal_of(path) == before:
                raise
    raise AssertionError


def _seal_of(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        if (path / MANIFEST).is_file():
            return (path / MANIFEST).read_bytes()[:MANIFEST_BYTES]
    return b""


def _verify(path: Path, needed: Sequence[str]) -> dict[str, str]:
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint directory at {path}", "give a directory that holds model.safetensors, or a run directory")
    hashes = _manifest(path)
    for name in needed:
        if name not in hashes:
            raise CheckpointError(f"{path} lacks {name}", "copy the whole directory again")
    for name, digest in hashes.items():
        file = path / name
        if not _holds(path, name):
            raise CheckpointError(f"{path}: {name[:100]} is missing, or a link that leads out", "copy the whole directory again")
        try:
            found = _sha256(file)
        except OSError as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error.strerror})", "copy the directory again, or use an older step") from error
        if found != digest:
            raise CheckpointError(f"{path}: {name} differs from its sha256", "the file is damaged: copy the directory again, or use an older step")
    strange = sorted(set(filter(None, map(partial(_readable, path), path.rglob("*")))) - hashes.keys() - {MANIFEST})
    if strange:
        raise CheckpointError(f"{path} holds {strange[0]}, which its {MANIFEST} does not list", "take the file away, or copy the directory again")
    return hashes


def _readable(path: Path, file: Path) -> str:
    """The name in a checkpoint of what a reader could take for a part of it; "" for hidden files and folders, and for notes."""
    name = file.relative_to(path)
    hidden, link = any(part.startswith(".") for part in name.parts), file.is_symlink() and not _is_blob(path, file)
    return "" if hidden or not (link or file.suffix in READ) or (file.is_dir() and not link) else name.as_posix()


def _holds(path: Path, name: str) -> bool:
    """Whether a name of a manifest is that of a file in the directory: written plainly, no link that leads out, no pipe, no device."""
    plain = PurePosixPath(name)
    try:
        inside = plain.as_posix() == name and ".." not in plain.parts and (path / name).resolve().is_relative_to(path.resolve())
        return (inside or _is_blob(path, path / name)) and (path / name).is_file()
    except (OSError, ValueError, RuntimeError):  # too long, NUL, half a surrogate pair, links in a circle
        return False


def _is_blob(path: Path, file: Path) -> bool:
    """Whether a file is where the hub's cache keeps it: `path` is MODEL/snapshots/COMMIT, its files are links to MODEL/blobs."""
    home = path.resolve()
    known = home.parent.name == "snapshots" and ".." not in file.relative_to(path).parts
    return known and file.is_file() and file.resolve().parent == home.parents[1] / "blobs"


def _manifest(path: Path) -> dict[str, str]:
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{path} has no {MANIFEST}: not a checkpoint, or an incomplete copy", "give a run or checkpoint directory, copied whole"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8") if file.stat().st_size < MANIFEST_BYTES else "")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is unreadable ({type(error).__name__})", "copy the whole directory again") from error
    written: Any = manifest.get("format") if isinstance(manifest, dict) else None
    if written != FORMAT:
        raise CheckpointError(f"{path} has format {str(written)[:20]}, this version reads {FORMAT}", "use the version that wrote it")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
        raise CheckpointError(f"{file} lists no sha256 of each file", "copy the whole directory again")
    return hashes


def resolve(path: Path | str) -> Path:
    """A verified checkpoint: the directory itself, or, of a run directory, `best`, else the newest good step; of a hub id see `local`.

    A checkpoint that was named is refused when bad; inside a run directory a bad one is passed over with a line on stderr.
    """
    return _resolved(path)[0]


def opened(path: Path | str, read: Callable[[Path], T]) -> T:
    """`read(folder)` of `resolve(path)`: what is read is what was verified, though a trainer may put another in its place (`best`)."""
    for again in (True, True, False):
        folder, hashes = _resolved(path)
        try:
            found = read(folder)
        except CheckpointError:
            if not again or _lists(folder, hashes):
                raise
        else:
            if _lists(folder, hashes):
                return found
    raise CheckpointError(f"{path} is being replaced again and again", "wait for its trainer, or give a step of the run")


def _lists(folder: Path, hashes: dict[str, str]) -> bool:
    try:
        return _manifest(folder) == hashes
    except CheckpointError:
        return False


def local(path: Path | str) -> Path:
    """The path itself; of a hub id (hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION) the folder its checkpoint was downloaded to, not verified yet.

    No trainer state is fetched. Raises ConfigError without the hub, CheckpointError for what it does not have.
    """
    if not str(path).startswith(HUB):
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download

    from elvis.hub import check_hub

    name, _, revision = str(path).removeprefix(HUB).partition("@")
    check_hub(f"the checkpoint '{name}'", "give a directory on this machine")
    kinds = [f"*{suffix}" for suffix in (*READ, ".md") if suffix != ".pt"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=kinds, ignore_patterns=["state/*"]))
    except (OSError, ValueError) as error:  # what the hub says of ids, revisions and its cache is one of these
        reason = " ".join(str(error).split())[:150]
        fix = "is it hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION, and may you read it?"
        raise CheckpointError(f"cannot get {path}: {type(error).__name__}: {reason}", fix) from error


def _resolved(path: Path | str) -> tuple[Path, dict[str, str]]:
    path = standing(run_of(local(path)))
    if (path / MANIFEST).exists() or (path / "model.safetensors").exists() or not (path / "checkpoints").is_dir():
        return path, verify(path)
    return _first_good(candidates(path), path)


def run_of(path: Path) -> Path:
    """The run directory of its folder `checkpoints`; any other path as it is."""
    return path.absolute().parent if path.absolute().name == "checkpoints" and not (path / MANIFEST).exists() else path


def candidates(run: Path) -> list[Path]:
    """The checkpoints of a run directory, the one to take first: best, then the newest steps."""
    best = standing(run / "checkpoints" / "best")
    return [*([best] if best.is_dir() else []), *_steps(run)]


def newest(run: Path) -> Path | None:
    """The newest good step of a run directory, for --resume; None if it has none yet."""
    steps = _steps(run)
    return _first_good(steps, run)[0] if steps else None


def standing(path: Path) -> Path:
    """The checkpoint of a name or, where a crash came between two renames, what was set aside for the new one."""
    path = path.with_name(path.name.removeprefix(ASIDE)) if path.name else path
    return _aside(path) if path.name and not path.exists() and _aside(path).is_dir() else path


def _steps(run: Path) -> list[Path]:
    """The newest first; one that a crash has left set aside is among them."""
    folder = run / "checkpoints"
    names = {p.name.removeprefix(ASIDE) for pattern in ("step_*", f"{ASIDE}step_*") for p in folder.glob(pattern)}
    return [found for name in sorted(names, reverse=True) if (found := standing(folder / name)).is_dir()]


def _first_good(found: list[Path], run: Path) -> tuple[Path, dict[str, str]]:
    for candidate in found:
        try:
            return candidate, verify(candidate)
        except CheckpointError as error:
            print(f"passing over {candidate.name}: {error.what}", file=sys.stderr)
            continue
    raise CheckpointError(f"no good checkpoint under {run}", "start the run anew, or restore a copy")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
