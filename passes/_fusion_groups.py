"""Which ops become one dispatch: roots with their epilogues, rows of reductions, chains of elementwise ops."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.attention import parts_of
from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import (
    Generic,
    dim_positions,
    has_windows,
    is_fill,
    is_identity,
    padded_source,
    permuted_operand,
    trace_to_buffer,
)
from llmos.compiler.analysis.grouped_rows import GroupedRows, is_grouped_rows
from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.analysis.paged_attention import is_paged_attention
from llmos.compiler.analysis.quantized_weights import quantized_weight_of
from llmos.compiler.analysis.scans import is_scan
from llmos.compiler.analysis.scatters import scatter_of
from llmos.compiler.analysis.windows import window_reduction_over
from llmos.compiler.ir.attributes import COMPUTES, SCAN_OUTPUT
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.ops import VIEWS
from llmos.passes._epilogues import absorb_epilogue, release_dequantizations
from llmos.passes._graph import MOVES, FusionGroup, Graph, among, captured, is_evaluable, is_tensor, owner_of
from llmos.passes._sorts import sort_groups, take_producer

LONGEST_CHAIN = 24  # elementwise ops of one dispatch


def fuse_all(graph: Graph, attention_groups: Sequence[list[ir.Operation]]) -> list[FusionGroup]:
    """Return every fusion group of a function. Order matters: what is most expensive chooses its company first."""
    paged = [_seed(graph, "paged_attention", [op]) for op in graph.ops if is_paged_attention(op)]
    groups = [_seed(graph, "attention", ops) for ops in attention_groups]
    for ops in attention_groups:
        _materialize_keys_and_values(graph, ops)
    groups += [_seed(graph, "contraction", [c.generic.op]) for c in _contractions(graph)]
    for group in groups:
        absorb_epilogue(graph, group, group.ops[-1].results[0], keep_last=True)
    _take_dequantized(graph, groups)
    _take_grouped_rows(graph, groups)
    _materialize_conv_inputs(graph, groups)
    groups += sort_groups(graph)
    groups += _scans(graph)
    groups += _rows(graph)
    groups += _columns(graph)
    for group in dict.fromkeys(graph.groups.values()):
        release_dequantizations(graph, group)
    groups += _elementwise(graph)
    groups += _scatters(graph)
    groups += _fallbacks(graph)
    groups += _materialized(graph)
    return [*paged, *groups]


def _seed(graph: Graph, kind: str, ops: Sequence[ir.Operation]) -> FusionGroup:
    group = FusionGroup(kind, [])
    graph.assign(group, ops)
    return group


def _materialize_keys_and_values(graph: Graph, group: Sequence[ir.Operation]) -> None:
    """The kernel reads keys and values where they lie: what is computed on the way to them gets a dispatch of its own."""
    parts = parts_of(group)
    for value in (parts.scores.generic.inputs[1 - parts.query], parts.values.generic.inputs[1 - parts.weights]):
        owner = owner_of(value)
        while owner is not None and graph.is_inlined(owner) and (source := permuted_operand(owner)) is not None:
            owner = owner_of(owner.operands[source])
        if owner is not None and (graph.is_inlined(owner) or graph.is_free(owner)):
            _seed(graph, "elementwise", [owner])


def _materialize_conv_inputs(graph: Graph, groups: Sequence[FusionGroup]) -> None:
    """Windows are read where they lie: what would be computed on the way to each of them is written once."""
    for group in [c for c in groups if c.kind == "contraction"]:
        root = root_contraction(group.ops)
        source, padding = padded_source(root.lhs)
        owner = owner_of(source if padding is not None and graph.is_inlined(padding) else root.lhs)
        if has_windows(root.lhs_map) and owner is not None and (graph.is_inlined(owner) or graph.is_free(owner)):
            _seed(graph, "elementwise", [owner])


def _take_dequantized(graph: Graph, groups: Sequence[FusionGroup]) -> None:
    """A weight that kernels multiply as integers is dequantized in the dispatch of the one contraction that reads it."""
    weights = _weights(graph.func)
    for group in [c for c in groups if c.kind == "contraction"]:
        root = root_contraction(group.ops)
        owner = owner_of(root.rhs)
        if owner is not None and _has_numbers(graph, root, weights):
            graph.assign(group, [owner])


def _take_grouped_rows(graph: Graph, groups: Sequence[FusionGroup]) -> None:
    """What takes each row's own columns of a product, and alone reads it, runs in its dispatch: no memory holds those of all groups."""
    for op in [op for op in graph.ops if is_grouped_rows(op) and op not in graph.groups]:
        rows = GroupedRows(op)
        owner = owner_of(rows.image)
        group = graph.groups.get(owner) if owner is not None else None
        if group is None or group not in groups or group.kind != "contraction" or graph.costs.columns_of_groups(rows) is None:
            continue
        root = root_contraction(group.ops)
        is_plain = (len(root.m), len(root.n), root.batch, has_windows(root.lhs_map)) == (1, 1, (), False)
        outside = [(result, user) for each in group.ops for result in each.results for user in graph.users(result) if user not in group.ops]
        if is_plain and _is_weight(graph, root) and outside == [(rows.image, op)] and graph.may_join(op, group):
            group.kind = "grouped_contraction"
            graph.assign(group, [op])


