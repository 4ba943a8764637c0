"""Entry points of torch.hub: torch.hub.load(REPO, "backbone", checkpoint="runs/elvis_phantom"), also "pretrained"; source="local" for a clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from elvis.pretrained import Pretrained

dependencies = ["torch", "timm", "safetensors", "omegaconf", "tokenizers", "PIL", "numpy", "xxhash", "yaml"]


def backbone(name: str = "", *, checkpoint: str = "", projected: bool = False, **options: Any) -> nn.Module:
    """An image encoder: of a checkpoint (a directory or hf-hub:OWNER/NAME), or a new one by name, with options of elvis.create_backbone."""
    import elvis

    if bool(name) == bool(checkpoint):
        raise elvis.ConfigError("a backbone has a name or a checkpoint", 'backbone("resnet50", in_chans=1), or backbone(checkpoint=DIR)')
    if name:
        return elvis.create_backbone(name, **options)
    if options:
        raise elvis.ConfigError(f"a checkpoint has its own {', '.join(options)}", "leave them out")
    return elvis.load_backbone(checkpoint, projected=projected)


def pretrained(checkpoint: str) -> Pretrained:
    """The whole model of a checkpoint, with tokenizer and preprocessing: images and phrases in, features and maps out."""
    import elvis

    return elvis.load_pretrained(checkpoint)
