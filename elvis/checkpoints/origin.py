"""Where a checkpoint came from and what is known of it, in words: provenance.json and MODEL_CARD.md. No user, host or path."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from elvis.pretrained import Pretrained


def provenance(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Where a number came from: versions, commit, machine kind; no user, host or path."""
    versions = {}
    for package in ("torch", "timm", "transformers", "lightning", "albumentations"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores" + (
        f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    )
    return {"commit": commit(), "config": digest, "python": platform.python_version(), "versions": versions, "machine": machine, **more}


def commit() -> str:
    """The commit of the checkout this runs from, `+` if it was changed, or 'unknown'."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def card(pretrained: Pretrained, metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: what it is, how to load it, what was measured, what it is not."""
    spec = pretrained.model.image.spec
    stride = " x ".join(map(str, spec.cell if len(set(spec.cell)) > 1 else spec.cell[:1]))
    rows = "".join(f"| {k} | {v:.4g} |\n" for k, v in metrics.items() if isinstance(v, (int, float)))
    measured = f"| metric | value |\n|---|---|\n{rows}" if rows else "Nothing was measured yet.\n"
    return (
        f"# elvis checkpoint\n\n{spec.name}, {spec.ndim}D, {spec.in_channels} channel(s), tokens of width {spec.width} at stride {stride}; "
        f"shared space of {pretrained.model.dim} dimensions.\n\n"
        "```python\nimport elvis\nbackbone = elvis.load_backbone(DIR)          # tokens, grid, pyramid\n"
        'model = elvis.load_pretrained(DIR)           # + text: model.similarity(images, ["small left effusion"])\n```\n\n'
        f"## Measured\n\n{measured}\n## Origin\n\ncommit {provenance.get('commit')}, data {provenance.get('data', 'unknown')}, "
        f"step {provenance.get('step', '?')}.\n\n"
        "## Limits\n\nResearch only; not a medical device. It was trained on the data named above and nothing is known of others.\n"
    )