def _is_weight(graph: Graph, contraction: Contraction) -> bool:
    """Whether the right side is a weight, which will be packed into panels."""
    return _has_weight(contraction) or _has_numbers(graph, contraction, _weights(graph.func))


def _has_numbers(graph: Graph, contraction: Contraction, weights: set[ir.Value]) -> bool:
    """Whether the right side is the dequantization of a weight, of which nothing else reads the result."""
    found = quantized_weight_of(contraction)
    if found is None or owner_of(contraction.rhs) not in graph.position or len(graph.users(contraction.rhs)) != 1:
        return False
    return all(value in weights for value in (found.numbers, found.scale, found.zero_point) if value is not None)


def _weights(function: ir.Operation) -> set[ir.Value]:
    """The weights of a public function; none of a loop."""
    return {each.value for each in EntryFunc(function).arguments.weights} if function.name == "func.func" else set()


def _contractions(graph: Graph) -> list[Contraction]:
    found = [graph.contraction_of(generic.op) for generic in graph.generics() if generic.op not in graph.groups]
    return [c for c in found if c is not None and _has_kernel(graph, c)]


def _has_kernel(graph: Graph, contraction: Contraction) -> bool:
    if contraction.has_byte_rows:
        return _has_numbers(graph, contraction, _weights(graph.func))
    return _is_f32(contraction) or (contraction.is_bytes and _has_weight(contraction))


def _is_f32(contraction: Contraction) -> bool:
    return all(isinstance(value.type.element_type, ir.F32Type) for value in contraction.generic.op.operands)


def _has_weight(contraction: Contraction) -> bool:
    """Whether the right side is a whole weight, which can be packed ahead."""
    positions = dim_positions(contraction.rhs_map)
    source = trace_to_buffer(contraction.rhs, [{p: 1} if p is not None else {} for p in positions])
    if source is None or not ir.RankedTensorType(source[0].type).has_static_shape:
        return False
    function = source[0].owner.owner.operation
    return source[0] in _weights(function) and all(form is not None and len(form) <= 1 for form in source[1])


# -- sorts and scans
def _scans(graph: Graph) -> list[FusionGroup]:
    """One fusion group for each scan, with what follows each running value point by point."""
    groups: list[FusionGroup] = []
    for op in [op for op in graph.ops if op not in graph.groups and is_scan(op)]:
        group = _seed(graph, "scan", [op])
        take_producer(graph, group, op.operands[0])
        absorb_epilogue(graph, group, op.results[0], keep_last=False)
        groups.append(group)
    return groups


