"""Where a checkpoint came from: provenance.json. No user, host or path."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


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
    """The commit of the checkout this runs from, `+` if it was changed (what benchmarks write of their results is no change), or 'unknown'."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        ask = ["git", "-C", str(root), "status", "--porcelain", "-uno", "--", ".", ":(exclude)benchmarks/results"]
        dirty = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
