"""What each promise hangs on: every guard is broken once, in a copy of the project, and its test must turn red.

    python -m tests.guards              all of them, about 10 seconds each; exit code 1 if a test stays green
    python -m tests.guards lock queue   those whose name holds a word
    python -m tests.guards --table      the table of docs/reliability.md (tests/test_guards.py compares them)

A guard is one expression of the product: (promise, what it guards, file, the expression, what stands there in the broken build, its test).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
JOBS = 2


@dataclass(frozen=True)
class Guard:
    """`promise`: R1 ... R7 or N (numerics), I (input); `old` stands exactly once in `file`."""

    promise: str
    what: str
    file: str
    old: str
    new: str
    test: str


CHECKPOINT, TRAINING, BATCHES = "elvis/checkpoints/directory.py", "elvis/training.py", "elvis/data/batches.py"
KILLS, LOOP = "tests/test_kills.py::", "tests/test_training.py::"

GUARDS = (
    Guard(
        "R1", "the random state is set from (seed, step, rank)", TRAINING,
        "torch.manual_seed(step_seed(train.seed, step, fabric.global_rank))", "pass",
        LOOP + "test_resuming_from_any_checkpoint_ends_in_the_same_bits",
    ),
    Guard(
        "R1", "what was set aside stands for the checkpoint until it is replaced", CHECKPOINT,
        "return _aside(path) if path.name and not path.exists() and _aside(path).is_dir() else path", "return path",
        KILLS + "test_death_at_any_call_of_a_save_leaves_the_old_or_the_new_one_and_nothing_that_stays",
    ),
    Guard(
        "R1", "a checkpoint is filled beside its name, not under it", CHECKPOINT,
        "        fill(stage)\n        _seal(stage)\n",
        "        target.mkdir(exist_ok=True)\n        fill(target)\n        stage = target\n        _seal(stage)\n",
        KILLS + "test_death_at_any_call_of_a_save_leaves_the_old_or_the_new_one_and_nothing_that_stays",
    ),
    Guard(
        "R1", "every file is on the disk before the rename", CHECKPOINT,
        "    for path in (*files, stage / MANIFEST, *(p for p in stage.rglob(\"*\") if p.is_dir()), stage):\n        _fsync(path)\n", "",
        KILLS + "test_everything_is_on_the_disk_before_the_name_and_the_name_before_anything_is_removed",
    ),
    Guard(
        "R1", "the rename is on the disk before anything is removed", CHECKPOINT,
        "        _fsync(target.parent)\n", "",
        KILLS + "test_everything_is_on_the_disk_before_the_name_and_the_name_before_anything_is_removed",
    ),
    Guard(
        "R1", "a resumed log forgets what will happen again", TRAINING,
        'kept += [row] if row.get("step", 0) <= step else []', "kept += [row]",
        LOOP + "test_a_resumed_log_forgets_what_came_after_the_checkpoint",
    ),
    Guard(
        "R1", "the log is replaced whole when it is cut back", TRAINING,
        "part.replace(path)", "path.write_text(part.read_text()[:5]); part.replace(path)",
        KILLS + "test_a_crash_while_the_log_is_cut_back_loses_no_row",
    ),
    Guard(
        "R1", "two trainers in one folder are refused", CHECKPOINT,
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
        KILLS + "test_two_trainers_in_one_folder_are_refused_and_a_dead_one_leaves_no_lock",
    ),
    Guard(
        "R1", "stages that a crash left are swept", CHECKPOINT,
        'sweep(run / "checkpoints")', "pass",
        KILLS + "test_two_trainers_in_one_folder_are_refused_and_a_dead_one_leaves_no_lock",
    ),
    Guard(
        "R2", "every file is compared with its sha256", CHECKPOINT,
        "if found != digest:", "if False:",
        KILLS + "test_every_flipped_bit_zeroed_page_and_cut_is_found",
    ),
    Guard(
        "R2", "a file that the manifest does not list is refused", CHECKPOINT,
        "    if strange:\n", "    if False:\n",
        KILLS + "test_a_file_that_the_manifest_does_not_know_is_refused",
    ),
    Guard(
        "R2", "a run falls back to the last good checkpoint and says why", CHECKPOINT,
        '            print(f"passing over {candidate.name}: {error.what}", file=sys.stderr)\n            continue\n', "            raise\n",
        "tests/test_checkpoints.py::test_a_run_directory_gives_best_else_the_newest_good_step_and_says_what_it_passed_over",
    ),
    Guard(
        "R3", "a checkpoint every train.checkpoint_every steps", TRAINING,
        "            due |= (step + 1) % train.checkpoint_every == 0\n", "",
        KILLS + "test_five_kills_lose_one_step_each_at_most_and_change_no_bit",
    ),
    Guard(
        "R3", "SIGTERM and SIGINT save before they end the run", TRAINING,
        "        self.received = number\n", "        raise SystemExit(128 + number)\n",
        LOOP + "test_sigterm_saves_at_the_end_of_the_step_and_exits_143",
    ),
    Guard(
        "R3", "the last ones stay when older ones are deleted", CHECKPOINT,
        "for path in steps[: max(0, len(steps) - keep)]:", "for path in steps:",
        "tests/test_checkpoints.py::test_pruning_keeps_the_newest_and_sweeps_what_a_crash_left",
    ),
    Guard(
        "R4", "what a disk refuses is an error, and what stood there is put back", CHECKPOINT,
        "            shutil.rmtree(stage, ignore_errors=True)\n            _put_back(target)\n", "            pass\n",
        KILLS + "test_a_disk_that_refuses_leaves_what_stood_there_and_says_so",
    ),
    Guard(
        "R5", "a step that is not finite is left out by the optimizer", TRAINING,
        "bad.copy_(~numbers.isfinite().all())", "pass",
        LOOP + "test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted",
    ),
    Guard(
        "R5", "... whose gradient is not finite, too", TRAINING,
        "bad.copy_(~numbers.isfinite().all())", "bad.copy_(~numbers[: len(terms)].isfinite().all())",
        LOOP + "test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_told_by_its_parameter",
    ),
    Guard(
        "R5", "buffers go back to what they were", TRAINING,
        "            buffers.put_back(bad)\n", "",
        LOOP + "test_what_a_bad_step_did_to_buffers_is_undone",
    ),
    Guard(
        "R5", "all ranks see the loss of all", TRAINING,
        "    return _sum(means)\n", "    return means\n",
        "tests/test_ranks.py::test_a_loss_that_is_not_finite_on_one_rank_updates_no_rank",
    ),
    Guard(
        "R5", "too many bad steps end the run with code 3", TRAINING,
        "if self.run >= self.train.max_bad_in_a_row or self.count >= self.train.max_bad_steps:", "if False:",
        LOOP + "test_too_many_bad_steps_end_the_run_before_anything_is_saved",
    ),
    Guard(
        "R5", "no checkpoint after a bad step pushes out one from before", TRAINING,
        "if received or last or not skipped.run:", "if True:",
        LOOP + "test_two_in_a_row_again_and_again_are_borne_and_a_resumed_run_goes_on_counting",
    ),
    Guard(
        "R5", "a resumed run goes on counting them", TRAINING,
        'int(state["step"]), Skipped(train, log, **state.get("skipped", {}))', 'int(state["step"]), skipped',
        LOOP + "test_two_in_a_row_again_and_again_are_borne_and_a_resumed_run_goes_on_counting",
    ),
    Guard(
        "R5", "uneven batches raise before the collective", TRAINING,
        "even([len(batch) for batch in micro], count, self.device)", "pass",
        "tests/test_ranks.py::test_uneven_batches_are_told_on_every_rank_before_anything_is_gathered",
    ),
    Guard(
        "I", "a worker that hangs is given up", BATCHES,
        "if not died and \"DataLoader timed out\" not in str(error):", "if not died:",
        "tests/test_batches.py::test_a_worker_that_dies_or_hangs_names_the_study_and_does_not_interrupt_the_trainer_elsewhere",
    ),
    Guard(
        "I", "... also while it hands a batch over", BATCHES,
        "            given_up.set()\n            self._end_workers()\n", "            given_up.set()\n",
        "tests/test_batches.py::test_workers_that_were_stopped_while_they_hand_a_batch_over_are_given_up",
    ),
    Guard(
        "I", "workers leave word of what they read", BATCHES,
        "self.reading[get_worker_info().id, 1] = at[1]", "pass",
        "tests/test_batches.py::test_a_worker_that_dies_or_hangs_names_the_study_and_does_not_interrupt_the_trainer_elsewhere",
    ),
    Guard(
        "R7", "a public export has no hashes of patients", "elvis/checkpoints/export.py",
        '*(["patients.npy"] if public else [])', "",
        "tests/test_checkpoints_command.py::test_a_public_export_has_no_queue_no_ids_no_path_and_is_marked",
    ),
    Guard(
        "R7", "... and empty queues", "elvis/checkpoints/export.py",
        "            _empty_queues(stage)\n", "",
        "tests/test_checkpoints_command.py::test_a_public_export_has_no_queue_no_ids_no_path_and_is_marked",
    ),
    Guard(
        "R6", "trainer state is read without unpickling", "elvis/checkpoints/contents.py",
        'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)',
        "tests/hostile/test_checkpoints.py::test_a_pickle_in_a_checkpoint_is_not_run",
    ),
    Guard(
        "R6", "... and that is written everywhere", "elvis/checkpoints/contents.py",
        'map_location="cpu", weights_only=True)', 'map_location="cpu")',
        "tests/test_supply_chain.py::test_no_file_runs_what_it_is_given_or_reads_a_pickle",
    ),
    Guard(
        "R6", "a recipe that asks for other files is refused", "elvis/checkpoints/border.py",
        "if key in ELSEWHERE and inner:", "if False:",
        "tests/hostile/test_checkpoints.py::test_a_recipe_is_read_before_anything_is_made_of_it",
    ),
    Guard(
        "R6", "a model is counted in shapes before it takes memory", "elvis/checkpoints/border.py",
        "if min(left) < 0:", "if False:",
        "tests/hostile/test_checkpoints.py::test_a_model_is_counted_while_it_is_made_in_shapes_alone",
    ),
    Guard(
        "R6", "a manifest names plain files inside", CHECKPOINT,
        'plain.as_posix() == name and ".." not in plain.parts and ', "",
        "tests/hostile/test_checkpoints.py::test_a_manifest_names_plain_files_inside",
    ),
    Guard(
        "R6", "no link leads out of a checkpoint", CHECKPOINT,
        " and (path / name).resolve().is_relative_to(path.resolve())", "",
        "tests/hostile/test_checkpoints.py::test_links_out_pipes_and_files_that_are_not_listed_are_refused",
    ),
    Guard(
        "R6", "no path of a table leaves the root", "elvis/data/tables.py",
        'clean.startswith(("/", "../"))', "False",
        "tests/datasets/test_hostile_json.py::test_a_path_of_ms_cxr_that_leads_elsewhere_is_refused",
    ),
    Guard(
        "R6", "no symbolic link does", "elvis/data/images.py",
        'if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):', "if False:",
        "tests/datasets/test_hostile_json.py::test_an_image_of_ms_cxr_that_links_out_of_the_root_is_not_read",
    ),
    Guard(
        "R6", "a picture's size is known before it is decoded", "elvis/data/images.py",
        'warnings.simplefilter("error", Image.DecompressionBombWarning)', "pass",
        "tests/test_images.py::test_a_decompression_bomb_is_refused_before_it_is_decoded",
    ),
    Guard(
        "R6", "a deflated DICOM file is not unpacked", "elvis/data/dicom.py",
        "if _deflated(data):", "if False:",
        "tests/hostile/test_images.py::test_what_is_made_to_hurt_is_refused_for_its_reason_and_takes_no_memory",
    ),
    Guard(
        "R6", "... and none of hundreds of thousands of items is parsed", "elvis/data/dicom.py",
        "if _items(data) > MAX_ITEMS:", "if False:",
        "tests/hostile/test_images.py::test_what_is_made_to_hurt_is_refused_for_its_reason_and_takes_no_memory",
    ),
    Guard(
        "R6", "a config has no aliases", "elvis/config.py",
        "if id(node) in seen:", "if len(seen) > 9999:",
        "tests/hostile/test_config.py::test_a_hostile_file_is_one_message[alias]",
    ),
    Guard(
        "R6", "of the environment only ELVIS_ variables", "elvis/config.py",
        'if "${" in _REFERENCE.sub("", _ENVIRONMENT.sub("", text)):', "if False:",
        "tests/hostile/test_config.py::test_no_variable_but_those_of_elvis_is_read_wherever_it_stands",
    ),
    Guard(
        "R6", "a config extends nothing but a file beside it", "elvis/config.py",
        "if os.path.basename(str(base)) != base or not os.path.isfile(parent):", "if not os.path.isfile(parent):",
        "tests/hostile/test_config.py::test_a_config_extends_nothing_but_a_file_of_its_folder",
    ),
    Guard(
        "I", "no number of a config is infinite or none", "elvis/config.py",
        'wrong = [*_strange_numbers(raw, "")]', "wrong: list[str] = []",
        "tests/hostile/test_config.py::test_no_number_is_infinite_none_or_beyond_64_bits",
    ),
    Guard(
        "I", "texts on a page are text", "elvis/results.py",
        "autoescape=True", "autoescape=False",
        "tests/hostile/test_pages.py::test_no_text_makes_a_tag_or_an_attribute",
    ),
    Guard(
        "I", "no name steers a terminal", "elvis/terminal.py",
        "return text if text.isprintable() else ", "return text if text else ",
        "tests/hostile/test_pages.py::test_nothing_that_a_file_is_named_steers_a_terminal",
    ),
    Guard(
        "R7", "of a DICOM file only named attributes are read", "elvis/data/dicom.py",
        "stop_before_pixels=not pixels, specific_tags=tags)", "stop_before_pixels=not pixels)",
        "tests/test_dicom.py::test_neither_a_message_nor_the_process_has_the_name_of_a_patient",
    ),
    Guard(
        "R7", "phrases of patients stay out of pages", "elvis/results.py",
        '"".join(phrase) if public_text else ""', '"".join(phrase)',
        "tests/test_results.py::test_phrases_of_patients_stay_off_the_page",
    ),
    Guard(
        "N", "a vector of zeros has a direction without dividing by zero", "elvis/ops.py",
        ".clamp_min(eps * eps)", ".clamp_min(0.0)",
        "tests/test_properties.py::test_loss_and_gradients_are_finite_whatever_is_real_and_zero_where_nothing_is",
    ),
    Guard(
        "N", "nothing that is masked is infinite before a softmax", "elvis/ops.py",
        "torch.finfo(logits.dtype).min / 4", "-torch.inf",
        "tests/test_properties.py::test_loss_and_gradients_are_finite_whatever_is_real_and_zero_where_nothing_is",
    ),
    Guard(
        "N", "padding is replaced, not multiplied by zero", "elvis/ops.py",
        "x.masked_fill(~mask.unsqueeze(-1), 0.0)", "x * mask.unsqueeze(-1)",
        "tests/test_properties.py::test_not_a_bit_depends_on_what_padding_holds",
    ),
    Guard(
        "N", "a learned scale lies in [1, 100]", "elvis/ops.py",
        "value.clamp(0.0, math.log(most))", "value",
        "tests/test_properties.py::test_a_learned_scale_lies_between_1_and_100_after_any_step_and_can_always_come_back",
    ),
    Guard(
        "N", "objectives compute with autocast off", "elvis/assembly.py",
        "torch.autocast(batch.images.device.type, enabled=False)", "torch.autocast(batch.images.device.type, torch.bfloat16, enabled=True)",
        "tests/test_properties.py::test_autocast_never_reaches_what_an_objective_computes_and_changes_its_loss_by_little",
    ),
    Guard(
        "N", "the queue holds no own or equal text as a negative", "elvis/objectives/structure_contrast.py",
        "there & ~equal & ~said", "there & ~said",
        "tests/test_properties.py::test_a_queue_is_never_an_own_or_an_equal_text_goes_on_from_its_state_and_empty_is_none",
    ),
    Guard(
        "N", "a rank without one real unit still gives every parameter a gradient", "elvis/model.py",
        "at = at.new_zeros(1)", "pass",
        "tests/test_properties.py::test_a_step_of_a_rank_whose_reports_are_all_empty_still_gives_every_parameter_a_gradient",
    ),
    Guard(
        "N", "gathered rows send their gradients back to their ranks", "elvis/distributed.py",
        "        dist.all_reduce(grad)\n", "",
        "tests/test_distributed.py::test_ranks_give_the_gradients_of_one_process",
    ),
)  # fmt: skip


def copy(folder: Path) -> None:
    """The working tree as git lists it, files that are not committed yet too."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def red(guard: Guard, folder: Path) -> bool:
    """Whether the guard's test fails without it."""
    file = folder / guard.file
    text = file.read_text()
    if text.count(guard.old) != 1:
        raise SystemExit(f"{guard.file} holds {guard.old!r} {text.count(guard.old)} times: mend the guard '{guard.what}'")
    file.write_text(text.replace(guard.old, guard.new))
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", guard.test]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return True  # a guard against waiting for ever
    finally:
        file.write_text(text)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the test of '{guard.what}' did not run: {done.stdout[-600:]}{done.stderr[-300:]}")
    return done.returncode == 1


def broken(guards: Sequence[Guard]) -> list[str]:
    """Each of them broken, one after the other, in a copy of its own; those whose tests stay green."""
    green = []
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        for guard in guards:
            turned = red(guard, Path(folder))
            print(f"{'red  ' if turned else 'GREEN'}  {guard.promise}  {guard.what}", flush=True)
            green += [] if turned else [guard.what]
    return green


def table() -> str:
    """Markdown: promise, guard, where, its test."""
    rows = [f"| {g.promise} | {g.what} | `{g.file}` | `{g.test}` |" for g in GUARDS]
    return "\n".join(["| promise | guard | where | test that turns red without it |", "|---|---|---|---|", *rows])


def main(words: Sequence[str]) -> int:
    if "--table" in words:
        print(table())
        return 0
    chosen = [g for g in GUARDS if not words or any(word in f"{g.promise} {g.what} {g.file}" for word in words)]
    with ThreadPoolExecutor(JOBS) as pool:
        green = [what for part in pool.map(broken, (chosen[i::JOBS] for i in range(JOBS))) for what in part]
    print(f"{len(chosen) - len(green)} of {len(chosen)} guards have a test that turns red without them")
    return 1 if green else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