# -- rows
def _rows(graph: Graph) -> list[FusionGroup]:
    groups: list[FusionGroup] = []
    for generic in graph.generics():
        if generic.op in graph.groups or not is_evaluable(generic):
            continue
        joined = next((c for c in _producer_groups(graph, generic.op, "row_reduction") if _joins_row(graph, generic, c)), None)
        if joined is not None:
            graph.assign(joined, [generic.op])
            _pull(graph, joined, generic)
        elif (num_outer := _row_form(generic)) is not None:
            group = FusionGroup("row_reduction", [], num_outer, generic.loop_sizes(graph.shapes))
            graph.assign(group, [generic.op])
            _pull(graph, group, generic)
            groups.append(group)
    return groups


def _row_form(generic: Generic) -> int | None:
    """The number of outer dims of a reduction over inner dims that reads some tensor in order."""
    if generic.is_elementwise:
        return None
    num_outer = generic.rank - len(generic.reduction_dims)
    if generic.reduction_dims != list(range(num_outer, generic.rank)) or not _keeps_order(generic, num_outer):
        return None
    in_order = [is_tensor(operand) and is_identity(affine) for operand, affine in zip(generic.inputs, generic.maps, strict=False)]
    return num_outer if any(in_order) else None


def _keeps_order(generic: Generic, num_outer: int) -> bool:
    """Whether each output is [outer dims in order], with or without trailing dims of size 1."""
    for affine in generic.maps[generic.num_inputs :]:
        positions = [p for p in dim_positions(affine) if p is not None]
        if positions != list(range(num_outer)) or dim_positions(affine)[:num_outer] != positions:
            return False
        if len(affine.results) not in (num_outer, generic.rank):
            return False
    return True


def _producer_groups(graph: Graph, op: ir.Operation, kind: str) -> list[FusionGroup]:
    owners = [owner_of(operand) for operand in op.operands]
    found = [graph.groups[owner] for owner in owners if owner is not None and owner in graph.groups]
    return [group for group in dict.fromkeys(found) if group.kind == kind]


def _joins_row(graph: Graph, generic: Generic, group: FusionGroup) -> bool:
    if not graph.may_join(generic.op, group):
        return False
    num_outer, rank = group.num_outer, len(group.sizes)
    sizes = generic.loop_sizes(graph.shapes)
    if generic.is_elementwise:
        if not all(is_identity(generic.output_map(result)) for result in generic.op.results):
            return False
        full = sizes == group.sizes
        outer = sizes == group.sizes[:num_outer] or (
            len(sizes) == rank and sizes[:num_outer] == group.sizes[:num_outer] and all(s == 1 for s in sizes[num_outer:])
        )
    else:
        full = sizes == group.sizes and generic.reduction_dims == list(range(num_outer, rank)) and _keeps_order(generic, num_outer)
        outer = False
    if not full and not outer:
        return False
    return all(
        _aligned(graph, operand, affine, group, full)
        for operand, affine in zip(generic.op.operands, generic.maps, strict=True)
        if among(owner_of(operand), group.ops)
    )


def _aligned(graph: Graph, operand: ir.Value, affine: ir.AffineMap, group: FusionGroup, full: bool) -> bool:
    """Whether a member's value is read at the row (and column) that the loops are at."""
    shape = graph.shapes.shape(operand)
    per_row = len(shape) == group.num_outer or (all(size == 1 for size in shape[group.num_outer :]) and len(shape) == len(group.sizes))
    positions = dim_positions(affine)
    if not per_row:
        return full and positions == list(range(len(group.sizes)))
    return all(
        p == axis or (p is None and size == 1)
        for axis, (p, size) in enumerate(zip(positions, shape, strict=True))
        if axis < group.num_outer
    )


