"""The order studies come in: pure functions of (seed, epoch, study ids), so that there is nothing to restore.

    epoch_order        every study once, sorted by a hash
    balanced_order     blocks of one study of each class; the rarer classes begin again, each time in another order
    by_length          steps of studies whose texts are about as long, inside windows of a few steps: less padding
    StepSampler        step -> the (epoch, index) pairs of this rank

A step is cut among the ranks: W ranks of b studies see what one process with W * b sees, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from elvis.data.reports import flags
from elvis.data.studies import enough, stable_hash
from elvis.errors import DataError
from elvis.types import Study

Place = tuple[int, int]  # class (0 where nothing is balanced), index of the study


def draw(seed: int, epoch: int, id: str, what: str = "") -> int:
    """A non-negative 63-bit integer, a pure function of its arguments: all the randomness of the data path."""
    return stable_hash(f"{seed} {epoch} {what} {id}") & (2**63 - 1)


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Indices of the ids in the order of one epoch: sorted by a hash of (seed, epoch, id), whatever order they come in."""
    return _by_hash(range(len(ids)), ids, seed, epoch, "order")


def balanced_order(ids: Sequence[str], classes: Sequence[Sequence[int]], seed: int, epoch: int) -> list[Place]:
    """Blocks of one study of each class, until the largest class has been shown once. By hash: the order within a class, and which
    class begins a block (so that no rank sees one class only)."""
    longest, number = max(map(len, classes)), len(classes)
    shown = []
    for members in classes:
        rounds = -(-longest // len(members))
        shown.append([index for again in range(rounds) for index in _by_hash(members, ids, seed, epoch, f"order {again}")])
    places = []
    for block in range(longest):
        first = draw(seed, epoch, str(block), "block")
        places += [(kind, shown[kind][block]) for kind in ((first + k) % number for k in range(number))]
    return places


def by_length(places: Sequence[Place], lengths: Sequence[int], rows: int, window: int, seed: int, epoch: int) -> list[Place]:
    """The same places, sorted by length inside each window of `window` steps of `rows` studies, its steps then in hash order.

    A class is sorted by itself, and where a class stood one of it stands again: every step keeps its balance.
    """
    out: list[Place] = []
    for start in range(0, len(places), window * rows):
        part = places[start : start + window * rows]
        queues = {kind: iter(sorted((i for k, i in part if k == kind), key=lambda i: lengths[i])) for kind in {k for k, _ in part}}
        part = [(kind, next(queues[kind])) for kind, _ in part]
        for step in sorted(range(0, len(part), rows), key=lambda at: draw(seed, epoch, str(start + at), "step")):
            out += part[step : step + rows]
    return out


def _by_hash(indices: Sequence[int], ids: Sequence[str], seed: int, epoch: int, what: str) -> list[int]:
    return sorted(indices, key=lambda index: (draw(seed, epoch, ids[index], what), ids[index]))


class StepSampler(Sampler):
    """The (epoch, index) pairs of this rank for each step from `start_step` up to, not including, `steps`.

    A step is `batch_size * world` consecutive studies of the epoch's order, cut among the ranks. What does not fill a step at the end
    of an epoch waits for the next one. classes: indices by class, to show equally often (`classes`). lengths, window: tokens of each
    study, and among how many steps they are grouped (1 = not). Raises DataError when there are fewer studies than one step takes.
    """

    def __init__(
        self,
        ids: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        steps: int,
        classes: Sequence[Sequence[int]] = (),
        lengths: Sequence[int] = (),
        window: int = 1,
    ) -> None:
        enough(ids, batch_size * world)
        self.ids, self.batch_size, self.seed, self.rank, self.world = list(ids), batch_size, seed, rank, world
        self.start_step, self.steps, self.classes, self.lengths, self.window = start_step, steps, classes, lengths, window

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self.batch_size * self.world
        shown = len(self.classes) * max(map(len, self.classes)) if self.classes else len(self.ids)
        per_epoch = shown // rows
        order: list[Place] = []
        of_epoch = -1
        for step in range(self.start_step, self.steps):
            epoch, number = divmod(step, per_epoch)
            if epoch != of_epoch:
                order, of_epoch = self._order(epoch, per_epoch * rows), epoch
            first = number * rows + self.rank * self.batch_size
            yield [(epoch, index) for _, index in order[first : first + self.batch_size]]

    def _order(self, epoch: int, count: int) -> list[Place]:
        if self.classes:
            places = balanced_order(self.ids, self.classes, self.seed, epoch)[:count]
        else:
            places = [(0, index) for index in epoch_order(self.ids, self.seed, epoch)[:count]]
        if self.window == 1:
            return places
        return by_length(places, self.lengths, self.batch_size * self.world, self.window, self.seed, epoch)


# --------------------------------------------------------------------------------------------------------- classes


def classes(studies: Sequence[Study], balance: str | Sequence[str]) -> list[list[int]]:
    """Indices of the studies by class, for `balance`: the studies that have it, one list a name, then those that have none of them.

    A name is "abnormal" (a sentence says something abnormal) or a label's (1; 0, -1 and absent do not count). A study may be in several
    lists. Raises DataError when a name has no study, or when nothing is left to balance one name with.
    """
    names = [balance] if isinstance(balance, str) else list(balance)
    has = {name: _abnormal(studies) if name == "abnormal" else [study.labels.get(name) == 1 for study in studies] for name in names}
    found = {name: [index for index, true in enumerate(has[name]) if true] for name in names}
    rest = [index for index in range(len(studies)) if not any(has[name][index] for name in names)]
    if empty := [name for name in names if not found[name]]:
        known = sorted({label for study in studies for label, value in study.labels.items() if value == 1})
        raise DataError(
            f"data.balance: no training study has {', '.join(empty)}",
            f"choose abnormal or labels that there are: {', '.join(known) or 'none in this dataset'}",
        )
    if len(names) == 1 and not rest:
        raise DataError(f"data.balance: every training study has {names[0]}, there is nothing to balance it with", "set data.balance=''")
    return [*found.values(), *([rest] if rest else [])]


def _abnormal(studies: Sequence[Study]) -> list[bool]:
    """Whether any sentence is abnormal: as the owner says, else as `flags` guesses."""
    return [any(flags(s.text).abnormal if s.abnormal is None else s.abnormal for s in study.sentences) for study in studies]
