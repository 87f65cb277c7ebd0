"""torch's own samples of every operator (OpInfo, `op_db`) through the whole road, against eager torch: an entry is a case.

An entry passes where each of its first samples does, in float32 and in int64 where it takes them. A sample that torch.export itself doesn't
take says nothing of us; an entry without any other is left out. Numbers that nothing defines (`empty`), and random ones, which follow
from a seed here, are compared by shape and type.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.coverage import check
from llmos.compiler.frontend.results import as_array
from llmos.compiler.frontend.torch import import_torch, to_numpy
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.errors import UserError
from tests.conformance.inprocess import Compiled
from tests.conformance.outcome import CheckAnswer, Outcome, Verdict, judge, one_line

SAMPLES = 5
SEED = "seed"
NOT_EXPORTED = "torch.export doesn't take it"
TIES = ("kthvalue", "topk")  # which of several equal numbers they name is nobody's promise
UNDEFINED = ("empty", "new_empty", "resize_")
# What each sample of these would need is on another machine, or ends the process in torch itself.
FOREIGN = ("jiterator", "_flash_attention_forward", "_efficient_attention_forward", "triton")
_ORDER: tuple[Verdict, ...] = ("crashed", "wrong", "refused", "passed")


class OpInfoSuite:
    """One case an entry of op_db."""

    name, title = "opinfo", "torch OpInfo, five samples, float32 and int64"

    def cases(self) -> Sequence[str]:
        return sorted(entries())

    def run(self, case: str) -> Outcome:
        return run_entry(case)


@cache
def entries() -> Mapping[str, Any]:
    """The entries of op_db by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    named = {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in op_db}
    return {name: op for name, op in named.items() if not any(part in name for part in FOREIGN)}


def dtypes(op: Any) -> list[torch.dtype]:
    """float32 and int64 where the operator takes them, else the first type it takes."""
    known = op.supported_dtypes("cpu")
    chosen = [dtype for dtype in (torch.float32, torch.int64) if dtype in known]
    return chosen or [dtype for dtype in (torch.bool, *sorted(known, key=str)) if dtype in known][:1]


def run_entry(name: str, samples: int = SAMPLES) -> Outcome:
    """The worst of an entry's samples."""
    found = [outcome for outcome in run_samples(name, samples) if outcome.reason != NOT_EXPORTED]
    if not found:
        return Outcome(name, "refused", NOT_EXPORTED)
    worst = min(found, key=lambda outcome: _ORDER.index(outcome.verdict))
    part = worst.case.removeprefix(name)
    disagreeing = next((outcome for outcome in found if outcome.check_disagrees), None)
    if disagreeing is not None:
        said = f"check says {disagreeing.checked}, compile {disagreeing.verdict}: {disagreeing.reason}"
        return Outcome(name, disagreeing.verdict, one_line(said), disagreeing.checked)
    return Outcome(name, worst.verdict, f"{worst.reason} [{part[1:]}]" if worst.reason else "")


def run_samples(name: str, samples: int = SAMPLES) -> Iterator[Outcome]:
    """Each sample, "name/dtype/number"."""
    op = entries()[name]
    for dtype in dtypes(op):
        torch.manual_seed(0)
        made = iter(op.sample_inputs("cpu", dtype, requires_grad=False))
        for number in range(samples):
            case = f"{name}/{str(dtype).removeprefix('torch.')}/{number}"
            try:
                sample = next(made)
            except StopIteration:
                break
            except Exception:  # torch has no sample in this type
                break
            yield _run_sample(case, op, sample, with_check=number == 0)


def _run_sample(case: str, op: Any, sample: Any, with_check: bool) -> Outcome:
    values, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    module = Call(op.op, values, spec, sample.output_process_fn_grad)
    tensors = [value.detach() for value in values if isinstance(value, torch.Tensor)]
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = module(*[each.clone() for each in tensors])
            program = torch.export.export(module, tuple(each.clone() for each in tensors))
    except Exception:
        return Outcome(case, "refused", NOT_EXPORTED)
    checked: CheckAnswer = check_answer(program) if with_check and not _is_random(program) else ""
    return judge(case, lambda: _difference(program, tensors, expected, op.name), checked)


