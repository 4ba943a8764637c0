"""METEOR 1.5, by the Java program that the pycocoevalcap wheel ships (with its paraphrase table; there is no download).

    P, R    = sum over stages i of w_i (d c_i + (1 - d) f_i) / (d c + (1 - d) f)        c content, f function words; of report, of reference
    METEOR  = P R / (a P + (1 - a) R) * (1 - g (chunks / matched words) ^ b)           a .85  b .2  g .6  d .75
    stages: exact 1, stem .6, synonym .8, paraphrase .6; a report that matches whole in one chunk has no chunk

Denkowski and Lavie, WMT 2014. Java aligns each report with its best reference and tells what it counted; the counts are the parts of `Sums`,
and the formula above is the statistic. So the value is METEOR of the SUMMED counts: the corpus number of the program, which pycocoevalcap
and papers report. It is not the mean over cases, which pycocoevalcap lists beside it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from downstream.reportgen.metrics.nlg import Reference, tokenised
from downstream.reportgen.metrics.sums import Sums
from elvis.errors import ConfigError

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # English, tuned to rank (its default)
STAGES = np.array((1.0, 0.6, 0.8, 0.6))  # exact, stem, synonym, paraphrase
COUNTS = 23  # words, function words, 4 stages of 4, each of report and of reference; chunks; matched words of both
JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
REMEDY = "pip install --no-deps pycocoevalcap, and Java 8 or later on PATH; or leave METEOR out"


def available() -> str:
    """Why METEOR cannot be computed here, in one line; "" if it can."""
    if shutil.which("java") is None:
        return "no java on PATH"
    folder = _folder()
    if folder is None:
        return "pycocoevalcap is not installed"
    missing = [name for name in (JAR, TABLE) if not (folder / name).is_file()]
    return f"pycocoevalcap has no {missing[0]}" if missing else ""


def meteor(hypotheses: Sequence[str], references: Sequence[Reference]) -> Sums:
    """METEOR of reports against their references (one text or several a case), tokenised by `nlg.words`. Some ten seconds to start.

    Raises ConfigError where `available` has a reason or Java fails, DataError where reports and references do not pair.
    """
    cases = tokenised(hypotheses, references)
    if reason := available():
        raise ConfigError(f"METEOR: {reason}", REMEDY)
    lines = ["SCORE ||| " + " ||| ".join(_line(text) for text in (*texts, report)) for report, texts in cases]
    counts = _ask(lines) if lines else np.zeros((0, COUNTS))
    return Sums(parts_of(counts), meteor_of)


def parts_of(counts: np.ndarray) -> np.ndarray:
    """What Java counted, N 23, as parts, N 24: a case that matches whole in one chunk brings no chunk to the sum; the last column counts cases."""
    matches = counts[:, 4:20].reshape(-1, 8, 2).sum(1)  # of report, of reference
    whole = (matches == counts[:, 0:2]).all(1) & (counts[:, 20] <= 1)
    parts = np.concatenate([counts, np.ones((len(counts), 1))], 1)
    parts[whole, 20] = 0.0
    return parts


def meteor_of(sums: np.ndarray) -> np.ndarray:
    """(..., 24) sums of `parts_of` -> (...) METEOR; NaN without a case. On a row: METEOR of that case."""
    words, function = sums[..., 0:2], sums[..., 2:4]  # of report, of reference
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # stage, (content, function), (report, reference)
    content_match, function_match = np.moveaxis(np.einsum("i,...ijk->...jk", STAGES, stages), -2, 0)
    share = _over(DELTA * content_match + (1 - DELTA) * function_match, DELTA * (words - function) + (1 - DELTA) * function)
    precision, recall = share[..., 0], share[..., 1]
    penalty = GAMMA * _over(sums[..., 20], sums[..., 21:23].mean(-1)) ** BETA  # chunks / matched words
    score = _over(precision * recall, ALPHA * precision + (1 - ALPHA) * recall) * (1 - penalty)
    return np.where(sums[..., COUNTS] > 0, score, np.nan)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 where below is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)


def _folder() -> Path | None:
    """Where the wheel keeps the program; its Python is not imported."""
    spec = importlib.util.find_spec("pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations or ())), "meteor") if spec else None


def _line(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "")


def _ask(lines: Sequence[str]) -> np.ndarray:
    """What the program answers to each line, N 23."""
    command = ["java", "-jar", "-Xmx2G", JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    answer = subprocess.run(command, cwd=_folder(), input="\n".join(lines) + "\n", capture_output=True, text=True, encoding="utf-8", check=False)
    try:
        return np.array([line.split() for line in answer.stdout.splitlines()], np.float64).reshape(len(lines), COUNTS)
    except ValueError:
        said = (answer.stderr or answer.stdout).strip().rpartition("\n")[2]
        raise ConfigError(f"METEOR: Java failed (exit code {answer.returncode}): {said}", REMEDY) from None
