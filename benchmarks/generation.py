"""How fast reports are written, with the key-value cache and without: tokens and reports a second of the report decoders.

    python -m benchmarks.generation [--published]           --published: as large as published (MGRRG: six layers of 512, 5,500 words)
    python -m benchmarks.generation --quick                 two rows, a few seconds; writes nothing unless --out is given

    package        downstream.reportgen.language.speak, what every decoder writes with: transformers' generate with a cache, own constraints
    generate       transformers' generate as it comes, with the same constraints
    whole prefix   a loop that runs the prompt and all tokens so far again for each token

Random weights, which hardly ever end a sentence: all rows have as many tokens as they may, so that the work is the same. All three must say
the same; the run ends with an error where they do not.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import save, table
from downstream.reportgen import config as schemas
from downstream.reportgen import constraints, decoders
from downstream.reportgen.config import Decode
from downstream.reportgen.decoders.base import Decoder, Memory, Policy, Target
from downstream.reportgen.language import log_probs, outputs, speak, until_end
from downstream.reportgen.vocabulary import BEGIN, END, SPECIAL, Vocabulary
from elvis.types import Codes

GRID, WIDTH, CODES, SENTENCES = 144, 512, 65, 6  # image tokens of 96 px at stride 8, their width; topics; sentences of a report
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A decoder, what of it speaks, and how it searches."""

    recipe: Mapping[str, Any]
    part: str
    decode: Decode = field(default_factory=Decode)
    words: int = 400


