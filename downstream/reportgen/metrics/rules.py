"""The engine of the rule labelers: findings in a report by a list of words, with what denies, doubts and joins them (chexpert14, ctrate18).

    read(Path("ctrate18.yaml"), CLASSES).label("Pleural effusion was not detected. The aorta is calcified.")
    -> {"Pleural effusion": 0, "Arterial wall calcification": 1}

A sentence is heard word by word. What is heard of the lists of a lexicon (YAML; signs, places and anywhere may be left out):

    observations   names of a finding
    hints          make one uncertain
    parts, states  what has a size, and what its size is told to be: "heart size is normal"
    signs, places  a word that is a finding only by the place it is said of, before or after it ("plaques in the aorta", "the aorta and the
                   coronary arteries are calcified"), and its places: sign -> finding -> phrases; a place of `elsewhere` is no finding. `anywhere`:
                   sign -> the finding that it is without a place
    cues           denied_ahead, doubt_ahead, stop ...: what they do is said in chexpert14.yaml and ctrate18.yaml
    unlike         what only looks like one of these

A mention is first doubted by what survives a denial ("cannot be excluded"), else denied, else doubted, else positive; over a report
positive > uncertain > negative (Irvin et al., AAAI 2019). No parse trees: a cue reaches up to a stop, as in elvis.data.flags, whose denials and
stops are used too. No coreference over sentences, no measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from elvis.data import flags
from elvis.errors import DataError

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1
ELSEWHERE = "elsewhere"
_RANK = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}
_STOP = re.compile(r"[.;!?]+(?!\S)|\n\s*\n")
_WORD = re.compile(r"[^\W_]+")


class Rules:
    """A list of words and the rules that read it; `label` is what `clinical` asks. `anywhere`: sign -> its finding without a place."""

    def __init__(self, lexicon: flags.Lexicon, anywhere: Mapping[str, str]) -> None:
        self._mentions = lru_cache(maxsize=1 << 16)(lambda sentence: tuple(_mentions(lexicon.said(_WORD.findall(sentence)), anywhere)))

    def label(self, text: str) -> dict[str, int]:
        """Of each finding that is mentioned: 1 positive, 0 negative, -1 uncertain. Any string is taken."""
        found: dict[str, int] = {}
        for sentence in sentences(text):
            for name, value in self._mentions(sentence):
                if name not in found or _RANK[value] > _RANK[found[name]]:
                    found[name] = value
        return found


def sentences(text: str) -> list[str]:
    """Those with a word, in small letters."""
    return [sentence for sentence in _STOP.split(text.lower()) if _WORD.search(sentence)]


# ------------------------------------------------------------------------------------------------------------- rules


@dataclass(slots=True)
class _Mention:
    name: str
    value: int
    joint: str  # how it follows the mention before it: "same" phrase, "and", "or", or "" if it is not joined to it
    stated: bool = False  # of a part, by its state
    sign: bool = False  # name is that of a sign
    places: list[str] = field(default_factory=list)  # of a sign: the findings it is by its places


class _Sentence:
    """What has been heard of a sentence: its mentions, and what a coming word may still refer to."""

    def __init__(self, anywhere: Mapping[str, str]) -> None:
        self.anywhere = anywhere
        self.mentions: list[_Mention] = []
        self.stopped = 0  # the mentions before this one are out of reach
        self.denied = self.doubted = self.asked = False  # what holds up to the next stop
        self.spent = False  # the denial has had its verb: "no effusion was seen"
        self.joint = ""  # the word just heard
        self.parts: list[tuple[str, str]] = []  # (name, joint) of heart, mediastinum, others whose state has not been told
        self.state: int | None = None  # told of parts to come: "normal heart and mediastinum"
        self.bound = False  # ... and one has come
        self.group: list[tuple[str, str]] = []  # (sign, finding) of the places that a coming sign may be at
        self.grouped = 0  # how many mentions there were when the group began
        self.open = False  # the last sign takes places: "plaques in the aorta"
        self.closed = 0  # the signs before this one take none any more

    def stop(self, doubt: bool, goes_on: bool) -> None:
        last = self.mentions[-1] if self.mentions else None
        goes_on = goes_on and self.open and last is not None and last.name not in self.anywhere  # "in the aorta and the coronary arteries"
        self.out_of_reach()
        self.open, self.closed = goes_on, self.closed if goes_on else len(self.mentions)
        self.denied, self.doubted, self.asked, self.spent = False, False, False, False
        if not doubt:  # "the heart may be enlarged"
            self.parts, self.state, self.group = [], None, []

    def out_of_reach(self) -> None:
        self.stopped, self.open = len(self.mentions), False

    def value(self) -> int:
        return NEGATIVE if self.denied else UNCERTAIN if self.doubted else POSITIVE

    def mention(self, name: str, value: int, joint: str, stated: bool = False) -> None:
        if not self.asked:
            self.mentions.append(_Mention(name, value, joint, stated))

    def joined(self, *joints: str) -> Iterator[_Mention]:
        """The last mention, and backwards those joined to it."""
        for mention in reversed(self.mentions[self.stopped :]):
            yield mention
            if mention.joint not in ("same", *joints):
                return

    def told(self) -> None:
        """A verb ends a claim, and the places before it are those of that claim; a denial that had its verb before was not of this claim."""
        for mention in self.mentions[self.stopped :]:
            if self.spent and mention.value == NEGATIVE and not mention.stated:
                mention.value = POSITIVE
        self.spent = self.denied
        self.out_of_reach()

    def tell(self, state: str) -> None:
        """Of the parts just named, that they are normal (all of them) or enlarged (the last, and those joined to it); of those to come: normal."""
        denied = self.denied and not self.spent  # "no effusion was seen, the heart is enlarged"
        value = NEGATIVE if state == "normal" or denied else UNCERTAIN if state == "borderline" or self.doubted else POSITIVE
        parts, self.parts = self.parts, []
        if state == "normal":
            self.group = []
        if not parts and state != "enlarged":
            self.state, self.bound = value, False
        for name, joint in reversed(parts):
            self.named(name, value)
            if state != "normal" and joint not in ("and", "or"):
                return

    def named(self, part: str, value: int) -> None:
        if part != "other":
            self.mention(part, value, "", stated=True)

    def part(self, name: str) -> None:
        if self.state is not None and (self.joint or not self.bound):
            self.named(name, self.state)
            self.bound = True
        else:
            self.state = None
            self.parts.append((name, self.joint))

    def place(self, places: Sequence[tuple[str, str]]) -> None:
        """A place, with the finding that each sign is there: of the sign before it that is open, else of signs to come."""
        last = self.mentions[-1] if len(self.mentions) > self.closed else None
        if last is not None and last.sign and (self.open or not (last.places or last.name in self.anywhere)):
            here = [name for sign, name in places if sign == last.name]
            last.places += here
            if here:
                return
        if len(self.mentions) > self.grouped:
            self.group, self.grouped = [], len(self.mentions)
        self.group += places

    def sign(self, name: str, joint: str) -> None:
        if self.joint and len(self.mentions) == self.grouped:  # "the aorta, and enlarged nodes"
            self.group = []
        if not self.asked:
            places = [place for sign, place in self.group if sign == name]
            self.mentions.append(_Mention(name, self.value(), joint, sign=True, places=places))
            self.open = not places

    def hear(self, roles: Iterable[str]) -> None:
        """The next phrase that the lexicon knows: what it does to what stands before it, then to what follows."""
        if "denied_list" in roles:
            for mention in self.mentions[self.stopped :]:
                mention.value = NEGATIVE
        elif "denied_behind" in roles:
            for mention in self.joined("and", "or"):
                mention.value = NEGATIVE
        if "doubt_behind" in roles or "either" in roles:
            for mention in self.joined("or"):
                mention.value = UNCERTAIN if "doubt_behind" in roles or mention.value == POSITIVE else mention.value
        if "stop" in roles:
            self.stop("doubt_ahead" in roles, "and" in roles)
        if "denied_list" in roles:
            self.out_of_reach()
        elif "told" in roles:
            self.told()
        if "inside" in roles:
            self.open = True
        if "asked" in roles:
            self.asked = True
        if "denied_ahead" in roles:
            self.denied, self.doubted, self.spent, self.closed = True, False, False, len(self.mentions)
        if "doubt_ahead" in roles or "either" in roles:
            self.doubted, self.asked = True, False
        self.name(sorted((role for role in roles if ":" in role), key=lambda role: (role.startswith("sign"), role)))
        self.joint = "or" if "or" in roles else "and" if "and" in roles else ""

    def name(self, roles: Sequence[str]) -> None:
        """The observations, parts, states, signs and places of a phrase."""
        joint, places = self.joint, []
        for role in roles:
            what, name, *more = role.split(":")
            if what == "state":
                self.tell(name)
            elif what == "part":
                self.part(name)
            elif what == "at":
                places.append((name, *more))
            else:
                if what == "sign":
                    self.sign(name, joint)
                elif what == "is" or not self.denied:
                    self.mention(name, self.value() if what == "is" else UNCERTAIN, joint)
                joint, self.parts, self.state = "same", [], None
        if places:
            self.place(places)


def _mentions(said: Iterable[flags.Meaning], anywhere: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """(finding, value) of each mention of a sentence."""
    sentence = _Sentence(anywhere)
    for meaning in said:
        sentence.hear(meaning.roles)
    for mention in sentence.mentions:
        places = mention.places or [anywhere.get(mention.name, ELSEWHERE)] if mention.sign else [mention.name]
        yield from ((name, mention.value) for name in dict.fromkeys(places) if name != ELSEWHERE)


# ----------------------------------------------------------------------------------------------------------- lexicon

_SHARED = {"before": "denied_ahead", "after": "denied_behind", "stop": "stop", "nothing": "unlike", "unclaimed": "asked"}  # of flags.LEXICON
_LISTS = {"observations": "is", "hints": "hint", "parts": "part", "states": "state", "unlike": "", "cues": ""}
_PLACED = ("signs", "places", "anywhere")


def read(path: Path, classes: Sequence[str], *, like: Path | None = None, kind: type[Rules] = Rules) -> Rules:
    """The rules of a list of words; elvis.data.flags's own denials and stops come on top, and the cues and states of the list `like`.

    DataError for a file of another kind, or one that names a finding that is none of `classes`.
    """
    raw = _loaded(path)
    missing = [name for name in _LISTS if name not in raw]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}", "write it like chexpert14.yaml or ctrate18.yaml")
    placed = {kind: raw.get(kind, {}) for kind in _PLACED}
    names = [name for kind in ("observations", "hints", "parts") for name in raw[kind]]
    names += [name for findings in placed["places"].values() for name in findings] + list(placed["anywhere"].values())
    if strangers := [name for name in names if name not in (*classes, "other", ELSEWHERE)]:
        raise DataError(f"{path}: unknown observation '{strangers[0]}'", f"known: {', '.join(classes)}")
    if strangers := [sign for kind in ("places", "anywhere") for sign in placed[kind] if sign not in placed["signs"]]:
        raise DataError(f"{path}: places of an unknown sign '{strangers[0]}'", f"known: {', '.join(placed['signs'])}")
    shared, both = _loaded(flags.LEXICON)["roles"], [raw] if like is None else [_loaded(like), raw]
    lists = [(_SHARED[name], patterns) for name, patterns in shared.items() if name in _SHARED]
    lists += [(name, patterns) for own in both for name, patterns in own["cues"].items()]
    lists += [(f"state:{name}", patterns) for own in both for name, patterns in own["states"].items()]
    lists += [("unlike", raw["unlike"])]
    lists += [(f"{_LISTS[kind]}:{name}", patterns) for kind in ("observations", "hints", "parts") for name, patterns in raw[kind].items()]
    lists += [(f"sign:{name}", patterns) for name, patterns in placed["signs"].items()]
    lists += [(f"at:{sign}:{name}", patterns) for sign, findings in placed["places"].items() for name, patterns in findings.items()]
    return kind(_lexicon(lists), placed["anywhere"])


def _loaded(path: Path) -> dict[str, Any]:
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return raw if isinstance(raw, dict) else {}


def _lexicon(lists: Iterable[tuple[str, Iterable[str]]]) -> flags.Lexicon:
    """Of (role, patterns)."""
    roles: dict[tuple[str, ...], set[str]] = {}
    for role, patterns in lists:
        for phrase in {tuple(_WORD.findall(phrase)) for pattern in patterns for phrase in _variants(pattern)}:
            roles.setdefault(phrase, set()).add(role)
    lexicon = flags.Lexicon()
    for phrase, own in roles.items():
        if phrase:  # a full stop of the shared list is none: texts are cut at them
            lexicon.add(phrase, flags.Meaning(frozenset(own)))
    return lexicon


def _variants(pattern: str) -> list[str]:
    """Every phrase that a pattern with {braces,of alternatives} stands for, the innermost braces first."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [phrase for chosen in braces[1].split(",") for phrase in _variants(head + chosen + tail)]


_BRACES = re.compile(r"\{([^{}]*)\}")
