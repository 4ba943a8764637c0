"""Where do the local losses find phrases?   python -m benchmarks.grounding_arms [--seeds 3] [--real FOLDER]

Six arms at an equal budget (benchmarks/arms.py: trained first, where they are not yet), each judged by `python -m downstream.grounding` with the
cosine map and with the attention its own loss trained, on phantoms of other patients (splits comp, test, swap, decor) and, zero-shot, on real
radiographs with boxes made of radiologists' masks, where such a folder lies beside the checkout. Mean ± sd over seeds; differences are paired
by phrase (meaned over seeds) with intervals over patients. Writes benchmarks/results/grounding_arms.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arms
from benchmarks.core import spread, value
from downstream.grounding.__main__ import main as grounding
from elvis import checkpoints
from elvis.errors import run_cli
from elvis.metrics import bootstrap

HERE = Path(__file__).parent
REAL = HERE.parents[1] / "shared" / "data" / "real"
ATTENTION = {"phrase_image": "phrase_image", "intra_modal": "phrase_image", "shuffled": "phrase_image", "sentence_region": "sentence_region"}
ATTENTION["word_region"] = "word_region"
BLIND = ("random", "centre_prior", "mean_box", "text_prior", "oracle 12x12")
# column -> (split, metric)
PHANTOM = {
    "comp PG": ("comp", "focal_pointing"), "comp mIoU": ("comp", "focal_miou"), "lf PG": ("test", "lf_pointing"), "lf mIoU": ("test", "lf_miou"),
    "swap": ("swap", "swap"), "absent AUROC": ("swap", "absent_auroc"), "PG": ("test", "pointing"), "mIoU": ("test", "miou"), "CNR": ("test", "cnr"),
    "AUROC": ("test", "auroc"), "best box": ("test", "best_box"), "WID": ("test", "wid"), "side": ("test", "side"), "zone": ("test", "zone"),
}  # fmt: skip
REALS = {
    "PG": ("test", "pointing"), "mIoU": ("test", "miou"), "CNR": ("test", "cnr"), "AUROC": ("test", "auroc"), "best box": ("test", "best_box"),
    "PG micro": ("test", "pointing_micro"), "mIoU micro": ("test", "miou_micro"),
}  # fmt: skip
PAIRED = {"phantom": list(PHANTOM)[:4], "real": list(REALS)[:2]}
AGAINST = [("intra_modal", "phrase_image"), ("intra_modal", "shuffled")]
AGAINST += [(arm, "global") for arm in ("phrase_image", "sentence_region", "word_region")]
HEAD = """# Grounding: six arms

`{command}`; trained at commit {trained}, judged at {judged}; {machine}, torch {torch}; {seeds} seeds. Budget of an arm: 600 steps of 32 phantom
studies at 96 px, from scratch, on CPU (`configs/pretrain/{config}.yaml`). A run took {run:.1f} min in the middle (of {least:.1f} to {most:.1f};
two at a time, other work beside some of them), judging all of them {judging:.0f} min.

