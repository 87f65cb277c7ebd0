"""From a saved stage after the passes (kernels.mlir, ll, o, so) to what the backend would have given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmos.compiler.backends.base import CompiledModel, CompileObserver
from llmos.compiler.backends.cpu.emit import Emitter
from llmos.compiler.backends.cpu.target import Target
from llmos.compiler.backends.options import STAGES
from llmos.compiler.driver.saved import SavedStage, Sidecar
from llmos.compiler.ir.parsing import parse_module, read_text
from llmos.runtime.errors import UserError


def resume(saved: SavedStage, sidecar: Sidecar, targets: Sequence[Target], emitter: Emitter, observer: CompileObserver) -> CompiledModel:
    """Runs the stages after `saved`, on all of its targets among `targets`. Raises UserError where a file is missing or can't be read."""
    if sidecar.record is None:
        raise UserError(f"{saved.sidecar} is missing: it says what {saved.path.name} is the code of; save the stage again")
    observer.described(sidecar.record)
    files = saved.variants([target.name for target in targets])
    if not files:
        raise UserError(f"no such file: {saved.path}")
    contents: dict[str, str | bytes] = {file.target: _read(file) for file in files}
    for stage in STAGES[STAGES.index(saved.stage) + 1 : -1]:
        contents = _next_stage(stage, contents, emitter, observer)
        for target, content in contents.items():
            observer.stage_finished(stage, content, target)
    return replace(sidecar.record, code={target: content for target, content in contents.items() if isinstance(content, bytes)})


def _next_stage(stage: str, contents: Mapping[str, str | bytes], emitter: Emitter, observer: CompileObserver) -> dict[str, str | bytes]:
    """The contents that `stage` has, from those of the stage before it, by target."""
    if stage == "o":
        modules = [(Target.parse(target), str(text)) for target, text in contents.items()]
        return dict(zip(contents, emitter.objects(modules, observer.code_progress), strict=True))
    convert: Mapping[str, Callable[[str, str | bytes], str | bytes]] = {"ll": _to_llvm, "so": _link}
    return {target: convert[stage](target, content) for target, content in contents.items()}


def _to_llvm(target: str, text: str | bytes) -> str:
    from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir

    module = parse_module(str(text), f"the kernels of {target}")
    lower_to_llvm_dialect(module)
    return to_llvm_ir(module)


def _link(_: str, data: str | bytes) -> bytes:
    from llmos.compiler.backends.cpu.link import link_shared

    assert isinstance(data, bytes)
    return link_shared([data])


def _read(file: SavedStage) -> str | bytes:
    return _read_bytes(file.path) if file.stage in ("o", "so") else read_text(file.path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
