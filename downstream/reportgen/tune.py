"""Reinforcement learning of one part of a trained generator, everything else fixed.

    said ~ model (no gradient),  r = reward(said, true)          rows are sentences (given their true topic), topic sequences, or reports
    loss = - sum_tokens A log p(token) / tokens                  one teacher-forced pass, without dropout; p over the tokens that may be said

    scst    A = r - r(greedy)                       Rennie et al. 2017; MGRRG: one sample, each decoder alone, nothing mixed in
    rloo    A = r - mean of the other samples       Ahmadian et al. 2024
    grpo    A = (r - mean) / sd of the samples      Shao et al. 2024; one update a set of samples, so that its clipped ratio is 1 and left out

    + kl    e^d - d - 1, d = log p_start - log p, mean over the sampled tokens          (Schulman's k3; GRPO)
    + nll   cross-entropy of the true rows

At level `report` all sentences of a study share the reward of the whole. What follows the end token plays no part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from downstream.reportgen import data, model, train
from downstream.reportgen.config import Decode, Reportgen, Tune
from downstream.reportgen.constraints import build
from downstream.reportgen.decoders.base import Policy
from downstream.reportgen.language import log_probs, logits, speak, until_end
from downstream.reportgen.metrics.cider import Frequencies
from downstream.reportgen.metrics.nlg import words
from downstream.reportgen.metrics.sums import Sums, mean
from downstream.reportgen.model import Generator
from downstream.reportgen.rewards import Rewards
from downstream.reportgen.train import Table
from downstream.reportgen.vocabulary import Vocabulary
from elvis import checkpoints
from elvis import config as configs
from elvis.data import studies
from elvis.data.batches import loader
from elvis.data.order import StepSampler, draw
from elvis.errors import ConfigError
from elvis.training import RunLog, fit
from elvis.types import Batch, Result, Study


def rewards(generator: Generator, tune: Tune, training: Sequence[Study]) -> Rewards:
    """The reward of a config, with the document frequencies of the training reports."""
    vocabulary = generator.vocabulary
    if tune.part == "topics":
        known = sorted({s.text for study in training for s in study.sentences})
        code = dict(zip(known, train.codes(generator.pretrained, known), strict=True))
        return Rewards(tune.rewards, Frequencies.of(([code[s.text] for s in study.sentences] for study in training), n=1), list, None)
    plain = isinstance(vocabulary, Vocabulary) and vocabulary.kind == "word"
    spell: Any = list if plain else lambda ids: words(vocabulary.decode(ids))
    spoken = {text: spell(vocabulary.encode(text)) for text in {s.text for study in training for s in study.sentences}}
    if tune.level == "sentence" and tune.part == "words":
        documents = [spoken[s.text] for study in training for s in study.sentences]
    else:
        documents = [[word for s in study.sentences for word in spoken[s.text]] for study in training]
    return Rewards(tune.rewards, Frequencies.of(documents), spell, vocabulary.decode)


class Tuning(nn.Module):
    """forward(batch) -> {"policy": ..., "kl": ..., "nll": ...}: (sum, count) each, for `elvis.training.fit`; "reward" is only logged."""

    def __init__(self, generator: Generator, tune: Tune, reward: Rewards) -> None:
        super().__init__()
        if tune.part not in generator.decoder.parts:
            raise ConfigError(f"decoder '{generator.recipe['name']}' has no part '{tune.part}'", f"set tune.part={generator.decoder.parts[0]}")
        if tune.level == "sentence" and tune.part == "report":
            raise ConfigError("a report that is written as one text is rewarded as a whole", "set tune.level=report")
        self.generator, self.tune, self.reward = generator, tune, reward
        self.decoder, self.model = generator.decoder, generator.pretrained.model
        self.model.requires_grad_(False)
        self.decoder.requires_grad_(False)
        for parameter in self.decoder.trained_by(tune.part):
            parameter.requires_grad_(True)
        self.start = copy.deepcopy(self.decoder).requires_grad_(False).eval() if tune.kl else None

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        self.decoder.eval()  # without dropout: what is scored is what spoke
        policy, start = self.policies(batch)
        seed = draw(torch.initial_seed(), 0, " ".join(batch.ids), "tune") % 2**31  # of the step and its studies: the step may count its terms first
        ids, reward = self.said(policy, self.tune.samples, seed)
        real = until_end(ids, policy.end)
        rows = torch.arange(len(policy.prompt), device=ids.device).repeat_interleave(self.tune.samples)
        sure = self.sure(policy, rows, ids, real)
        better = self.advantage(policy, reward)
        count = real.sum().to(sure.dtype)
        terms = {
            "policy": (-(better.unsqueeze(1) * sure).sum(), count),
            "reward": (reward.sum() + 0 * sure.sum(), torch.tensor(float(len(ids))).to(sure)),
        }
        if start is not None:
            apart = self.sure(start, rows, ids, real).detach() - sure
            terms["kl"] = ((apart.exp() - apart - 1).sum(), count)
        if self.tune.nll:
            true, known = _padded(policy)
            terms["nll"] = (-(log_probs(policy.lm, policy.prompt, true) * known).sum(), known.sum().to(sure.dtype))
        return terms

    def sure(self, policy: Policy, rows: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """Log probabilities of what was said as it was drawn: over the tokens that may be said, at the temperature; 0 behind the end. R L.

        Over all tokens a bad sample would teach the barred ones, which nothing ever teaches off again.
        """
        scores = logits(policy.lm, policy.prompt.rows(rows), ids).float() / self.tune.temperature
        barred = torch.zeros(ids.shape[1], scores.shape[-1], dtype=torch.bool, device=scores.device)
        barred[:, list(policy.forbidden)] = True
        barred[0, policy.end] = True  # a row says something
        scores = scores.masked_fill(barred, -torch.inf)
        return scores.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1).masked_fill(~real, 0.0)

    def policies(self, batch: Batch) -> tuple[Policy, Policy | None]:
        """Of the model as it is, and as it began (where its distance counts)."""
        with torch.no_grad():
            memory = self.generator.memory(self.model(self.generator.to_input(batch)), batch.extra.get("context"))
        policy = self.decoder.policy(self.tune.part, memory, batch.extra["target"])
        if self.start is None:
            return policy, None
        with torch.no_grad():
            return policy, self.start.policy(self.tune.part, memory, batch.extra["target"])

    def said(self, policy: Policy, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Samples of every row, ids R*samples L, and their rewards; 0 samples: the greedy ones."""
        how = Decode(temperature=self.tune.temperature, sample=bool(samples))
        never = torch.ones(policy.lm.config.vocab_size, dtype=torch.bool)
        never[list(policy.forbidden)] = False
        ids, _ = speak(
            policy.lm, policy.prompt.map(lambda t: t.detach()), how, end=policy.end, pad=policy.pad, most=policy.most, least=1, seed=seed,
            samples=max(1, samples), constrain=lambda rows: build(batch=rows.stop - rows.start, max_new=policy.most, eos=[policy.end], allowed=never),
        )  # fmt: skip
        return ids, self.judged(policy, ids, max(1, samples)).to(ids.device)

    def judged(self, policy: Policy, ids: Tensor, samples: int) -> Tensor:
        """The reward of each row and sample, R*samples; at level `report` that of its study."""
        if self.tune.level != "report" or self.tune.part == "report":
            true = [self.sentences(gold) for gold in policy.gold for _ in range(samples)]
            return torch.tensor(self.reward([self.sentences(row, policy) for row in ids.tolist()], true))
        said = [self.sentences(row, policy)[0] for row in ids.tolist()]
        study = policy.study.tolist()
        out = torch.zeros(len(said))
        for number in dict.fromkeys(study):
            rows = [row for row, own in enumerate(study) if own == number]
            true = [policy.gold[row] for row in rows]
            for sample in range(samples):
                places = [row * samples + sample for row in rows]
                out[places] = self.reward([[said[place] for place in places]], [true])[0]
        return out

    def sentences(self, row: Sequence[int], said: Policy | None = None) -> list[list[int]]:
        """A row as a reward reads it: of a report its sentences, else one. `said` with this policy: without its special tokens."""
        special = set() if said is None else {said.end, said.pad, *said.forbidden}
        between = getattr(self.decoder, "between", None)  # stands before each sentence of a report
        out: list[list[int]] = [[]]
        for token in row:
            if token == between:
                out.append([])
            elif token not in special:
                out[-1].append(token)
        return [sentence for sentence in out if sentence] or [[]]

    def advantage(self, policy: Policy, reward: Tensor) -> Tensor:
        """How much better a sample was than what it is compared with: R*samples."""
        each = reward.view(-1, self.tune.samples)
        if self.tune.method == "scst":
            _, greedy = self.said(policy, 0)
            return reward - greedy
        others = (each.sum(1, keepdim=True) - each) / (self.tune.samples - 1)
        if self.tune.method == "rloo":
            return (each - others).flatten()
        return ((each - each.mean(1, keepdim=True)) / (each.std(1, keepdim=True) + 1e-4)).flatten()


