"""Sentences that an owner gives one by one, and phrases for owners who give a class and no words."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from elvis.types import Sentence

Line = tuple[str, str, bool | None]  # text, region, whether it tells of something abnormal


def owners(lines: Iterable[Line]) -> tuple[dict[str, str], tuple[Sentence, ...]]:
    """The section "findings", of which each sentence is a line, and its sentences; no section without a sentence."""
    made, at = [], 0
    for text, region, abnormal in lines:
        made.append(Sentence(sys.intern(text), "findings", at, at + len(text), abnormal, sys.intern(region)))
        at += len(text) + 1
    return ({"findings": "\n".join(sentence.text for sentence in made)} if made else {}), tuple(made)


def folded(text: object) -> str:
    """One line, white space folded; "" for nothing."""
    return " ".join(str(text or "").split())


def template(name: str) -> str:
    """A phrase for a class, which no radiologist wrote: the grounding is to be tagged "template". Abbreviations keep their capitals."""
    words = name.replace("_", " ").split()
    return f"Findings suggesting {' '.join(word if word.isupper() else word.lower() for word in words)}"
