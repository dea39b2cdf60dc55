"""The verbs as functions: the same defaults as the commands, and the same files."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mimo_gguf
from mimo_gguf import verbs
from mimo_gguf.core.errors import UsageError
from tests.checkpoints import write_checkpoint
from tests.cli.command_line import run_here
from tests.quantization.models import Model, write_random
from tests.quantization.runs import files_in

SMALL = Model(n_trunk=1, width=64, ffn=96, vocab=72, heads=2, kv_heads=1, head_dim=32)

# verbs that share a command; it has the options of all
TOGETHER = {"quantize": ("calibrate",)}
# the command of a verb, if it has another name
COMMAND = {"measure_quality": "quality"}
# what a command's option is called as an argument of its verb
RENAMED = {"tensor_type": "tensor_types"}
# options that are about showing, or choose between the verb and its plan or another verb
OF_THE_COMMAND = {
    "against",
    "dry_run",
    "as_json",
    "quiet",
    "profile",
    "tensors",
    "metadata",
    "check",
    "plot",
    "yes",
    "models_dir",
}
# options of a command that does more than its verb, and what it needs less for that
FURTHER = {
    "measure_quality": {"files", "write_text", "prompts", "temperature", "force"},
    "imatrix": {"merge", "show"},
    "quantize": {"calibrate", "card", "ctx"},
    "batch": {"rpc", "verbose", "log_file"},
    "serve": {"rpc", "auto", "verbose", "log_file"},
    "evaluate": {"models", "model", "task", "list_tasks", "show", "rpc", "verbose", "log_file"},
}
# arguments that a command gives itself
OF_THE_VERB = {
    "progress",
    "on_plan",
    "on_progress",
    "on_certified",
    "on_ready",
    "on_start",
    "on_pool",
    "on_task",
    "on_graded",
    "find",
}


VERBS = (
    "convert",
    "quantize",
    "imatrix",
    "relabel",
    "verify",
    "inspect",
    "measure_quality",
    "serve",
    "batch",
    "evaluate",
    "advise",
)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_takes_what_its_command_takes_with_the_same_defaults(name: str) -> None:
    def defaults(function: Callable[..., Any]) -> dict[str, Any]:
        given = inspect.signature(function).parameters.values()
        return {RENAMED.get(p.name, p.name): None if p.default in ((), []) else p.default for p in given}

    command = defaults(importlib.import_module(f"mimo_gguf.cli.{COMMAND.get(name, name)}").command)
    verb = defaults(getattr(verbs, name))
    for other in TOGETHER.get(name, ()):
        verb = defaults(getattr(mimo_gguf, other)) | verb
    further = FURTHER.get(name, set())
    assert {key: value for key, value in command.items() if key not in OF_THE_COMMAND | further} == {
        key: value for key, value in verb.items() if key not in OF_THE_VERB | further
    }


def test_what_decides_a_calibration_decides_its_plan() -> None:
    verb = inspect.signature(mimo_gguf.calibrate).parameters
    plan = inspect.signature(mimo_gguf.plan_calibrate).parameters
    assert {key: plan[key].default for key in plan} == {
        key: verb[key].default for key in verb if key not in OF_THE_VERB
    }


@pytest.mark.parametrize("name", ["convert", "quantize", "relabel"])
def test_a_plan_takes_what_decides_it_with_the_same_defaults(name: str) -> None:
    verb = inspect.signature(getattr(verbs, name)).parameters
    plan = inspect.signature(getattr(verbs, f"plan_{name}")).parameters
    assert [key for key in plan if plan[key].default != verb[key].default] == []


def test_every_public_name_is_in_the_table_and_can_be_had() -> None:
    assert set(mimo_gguf.__all__) == {*mimo_gguf._HOMES, "__version__"}
    for name in mimo_gguf.__all__:
        assert getattr(mimo_gguf, name) is not None
    assert mimo_gguf.convert is verbs.convert
    assert verbs.plan_fit is mimo_gguf.plan_fit
    assert verbs.compare is mimo_gguf.compare
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mimo_gguf.nothing  # type: ignore[attr-defined]  # noqa: B018 - asked for, that is all


def test_a_verb_is_not_hidden_by_a_folder_of_its_name() -> None:
    code = "import mimo_gguf, mimo_gguf.batch.rows; from mimo_gguf import batch; print(batch is mimo_gguf.batch, batch)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True <function batch")
    folders = {path.parent.name for path in Path(mimo_gguf.__path__[0]).glob("*/__init__.py")}
    for name in folders & set(mimo_gguf.__all__):
        importlib.import_module(f"mimo_gguf.{name}")
        assert callable(getattr(mimo_gguf, name))


def test_importing_the_verbs_brings_nothing_heavy() -> None:
    code = "import sys, mimo_gguf.verbs; print(sorted({'numpy', 'numba', 'llama_cpp', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_convert_writes_what_the_command_writes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "My-MiMo")
    plans: list[verbs.ConvertPlan] = []
    report = mimo_gguf.convert(
        tmp_path / "My-MiMo", out=tmp_path / "ours/", types=["F16", "q8_0"], on_plan=plans.append
    )
    done = run_here(tmp_path, "convert", "My-MiMo", "-o", "theirs/", "--type", "F16", "--type", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "ours") == files_in(tmp_path / "theirs")
    assert [output.paths for output in report.written.outputs] == [
        (tmp_path / f"ours/My-MiMo-{name}.gguf",) for name in ("F16", "Q8_0")
    ]
    (plan,) = plans
    assert [output.profile.name for output in plan.writing.outputs] == ["F16", "Q8_0"]
    dry = mimo_gguf.plan_convert(tmp_path / "My-MiMo", out=tmp_path / "new/", types="F16")
    assert not (tmp_path / "new").exists()
    assert dry.writing.outputs[0].n_bytes == report.written.outputs[0].n_bytes


def test_quantize_writes_what_the_command_writes(tmp_path: Path) -> None:
    write_random(tmp_path / "Random-BF16.gguf", SMALL)
    options: dict[str, Any] = {"types": ["Q4_0", "F16"], "mtp_type": "Q8_0", "tensor_types": "attn_k=F16"}
    preview = mimo_gguf.plan_quantize(tmp_path / "Random-BF16.gguf", out=tmp_path / "ours/", **options)
    assert (preview.complete, preview.existing) == ((), ())
    assert not (tmp_path / "ours").exists()
    report = mimo_gguf.quantize(tmp_path / "Random-BF16.gguf", out=tmp_path / "ours/", **options)
    words = ("--type", "Q4_0", "--type", "F16", "--mtp-type", "Q8_0", "--tensor-type", "attn_k=F16")
    assert run_here(tmp_path, "quantize", "Random-BF16.gguf", "-o", "theirs/", *words).returncode == 0
    assert files_in(tmp_path / "ours") == files_in(tmp_path / "theirs")
    assert sum(output.n_bytes for output in report.outputs) == sum(o.n_bytes for o in preview.plan.outputs)
    again = mimo_gguf.plan_quantize(tmp_path / "Random-BF16.gguf", out=tmp_path / "ours/", **options)
    assert again.complete == tuple(output.paths[0] for output in report.outputs)


def test_verify_and_inspect_say_what_a_file_is(tmp_path: Path) -> None:
    write_random(tmp_path / "Random-BF16.gguf", SMALL)
    (output,) = mimo_gguf.quantize(tmp_path / "Random-BF16.gguf", types="Q8_0").outputs
    assert mimo_gguf.verify(output.paths[0]).intact
    assert mimo_gguf.inspect(str(output.paths[0])).ftype == "Q8_0"


def test_wrong_arguments_are_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file type or profile 'Q9'"):
        mimo_gguf.convert(tmp_path / "nothing", types="Q9")
    with pytest.raises(UsageError, match="'much' is not a size"):
        mimo_gguf.convert(tmp_path / "nothing", split_max_size="much")
    with pytest.raises(UsageError, match="PATTERN=TYPE"):
        mimo_gguf.quantize(tmp_path / "nothing.gguf", types="Q8_0", tensor_types="x")
