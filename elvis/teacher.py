"""A copy of the encoders that follows them: features a loss may hold the model to, without being moved by that loss itself.

    copy <- d copy + (1 - d) encoder       after every step that was taken; d = 1: it stays as the encoders began (pretrained ones, say)

Mean teacher (arXiv 1703.01780), MoCo and BYOL keep such a copy; that ELVIS' similarities are taken from one is ours. It gives features BEFORE the
projections, without gradient and without dropout. Batch norms that train take the statistics of the batch, as the encoder's own do in training,
and keep none: running ones would be those of other weights than the copy's, and of an encoder at its start those of no data at all. So with d = 0
the copy gives what the encoder gives. Frozen ones keep theirs, as they do in the encoder.

It is a part of the trainer, not of the model: saved with the trainer's state and resumed, never exported.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from elvis.model import MeanPool, VisionLanguageModel
from elvis.types import Batch, Teaching


class Teacher(nn.Module):
    """Of the sides that `needs` ("teacher.image_raw.tokens", "teacher.text_raw.sentence", ...) ask for; the other encoder is not copied."""

    def __init__(self, model: VisionLanguageModel, needs: frozenset[str], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.sides = [side for side in ("image", "text") if any(need.startswith(f"teacher.{side}_raw.") for need in needs)]
        self.copy = copy.deepcopy(model)
        for name in [*self.copy._modules, *self.copy._parameters]:
            if name not in self.sides:
                setattr(self.copy, name, None)
        self.copy.image_pool = self.copy.text_pool = MeanPool()  # nothing reads what is pooled
        for norm in self.copy.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in norm.parameters(recurse=False)):
                norm.track_running_stats = False
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None  # in eval mode, too, those of the batch
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, batch: Batch) -> Teaching:
        counts: dict[str, Any] = batch.extra.get("counts", {})
        image = self.copy.see(batch.images, batch.view_mask, counts.get("views")) if "image" in self.sides else None
        text = self.copy.read(batch.text_ids, batch.text_mask, batch.units, counts.get("units"))[0] if "text" in self.sides else None
        return Teaching(image, text)

    @torch.no_grad()
    def follow(self, model: VisionLanguageModel, bad: Tensor) -> None:
        """After a step of the optimizer. bad: a scalar on the device, nonzero = the step was left out, and the copy stays."""
        now = dict(model.named_parameters())
        pairs = [(mine, now[name]) for name, mine in self.copy.named_parameters() if now[name].requires_grad]
        if self.decay < 1 and pairs:
            mine, theirs = zip(*pairs, strict=True)
            change = torch._foreach_sub(theirs, mine)
            torch._foreach_mul_(change, (1 - self.decay) * (bad == 0))
            torch._foreach_add_(mine, change)