def _pull(graph: Graph, group: FusionGroup, generic: Generic) -> None:
    """Bring elementwise producers over the same full space into a row group."""
    for operand, affine in zip(generic.inputs, generic.maps, strict=False):
        owner = owner_of(operand)
        if owner is None or owner in graph.groups or owner.name != "linalg.generic" or is_fill(owner) or graph.is_inlined(owner):
            continue
        producer = Generic(owner)
        if not producer.is_elementwise or not is_evaluable(producer) or not is_identity(affine):
            continue
        if producer.loop_sizes(graph.shapes) != group.sizes or not is_identity(producer.output_map(operand)):
            continue
        if _joins_row(graph, producer, group) and not _needed_between(graph, owner, group):
            graph.assign(group, [owner])
            _pull(graph, group, producer)


def _needed_between(graph: Graph, producer: ir.Operation, group: FusionGroup) -> bool:
    """Whether a fusion group reads something outside that is made from `producer`: with it inside, each would wait for the other."""
    alone = FusionGroup(group.kind, [producer])
    outside = [v for op in group.ops for v in captured(op) if not among(owner_of(v), [producer, *group.ops])]
    return any(graph.would_depend(v, alone) for v in outside)


# -- the rest
def _columns(graph: Graph) -> list[FusionGroup]:
    """Other reductions: lanes run along the output's last dim. Their elementwise producers with no other use are evaluated inside."""
    groups: list[FusionGroup] = []
    for generic in graph.generics():
        if generic.op in graph.groups or generic.is_elementwise or not is_evaluable(generic):
            continue
        group = _seed(graph, "elementwise", [generic.op])
        _inline_producers(graph, group, generic)
        _take_padding(graph, group, generic)
        if len(generic.op.results) == 1:
            absorb_epilogue(graph, group, generic.op.results[0], keep_last=False)
        groups.append(group)
    return [group for group in groups if not _joins_contraction(graph, group)]


def _joins_contraction(graph: Graph, group: FusionGroup) -> bool:
    """Let windows that slide over the result of a contraction, and alone read it, run in its dispatch: no memory holds the image."""
    root = next(Generic(op) for op in group.ops if op.name == "linalg.generic" and Generic(op).reduction_dims)
    for value in root.inputs:
        pad = owner_of(value)
        image = pad.operands[0] if pad is not None and pad.name == "tensor.pad" else value
        owner = owner_of(image)
        producer = graph.groups.get(owner) if owner is not None else None
        if producer is None or producer.kind != "contraction" or not _is_read_by(graph, producer, image, group):
            continue
        window = window_reduction_over(root, image, graph.shapes)
        if (
            window is not None
            and _makes_conv_inputs(graph, producer, image)
            and graph.costs.pays_to_fuse_windows(window)
            and _keeps_coordinates(group, root)
        ):
            producer.kind = "contraction_window"
            graph.assign(producer, group.ops)
            return True
    return False


def _is_read_by(graph: Graph, producer: FusionGroup, image: ir.Value, group: FusionGroup) -> bool:
    """Whether an image is all that a fusion group gives, and another fusion group all that takes it."""
    outside = [(result, user) for op in producer.ops for result in op.results for user in graph.users(result) if user not in producer.ops]
    return all(result == image and user in group.ops for result, user in outside)


def _makes_conv_inputs(graph: Graph, producer: FusionGroup, image: ir.Value) -> bool:
    """Whether a contraction of no batch dims writes pixels in order and channels innermost."""
    root = root_contraction(producer.ops)
    elementwise = [Generic(op) for op in producer.ops if op != root.generic.op]
    outputs = [(generic.op.results[0], generic.output_map(generic.op.results[0])) for generic in (root.generic, *elementwise)]
    reads = [(v, affine) for g in elementwise for v, affine in zip(g.inputs, g.maps, strict=False) if among(owner_of(v), producer.ops)]
    last, sizes = image.type.rank - 1, root.generic.loop_sizes(graph.shapes)
    return (
        isinstance(image.type.element_type, (ir.F32Type, ir.F16Type, ir.BF16Type))
        and all(sizes[dim] == 1 for dim in root.batch)
        and root.n == (last,)
        and all(_is_in_order(value, affine) for value, affine in (*outputs, *reads))
        and trace_to_buffer(root.rhs, [{}] * root.rhs.type.rank) is not None
    )


