"""Names for things a config may choose. A file registers what it holds; a lookup imports the package's files once.

The signature of what is registered IS the schema of its options: `Registry.check` compares a mapping with it and says
what is wrong, `Registry.create` calls it. Outside packages join by `imports: [my_lab.losses]` or by an entry point.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from elvis.errors import ConfigError, nearest

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """`kind` is the word used in messages; `package` holds the files that register; `group`: entry points, by default named like it."""

    def __init__(self, kind: str, package: str, group: str = "") -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self._entries: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. A name taken twice by different things is an error."""

        def add(entry: T) -> T:
            other = self._entries.get(name)
            if other is not None and (other.__module__, other.__qualname__) != (entry.__module__, entry.__qualname__):
                raise ConfigError(f"{self.kind} '{name}' is already {other.__module__}.{other.__qualname__}", "choose another name")
            self._entries[name] = entry
            return entry

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # a file that asks for names while it is imported gets those there are
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for point in entry_points(group=self.group):
                self._entries.setdefault(point.name, point.load())
        except BaseException:
            self._loaded = False  # not half of the names for the rest of the process
            raise

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> Callable[..., Any]:
        if name not in self:
            raise ConfigError(f"no {self.kind} '{name}'{nearest(name, self._entries)}", f"known: {', '.join(self.names())}")
        return self._entries[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword options of an entry, by name."""
        return keywords(self.get(name))

    def check(self, name: Any, options: Mapping[str, Any], provided: frozenset[str] = frozenset()) -> list[str]:
        """What is wrong with these options, one sentence each. `provided`: keywords the caller supplies itself."""
        if not isinstance(name, str):
            return [f"the name of a {self.kind} is a word, not {name!r}"]
        if name not in self:
            return [f"no {self.kind} '{name}'{nearest(name, self._entries)}"]
        return check_call(f"{self.kind} '{name}'", self.get(name), options, provided)

    def create(self, name: str, *args: Any, **options: Any) -> Any:
        return self.get(name)(*args, **options)


def keywords(entry: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in inspect.signature(entry).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_call(what: str, entry: Callable[..., Any], options: Mapping[str, Any], provided: frozenset[str] = frozenset()) -> list[str]:
    """Options against the keyword-only signature of a class or function: unknown, missing, of another type than annotated."""
    known = {n: p for n, p in keywords(entry).items() if n not in provided}
    wrong = [f"{what} has no option '{o}'{nearest(str(o), known)}" for o in options if o not in known]
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and options.get(n) in (None, "???")]
    wrong += [f"{what} needs '{n}'" for n in missing]
    try:
        hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
    except NameError:  # a name that exists for type checkers only
        return wrong
    unfit = [n for n in options if n in known and n not in missing and not fits(options[n], hints.get(n, Any))]
    return wrong + [f"{what}: option '{n}' must be {_say(hints[n])}, not {options[n]!r}{_nearest_choice(options[n], hints[n])}" for n in unfit]


def _nearest_choice(value: Any, hint: Any) -> str:
    """A clause that helps a typo in one of several words."""
    options = [hint, *typing.get_args(hint)]
    words = [word for one in options if typing.get_origin(one) is typing.Literal for word in typing.get_args(one) if isinstance(word, str)]
    return nearest(value, words) if isinstance(value, str) and words else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a config is of an annotated type; annotations beyond the plain ones fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint in (int, float):
        return isinstance(value, (int,) if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    kind = origin or hint
    if kind in (Sequence, list, tuple):
        return isinstance(value, (list, tuple)) and all(fits(v, arguments[0]) for v in value if arguments)
    return isinstance(value, Mapping) if kind in (Mapping, dict) else True


def _say(hint: Any) -> str:
    plain = inspect.isclass(hint) and typing.get_origin(hint) is None
    return hint.__name__ if plain else str(hint).replace("typing.", "").replace("collections.abc.", "")


BACKBONES = Registry("backbone", "elvis.backbones")
TEXT_ENCODERS = Registry("text encoder", "elvis.text")
OBJECTIVES = Registry("objective", "elvis.objectives")
DATASETS = Registry("dataset", "elvis.data.datasets", group="elvis.datasets")
