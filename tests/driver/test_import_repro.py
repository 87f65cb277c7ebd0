"""A lowering that fails: one line with the op and its source, and what reproduces it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.coverage import check
from llmos.compiler.frontend.ops.table import table
from llmos.runtime.errors import PassError


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).flip(1).add(x[0], alpha=x.size(0))


@pytest.fixture()
def broken_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table whose lowering of flip has a mistake in it."""

    def flip(*_: object) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setitem(table(), "aten.flip.default", flip)  # type: ignore[arg-type]


def test_any_exception_of_a_lowering_says_the_op_its_line_and_a_command(broken_flip: None, tmp_path: Path) -> None:
    options = CompileOptions(target="native", cache=False, repro=tmp_path / "repro", accuracy_report=False)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    with pytest.raises(PassError) as caught:
        compile_model(Model(), (torch.randn(3, 8),), dynamic_shapes=shapes, options=options)

    text = str(caught.value)
    assert text.startswith("aten.flip.default: its lowering failed: ValueError: zip() argument 2 is shorter")
    assert ".flip(1).add(" in text and text.endswith(f"llmos check {tmp_path / 'repro' / 'op.pt2'}") and "\n" not in text
    assert {each.name for each in (tmp_path / "repro").iterdir()} == {"op.pt2", "graph.txt", "versions.json", "error.txt"}
    assert "Traceback" in (tmp_path / "repro" / "error.txt").read_text()
    rows = check(tmp_path / "repro" / "op.pt2")
    assert [row.op for row in rows if not row.supported] == ["aten.flip.default"]


def test_a_program_of_one_op_keeps_the_sizes_that_its_numbers_come_from(tmp_path: Path) -> None:
    from llmos.compiler.frontend.exporting import export
    from llmos.compiler.frontend.one_op import one_op_program

    program = export(Model(), (torch.randn(3, 8),), ({0: torch.export.Dim("batch", min=2, max=64)},))
    call = next(node for node in program.graph.nodes if str(node.target) == "aten.add.Tensor")
    torch.export.save(one_op_program(call), tmp_path / "op.pt2")

    alone = torch.export.load(tmp_path / "op.pt2").module()
    x, y = torch.randn(5, 8), torch.randn(8)
    outputs = alone(*[{(5, 8): x, (8,): y}[tuple(each)] for each in ((5, 8), (5, 8), (8,))])
    assert torch.equal(outputs[0], x.add(y, alpha=5))
