"""The one-way rule, read from the imports: who may import whom, and where heavy libraries may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("elvis", "downstream") for p in (ROOT / top).rglob("*.py"))

# layer of a module = the first prefix that fits; a file may import its own layer's package and what is listed for it
ALLOWED = {
    "elvis.types": set(),
    "elvis.notice": set(),
    "elvis.terminal": set(),
    "elvis.errors": {"elvis.terminal"},
    "elvis.distributed": {"elvis.errors"},
    "elvis.hub": {"elvis.errors"},
    "elvis.ops": {"elvis.types"},
    "elvis.registry": {"elvis.errors", "elvis.types", "elvis.ops"},
    "elvis.config": {"elvis.errors", "elvis.registry", "elvis.backbones", "elvis.pooling"},
    "elvis.pooling": {"elvis.types", "elvis.ops", "elvis.errors", "elvis.distributed"},
    "elvis.weights": {"elvis.errors"},
    "elvis.backbones": {"elvis.types", "elvis.ops", "elvis.registry", "elvis.errors", "elvis.hub", "elvis.weights"},
    "elvis.text": {"elvis.types", "elvis.ops", "elvis.registry", "elvis.errors", "elvis.hub", "elvis.weights"},
    "elvis.text.open_clip": {"elvis.types", "elvis.registry", "elvis.errors", "elvis.hub", "elvis.text", "elvis.backbones.open_clip"},
    "elvis.kernels": {"elvis.types", "elvis.ops", "elvis.errors"},
    "elvis.objectives": {"elvis.types", "elvis.ops", "elvis.registry", "elvis.errors", "elvis.distributed", "elvis.pooling", "elvis.kernels"},
    "elvis.metrics": {"elvis.types", "elvis.ops"},
    "elvis.data.__main__": {
        "elvis.terminal",
        "elvis.reference",
        "elvis.types",
        "elvis.registry",
        "elvis.config",
        "elvis.errors",
        "elvis.data",
        "elvis.results",
    },
    "elvis.data": {"elvis.terminal", "elvis.types", "elvis.registry", "elvis.config", "elvis.errors"},
    "elvis.model": {"elvis.types", "elvis.ops", "elvis.registry", "elvis.errors", "elvis.pooling", "elvis.backbones"},
    "elvis.pretrained": {"elvis.types", "elvis.ops", "elvis.errors", "elvis.model", "elvis.data"},
    "elvis.checkpoints": {
        "elvis.terminal",
        "elvis.types",
        "elvis.errors",
        "elvis.registry",
        "elvis.backbones",
        "elvis.model",
        "elvis.pretrained",
        "elvis.data",
        "elvis.hub",
    },
    "elvis.interop.transformers": {
        "elvis.types",
        "elvis.errors",
        "elvis.registry",
        "elvis.backbones",
        "elvis.checkpoints",
        "elvis.model",
        "elvis.data",
    },
    "elvis.interop": {"elvis.types", "elvis.errors", "elvis.registry", "elvis.backbones", "elvis.checkpoints"},
    "elvis.extract": {"elvis"},
    "elvis.pictures": {"elvis.types"},
    "elvis.results": {"elvis.terminal", "elvis.types", "elvis.errors", "elvis.pictures"},
    "elvis.evaluation": {"elvis.types", "elvis.ops", "elvis.errors", "elvis.metrics", "elvis.pretrained", "elvis.data"},
    "elvis.reference": {"elvis.errors", "elvis.registry", "elvis.config", "elvis.backbones", "elvis.pooling", "elvis.data"},
    "elvis.fabric": {"elvis.types", "elvis.errors", "elvis.config", "elvis.distributed"},
    "elvis.board": set(),
    "elvis.training": {
        "elvis.terminal",
        "elvis.board",
        "elvis.fabric",
        "elvis.types",
        "elvis.ops",
        "elvis.errors",
        "elvis.config",
        "elvis.distributed",
    },
    "elvis.teacher": {"elvis.types", "elvis.model"},
    "elvis.assembly": {
        "elvis.teacher",
        "elvis.errors",
        "elvis.config",
        "elvis.registry",
        "elvis.backbones",
        "elvis.model",
        "elvis.pretrained",
        "elvis.data",
        "elvis.training",
    },
    "elvis.doctor": {"elvis.terminal", "elvis.errors", "elvis.data"},
    "elvis.pretrain": {"elvis"},
    "elvis": {"elvis"},
}
HEAVY = {
    "lightning": {"elvis.fabric"},
    "transformers": {"elvis.text.hf", "elvis.backbones.vit", "elvis.interop.transformers"},
    "open_clip": {"elvis.backbones.open_clip", "elvis.text.open_clip"},
    "segmentation_models_pytorch": {"elvis.interop.smp"},
    "albumentations": {"elvis.data.augment"},
    "matplotlib": {"elvis.pictures"},
    "tensorboard": {"elvis.board"},
    "timm": {"elvis.backbones", "elvis.backbones.cnn", "elvis.backbones.vit", "elvis.interop.timm"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules a file imports anywhere, also inside functions; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "elvis" else {node.module}
    return found


def layer(module: str) -> str:
    return max((name for name in ALLOWED if module == name or module.startswith(name + ".")), key=len)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    module = module_name(path)
    ours = {m for m in imports(path) if m == "elvis" or m.startswith(("elvis.", "downstream"))}
    if module.startswith("downstream"):
        task = ".".join(module.split(".")[:2])
        assert all(m.startswith("elvis") or m.startswith(task) for m in ours), f"{module} imports another task"
        return
    home = layer(module)
    allowed = ALLOWED[home] | {home, "elvis.notice"}
    for imported in ours:
        assert not imported.startswith("downstream"), f"{module} imports {imported}"
        assert any(imported == a or imported.startswith(a + ".") for a in allowed), f"{module} (layer {home}) imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_libraries_stand_in_named_files_only(path: Path) -> None:
    module = module_name(path)
    if module.startswith("downstream"):
        return
    for imported in imports(path):
        homes = HEAVY.get(imported.partition(".")[0])
        assert homes is None or module in homes, f"{module} imports {imported}"


def test_import_elvis_is_quick_and_brings_no_torch() -> None:
    code = (
        "import time; t = time.perf_counter(); import elvis, sys; s = time.perf_counter() - t; assert 'torch' not in sys.modules; assert s < 0.2, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_loading_the_registry_brings_no_trainer() -> None:
    code = (
        "import sys; from elvis.registry import OBJECTIVES, BACKBONES, DATASETS; OBJECTIVES.names(); BACKBONES.names(); DATASETS.names();"
        "heavy = {'lightning', 'transformers', 'open_clip', 'albumentations', 'matplotlib', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
