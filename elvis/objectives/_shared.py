"""What several objectives share: an option that is one of a few words, the negatives of a study, the units to compare, a computation in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elvis.distributed import gather, own_rows
from elvis.errors import ConfigError, nearest
from elvis.ops import real_places
from elvis.types import Batch

T = TypeVar("T")


def choose(option: str, word: str, table: Mapping[str, T]) -> T:
    """What `word` stands for in `table`. Raises ConfigError with the allowed words."""
    if word not in table:
        raise ConfigError(f"option '{option}' has no choice '{word}'{nearest(str(word), table)}", f"write {option}: {' | '.join(table)}")
    return table[word]


def study_pairs(batch: Batch, real: Tensor) -> tuple[Tensor, Tensor]:
    """Own studies (rows) against those of all ranks (columns): the own pair, and the negatives, B W*B bool each.

    A negative is another study with another report; an equal study (or group) or an equal text is neither positive
    nor negative. `real` (B bool) says which studies have both an image and a report; the others take no part.
    """
    report = batch.units["report"].group[:, 0]  # B, hash of the text
    columns = gather(real)
    own = own_rows(len(batch), real.device).unsqueeze(-1) == torch.arange(len(columns), device=real.device)
    other = (batch.study.unsqueeze(-1) != gather(batch.study)) & (report.unsqueeze(-1) != gather(report))
    both = real.unsqueeze(-1) & columns
    return own & both, other & both


def rows_to_compare(mask: Tensor) -> Tensor:
    """Places of the real among all units, mask B U -> N int64; but on a GPU of all units, since asking how many are real would wait for it."""
    return real_places(mask) if mask.device.type == "cpu" else torch.arange(mask.numel(), device=mask.device)


def says(group: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Which report says, word by word, what a unit says: groups and mask B U of all reports, `rows` N of their units -> B N bool."""
    kind = group.flatten()[rows]  # N
    said = torch.zeros(len(mask), len(rows), dtype=torch.bool, device=mask.device)
    for one, there in zip(group.unbind(1), mask.unbind(1), strict=True):  # never B U N at once
        said |= there[:, None] & (one[:, None] == kind)
    return said


def in_chunks(score: Callable[..., Tensor], *rows: Tensor, chunk: int) -> Tensor:
    """`score(*rows)` -> B n for all rows at once or, where there are more than `chunk`, part by part, recomputed in the backward."""
    if len(rows[0]) <= chunk:
        return score(*rows)
    split = zip(*(r.split(chunk) for r in rows), strict=True)
    return torch.cat([checkpoint(score, *some, use_reentrant=False, preserve_rng_state=False) for some in split], 1)