def cases(published: bool) -> dict[str, Case]:
    """The decoders of the phantom presets, or as large as published; and an LLM of a small local config."""
    mgrrg, plain = schemas.load("mgrrg_phantom"), schemas.load("baseline_phantom")
    large = {"width": 512, "layers": 6, "heads": 8}
    words = 5500 if published else 400
    topic = {**mgrrg.decoder, **(large | {"topic_layers": 6} if published else {})}
    whole = {**plain.decoder, **(large if published else {})}
    long = Decode(max_tokens=50, max_report=150) if published else Decode(max_tokens=mgrrg.decode.max_tokens, max_report=mgrrg.decode.max_report)
    beams = replace(long, beams=3)
    llm = {
        "name": "llm_lora",
        "architecture": {**LLAMA, **({"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072} if published else {})},
    }
    return {
        "topic_sentence, words": Case(topic, "words", long, words),
        "topic_sentence, words, 3 beams": Case(topic, "words", beams, words),
        "transformer, report": Case(whole, "report", long, words),
        "transformer, report, 3 beams": Case(whole, "report", beams, words),
        "llm_lora (llama), report": Case(llm, "report", long, words),
    }


QUICK = {
    "topic_sentence, words": Case(
        {"name": "topic_sentence", "width": 16, "heads": 2, "layers": 1, "topic_layers": 1}, "words", Decode(max_tokens=8, max_report=12), 50
    ),
    "transformer, report, 3 beams": Case(
        {"name": "transformer", "width": 16, "heads": 2, "layers": 1}, "report", Decode(max_tokens=8, max_report=12, beams=3), 50
    ),
}


def build(case: Case, device: torch.device) -> Decoder:
    """A decoder that has learned nothing."""
    torch.manual_seed(0)
    words = Vocabulary("word", [*SPECIAL, *(f"word{number}" for number in range(case.words - len(SPECIAL)))])
    sizes = {
        "tokens_width": WIDTH, "tokens": GRID, "vocab": words.size, "codes": CODES, "cells": GRID, "max_tokens": case.decode.max_tokens,
        "max_sentences": SENTENCES, "max_report": case.decode.max_report, "special": [words.pad, words.begin, words.end, *words.never],
    }  # fmt: skip
    return decoders.create(case.recipe, words, **sizes).eval().to(device)


def shown(studies: int, device: torch.device) -> tuple[Memory, Target, list[list[int]]]:
    """Random image tokens, reports of SENTENCES sentences of one word (nothing reads them), and the topics of each."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randn(studies, GRID, WIDTH, generator=random)
    topics = torch.randint(1, CODES, (studies, SENTENCES), generator=random)
    maps = torch.rand(CODES, GRID, generator=random)
    memory = Memory(tokens, torch.ones(studies, GRID, dtype=torch.bool), Codes(maps, topics))
    ids = torch.tensor([BEGIN, len(SPECIAL), END]).repeat(studies, SENTENCES)
    sentence, place = torch.arange(3 * SENTENCES) // 3, torch.arange(3 * SENTENCES) % 3
    report = torch.tensor([[*[BEGIN, len(SPECIAL)] * SENTENCES, END]]).expand(studies, -1)
    target = Target(
        ids,
        sentence.expand_as(ids),
        place.expand_as(ids),
        torch.ones(studies, SENTENCES, dtype=torch.bool),
        report,
        torch.ones_like(report, dtype=torch.bool),
    )
    return memory.to(device), target.to(device), topics.tolist()


# ------------------------------------------------------------------------------------------------------ three ways


def processors(policy: Policy, rows: int, most: int) -> Any:
    """What bars the tokens that are never said."""
    allowed = torch.ones(policy.lm.config.vocab_size, dtype=torch.bool)
    allowed[list(policy.forbidden)] = False
    return constraints.build(batch=rows, max_new=most, eos=[policy.end], allowed=allowed)


def package(policy: Policy, how: Decode, most: int) -> Tensor:
    def constrain(rows: slice) -> Any:
        return processors(policy, rows.stop - rows.start, most)

    return speak(policy.lm, policy.prompt, how, end=policy.end, pad=policy.pad, most=most, constrain=constrain)[0]


@torch.no_grad()
def generate(policy: Policy, how: Decode, most: int) -> Tensor:
    prompt = policy.prompt
    see = {} if prompt.memory is None else {"encoder_hidden_states": prompt.memory, "encoder_attention_mask": prompt.memory_mask.long()}
    search = {"num_beams": how.beams, "early_stopping": True, "length_penalty": how.length_penalty} if how.beams > 1 else {}
    ids = policy.lm.generate(
        inputs_embeds=prompt.start, attention_mask=prompt.mask.long(), max_new_tokens=most, eos_token_id=policy.end, pad_token_id=policy.pad,
        bos_token_id=policy.end, do_sample=False, logits_processor=processors(policy, len(prompt), most), **see, **search,
    )  # fmt: skip
    return ids.masked_fill(~until_end(ids, policy.end), policy.pad)


@torch.no_grad()
def whole_prefix(policy: Policy, how: Decode, most: int) -> Tensor:
    if how.beams > 1:
        return whole_prefix_beams(policy, how, most)
    bar = processors(policy, len(policy.prompt), most)
    ids = torch.empty(len(policy.prompt), 0, dtype=torch.int64, device=policy.prompt.start.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] < most and not bool(ended.all()):
        scores = outputs(policy.lm, policy.prompt, ids).logits[:, -1].float()
        said = bar(ids, scores).argmax(-1).masked_fill(ended, policy.pad)
        ids, ended = torch.cat([ids, said.unsqueeze(1)], 1), ended | (said == policy.end)
    return ids


def whole_prefix_beams(policy: Policy, how: Decode, most: int) -> Tensor:
    """Of each row the best of `how.beams` sentences that ended (or all there is at `most` tokens), by log probability / length ** penalty."""
    rows, beams, device = len(policy.prompt), how.beams, policy.prompt.start.device
    prompt, bar = policy.prompt.rows(torch.arange(rows, device=device).repeat_interleave(beams)), processors(policy, rows, most)
    ids = torch.empty(rows * beams, 0, dtype=torch.int64, device=device)
    score = torch.tensor([0.0] + [-1e9] * (beams - 1), device=device).repeat(rows, 1)  # all beams begin alike: one of them counts
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(rows)]
    while ids.shape[1] < most and any(len(done) < beams for done in ended):
        sure = bar(ids, outputs(policy.lm, prompt, ids).logits[:, -1].float().log_softmax(-1)).view(rows, beams, -1)
        best, place = (score.unsqueeze(-1) + sure).flatten(1).topk(2 * beams)
        going: list[tuple[float, int, int]] = []
        for row in range(rows):
            for rank, (value, at) in enumerate(zip(best[row].tolist(), place[row].tolist(), strict=True)):
                beam, token = row * beams + at // sure.shape[-1], at % sure.shape[-1]
                if token != policy.end:
                    going += [(value, beam, token)] * (len(going) < (row + 1) * beams)
                elif rank < beams and len(ended[row]) < beams:
                    ended[row].append((value / (ids.shape[1] + 1) ** how.length_penalty, [*ids[beam].tolist(), token]))
        values, sources, tokens = (torch.tensor(one, device=device) for one in zip(*going, strict=True))
        ids, score = torch.cat([ids[sources], tokens.unsqueeze(1)], 1), values.view(rows, beams)
    for row, done in enumerate(ended):
        if len(done) < beams:
            done += [(float(score[row, beam]) / most**how.length_penalty, ids[row * beams + beam].tolist()) for beam in range(beams)]
    said = [torch.tensor(max(done)[1], device=device) for done in ended]
    return torch.nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=policy.pad)


WAYS = {"package": package, "generate": generate, "whole prefix": whole_prefix}


# --------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class Clock:
    """Calls something a few times: seconds of the best call behind a first one (of the first, where that takes long), and what it gave."""

    device: torch.device
    repeats: int = 2
    long: float = 1.0  # seconds

    def __call__(self, work: Callable[..., Any], *given: Any, **options: Any) -> tuple[float, Any]:
        spent = []
        for _ in range(self.repeats + 1):
            self.wait()
            begin = time.perf_counter()
            found = work(*given, **options)
            self.wait()
            spent.append(time.perf_counter() - begin)
            if spent[-1] > self.long:
                return spent[-1], found
        return min(spent[1:]), found

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def measured(name: str, case: Case, decoder: Any, studies: int, clock: Clock) -> tuple[list[str], list[str], list[str]]:
    """A row of each table, and what was not the same."""
    memory, target, topics = shown(studies, clock.device)
    policy = decoder.policy(case.part, memory, target)
    rows, most = len(policy.prompt), min(policy.most, case.decode.max_tokens if case.part == "words" else case.decode.max_report)
    spent, said = {}, {}
    for way, work in WAYS.items():
        spent[way], said[way] = clock(work, policy, case.decode, most)
    ours = said["package"]
    same = {way: sum(map(torch.equal, ids, ours)) if ids.shape == ours.shape else 0 for way, ids in said.items()}
    wrong = [f"{name}, {studies} studies: '{way}' says the same in {equal} of {rows} rows" for way, equal in same.items() if equal < rows]
    tokens = int((ours != policy.pad).sum())
    gain = spent["whole prefix"] / spent["package"]
    search = [name, str(studies), f"{rows} x {most}", *(f"{tokens / seconds:,.0f}" for seconds in spent.values()), f"{gain:.1f}"]
    search.append(f"{min(same.values())} of {rows}")

    whole, _ = clock(decoder.write, memory, case.decode, **({"topics": topics} if case.part == "words" else {}))
    sure, _ = clock(log_probs, policy.lm, policy.prompt, ours)
    looked, _ = clock(decoder.looked, memory, policy.prompt, ours) if case.part == "report" else (0.0, None)
    writing = [name, str(studies), f"{studies / whole:,.1f}", *(f"{part / whole:.0%}" for part in (spent["package"], sure, looked))]
    return search, writing, wrong


def page(chosen: Mapping[str, Case], studies: Sequence[int], clock: Clock) -> tuple[str, list[str]]:
    """Both tables, and what was not the same."""
    found = []
    for name, case in chosen.items():
        decoder = build(case, clock.device)
        for count in studies:
            print(f"{name}, {count} studies", file=sys.stderr)
            found.append(measured(name, case, decoder, count, clock))
    search, writing, wrong = zip(*found, strict=True)
    text = [
        f"Random weights, fp32, {GRID} image tokens, {SENTENCES} sentences a report where sentences are written one by one. Tokens a second:",
        table(["decoder", "studies", "rows x tokens", *WAYS, "whole prefix / package, time", "same text"], search),
        "Whole reports, and what of the time is the search, the pass that asks how sure it is, and the one that asks where it looked:",
        table(["decoder", "studies", "reports/s", "search", "confidence", "maps"], writing),
    ]
    return "\n\n".join(text), [line for lines in wrong for line in lines]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two tiny decoders, writes nothing unless --out is given")
    parser.add_argument("--published", action="store_true", help="decoders as large as published")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="studies at a time (default 1 8 32)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen, studies = (QUICK, [2]) if given.quick else (cases(given.published), given.batch)
    body, wrong = page(chosen, studies, Clock(device, 1 if given.quick else 2))
    if given.quick and given.out is None:
        print(body)
    else:
        command = shlex.join(["python", "-m", "benchmarks.generation", *(sys.argv[1:] if argv is None else argv)])
        save("generation_published" if given.published else "generation", "How fast reports are written", command, body, given.out)
    if wrong:
        raise SystemExit("not the same text:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