def _padded(policy: Policy) -> tuple[Tensor, Tensor]:
    """The true rows with their ends, R L, and which tokens are real."""
    rows = [[*row[: policy.most - 1], policy.end] for row in policy.gold]
    longest = max(map(len, rows))
    device = policy.prompt.start.device
    ids = torch.tensor([row + [policy.pad] * (longest - len(row)) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]


# -------------------------------------------------------------------------------------------------------------- run


def run(
    generator: Generator, config: Reportgen, table: Table, section: configs.Data, out: Path, fabric: Any, *, config_yaml: str, progress: bool = True
) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Tune in `out`, from its newest checkpoint where there is one; the held-out rewards before and after (rank zero)."""
    settings, lead = config.tune.train, fabric.is_global_zero
    listed, held_out = table.split("train"), table.split("val", config.tune.held_out) or table.split("train", config.tune.held_out)
    reward = rewards(generator, config.tune, listed)
    task = Tuning(generator, config.tune, reward)
    task.to(fabric.device)
    limits = {key: generator.sizes[key] for key in ("max_tokens", "max_sentences", "max_report")}
    common = {"views": section.views, "max_views": section.max_views, "context": generator.context}
    dataset, watched = (
        data.ReportDataset(some, generator.pretrained, generator.vocabulary, limits, seed=settings.seed, **common) for some in (listed, held_out)
    )
    studies.enough(listed, settings.batch_size * fabric.world_size)
    before = measured(task, watched, held_out, config.batch_size) if lead else {}
    newest = checkpoints.newest(out) if (out / "checkpoints").is_dir() else None
    state = checkpoints.load_state(newest) if newest is not None else None
    if newest is not None:
        train.load_into(generator, newest)

    def batches(start: int) -> Any:
        sampler = StepSampler(
            [study.id for study in listed], settings.batch_size, seed=settings.seed, rank=fabric.global_rank, world=fabric.world_size,
            start_step=start, steps=settings.steps * settings.accumulate,
        )  # fmt: skip
        return loader(dataset, sampler, workers=section.workers, pin=fabric.device.type == "cuda", timeout=section.timeout)

    def save(step: int, snapshot: dict[str, Any]) -> Path:
        target = out / "checkpoints" / f"step_{step:08d}"
        if lead:
            generator.provenance = {**generator.provenance, "tuned": f"{config.tune.method}, {config.tune.part}, {step} steps"}
            model.save(target, generator, config_yaml=config_yaml, metrics={}, state=snapshot)
            checkpoints.prune(out / "checkpoints", settings.keep)
        fabric.barrier()
        return target

    weights = {"policy": 1.0, "reward": 0.0, "kl": config.tune.kl, "nll": config.tune.nll}
    with checkpoints.claim(out, lead, newest):
        fit(fabric, task, batches, train=settings, weights=weights, log=RunLog(out, active=lead), save=save, state=state, progress=progress)
    return before, measured(task, watched, held_out, config.batch_size) if lead else {}


@torch.no_grad()
def measured(task: Tuning, dataset: data.ReportDataset, listed: Sequence[Study], batch_size: int) -> dict[str, Sums]:
    """The greedy rows' reward on studies: the mean over their rows, then over studies; the sum ("reward") and each part."""
    device = task.generator.device
    task.generator.eval()
    rows: dict[str, list[float]] = {}
    for start in range(0, len(listed), batch_size):
        items = [dataset.item(index) for index in range(start, min(start + batch_size, len(listed)))]
        batch = dataset.collate(items).to(device)
        policy, _ = task.policies(batch)
        ids, total = task.said(policy, 0)
        said = [task.sentences(row, policy) for row in ids.tolist()]
        each = task.reward.each(said, [task.sentences(gold) for gold in policy.gold])
        for name, values in {"reward": total.tolist(), **each}.items():
            own = [[v for v, s in zip(values, policy.study.tolist(), strict=True) if s == number] for number in range(len(items))]
            rows.setdefault(name, []).extend(sum(v) / len(v) if v else float("nan") for v in own)
    return {name: mean(values) for name, values in rows.items()}


def rows(before: Mapping[str, Sums], after: Mapping[str, Sums], config: Reportgen, table: Table) -> list[Result]:
    """The held-out rewards before, after, and their paired difference."""
    held_out = table.split("val", config.tune.held_out) or table.split("train", config.tune.held_out)
    patients = [study.patient for study in held_out]
    split = "val" if table.split("val") else "train"
    t = config.tune
    about = f"{t.method}, {t.part}, level {t.level}, {t.train.steps} steps of {t.train.batch_size}, lr {t.train.lr:g}; greedy, mean over rows"
    headline = tuple(f"reward {name}" for name in before)
    made = []
    for row, ours, minus in (("before tuning", before, None), ("after tuning", after, None), ("after - before", after, before)):
        found = {
            f"reward {name}": sums.metric(patients, minus=None if minus is None else minus[name], resamples=config.resamples)
            for name, sums in ours.items()
        }
        made.append(Result("reportgen", table.name, about, f"{split} (reward)", row, found, config={"headline": headline}))
    return made
