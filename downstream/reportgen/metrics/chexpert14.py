"""CheXpert's 14 observations in a report, by rules and a list of words (chexpert14.yaml, which is meant to be edited).

    label("The heart is enlarged. Left basilar opacity may represent pneumonia. No effusion.")
    -> {"Cardiomegaly": 1, "Lung Opacity": 1, "Pneumonia": -1, "Pleural Effusion": 0}
    label("... lower-case text as R2Gen's cleaning leaves it . no effusion .")           works as well

After the method of the CheXpert labeler (Irvin et al., AAAI 2019): names of observations are found; each is first doubted by what survives
a denial ("cannot be excluded"), else denied, else doubted, else positive; over a report positive > uncertain > negative; "No Finding" where
nothing but devices is positive or uncertain. Written anew: own words, no parse trees (a cue reaches up to a stop, as in elvis.data.flags,
whose denials and stops are used too), and heart and mediastinum also by their state ("heart size is normal").

Limits. English chest radiographs, one finding a phrase, no coreference ("it has resolved"), no anatomy beyond single phrases. It is no
CheXbert and no CheXpert labeler: numbers of one labeler are not those of another. Validated only on the hand-made sentences of
its tests and, privately, against the MeSH tags of the 3,927 public Open-i reports, which its words were also written by: no held-out
figure; no physician has checked it. Give it findings and impression: an indication ("evaluate for pneumonia") is no finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from elvis.data import flags
from elvis.errors import DataError

LEXICON = Path(__file__).with_name("chexpert14.yaml")
CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1


def label(text: str) -> dict[str, int]:
    """Of each observation that is mentioned: 1 positive, 0 negative, -1 uncertain; {} for a text without a word. Any string is taken."""
    return _shipped().label(text)


class Rules:
    """A list of words and the rules that read it; `label` is what `clinical` takes as its labeler."""

    def __init__(self, lexicon: flags.Lexicon) -> None:
        self._mentions = lru_cache(maxsize=1 << 16)(lambda sentence: tuple(_mentions(lexicon.said(_WORD.findall(sentence)))))

    def label(self, text: str) -> dict[str, int]:
        """As `label`, by these rules."""
        sentences = [sentence for sentence in _STOP.split(text.lower()) if _WORD.search(sentence)]
        found: dict[str, int] = {}
        for sentence in sentences:
            for name, value in self._mentions(sentence):
                if name not in found or _RANK[value] > _RANK[found[name]]:
                    found[name] = value
        if sentences and all(value == NEGATIVE for name, value in found.items() if name != "Support Devices") and not _abnormal(sentences):
            found["No Finding"] = POSITIVE
        return found


def _abnormal(sentences: Iterable[str]) -> bool:
    """Whether one tells of a finding, one of the 14 or not: a hernia, a scoliosis."""
    return any(flags.flags(sentence).abnormal for sentence in sentences)


_RANK = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}
_STOP = re.compile(r"[.;!?]+(?!\S)|\n\s*\n")
_WORD = re.compile(r"[^\W_]+")


# ------------------------------------------------------------------------------------------------------------- rules


@dataclass(slots=True)
class _Mention:
    name: str
    value: int
    joint: str  # how it follows the mention before it: "same" phrase, "and", "or", or "" if it is not joined to it


class _Sentence:
    """What has been heard of a sentence: its mentions, and what a coming word may still refer to."""

    def __init__(self) -> None:
        self.mentions: list[_Mention] = []
        self.stopped = 0  # the mentions before this one are out of reach
        self.denied = self.doubted = self.asked = False  # what holds up to the next stop
        self.joint = ""  # the word just heard
        self.parts: list[tuple[str, str]] = []  # (name, joint) of heart, mediastinum, others whose state has not been told
        self.state: int | None = None  # told of parts to come: "normal heart and mediastinum"
        self.bound = False  # ... and one has come

    def stop(self, doubt: bool) -> None:
        self.stopped, self.denied, self.doubted, self.asked = len(self.mentions), False, False, False
        if not doubt:  # "the heart may be enlarged"
            self.parts, self.state = [], None

    def value(self) -> int:
        return NEGATIVE if self.denied else UNCERTAIN if self.doubted else POSITIVE

    def mention(self, name: str, value: int, joint: str) -> None:
        if not self.asked:
            self.mentions.append(_Mention(name, value, joint))

    def joined(self, *joints: str) -> Iterator[_Mention]:
        """The last mention, and backwards those joined to it."""
        for mention in reversed(self.mentions[self.stopped :]):
            yield mention
            if mention.joint not in ("same", *joints):
                return

    def tell(self, state: str) -> None:
        """Of the parts just named, that they are normal (all of them) or enlarged (the last, and those joined to it); of those to come: normal."""
        value = NEGATIVE if state == "normal" or self.denied else UNCERTAIN if state == "borderline" else self.value()
        parts, self.parts = self.parts, []
        if not parts and state != "enlarged":
            self.state, self.bound = value, False
        for name, joint in reversed(parts):
            self.named(name, value)
            if state != "normal" and joint not in ("and", "or"):
                return

    def named(self, part: str, value: int) -> None:
        if part != "other":
            self.mention(part, value, "")

    def part(self, name: str) -> None:
        if self.state is not None and (self.joint or not self.bound):
            self.named(name, self.state)
            self.bound = True
        else:
            self.state = None
            self.parts.append((name, self.joint))

    def hear(self, roles: Iterable[str]) -> None:
        """The next phrase that the lexicon knows: what it does to what stands before it, then to what follows."""
        if "denied_behind" in roles:
            for mention in self.joined("and", "or"):
                mention.value = NEGATIVE
        if "doubt_behind" in roles or "either" in roles:
            for mention in self.joined("or"):
                mention.value = UNCERTAIN if "doubt_behind" in roles or mention.value == POSITIVE else mention.value
        if "stop" in roles:
            self.stop(doubt="doubt_ahead" in roles)
        if "asked" in roles:
            self.asked = True
        if "denied_ahead" in roles:
            self.denied, self.doubted = True, False
        if "doubt_ahead" in roles or "either" in roles:
            self.doubted, self.asked = True, False
        self.name(sorted(role for role in roles if ":" in role))
        self.joint = "or" if "or" in roles else "and" if "and" in roles else ""

    def name(self, roles: Sequence[str]) -> None:
        """The observations, parts and states of a phrase."""
        joint = self.joint
        for role in roles:
            what, name = role.split(":")
            if what == "state":
                self.tell(name)
            elif what == "part":
                self.part(name)
            else:
                if what == "is" or not self.denied:
                    self.mention(name, self.value() if what == "is" else UNCERTAIN, joint)
                joint, self.parts, self.state = "same", [], None


def _mentions(said: Iterable[flags.Meaning]) -> Iterator[tuple[str, int]]:
    """(observation, value) of each mention of a sentence."""
    sentence = _Sentence()
    for meaning in said:
        sentence.hear(meaning.roles)
    return ((mention.name, mention.value) for mention in sentence.mentions)


# ----------------------------------------------------------------------------------------------------------- lexicon

_SHARED = {"before": "denied_ahead", "after": "denied_behind", "stop": "stop", "nothing": "unlike", "unclaimed": "asked"}  # of flags.LEXICON


def read(path: Path = LEXICON) -> Rules:
    """The rules of a list of words; elvis.data.flags's own denials and stops come on top. DataError for a file of another kind."""
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    missing = [name for name in _LISTS if not isinstance(raw, dict) or name not in raw]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}", f"write it like {LEXICON.name}")
    if strangers := [name for name in (*raw["observations"], *raw["hints"], *raw["parts"]) if name not in (*CLASSES, "other")]:
        raise DataError(f"{path}: unknown observation '{strangers[0]}'", f"known: {', '.join(CLASSES[1:])}")
    shared = yaml.safe_load(flags.LEXICON.read_text(encoding="utf-8"))["roles"]
    lists = [(_SHARED[name], patterns) for name, patterns in shared.items() if name in _SHARED]
    lists += [*raw["cues"].items(), ("unlike", raw["unlike"])]
    lists += [(f"{role}:{name}", patterns) for kind, role in _LISTS.items() if role for name, patterns in raw[kind].items()]
    roles: dict[tuple[str, ...], set[str]] = {}
    for role, patterns in lists:
        for phrase in {tuple(_WORD.findall(phrase)) for pattern in patterns for phrase in _variants(pattern)}:
            roles.setdefault(phrase, set()).add(role)
    lexicon = flags.Lexicon()
    for phrase, own in roles.items():
        if phrase:  # a full stop of the shared list is none: texts are cut at them
            lexicon.add(phrase, flags.Meaning(frozenset(own)))
    return Rules(lexicon)


_shipped = lru_cache(maxsize=1)(read)
_LISTS = {"observations": "is", "hints": "hint", "parts": "part", "states": "state", "unlike": "", "cues": ""}


def _variants(pattern: str) -> list[str]:
    """Every phrase that a pattern with {braces,of alternatives} stands for, the innermost braces first."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [phrase for chosen in braces[1].split(",") for phrase in _variants(head + chosen + tail)]


_BRACES = re.compile(r"\{([^{}]*)\}")
