"""FILIP: every region looks for its best word, every word for its best region; pairs are compared by how good these are on average.

    s_ij = mean over regions r of image i of  max over words t of report j   of  cos(v_ir, w_jt)         image to text
    z_ij = mean over words t of report j  of  max over regions r of image i  of  cos(v_ir, w_jt)         text to image
    L    = NCE of s rows i, and of z rows j, both times the model's learned scale                         Yao et al. 2021, arXiv 2111.07783

Means go over what is real, of images and of texts (the paper: non-padded tokens). A study of the same group or with the same text is no negative
(`equal_text: negative`: one with the same text is, as in the paper). `targets` soft and mined let other studies with alike reports be right, too:
ours here, with the formulas of elvis.objectives._shared.
Not here: the paper keeps of the tokens of other ranks the best quarter, to save traffic.

Patches stay on their rank: gathered texts meet local images, then both W*B x W*B similarities are gathered for the text rows. `chunk` texts at a time
meet the images, and again in the backward: no B B R T tensor. Padding needs no mask there: it stands for a real unit of its own image or text, so
that a maximum cannot see it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elvis.distributed import gather, gather_padded, own_rows
from elvis.objectives._shared import StudyTargets, choose, in_chunks, matched
from elvis.ops import dots, masked_mean, masked_zero, normalize
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair


@OBJECTIVES.register("filip")
class Filip(nn.Module):
    """Terms `image_to_text` and `text_to_image`, each a mean over studies with a region and a unit, times its weight."""

    def __init__(
        self,
        *,
        unit: str = "word",  # FILIP: tokens of the text; or its sentences
        image_to_text: float = 0.5,  # weight of the direction; FILIP: the mean of both
        text_to_image: float = 0.5,
        chunk: int = 8,  # texts scored at once. Changes memory, not the result
        targets: str = "own",  # FILIP; or soft, mined (see elvis.objectives._shared)
        equal_text: str = "ignore",  # ours; negative = FILIP
        alpha: float = 0.5,  # of the soft target, SO-ITC
        target_temperature: float = 0.1,  # of the soft target; ours
        threshold: float = 0.9,  # of the mined positives; ours
    ) -> None:
        super().__init__()
        self.unit = choose("unit", unit, {"word": "word", "sentence": "sentence"})
        self.targets = StudyTargets(
            "filip",
            targets=targets, equal_text=equal_text, alpha=alpha, target_temperature=target_temperature, threshold=threshold,
        )  # fmt: skip
        self.detached = self.targets.needs
        self.needs = self.detached | {"image.tokens", f"text.{unit}", "scale"}
        self.weight = {"image_to_text": image_to_text, "text_to_image": text_to_image}
        self.chunk = chunk

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        image, unit = pair.image, pair.text.units[self.unit]
        regions, units = normalize(masked_zero(image.tokens, image.mask)), normalize(masked_zero(unit.vectors, unit.mask))
        local = pair.scale * best_matches(gather_padded(units), regions, gather_padded(unit.mask), image.mask, chunk=self.chunk)  # B W*B 2

        real = image.mask.any(1) & unit.mask.any(1)  # B
        right = self.targets(pair, batch, real)  # B W*B each
        own_texts = gather(local[..., 1])[:, own_rows(len(batch), real.device)].T  # B W*B: rows are this rank's texts, columns all images
        by_image, by_text = matched(local[..., 0], *right), matched(own_texts, *right)
        return {
            name: (self.weight[name] * each.sum(), real.sum().to(each.dtype))
            for name, each in (("image_to_text", by_image), ("text_to_image", by_text))
        }


def without_padding(x: Tensor, mask: Tensor) -> Tensor:
    """x B N D with a real row of its own where `mask` B N is False (any row where nothing is real)."""
    real = mask.int().argmax(1)[:, None, None].expand(-1, 1, x.shape[-1])  # B 1 D
    return x.where(mask.unsqueeze(-1), x.gather(1, real))


def best_matches(units: Tensor, regions: Tensor, unit_mask: Tensor, region_mask: Tensor, *, chunk: int = 8) -> Tensor:
    """Both similarities of all pairs: unit vectors I T D of texts and B R D of images (finite where masked), masks I T and B R -> B I 2."""
    units, regions = without_padding(units, unit_mask), without_padding(regions, region_mask)

    def score(some: Tensor, mask: Tensor) -> Tensor:  # n T D, n T -> B n 2
        s = dots(regions.flatten(0, 1), some.flatten(0, 1)).unflatten(0, regions.shape[:2]).unflatten(-1, mask.shape)  # B R n T
        by_region = masked_mean(s.amax(-1), region_mask)  # B n
        by_unit = masked_mean(s.amax(1).unsqueeze(-1), mask).squeeze(-1)
        return torch.stack([by_region, by_unit], -1)

    return in_chunks(score, units, unit_mask, chunk=chunk)
