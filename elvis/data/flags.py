"""What a sentence of a report tells, guessed by rules from a list of words (lexicon.yaml, which is meant to be edited).

    flags("No change in the right basal effusion.")
    -> Flags(negated=False, uncertain=False, prior=True, abnormal=True,
             anatomy=("lung", "right lung", "right lower lung", "pleura", "right pleura"))

A heuristic in the spirit of NegEx (Chapman et al., J Biomed Inform 2001) and ConText (Harkema et al., J Biomed Inform 2009),
written anew: a cue denies what follows it or what stands before it, up to a word that ends its reach, and a phrase that only
looks like a denial is longer and therefore wins. English only. What the lexicon has no word for tells nothing.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from elvis.errors import DataError

LEXICON = Path(__file__).with_name("lexicon.yaml")
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")


@dataclass(frozen=True, slots=True)
class Flags:
    """What a sentence tells.

    negated: it denies something. uncertain: it leaves something in doubt. prior: it speaks of an earlier study.
    abnormal: True where it names a finding and does not deny it, be it certain or not; False where it denies findings, calls
        something normal or names a device (which is no finding by itself, as in CheXpert's "No Finding"); None for anything else.
    anatomy: structures in the order they are met, each followed by its sides and, of the lung, zones: "lung", "right lung",
        "right lower lung". Ten of the structures are the regions of RadGenome-Chest CT.
    """

    negated: bool
    uncertain: bool
    prior: bool
    abnormal: bool | None
    anatomy: tuple[str, ...]


@lru_cache(maxsize=1 << 16)
def flags(text: str) -> Flags:
    """The flags of a sentence; of a longer text, those of any of its sentences. Takes any string, in time proportional to its length."""
    lexicon = _shipped()
    said = list(lexicon.said(_words(text)))
    negated, uncertain, abnormal = _claims(said)
    return Flags(negated, uncertain, any("prior" in meaning.roles for meaning in said), abnormal, _anatomy(said, lexicon.sided))


# --------------------------------------------------------------------------------------------------------- rules


def _claims(said: Iterable[Meaning]) -> tuple[bool, bool, bool | None]:
    """(negated, uncertain, abnormal)."""
    negated = uncertain = False
    told = found = False  # something is told to be normal or abnormal; a finding is named that no stop can make denied any more
    here = False  # a finding is named since the last stop
    reach = ""  # what holds up to the next stop: before (denied) or unclaimed
    for meaning in said:
        roles = meaning.roles
        if "stop" in roles:
            found, here, reach = found or here, False, ""
        if "uncertain" in roles and reach != "before":
            uncertain = True
        if "after" in roles:
            negated, here = True, False
        if "before" in roles:
            negated, reach = True, "before"
        elif "unclaimed" in roles:
            reach = "unclaimed"
        if "abnormal" in roles and reach != "unclaimed":
            told, here = True, here or reach != "before"
        elif "normal" in roles or "device" in roles:
            told = True
    return negated, uncertain, (found or here) if told else None


def _anatomy(said: Sequence[Meaning], sided: Container[str]) -> tuple[str, ...]:
    """Names of structures. A side holds for what follows it, up to another side or a stop; for what stands before it if nothing follows."""
    sides_of: dict[str, set[str]] = {}
    zones: set[tuple[str, str]] = set()  # (side, zone) of a lung
    sides: set[str] = set()
    latest: Sequence[str] = ("",)
    waiting: set[str] = set()  # structures that no side was said of
    taken = True  # the sides have found their structure: another side begins anew
    for meaning in (*said, _END):
        behind, stop = "behind" in meaning.roles, "stop" in meaning.roles and "uncertain" not in meaning.roles
        if behind or stop:
            for structure in waiting:
                sides_of[structure].update(meaning.sides if behind else () if taken else sides)
            waiting = set()
        if stop:
            sides, latest, taken = set(), ("",), True
        elif meaning.sides and not behind:
            latest = meaning.sides
            sides, taken = {*latest} if taken else {*sides, *latest}, False
        zones.update((side, zone) for zone in meaning.zones for side in latest)
        for structure in meaning.structures:
            own = sides_of.setdefault(structure, set())
            if structure in sided:
                taken = True
                own.update(sides)
                if not sides:
                    waiting.add(structure)
    return tuple(_names(sides_of, zones))


def _names(sides_of: Mapping[str, set[str]], zones: Iterable[tuple[str, str]]) -> Iterator[str]:
    for structure, sides in sides_of.items():
        yield structure
        yield from (f"{side} {structure}" for side in SIDES if side in sides)
        if structure == "lung":
            placed = {(own, zone) for side, zone in zones for own in ([side] if side else sides or [""])}
            yield from (f"{side} {zone} lung".lstrip() for side in ("", *SIDES) for zone in ZONES if (side, zone) in placed)


# ------------------------------------------------------------------------------------------------------- lexicon

_WORD = re.compile(r"[^\W_]+|[;!?]|\.(?!\S)")
_CUES = frozenset(["before", "after", "stop", "nothing", "uncertain", "unclaimed"])
_OWN = _CUES | {"behind", "elsewhere"}  # roles that a longer phrase does not take over from its parts


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a phrase tells, by the names of the lists it stands in."""

    roles: frozenset[str] = frozenset()
    sides: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()


_END = Meaning(frozenset(["stop"]))


class Lexicon:
    """Phrases and their meanings, as a tree: word -> the words that may follow it, and under "" the meaning of the phrase so far.

    sided: the structures that there are two of.
    """

    def __init__(self, sided: Iterable[str] = ()) -> None:
        self.sided = frozenset(sided)
        self._tree: dict[str, Any] = {}

    def add(self, words: Sequence[str], meaning: Meaning) -> None:
        node = self._tree
        for word in words:
            node = node.setdefault(word, {})
        node[""] = meaning

    def said(self, words: Sequence[str]) -> Iterator[Meaning]:
        """The meanings of the phrases in a text: the longest at each word, none overlapping."""
        at, last = 0, len(words)
        while at < last:
            node, reached, at = self._tree.get(words[at]), at + 1, at + 1
            meaning = None
            while node is not None:
                if "" in node:
                    meaning, at = node[""], reached
                node, reached = node.get(words[reached]) if reached < last else None, reached + 1
            if meaning is not None:
                yield meaning


def read(path: Path = LEXICON) -> Lexicon:
    """The lexicon of a file. A phrase that is no cue also tells what the phrases in it tell: a "hiatal hernia" is a "hernia"."""
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    own: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for kind in ("roles", "sides", "zones", "structures"):
        for name, patterns in raw[kind].items():
            for phrase in {tuple(_words(phrase)) for pattern in patterns for phrase in _variants(pattern)}:
                own.setdefault(phrase, {}).setdefault(kind, []).append(name)
    lexicon = Lexicon(raw["sided"])
    for phrase in sorted(own, key=len):
        parts = [] if _CUES.intersection(own[phrase].get("roles", ())) else list(lexicon.said(phrase))
        lexicon.add(phrase, _meaning(parts, raw["part_of"], **own[phrase]))
    return lexicon


_shipped = lru_cache(maxsize=1)(read)


def _meaning(
    parts: Sequence[Meaning],
    part_of: Mapping[str, str],
    roles: Sequence[str] = (),
    sides: Sequence[str] = (),
    zones: Sequence[str] = (),
    structures: Sequence[str] = (),
) -> Meaning:
    """Of a phrase with these entries, and of its parts where it has none of a kind itself."""
    sides = [side for name in sides for side in (SIDES if name == "both" else [name])]
    structures = [name for structure in structures for name in (structure, part_of.get(structure)) if name]
    if "elsewhere" not in roles:
        sides = sides or [side for part in parts for side in part.sides]
        zones = zones or [zone for part in parts for zone in part.zones]
    structures = structures or [structure for part in parts for structure in part.structures]
    taken_over = frozenset(role for part in parts for role in part.roles) - _OWN
    return Meaning(taken_over.union(roles), *(tuple(dict.fromkeys(names)) for names in (sides, zones, structures)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _variants(pattern: str) -> Iterator[str]:
    """Every phrase that a pattern with {braces,of alternatives} stands for."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        yield pattern
        return
    options, begin, depth = [], 0, 1
    for end, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0 or (depth == 1 and letter == ","):
            options.append(rest[begin:end])
            begin = end + 1
        if depth == 0:
            break
    if depth:
        raise DataError(f"lexicon: a brace is not closed in '{pattern}'", f"close it in {LEXICON.name}", "D004")
    tails = list(_variants(rest[begin:]))
    yield from (head + chosen + tail for option in options for chosen in _variants(option) for tail in tails)
