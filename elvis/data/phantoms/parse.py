"""What a sentence says, where it is one that the phantoms' grammar makes: the inverse of elvis.data.phantoms.grammar.

    parse("There is a small nodule in the right upper lung zone.")  -> Statement(claims=(("nodule", "right", "upper"),), sizes=(0,))
    parse("no left effusion")                                       -> Statement(denied=(("effusion", "left"),))
    parse("The left lung is clear.")                                -> Statement(normal=("side", "left"))
    parse("there is a nodule nodule")                               -> None

The language is finite (some 9,000 sentences: every template with every word of each of its slots), so it is written out once from the
grammar's own tables and looked up: there is no second list of words that could drift, and nothing else is recognised. It is a little more
than the grammar's writer uses: a summary may have a synonym, a pair of nodules may lie in one zone. Case does not matter, nor does a stop
at the end, nor whether a hyphen is kept, is a blank or is dropped: a sentence of R2Gen's cleaning is recognised like the raw one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from string import Formatter
from typing import Any

from elvis.data.phantoms import grammar
from elvis.data.phantoms.grammar import Claim
from elvis.data.phantoms.scene import KINDS, LATERAL, SIDES


@dataclass(frozen=True, slots=True)
class Statement:
    """What a sentence says.

    claims: (kind, side, zone) of what it says is there, certain or not; "" = not said.
    sizes: 0, 1 or 2 of each claim, None where no size is said.
    denied: (kind, side) of what it says is not there; side "" = nowhere.
    normal: (name in grammar.NORMAL, side) of what it calls normal; the side is "" but for "side".
    """

    claims: tuple[Claim, ...] = ()
    sizes: tuple[int | None, ...] = ()
    denied: tuple[tuple[str, str], ...] = ()
    normal: tuple[str, str] | None = None
    uncertain: bool = False


@lru_cache(maxsize=1 << 16)
def parse(sentence: str) -> Statement | None:
    """What the sentence says; None where the grammar cannot make it. Takes any string."""
    return _language().get(_key(sentence))


def split(text: str) -> list[str]:
    """The sentences of a report's text, raw or as R2Gen's cleaning leaves it ("... . ... ."). No sentence of the grammar has a stop inside.

    Headers ("FINDINGS:") are not taken off: give it the text of sections.
    """
    return [sentence for piece in _STOP.split(text) if (sentence := piece.strip())]


def readings() -> Iterator[tuple[str, Statement]]:
    """Every sentence of the grammar with what it says; one that two templates make comes twice, with one meaning."""
    for kind in KINDS:
        yield from _told(kind)
        for template in (*grammar.DENIED, *grammar.DENIED_SIDE.get(kind, ())):
            for text, said in _filled(template, kind):
                yield text, Statement(denied=((kind, said.get("side", "")),))
    for template in grammar.ADJACENT:
        for text, said in _filled(template, "effusion"):
            claims = (("effusion", said["side"], ""), ("atelectasis", said["side"], "lower"))
            yield text, Statement(claims, (said["size"], None))
    for name, templates in grammar.NORMAL.items():
        for template in templates:
            for text, said in _filled(template):
                yield text, Statement(normal=(name, said.get("side", "")))


# --------------------------------------------------------------------------------------------------------- templates


def _told(kind: str) -> Iterator[tuple[str, Statement]]:
    """The sentences that claim a finding of a kind, or two."""
    free = kind in LATERAL  # the others have no side to leave out
    certain = (*grammar.POSITIVE[kind], *(grammar.FREE if free else ()), grammar.SHORT[kind], grammar.SUMMARY[kind])
    unsure = (*grammar.UNCERTAIN[kind], *(grammar.FREE_UNCERTAIN if free else ()))
    for template in (*certain, *unsure):
        for text, said in _filled(template, kind):
            claim = (kind, said.get("side", ""), said.get("zone", ""))
            yield text, Statement((claim,), (said.get("size"),), uncertain=template in unsure)
    for template in grammar.PAIR.get(kind, ()):
        for text, said in _filled(template, kind):
            places = ((said["side"], said["zone"]), (said["side2"], said["zone2"])) if "side2" in said else tuple((side, "") for side in SIDES)
            yield text, Statement(tuple((kind, *place) for place in places), (None, None))


def _filled(template: str, kind: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(sentence, what was put into its slots) for every choice of words."""
    slots = [name for _, name, _, _ in Formatter().parse(template) if name]
    for chosen in product(*(_words(slot, kind) for slot in slots)):
        text = template.format(**{slot: word for slot, (word, _) in zip(slots, chosen, strict=True)})
        yield text, {slot: meaning for slot, (_, meaning) in zip(slots, chosen, strict=True)}


def _words(slot: str, kind: str) -> list[tuple[str, Any]]:
    """(word, what it means) of a slot."""
    match slot.rstrip("2"):
        case "noun":
            return [(noun, kind) for noun in grammar.NOUNS[kind]]
        case "a_noun":
            return [(grammar.with_article(noun, kind), kind) for noun in grammar.NOUNS[kind]]
        case "nouns":
            return [(noun, kind) for noun in grammar.PLURALS[kind]]
        case "size":
            sizes = grammar.SIZES if kind in LATERAL else grammar.DEGREES
            return [(word, size) for size, words in enumerate(sizes) for word in dict.fromkeys(words)]
        case "side":
            return [(side, side) for side in SIDES]
        case "zone":
            return [(word, zone) for zone, words in grammar.ZONE_WORDS.items() if zone for word in words]
    raise KeyError(slot)  # a slot of the grammar that this file does not know: the tests read every template


# ------------------------------------------------------------------------------------------------------------ lookup

_STOP = re.compile(r"[.!?]+(?=\s|\Z)|\n\s*\n")
_END = " .;,!?\n\t"


@lru_cache(maxsize=1)
def _language() -> Mapping[str, Statement]:
    """Key -> meaning, with hyphens as blanks and, of sentences that have one, also without."""
    language = {}
    for text, statement in readings():
        language[_key(text)] = statement
        if "-" in text:
            language[_key(text.replace("-", ""))] = statement
    return language


def _key(sentence: str) -> str:
    return " ".join(sentence.lower().replace("-", " ").strip(_END).split())
