"""linalg.generic: which loop dimension iterates over rows, and what each result depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from llmos.compiler.analysis.generic import Generic, dims_of
from llmos.compiler.analysis.independence.domain import Batch, Mixed, Rows, State, Uniform, only_axis
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class Element:
    """The dependences of a scalar inside a body.

    rows: on data of its own row. places: on the indices of these loop dims. exact: it equals the index of this one. reason: why it may
    depend on anything.
    """

    rows: bool = False
    places: frozenset[int] = frozenset()
    exact: int | None = None
    reason: str = ""


def _join(elements: Iterable[Element]) -> Element:
    every = list(elements)
    reason = next((each.reason for each in every if each.reason), "")
    return Element(any(each.rows for each in every), frozenset().union(*[each.places for each in every]), None, reason)


@dataclass
class GenericRows:
    """The analysis of one linalg.generic. `state` gives the state of tensors and scalars defined outside."""

    batch: Batch
    generic: Generic
    shapes: Shapes
    state: Callable[[ir.Value], State]
    _values: dict[ir.Value, Element] = field(default_factory=dict)
    _row: tuple[int, Expr, Expr] | None = None  # the loop dim over rows; outer and block as in Rows

    def results(self) -> list[State]:
        """Return one state for each result."""
        self._sizes = self._loop_sizes()
        bound = [dim for dim in self.generic.reduction_dims if not self.batch.is_free(self._sizes[dim])]
        if bound:
            return [Mixed(f"reduces over {self.batch.name}")] * len(self.generic.op.results)
        for index, argument in enumerate(self.generic.body.arguments):
            if any(True for _ in argument.uses):
                self._values[argument] = self._operand(index)
        yielded = self._run(self.generic.body)
        return [self._result(number, element) for number, element in enumerate(yielded)]

    def _loop_sizes(self) -> list[Expr | None]:
        sizes: list[Expr | None] = [None] * self.generic.rank
        for operand, affine in zip(self.generic.op.operands, self.generic.maps, strict=True):
            if isinstance(operand.type, ir.RankedTensorType):
                for expr, size in zip(affine.results, self.shapes.shape(operand), strict=True):
                    if isinstance(expr, ir.AffineDimExpr) and sizes[expr.position] is None:
                        sizes[expr.position] = size
        return sizes

    def _operand(self, index: int) -> Element:
        """Return the dependences of an operand's element at one iteration."""
        operand, affine = self.generic.op.operands[index], self.generic.maps[index]
        state = self.state(operand)
        if isinstance(state, Mixed):
            return Element(reason=state.reason)
        if not isinstance(operand.type, ir.RankedTensorType):
            return Element()
        if isinstance(state, Uniform):
            return self._uniform(affine, self.shapes.shape(operand))
        expr = affine.results[state.axis]
        others = [each for axis, each in enumerate(affine.results) if axis != state.axis]
        if not isinstance(expr, ir.AffineDimExpr) or any(expr.position in dims_of(_map_of(affine, each)) for each in others):
            return Element(reason=f"reads rows of {self.batch.name} at other places")
        return self._claim(expr.position, state)

    def _uniform(self, affine: ir.AffineMap, shape: tuple[Expr, ...]) -> Element:
        """Return the dependences of an element of a Uniform tensor: on indices along sizes that don't depend on n."""
        dims = [dims_of(_map_of(affine, expr)) for expr, size in zip(affine.results, shape, strict=True) if self.batch.is_free(size)]
        return Element(places=frozenset(d for each in dims for d in each if not self.batch.is_free(self._sizes[d])))

    def _claim(self, dim: int, rows: Rows) -> Element:
        """Return a dependence on the row that loop dim `dim` indexes."""
        claim = (dim, rows.outer, rows.block)
        if self._row not in (None, claim):
            return Element(reason=f"combines rows of {self.batch.name}")
        self._row = claim
        return Element(rows=True)

    def _result(self, number: int, element: Element) -> State:
        if element.reason:
            return Mixed(element.reason)
        moving = {dim for dim, size in enumerate(self._sizes) if not self.batch.is_free(size)}
        if element.places & moving:
            return Mixed(f"uses the number of a row of {self.batch.name}")
        if not element.rows:
            return Uniform()
        result = self.generic.op.results[number]
        affine = self.generic.output_map(result)
        assert self._row is not None
        dim, outer, block = self._row
        at = [axis for axis, expr in enumerate(affine.results) if dim in dims_of(_map_of(affine, expr))]
        if len(at) != 1 or not isinstance(affine.results[at[0]], ir.AffineDimExpr):
            return Mixed(f"writes rows of {self.batch.name} at other places")
        return only_axis(self.batch, Rows(at[0], outer, block), self.shapes.shape(result))

    # -- the body
    def _run(self, block: ir.Block) -> list[Element]:
        """Analyze a block; return the states of its terminator's operands."""
        ops = [op.operation for op in block.operations]
        for op in ops[:-1]:
            for result, element in zip(op.results, self._op(op), strict=True):
                self._values[result] = element
        return [self._element(value) for value in ops[-1].operands]

    def _element(self, value: ir.Value) -> Element:
        if value in self._values:
            return self._values[value]
        state = self.state(value)
        return Element(reason=state.reason) if isinstance(state, Mixed) else Element()

    def _op(self, op: ir.Operation) -> list[Element]:
        if op.name == "linalg.index":
            dim = int(ir.IntegerAttr(op.attributes["dim"]).value)
            return [Element(places=frozenset([dim]), exact=dim)]
        if op.name == "tensor.extract":
            return [self._extract(op)]
        if len(op.regions):
            return [self._regions(op)] * len(op.results)
        if any(isinstance(value.type, ir.RankedTensorType) for value in [*op.operands, *op.results]):
            return [Element(reason=f"{op.name} in a body")] * len(op.results)
        found = _join(self._element(operand) for operand in op.operands)
        if op.name == "arith.index_cast":
            found = replace(found, exact=self._element(op.operands[0]).exact)
        return [found] * len(op.results)

    def _extract(self, op: ir.Operation) -> Element:
        """Analyze a tensor.extract at indices computed in the body."""
        table, *indices = op.operands
        state, places = self.state(table), [self._element(index) for index in indices]
        if isinstance(state, Mixed):
            return Element(reason=state.reason)
        shape = self.shapes.shape(table)
        if isinstance(state, Uniform):
            return _join(place for place, size in zip(places, shape, strict=True) if self.batch.is_free(size))
        dim = places.pop(state.axis).exact
        if dim is None or self._sizes[dim] != shape[state.axis]:
            return Element(reason=f"reads rows of {self.batch.name} at other places")
        return _join([self._claim(dim, state), *places])

    def _regions(self, op: ir.Operation) -> Element:
        """Analyze a loop or branch inside a body: join all dependences in it."""
        found = _join(self._element(operand) for operand in op.operands)
        while True:
            before = found
            for block in (block for region in op.regions for block in region.blocks):
                self._values.update(dict.fromkeys(block.arguments, found))
                found = _join([found, *self._run(block)])
            if found == before:
                return found


def _map_of(affine: ir.AffineMap, expr: ir.AffineExpr) -> ir.AffineMap:
    """Return one result of a map as a map."""
    return ir.AffineMap.get(affine.n_dims, affine.n_symbols, [expr])
