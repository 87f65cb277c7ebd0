"""`llmos inspect`"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmos.runtime.cli.tables import plural, quantity, table

if TYPE_CHECKING:
    from llmos.runtime.artifact.reader import Artifact


@click.command(name="inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", is_flag=True, help="Say of each code variant whether this machine takes it, and why not.")
@click.option("--kernels", is_flag=True, help="List every kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(artifact: Path, host: bool, kernels: bool, as_json: bool) -> None:
    """Show what ARTIFACT holds and where it runs. Its code is not run, so any artifact may be inspected."""
    from llmos.runtime.artifact.reader import Artifact

    found = describe(Artifact.open(artifact), host=host)
    click.echo(json.dumps(found, indent=2) if as_json else render(found, kernels=kernels))


def describe(artifact: Artifact, *, host: bool) -> dict[str, Any]:
    """Return the description as JSON values; with `host`, also whether this machine runs each variant."""
    manifest = artifact.manifest
    found: dict[str, Any] = json.loads(manifest.to_json())
    members, weights = found.pop("members"), found.pop("weights")
    found["file_bytes"] = artifact.path.stat().st_size
    found["weights"] = {
        "num_tensors": len(weights),
        "num_bytes": sum(weight["num_bytes"] for weight in weights),
        "by_dtype": _by_dtype(weights),
    }
    for code in found["code"]:
        code["num_bytes"] = members[code["member"]]["num_bytes"]
    found["accuracy_report"] = _accuracy_report(artifact)
    found["signature"] = _signature(artifact)
    if host:
        found["host"] = _host(artifact)
    return found


def _by_dtype(weights: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for weight in weights:
        counts[weight["dtype"]] += weight["num_bytes"]
    return dict(counts.most_common())


def _signature(artifact: Artifact) -> dict[str, Any]:
    from llmos.runtime.artifact.signature import is_trusted

    signer = artifact.signer
    return {"signer": signer, "trusted": signer is not None and is_trusted(signer)}


def _accuracy_report(artifact: Artifact) -> str | None:
    """Return the accuracy report's summary, or None."""
    from llmos.runtime.artifact.accuracy import accuracy_report_of

    found = accuracy_report_of(artifact)
    return found.summary() if found else None


def _host(artifact: Artifact) -> dict[str, Any]:
    from llmos.runtime.device import cpu

    machine = cpu.host()
    verdicts = cpu.judge(artifact)
    variants = [{"target": verdict.code.target, "chosen": verdict.chosen, "reason": verdict.reason} for verdict in verdicts]
    return {"arch": machine.arch, "num_threads": cpu.host_num_threads(), "features": sorted(machine.features), "variants": variants}


def render(found: Mapping[str, Any], *, kernels: bool) -> str:
    """Format the description as text: one block for each topic, without empty ones."""
    producer = ", ".join(f"{name} {version}" for name, version in found["producer"].items())
    blocks = [
        f"{found['name']}: format {found['format']}, {quantity(found['file_bytes'])}" + (f", made by {producer}" if producer else ""),
        *(_entry(entry) for entry in found["entries"]),
        _block("symbols", table([(symbol["name"], f"{symbol['min']} to {symbol['max']}") for symbol in found["symbols"]])),
        _block("sizes that data decides", table([(each["name"], f"at most {each['bound']}") for each in found.get("computed", ())])),
        _weights(found["weights"]),
        _code(found["code"]),
        _host_block(found["host"]) if "host" in found else "",
        _kernel_list(found["kernels"]) if kernels else _kernel_kinds(found["kernels"]),
        _block("passes", table([(_pass_name(one),) for one in found["passes"]])),
        *_metadata(found["metadata"]),
        _block("assets", table([(name,) for name in found["assets"]])),
        _block("accuracy_report", "  " + (found["accuracy_report"] or "none: nothing says how far its numbers are from the model's")),
        _block("signature", "  " + _signature_line(found["signature"])),
    ]
    return "\n".join(block for block in blocks if block)


