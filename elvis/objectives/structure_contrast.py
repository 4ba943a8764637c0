"""Structure-wise contrast (SO-ITC): what a query of a structure saw, against the text of that structure, among the texts of all.

    o   observation of structure s in image i (head `region_query`, learned, one query a structure);   u   text of s in report i, not trained
    z   = o . [u ; U] / t          S = u . [u ; U] / t          U: a queue of earlier texts, unit vectors all
    y   = a softmax(S) + (1 - a) [own text]                     a = 0: hard targets
    L   = - sum_j m_j y_j log softmax_j(z)                      m = 1 for texts of the same structure, `cross` for those of others

SO-ITC (arXiv 2603.04878) as its authors' code has it, a RECONSTRUCTION: the abstract names L_so-itc and L_so-kl, the code builds the one mixed
target y, which equals their sum (1 - a) CE + a KL up to the entropy of softmax(S). a = .5 by the paper, .2 in the code. The softmax keeps the
texts of all structures; only the target is weighted. Image to text alone: the text tower is frozen.

Never a negative, and in no sum: a text equal to the own one (in the batch or the queue; "No abnormality found in the lung." is everyone's), and what
the own study, or another one of its group, says of the same structure. As published both are negatives.

The queue holds `queue` texts of each structure:

    diverse   of old and new the least similar stay: score = mean similarity of a new text to the texts of its structure (published: Q = 1000)
    fifo      the newest stay; a text that comes again is new

Published, a score is never looked at again, so that rare texts of the first steps stay for good; equal texts fill the queue; and before it is
full it holds random vectors, which are negatives, too. `rescore` (every so many steps), `unique` and `masked` mend that one by one.
All ranks' texts enter the queue in rank order, so it is the same on every rank, and that of one process with the whole batch.

All structures go through the queue at once, in shapes that no value decides, so that nothing waits for a GPU: of the S x (Q + W B) candidates,
old and new, Q of each structure stay by a sort, and what cannot stay is sorted behind what can.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elvis.distributed import gather, rank
from elvis.errors import ConfigError
from elvis.objectives._shared import choose, rows_to_compare
from elvis.ops import masked_log_softmax, masked_softmax, masked_zero, normalize
from elvis.registry import OBJECTIVES
from elvis.types import Batch, Pair

NEVER = 1e4  # the score of a place that was never filled: it is the first to go


@OBJECTIVES.register("structure_contrast")
class StructureContrast(nn.Module):
    """Term `image_to_text`, a mean over the structures that have a text and an image."""

    def __init__(
        self,
        *,
        width: int,  # D of the shared space
        head: str = "structure",
        structures: int = 10,  # as many as the head has queries
        alpha: float = 0.5,  # of the soft target; the authors' code has 0.2
        cross: float = 0.1,  # weight of a target of another structure
        tau: float = 0.07,
        queue: int = 0,  # texts of each structure; 0 = no queue. Published: 1000
        keep: str = "diverse",
        rescore: int = 100,  # ours; 0 = never (published)
        unique: bool = True,  # ours; false = equal texts stand in it several times (published)
        masked: bool = True,  # ours; false = it begins full of random vectors (published)
    ) -> None:
        super().__init__()
        if not (0 <= alpha <= 1 and cross >= 0 and tau > 0 and queue >= 0 and rescore >= 0 and structures > 0):
            raise ConfigError(
                f"structure_contrast with alpha {alpha}, cross {cross}, tau {tau}, queue {queue}, rescore {rescore}, structures {structures}",
                "alpha lies in [0, 1], tau and structures are above 0, the others not below",
            )
        self.structure_head = head  # whose queries are structures
        self.detached = frozenset({"text.structure"})  # what it reads without training it
        self.needs = self.detached | {f"regions.{head}"}
        self.alpha, self.cross, self.tau, self.queue = alpha, cross, tau, queue
        self.keep = choose("keep", keep, {"diverse": self.diverse, "fifo": self.newest})
        self.newest_stay = keep == "fifo"
        self.rescore, self.unique, self.masked = rescore if keep == "diverse" else 0, unique, masked
        start = normalize(torch.randn(structures, queue, width)) if not masked else torch.zeros(structures, queue, width)
        self.register_buffer("vectors", start)  # S Q D
        self.register_buffer("group", torch.zeros(structures, queue, dtype=torch.int64))
        self.register_buffer("study", torch.zeros(structures, queue, dtype=torch.int64))
        self.register_buffer("score", torch.full((structures, queue), NEVER))
        self.register_buffer("filled", torch.zeros(structures, queue, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, pair: Pair, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        regions, text = pair.regions[self.structure_head], pair.text.units["structure"]
        real = regions.mask & text.mask  # B S
        seen = normalize(masked_zero(regions.vectors, real))  # B S D
        told = normalize(masked_zero(text.vectors.detach(), text.mask))
        texts, group, study, there = gather(told), gather(text.group), gather(batch.study), gather(text.mask)  # W*B S D, W*B S, W*B, W*B S
        columns, about = self.columns(texts, group, study, there)
        rows = rows_to_compare(real)  # R
        relations = self.relations(rows, text.group, batch.study, about)
        each = self.compare(seen.flatten(0, 1)[rows], told.flatten(0, 1)[rows], columns, relations)
        each = each.masked_fill(~real.flatten()[rows], 0.0)
        if self.training and self.queue and torch.is_grad_enabled():
            self.enqueue(texts, group, study, there)
        return {"image_to_text": (each.sum(), real.sum().to(each.dtype))}

    def compare(self, seen: Tensor, told: Tensor, columns: Tensor, relations: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Observations and own texts R D against texts C D -> R. relations R C: own, same structure, taking part."""
        own, same, part = relations
        logits, alike = seen @ columns.T / self.tau, told @ columns.T / self.tau  # R C
        target = self.alpha * masked_softmax(alike, part) + (1 - self.alpha) * own.to(logits.dtype)
        weight = same.to(logits.dtype).masked_fill(~same, self.cross)
        return -(weight * target * masked_log_softmax(logits, part)).sum(-1)

    def columns(self, texts: Tensor, group: Tensor, study: Tensor, there: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Texts of all ranks W*B S D, then the queue, as C D; with structure, group, study, whether it is one, and its place in the batch (-1)."""
        studies, count = group.shape
        kind = torch.arange(count, device=group.device)
        about = [kind.expand(studies, -1), group, study[:, None].expand(-1, count), there]
        place = torch.arange(studies * count, device=group.device)
        vectors = texts.flatten(0, 1)
        if not self.queue:
            return vectors, (*(a.flatten() for a in about), place)
        stored = [kind[:, None].expand(-1, self.queue), self.group, self.study, self._held()]
        about = [torch.cat([a.flatten(), b.flatten()]) for a, b in zip(about, stored, strict=True)]
        place = torch.cat([place, place.new_full((count * self.queue,), -1)])
        return torch.cat([vectors, self.vectors.flatten(0, 1).to(vectors.dtype)]), (*about, place)

    def relations(self, rows: Tensor, group: Tensor, study: Tensor, about: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows R are places among the B S structures of this rank; columns C: (own text, of the same structure, taking part), R C bool each."""
        kind, groups, studies, there, place = about
        own = (rows + rank() * group.numel())[:, None] == place
        same = (rows % group.shape[1])[:, None] == kind
        equal = group.flatten()[rows][:, None] == groups
        said = same & (study[rows // group.shape[1]][:, None] == studies)
        return own, same, own | (there & ~equal & ~said)

    # -------------------------------------------------------------------------------------------------------- queue

    @torch.no_grad()
    def enqueue(self, texts: Tensor, group: Tensor, study: Tensor, there: Tensor) -> None:
        """The texts of a step, of all ranks, W*B S D, into the blocks of their structures."""
        self.steps += 1
        if self.rescore:
            self.score.copy_(torch.where(self.steps % self.rescore == 0, self.rescored(), self.score))
        new = texts.transpose(0, 1).to(self.vectors.dtype)  # S W*B D
        some = (new, group.T, study.expand(len(new), -1), self.scores(new), there.T)
        vectors, group, study, score, filled = (torch.cat(both, 1) for both in zip(self._block(), some, strict=True))  # S Q+W*B
        stays = torch.cat([torch.ones_like(self.filled), there.T], 1)
        if self.unique:
            stays = stays & one_of_each(group, filled, last=self.newest_stay)
        chosen = self.keep(score, filled, stays)  # S Q
        filled = filled & stays
        for held, pool in zip(self._block(), (vectors, group, study, score.masked_fill(~filled, NEVER), filled), strict=True):
            held.copy_(pool[torch.arange(len(pool), device=pool.device)[:, None], chosen])

    def _block(self) -> tuple[Tensor, ...]:
        return self.vectors, self.group, self.study, self.score, self.filled

    def scores(self, vectors: Tensor) -> Tensor:
        """Mean similarity of texts S N D to those in the block of their structure; 0 while that is empty. Published: also to the random ones."""
        return self._alike(vectors) / self._held().sum(1, keepdim=True).clamp_min(1)

    def rescored(self) -> Tensor:
        """The scores of the blocks today: mean similarity of each text to the others, S Q."""
        others = self._alike(self.vectors) - self.vectors.square().sum(-1)
        return torch.where(self.filled, others / (self._held().sum(1, keepdim=True) - 1).clamp_min(1), NEVER)

    def _alike(self, vectors: Tensor) -> Tensor:
        """Texts S N D -> S N: their similarities to a block, summed; the sum of products is the product with the sum."""
        held = self._held().to(vectors.dtype).unsqueeze(1) @ self.vectors  # S 1 D
        return (vectors @ held.mT).squeeze(-1)

    def _held(self) -> Tensor:
        """Which places of the queue count, S Q bool: not the random ones where these are masked."""
        return self.filled if self.masked else torch.ones_like(self.filled)

    # Which Q of the candidates are kept, places S Q: of their scores, whether they are texts, and whether they may stay, S N each.

    def diverse(self, score: Tensor, filled: Tensor, stays: Tensor) -> Tensor:
        """Those of the lowest scores; those that were never filled are the first to go."""
        worst = torch.where(filled, score, NEVER).masked_fill(~stays, 2 * NEVER)
        return worst.argsort(dim=1, stable=True)[:, : self.queue]

    def newest(self, score: Tensor, filled: Tensor, stays: Tensor) -> Tensor:
        """The last ones, in their order; those that were never filled are the oldest."""
        age = (filled.to(torch.int8) + 1) * stays
        return age.argsort(dim=1, stable=True)[:, -self.queue :]


def one_of_each(group: Tensor, filled: Tensor, *, last: bool) -> Tensor:
    """Of candidates S N, those that are not filled, and of each group of a row one that is, its first or its last: S N bool."""
    if last:
        return one_of_each(group.flip(1), filled.flip(1), last=False).flip(1)
    order = (~filled).to(torch.int8).argsort(dim=1, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))  # by group; in a group by filled, then by place
    kinds = group.gather(1, order)
    first = torch.ones_like(filled)
    first[:, 1:] = kinds[:, 1:] != kinds[:, :-1]
    return ~filled | torch.zeros_like(filled).scatter(1, order, first)