def _is_in_order(value: ir.Value, affine: ir.AffineMap) -> bool:
    """Whether each axis of a value is read at the loop dim of its number, or has size 1."""
    places = zip(dim_positions(affine), value.type.shape, strict=True)
    return all(p == axis or (p is None and size == 1) for axis, (p, size) in enumerate(places))


def _keeps_coordinates(group: FusionGroup, root: Generic) -> bool:
    """Whether what follows windows is read off point by point."""
    after = [Generic(op) for op in group.ops if op.name == "linalg.generic" and op != root.op]
    return all(
        is_identity(generic.output_map(generic.op.results[0]))
        and all(is_identity(a) for v, a in zip(generic.inputs, generic.maps, strict=False) if among(owner_of(v), group.ops))
        for generic in after
    )


def _inline_producers(graph: Graph, group: FusionGroup, generic: Generic) -> None:
    if sum(1 for kind in generic.iterators if kind == "parallel") == 0 or _is_product(generic):
        return
    for operand in generic.inputs:
        owner = owner_of(operand)
        if owner is None or owner in graph.groups or owner.name != "linalg.generic" or is_fill(owner) or graph.is_inlined(owner):
            continue
        producer = Generic(owner)
        alone = all(user == generic.op for result in owner.results for user in graph.users(result))
        if alone and producer.is_elementwise and is_evaluable(producer) and graph.may_join(owner, group):
            graph.assign(group, [owner])


def _take_padding(graph: Graph, group: FusionGroup, generic: Generic) -> None:
    """A pad that windows slide over is no pass over memory of its own. What is padded is written first: windows read it many times."""
    for operand in generic.inputs:
        pad = owner_of(operand)
        if pad is None or pad.name != "tensor.pad" or pad in graph.groups or not graph.may_join(pad, group):
            continue
        if any(user != generic.op for user in graph.users(operand)) or not _has_window(generic):
            continue
        graph.assign(group, [pad])
        source = owner_of(pad.operands[0])
        if source is not None and graph.is_inlined(source) and not graph.is_dequantization(source):
            _seed(graph, "elementwise", [source])


def _has_window(generic: Generic) -> bool:
    return any(isinstance(e, ir.AffineAddExpr) for affine in generic.maps[: generic.num_inputs] for e in affine.results)


def _is_product(generic: Generic) -> bool:
    """Whether each input element is read many times (a convolution): a producer inside would be evaluated as often."""
    return generic.num_inputs > 1 and all(not is_identity(affine) for affine in generic.maps[: generic.num_inputs])


def _elementwise(graph: Graph) -> list[FusionGroup]:
    groups: list[FusionGroup] = []
    for generic in graph.generics():
        op = generic.op
        if op in graph.groups or not is_evaluable(generic) or not generic.is_elementwise or graph.is_inlined(op):
            continue
        fitting = [c for c in _producer_groups(graph, op, "elementwise") if _joins_elementwise(graph, generic, c)]
        if not fitting:
            groups.append(_seed(graph, "elementwise", [op]))
            continue
        graph.assign(fitting[0], [op])
        for other in fitting[1:]:
            if {other, fitting[0]} <= set(groups) and _may_merge(graph, other, fitting[0]):
                groups.remove(other)
                graph.assign(fitting[0], other.ops)
    for group in [*groups, *{c: None for c in graph.groups.values() if c.kind == "row_reduction"}]:
        for op in list(group.ops):
            if len(op.results) == 1 and Generic(op).is_elementwise and _same_space(graph, op, group):
                _inline_producers_of(graph, group, op)
    return groups


def _same_space(graph: Graph, op: ir.Operation, group: FusionGroup) -> bool:
    return group.kind != "row_reduction" or Generic(op).loop_sizes(graph.shapes) == group.sizes