PG = pointing game; mIoU at .1 to .5 of the map rescaled to [-1, 1]; macro over findings. comp = focal findings in a kind x side x zone never
seen in training; lf = location-free phrases of focal findings; swap and absent AUROC: twins, chance .5. Mean ± sd over seeds. Every row names
its map: the cosine of projected tokens with the projected phrase, or the attention its own loss trained."""
PAIRS = "Cosine maps; per phrase, meaned over seeds, macro over findings; 95 % interval by patient."
ZERO_SHOT = """{phrases} phrases on radiographs of {patients} patients; boxes from radiologists' masks, most phrases a category's name. The models
have seen no real pixel and none of these words: this shows where transfer stands, not what a loss is worth. The priors are fitted on the
other patients (5 folds)."""


def judge(out: Path, name: str, seed: int, words: Sequence[str]) -> Path:
    """All arms of a seed by the public command; nothing is repeated that is done. minutes.json: how long it took."""
    folder = out / f"{name}-{seed}"
    if not (folder / "minutes.json").is_file():
        since = time.monotonic()
        given = [word for arm in arms.ARMS for word in ("--checkpoint", f"{arm}={out / f'{arm}-{seed}'}")]
        maps = f"maps=[cosine,{','.join(dict.fromkeys(ATTENTION.values()))}]"
        grounding(["evaluate", *given, maps, "--out", str(folder), "--quiet", *words])
        (folder / "minutes.json").write_text(json.dumps((time.monotonic() - since) / 60))
    return folder


def minutes(run: Path) -> float:
    """From its config to its results."""
    return ((run / "results.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime) / 60


def rows_of(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(r["row"], r["split"]): r for r in json.loads((folder / "results.json").read_text())}


def cases_of(folder: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(row, split) -> its cases."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (folder / "per_case.csv").open(encoding="utf-8") as file:
        for case in csv.DictReader(file):
            found.setdefault((case["row"], case["split"]), []).append(case)
    return found


def rows() -> dict[str, str]:
    """Row of the evaluation -> its name in the table."""
    named = {}
    for arm, name in arms.NAMES.items():
        named[f"{arm} (cosine)"] = f"{name}; cosine"
        if arm in ATTENTION:
            named[f"{arm} ({ATTENTION[arm]})"] = f"{name}; its attention"
    return named | {row: row for row in BLIND}


def table(folders: Sequence[Path], columns: Mapping[str, tuple[str, str]]) -> str:
    runs = [rows_of(folder) for folder in folders]
    lines = ["| arm; map | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, name in rows().items():
        cells = [spread([value(run.get((row, split)), metric) for run in (runs[:1] if row in BLIND else runs)]) for split, metric in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(folders: Sequence[Path], columns: Mapping[str, tuple[str, str]], names: Sequence[str]) -> str:
    """Cosine maps, per phrase, meaned over seeds, macro over findings; 95 % interval by patient."""
    runs = [cases_of(folder) for folder in folders]
    pairs = [(f"{a} (cosine)", f"{b} (cosine)", f"{arms.NAMES[a]} minus {arms.NAMES[b]}") for a, b in AGAINST]
    pairs += [(f"{a} (cosine)", "text_prior", f"{arms.NAMES[a]} minus text-only prior") for a in arms.ARMS]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for one, other, name in pairs:
        lines.append(f"| {name} | " + " | ".join(_difference(runs, one, other, *columns[column]) for column in names) + " |")
    return "\n".join(lines)


def _difference(runs: Sequence[Mapping[tuple[str, str], list[dict[str, str]]]], one: str, other: str, split: str, metric: str) -> str:
    prefix, _, plain = metric.rpartition("_") if metric.startswith(("lf_", "focal_")) else ("", "", metric)
    wanted = {"lf": {"focal", "location_free"}, "focal": {"focal"}, "": set()}[prefix]
    sides = []
    for row in (one, other):
        per_seed = [[case for case in run[row, split] if wanted <= set(case["tags"].split())] for run in runs]
        sides.append((per_seed[0], np.mean([[float(case[plain] or "nan") for case in cases] for cases in per_seed], axis=0)))
    (cases, ours), (_, theirs) = sides
    m = bootstrap.paired(ours, theirs, [c["patient"] for c in cases], categories=[c["category"] for c in cases])
    return f"{m.value:+.3f} [{m.low:+.3f}, {m.high:+.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grounding_arms", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/arms", help="where the runs are, or go (default runs/arms)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs trained at a time, which share the cores (default 2)")
    parser.add_argument("--real", default=str(REAL), help="folder of real radiographs with boxes/findings_boxes.json; skipped, saying so, if absent")
    parser.add_argument("--results", default=str(HERE / "results" / "grounding_arms"), help="where the table goes, without suffix")
    args = parser.parse_args(argv)
    out, seeds = Path(args.out), range(args.seeds)
    arms.launch("benchmarks.arms", [(a, s) for s in seeds for a in arms.ARMS if not (out / f"{a}-{s}/results.json").is_file()], out, args.jobs, [])
    facts = arms.origin(out / f"{arm}-{seed}" for arm in arms.ARMS for seed in seeds)
    sets = {"phantom": ["--config", "phantom"]}
    if Path(args.real, "boxes/findings_boxes.json").is_file():
        sets["real"] = ["--config", "manifest", f"data.root={args.real}", "data.boxes=boxes/findings_boxes.json"]
    else:
        print(f"no real radiographs at {args.real}: only phantoms are judged")
    folders = {name: [judge(out, name, seed, words) for seed in seeds] for name, words in sets.items()}
    origin = arms.origin(folder for some in folders.values() for folder in some)
    command = "python -m benchmarks.grounding_arms" + (f" --seeds {args.seeds}" if args.seeds != 3 else "")
    took = sorted(minutes(out / f"{arm}-{seed}") for arm in arms.ARMS for seed in seeds)
    judging = sum(json.loads((folder / "minutes.json").read_text()) for some in folders.values() for folder in some)
    spent = {"run": took[len(took) // 2], "least": took[0], "most": took[-1], "judging": judging}
    about = {"trained": facts["commit"], "judged": origin["commit"], "machine": facts["machine"], "torch": facts["versions"]["torch"]}
    parts = [HEAD.format(command=command, **spent, seeds=args.seeds, config=arms.CONFIG, **about)]
    parts += ["## Phantoms", table(folders["phantom"], PHANTOM)]
    parts += ["## Phantoms, paired differences", PAIRS, differences(folders["phantom"], PHANTOM, PAIRED["phantom"])]
    if "real" in folders:
        kept = rows_of(folders["real"][0])["random", "test"]["config"]
        parts += ["## Real radiographs, zero-shot from phantoms", ZERO_SHOT.format(**kept), table(folders["real"], REALS)]
        parts += ["## Real radiographs, paired differences", PAIRS, differences(folders["real"], REALS, PAIRED["real"])]
    text = "\n\n".join(parts) + "\n"
    target = Path(args.results)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text(text)
    told = {name: set(columns.values()) for name, columns in (("phantom", PHANTOM), ("real", REALS))}
    found = {
        name: [
            {f"{row} | {split}": {m: v for m, v in r["metrics"].items() if (split, m) in told[name]} for (row, split), r in rows_of(f).items()}
            for f in some
        ]
        for name, some in folders.items()
    }
    summary = {"command": command, "trained": facts, "judged": checkpoints.provenance({}), "seeds": found}
    target.with_suffix(".json").write_text(json.dumps(summary, separators=(",", ":")))
    print(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
