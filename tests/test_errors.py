"""What a user sees when something is wrong: one short message, the exit code, a traceback only when asked for."""

from __future__ import annotations

import pytest
import torch

from elvis.errors import CheckpointError, ConfigError, DataError, ElvisError, NumericsError, nearest, run_cli, some


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (DataError, 2), (NumericsError, 3), (CheckpointError, 4)])
def test_each_kind_of_error_has_its_exit_code_and_no_traceback(kind: type[ElvisError], code: int, capsys: pytest.CaptureFixture) -> None:
    def main() -> int:
        raise kind("what is wrong", "what to do")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == "error: what is wrong\nwhat to do\n"


def test_a_traceback_comes_with_elvis_debug(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELVIS_DEBUG", "1")

    def main() -> int:
        raise DataError("what is wrong")

    with pytest.raises(SystemExit):
        run_cli(main)
    assert "Traceback" in capsys.readouterr().err


def test_a_message_is_cut_and_its_fix_is_kept() -> None:
    message = str(ConfigError("x" * 900, "do this"))
    assert len(message) <= 400
    assert message.endswith("do this")


def test_a_typo_finds_its_neighbour_and_few_names_are_listed() -> None:
    assert nearest("intramodal", ["intra_modal", "word_region"]) == " (did you mean 'intra_modal'?)"
    assert nearest("zzz", ["a", "b"]) == " (known: a, b)"
    assert nearest("zzz", [str(n) for n in range(50)]) == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory\n"),
        (
            RuntimeError("can't allocate memory: you tried to allocate 4294967296 bytes."),
            "out of memory: 4.0 GiB were asked for\n",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "out of memory: 20.00 GiB were asked for\n"),
    ],
)
def test_too_little_memory_is_told_in_a_line(error: Exception, said: str, capsys: pytest.CaptureFixture) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}take a smaller batch")


def test_an_error_of_another_kind_is_not_taken_for_one_of_memory() -> None:
    def main() -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run_cli(main)


def test_of_many_names_three_are_said() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["abcdef", "b", "c", "d", "e"], 4) == "abcd, b, c and 2 more"


def test_what_the_system_refuses_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: (tmp_path / "no" / "where").write_text("x") and 0)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: No such file or directory: ")
