"""Vector maths on lists of floats, slow and beyond argument: what the tensors are checked against."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cos(a: Vector, b: Vector) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def unit(a: Vector) -> list[float]:
    return [x / math.sqrt(dot(a, a)) for x in a]


def mix(weights: Vector, vectors: Sequence[Vector]) -> list[float]:
    """The weighted sum of vectors."""
    return [math.fsum(w * v[d] for w, v in zip(weights, vectors, strict=True)) for d in range(len(vectors[0]))]


def logsumexp(x: Vector) -> float:
    top = max(x)
    return top + math.log(math.fsum(math.exp(v - top) for v in x))


def softmax(x: Vector) -> list[float]:
    whole = logsumexp(x)
    return [math.exp(v - whole) for v in x]


def nce(positives: Vector, negatives: Vector) -> float:
    """Mean over the positives of -log( e^p / (e^p + sum over the negatives) )."""
    return math.fsum(logsumexp([p, *negatives]) - p for p in positives) / len(positives)


def cross_entropy(target: Vector, logits: Vector) -> float:
    whole = logsumexp(logits)
    return -math.fsum(t * (v - whole) for t, v in zip(target, logits, strict=True))


def kl(p: Vector, q: Vector) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