def _inline_producers_of(graph: Graph, group: FusionGroup, op: ir.Operation) -> None:
    """A cheap op that is the only user of a result runs before the result is written."""
    users = graph.users(op.results[0])
    if len(users) != 1 or not graph.is_inlined(users[0]) or users[0].name != "linalg.generic" or graph.is_dequantization(users[0]):
        return
    generic = Generic(users[0])
    if is_identity(generic.output_map(users[0].results[0])) and generic.loop_sizes(graph.shapes) == Generic(op).loop_sizes(graph.shapes):
        reads = [affine for operand, affine in zip(generic.inputs, generic.maps, strict=False) if operand == op.results[0]]
        if all(is_identity(affine) for affine in reads) and graph.may_join(users[0], group):
            graph.assign(group, [users[0]])
            _inline_producers_of(graph, group, users[0])


def _joins_elementwise(graph: Graph, generic: Generic, group: FusionGroup) -> bool:
    last = Generic(group.ops[-1]) if group.ops[-1].name == "linalg.generic" else None
    if last is None or not last.is_elementwise or len(group.ops) >= LONGEST_CHAIN or not graph.may_join(generic.op, group):
        return False
    space = graph.shapes.shape(group.ops[-1].results[0])
    if generic.loop_sizes(graph.shapes) != space or not all(is_identity(generic.output_map(result)) for result in generic.op.results):
        return False
    reads = [affine for operand, affine in zip(generic.inputs, generic.maps, strict=False) if among(owner_of(operand), group.ops)]
    return all(is_identity(affine) for affine in reads)


def _may_merge(graph: Graph, first: FusionGroup, second: FusionGroup) -> bool:
    """Whether two chains over one space can be one: nothing outside stands between them."""
    if len(first.ops) + len(second.ops) > LONGEST_CHAIN:
        return False
    pairs = ((first, second), (second, first))
    return all(
        among(owner_of(v), into.ops) or not graph.depends(v, into)
        for group, into in pairs
        for op in group.ops
        for v in captured(op)
        if not among(owner_of(v), group.ops)
    )


def _scatters(graph: Graph) -> list[FusionGroup]:
    return [_seed(graph, "scatter", [op]) for op in graph.ops if op not in graph.groups and _is_scatter(graph, op)]


def _is_scatter(graph: Graph, op: ir.Operation) -> bool:
    """Whether an op is a scatter of known sizes."""
    found = scatter_of(op)
    return found is not None and all(graph.shapes.has_index(bound) for bound in found.bounds)


def _fallbacks(graph: Graph) -> list[FusionGroup]:
    """One dispatch for each op that no kernel evaluates point by point."""
    left = [
        op for op in graph.ops if op not in graph.groups and not graph.is_free(op) and not graph.is_host(op) and not graph.is_inlined(op)
    ]
    return [_seed(graph, "elementwise" if op.name in MOVES else "fallback", [op]) for op in left]


def _materialized(graph: Graph) -> list[FusionGroup]:
    """Dispatches for free and lazy values that somebody needs in memory: the return, a view, a fallback."""
    groups: list[FusionGroup] = []
    for op in reversed(graph.ops):
        reads_memory = op.name in ("func.return", "scf.yield", *VIEWS) or COMPUTES in op.attributes
        needs_memory = reads_memory or is_loop(op) or SCAN_OUTPUT in op.attributes
        if not needs_memory and not (op in graph.groups and graph.groups[op].kind in ("fallback", "paged_attention")):
            continue
        for operand in captured(op) if is_loop(op) else op.operands:
            owner = owner_of(operand)
            if (
                not is_tensor(operand)
                or owner is None
                or owner in graph.groups
                or owner not in graph.position
                or is_loop(owner)
                or SCAN_OUTPUT in owner.attributes
                or owner.name in VIEWS
                or owner.name == "tensor.empty"
            ):
                continue
            groups.append(_seed(graph, "elementwise", [owner]))
    return groups