def _is_random(program: Any) -> bool:
    """Whether a program may draw random numbers: `check`, which is given no seed, then has nothing to say of what one makes possible."""
    ops = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return any(torch.Tag.nondeterministic_seeded in op.tags for op in ops)


def check_answer(source: Any, example_args: Sequence[Any] | None = None, dynamic_shapes: Any = None) -> CheckAnswer:
    """What `llmos check` says of a program, or of a module with example inputs."""
    try:
        return "compiles" if all(row.supported for row in check(source, example_args, dynamic_shapes)) else "refused"
    except UserError:
        return "refused"
    except Exception:
        return "crashed"


def _difference(program: Any, tensors: Sequence[torch.Tensor], expected: Any, op_name: str) -> str:
    compiled = Compiled(import_torch(program, random=SEED))
    seeds = [np.asarray(7)] if any(spec.name == SEED for spec in compiled.entry.inputs) else []
    found = compiled([*[to_numpy(each) for each in tensors], *seeds])[: len(compiled.entry.outputs)]  # behind them is what it updates
    leaves = [_as_tensor(leaf) for leaf in pytree.tree_leaves(expected) if leaf is not None]
    if op_name in TIES:
        found, leaves = found[:1], leaves[:1]
    shapes_only = op_name.startswith(UNDEFINED) or bool(seeds)
    return next((text for got, want in zip(found, leaves, strict=True) if (text := difference(got, want, shapes_only))), "")


def _as_tensor(leaf: Any) -> torch.Tensor:
    """A tensor, or a Python number as what a compiled model makes of it."""
    return leaf if isinstance(leaf, torch.Tensor) else torch.from_numpy(as_array(leaf))


def difference(got: np.ndarray, tensor: torch.Tensor, shapes_only: bool = False) -> str:
    """What is wrong, or nothing. Floats: within 1e-5 of the output's scale plus 1e-4 of the number itself."""
    want = to_numpy(tensor)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} where {want.dtype}{list(want.shape)} is right"
    if shapes_only:
        return ""
    if want.dtype.kind == "c":  # as real and imaginary parts
        got, want = (each.reshape(*each.shape, 1).view(each.real.dtype) for each in (got, want))
    if want.dtype.kind != "f" and tensor.dtype != torch.bfloat16:
        return "" if np.array_equal(got, want) else f"{int((got != want).sum())} of {want.size} integers differ"
    loose = 1.0 if want.dtype.itemsize > 2 else 200.0
    if tensor.dtype == torch.bfloat16:
        got, want = (from_bfloat16(each) for each in (got, want))
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0.0))
    with np.errstate(all="ignore"):
        near = np.abs(got - want) <= loose * (1e-5 * scale + 1e-4 * np.abs(want)) + 1e-7
        same = np.where(finite, near, (got == want) | (np.isnan(got) & np.isnan(want)))
    if same.all():
        return ""
    at = tuple(int(i) for i in np.argwhere(~same)[0])
    return one_line(f"{int((~same).sum())} of {same.size} differ, at {at} {got[at]} where {want[at]} is right")


class Call(torch.nn.Module):
    """An operator on a sample whose tensors are the inputs; `finish` takes out what is arbitrary (signs of eigenvectors)."""

    def __init__(self, op: Any, values: Sequence[Any], spec: Any, finish: Any) -> None:
        super().__init__()
        self._op, self._spec, self._finish = op, spec, finish
        self._values = [None if isinstance(value, torch.Tensor) else value for value in values]
        self._places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]

    def forward(self, *tensors: torch.Tensor) -> Any:
        values = list(self._values)
        for place, tensor in zip(self._places, tensors, strict=True):
            values[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(values, self._spec)
        return self._finish(self._op(first, *args, **kwargs))
