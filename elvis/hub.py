"""Is the Hugging Face hub there? Asked once, quickly: without a network its own client retries for 25 to 50 seconds (measured, hub 2.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from elvis.errors import ConfigError


def check_hub(wanted: str, instead: str) -> None:
    """ConfigError if the hub, which holds `wanted`, does not answer; `instead` says what to write. With HF_HUB_OFFLINE=1 the local cache decides."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # of whatever client the hub uses this year; any of them means: no answer
        raise ConfigError(
            f"cannot download {wanted}: {constants.ENDPOINT} does not answer ({type(error).__name__})",
            f"{instead}; or set HF_HUB_OFFLINE=1 if the hub's cache on this machine has it",
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """While open, the hub's own cache on this machine decides: what a checkpoint names is not fetched."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