def _metadata(metadata: Mapping[str, Any]) -> Sequence[str]:
    """Format the quantization summary in full, then the rest of the metadata."""
    from llmos.runtime.artifact.manifest import QUANT, QUANT_PLAN, QUANTIZATION

    rest = [(key, _short(value)) for key, value in metadata.items() if key not in (QUANT, QUANT_PLAN, QUANTIZATION)]
    compiled = f"compiled with --quant {metadata[QUANT]}" if QUANT in metadata else ""
    lines = [f"  {line}" for line in (compiled, metadata.get(QUANTIZATION, "")) if line]
    return (
        _block("quantization", "\n".join(lines)),
        _block("quantization plan", quant_plan_text(metadata[QUANT_PLAN])) if QUANT_PLAN in metadata else "",
        _block("metadata", table(rest)),
    )


def quant_plan_text(plan: Mapping[str, Any]) -> str:
    """Format the plan of `--quant auto`: why it is so, then a line for each product with what it costs where it alone is quantized."""
    rows = [
        (number, each["label"], "float" if each["kept"] else "smoothed int8" if each["smoothed"] else "int8", f"{each['error']:.2e}")
        for number, each in enumerate(plan["products"])
    ]
    return f"  {plan['why']}\n" + table(rows, header=("product", "weight", "runs in", f"{plan['figure']} alone"))


def _block(title: str, content: str) -> str:
    return f"{title}\n{content}" if content.strip() else ""


def _entry(entry: Mapping[str, Any]) -> str:
    rows = [(kind, spec["name"], spec["dtype"], _shape(spec)) for kind in ("inputs", "outputs") for spec in entry[kind]]
    return _block(f"entry {entry['name']}", table([(kind[:-1], *rest) for kind, *rest in rows]) + f"\n  requests: {_joining(entry)}")


def _joining(entry: Mapping[str, Any]) -> str:
    """Describe whether a server batches requests, and why."""
    rows = entry.get("rows")
    if rows is None:
        return "run one by one: an older compiler made this, which didn't look whether rows depend on one another; compile it again"
    if "independent" in rows:
        return f"joined along {rows['independent']}: row i of every output depends on row i of the inputs alone"
    return f"run one by one: {rows['dependent']}"


def _shape(spec: Mapping[str, Any]) -> str:
    return "[" + ", ".join(str(dim) for dim in spec["shape"]) + "]"


def _weights(weights: Mapping[str, Any]) -> str:
    if not weights["num_tensors"]:
        return ""
    kinds = ", ".join(f"{dtype} {quantity(size)}" for dtype, size in weights["by_dtype"].items())
    return _block("weights", f"  {plural(weights['num_tensors'], 'tensor')}, {quantity(weights['num_bytes'])}: {kinds}")


def _code(code: Sequence[Mapping[str, Any]]) -> str:
    rows = [(one["target"], one["arch"], quantity(one["num_bytes"]), " ".join(one["features"])) for one in code]
    return _block("code, best first", table(rows, header=("target", "arch", "size", "needs")))


def _host_block(host: Mapping[str, Any]) -> str:
    rows = [("->" if one["chosen"] else "", one["target"], one["reason"]) for one in host["variants"]]
    return _block(f"on this machine ({host['arch']}, {plural(host['num_threads'], 'thread')})", table(rows))


def _kernel_kinds(kernels: Sequence[Mapping[str, Any]]) -> str:
    kinds = Counter(kernel["kind"] for kernel in kernels)
    return _block(f"kernels: {len(kernels)}", table([(kind, count) for kind, count in kinds.most_common()]))


def _kernel_list(kernels: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for index, kernel in enumerate(kernels):
        details = " ".join(f"{key}={_short(value)}" for key, value in kernel.items() if key not in ("name", "kind"))
        rows.append((index, kernel["name"], kernel["kind"], details))
    return _block(f"kernels: {len(kernels)}", table(rows))


def _pass_name(one: object) -> str:
    """Return the name of a pass, given as a name or as an object with a name and options."""
    if isinstance(one, dict) and "name" in one:
        options = {key: value for key, value in one.items() if key != "name"}
        return f"{one['name']} {_short(options)}" if options else str(one["name"])
    return str(one)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _signature_line(signature: Mapping[str, Any]) -> str:
    if signature["signer"] is None:
        return "none: this artifact won't run"
    trust = "trusted" if signature["trusted"] else f"not trusted here: 'llmos trust add {signature['signer']}' if you trust its maker"
    return f"{signature['signer']} ({trust})"
