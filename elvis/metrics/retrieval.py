"""Which report belongs to this image, and which image to this report, among N pairs: recall at k, both ways.

Reports repeat ("No acute abnormality."), so an EQUAL TEXT counts as correct: `group` holds the hash of each report's
normalised text. The rank of a query is that of its best correct candidate, and ties are pessimistic: a wrong candidate
with the same score stands before it. A model that gives every pair the same score therefore has recall 0, not 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elvis.ops import normalize

ROWS = 1024  # queries scored at once: 1024 x N floats


def ranks(image: Tensor, text: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """image N D, text N D, group N int64 -> (image to text, text to image), N int64 each: wrong candidates before the first correct one.

    Recall at k is `(ranks < k).float().mean()`. Similarity is the cosine.
    """
    image, text = normalize(image), normalize(text)
    return _ranks(image, text, group), _ranks(text, image, group)


def structure_ranks(seen: Tensor, told: Tensor, mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """`ranks` where images and texts are compared structure by structure: seen N S D, told N S D, mask N S bool (what a report tells of), group N.

    Similarity of image i and report j is the mean cosine over the structures that report j has a text for.
    """
    weight = mask / mask.sum(1, keepdim=True).clamp_min(1)  # N S
    seen, told = normalize(seen).flatten(1), (normalize(told) * weight.unsqueeze(-1)).flatten(1)  # N S*D
    return _ranks(seen, told, group), _ranks(told, seen, group)


def _ranks(queries: Tensor, candidates: Tensor, group: Tensor) -> Tensor:
    out = []
    for rows, own in zip(queries.split(ROWS), group.split(ROWS), strict=True):
        scores = rows @ candidates.T  # R N
        correct = own[:, None] == group
        best = scores.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
        out.append(((scores >= best) & ~correct).sum(1))
    return torch.cat(out)
