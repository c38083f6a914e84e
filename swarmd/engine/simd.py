"""Vector arithmetic that numba has no words for, written as LLVM instructions for it to inline.

Products run over lanes of 32 bits: a float32, or two bfloat16 that lie side by side. Addresses are
integers. What is multiplied with what is `swarmd.engine.kernel`'s business.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Lanes of a vector: 512 bits, which LLVM splits where the CPU has less."""

ROW = 64
"""Lanes of a row of scores."""

DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
"""Of this file: what was compiled with another one must not be taken from the disk."""

_I16, _I32, _I64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES = ir.IntType(8).as_pointer()
_VECTOR, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_address, _real = types.int64, types.float32
_nothing = types.void


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def has_pair_products() -> bool:
    """Whether the CPU multiplies pairs of bfloat16 and adds them up in one instruction."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16", False))


def has_wide_registers() -> bool:
    """Whether the CPU has 32 registers of 512 bits, not 16 of 256 or less."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def _float_op(builder: Any, name: str, *args: Any) -> Any:
    return _call(builder, f"llvm.{name}.v{LANES}f32", _VECTOR, *args)


def _floats(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _words(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * LANES)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, _words(0))


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    place = builder.add(address, ir.Constant(_I64, offset))
    return builder.inttoptr(place, ir.PointerType(kind))


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(_I64, factor))


def _multiply_floats(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return _float_op(builder, "fma", a, b, total)


def _multiply_pairs(builder: Any, total: Any, a: Any, b: Any) -> Any:
    if has_pair_products():
        pairs = ir.VectorType(_BFloat(), 2 * LANES)
        left, right = builder.bitcast(a, pairs), builder.bitcast(b, pairs)
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _VECTOR, total, left, right)
    for half in (_low, _high):
        total = _multiply_floats(builder, total, half(builder, a), half(builder, b))
    return total


def _low(builder: Any, pairs: Any) -> Any:
    return builder.bitcast(builder.shl(builder.bitcast(pairs, _WORDS), _words(16)), _VECTOR)


def _high(builder: Any, pairs: Any) -> Any:
    words = builder.and_(builder.bitcast(pairs, _WORDS), _words(0xFFFF0000))
    return builder.bitcast(words, _VECTOR)


def _product(rows: int, vectors: int, *, pairs: bool, fresh: bool) -> Any:
    """Return `f(c, c_step, a, a_step, b, b_step, count)`: c += a times b, or c = with `fresh`.

    Addresses and steps from row to row are in bytes. a has `rows` rows of `count` lanes, b `count`
    rows of `vectors * LANES`; the lanes of b are added up in their order, for each row alone.
    """
    together = vectors if has_wide_registers() else 1

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for first in range(0, vectors, together):
            _add_products(builder, args, rows, range(first, first + together), pairs, fresh)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def product(
        _: Any, c: Any, c_step: Any, a: Any, a_step: Any, b: Any, b_step: Any, n: Any
    ) -> Any:
        return _nothing(*[_address] * 7), generate

    return product


def _add_products(
    builder: Any, args: Any, rows: int, vectors: range, pairs: bool, fresh: bool
) -> None:
    """Write the loop of `_product` for some vectors of c: as many sums as there are registers."""
    multiply = _multiply_pairs if pairs else _multiply_floats
    places = [(r, v) for r in range(rows) for v in vectors]
    c, c_step, a, a_step, b, b_step, count = args
    c_rows = [builder.add(c, _times(builder, c_step, r)) for r in range(rows)]
    a_rows = [builder.add(a, _times(builder, a_step, r)) for r in range(rows)]
    sums = [_at(builder, c_rows[r], 4 * LANES * v, _VECTOR) for r, v in places]
    before = [_floats(0.0) if fresh else builder.load(place, align=4) for place in sums]
    with _counted(builder, count, before) as (step, totals, after):
        b_row = builder.add(b, builder.mul(step, b_step))
        right = {
            v: builder.load(_at(builder, b_row, 4 * LANES * v, _VECTOR), align=4) for v in vectors
        }
        left = _lanes(builder, a_rows, step)
        after += [
            multiply(builder, total, left[r], right[v])
            for total, (r, v) in zip(totals, places, strict=True)
        ]
    for place, value in zip(sums, after, strict=True):
        builder.store(value, place, align=4)


def _lanes(builder: Any, rows: list[Any], step: Any) -> list[Any]:
    """Lane number `step` of each row, in all lanes of a vector."""
    places = [builder.add(row, _times(builder, step, 4)) for row in rows]
    return [
        _splat(builder, builder.load(_at(builder, place, 0, _FLOAT), align=4)) for place in places
    ]


@contextmanager
def _counted(
    builder: Any, count: Any, before: list[Any]
) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Go `count` times, at least once, through what is written inside.

    Gives the number of the time, the values that `before` has become by then, and a list to put
    what they become next into.
    """
    entry = builder.block
    loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_I64)
    values = [builder.phi(_VECTOR) for _ in before]
    after: list[Any] = []
    yield step, values, after
    following = builder.add(step, ir.Constant(_I64, 1))
    for merged, first, last in zip(
        [step, *values], [ir.Constant(_I64, 0), *before], [following, *after], strict=True
    ):
        merged.add_incoming(first, entry)
        merged.add_incoming(last, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    builder.position_at_end(done)


scores_of_4 = _product(4, 4, pairs=False, fresh=True)
scores_of_1 = _product(1, 4, pairs=False, fresh=True)
pair_scores_of_4 = _product(4, 4, pairs=True, fresh=True)
pair_scores_of_1 = _product(1, 4, pairs=True, fresh=True)
sums_of_4 = _product(4, 4, pairs=False, fresh=False)
sums_of_1 = _product(1, 1, pairs=False, fresh=False)
sums_of_6 = _product(6, 1, pairs=False, fresh=False)
pair_sums_of_4 = _product(4, 4, pairs=True, fresh=False)
pair_sums_of_1 = _product(1, 1, pairs=True, fresh=False)

_EXP2 = tuple(math.log(2.0) ** power / math.factorial(power) for power in range(7, -1, -1))
"""Taylor's coefficients of 2**x, highest first: 5e-9 off within half a unit of 0."""

_TANH = (62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)
"""Those of tanh(x) / x in x squared: 1e-8 off below `_TANH_TAYLOR`."""

_TANH_TAYLOR = 0.25


def _exp2(builder: Any, x: Any) -> Any:
    """2**x; exactly 0 where that is below the smallest normal float, NaN for NaN."""
    low = builder.fcmp_ordered("<", x, _floats(-200.0))
    x = builder.select(low, _floats(-200.0), x)
    whole = _float_op(builder, "rint", x)
    value = _polynomial(builder, _EXP2, builder.fsub(x, whole))
    power = builder.add(builder.fptosi(whole, _WORDS), _words(127))
    power = builder.select(builder.icmp_signed(">", power, _words(0)), power, _words(0))
    return builder.fmul(value, builder.bitcast(builder.shl(power, _words(23)), _VECTOR))


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    value = _floats(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _multiply_floats(builder, _floats(coefficient), value, x)
    return value


def _reduce(builder: Any, vectors: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Join all lanes of all vectors, halves onto halves."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [join(a, b) for a, b in zip(vectors[:half], vectors[half:], strict=True)]
    vector, width = vectors[0], LANES
    while width > 1:
        width //= 2
        kind = ir.VectorType(_I32, width)
        low, high = (ir.Constant(kind, list(range(n, n + width))) for n in (0, width))
        first = builder.shuffle_vector(vector, vector, low)
        vector = join(first, builder.shuffle_vector(vector, vector, high))
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _row(builder: Any, address: Any) -> list[Any]:
    return [_at(builder, address, 4 * LANES * v, _VECTOR) for v in range(ROW // LANES)]


@intrinsic  # type: ignore[untyped-decorator]
def largest(_: Any, row: Any, factor: Any) -> Any:
    """Return the largest of a row of scores, times a factor."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        def join(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        values = [builder.load(place, align=4) for place in _row(builder, args[0])]
        return builder.fmul(_reduce(builder, values, join), args[1])

    return _real(_address, _real), generate


def _weigh(*, pairs: bool) -> Any:
    """Return `f(row, out, factor, top)`: weights 2**(score * factor - top) to `out`, and their sum.

    The product is not rounded by itself: the exponents of large scores need all their digits.
    """

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        factor, values = _splat(builder, args[2]), []
        top = _splat(builder, builder.fneg(args[3]))
        for number, place in enumerate(_row(builder, args[0])):
            score = builder.load(place, align=4)
            values.append(_exp2(builder, _multiply_floats(builder, top, score, factor)))
            stored = _rounded(builder, values[-1]) if pairs else values[-1]
            size = (2 if pairs else 4) * LANES
            builder.store(stored, _at(builder, args[1], size * number, stored.type), align=2)
        return _reduce(builder, values, builder.fadd)

    @intrinsic  # type: ignore[untyped-decorator]
    def weigh(_: Any, row: Any, out: Any, factor: Any, top: Any) -> Any:
        return _real(_address, _address, _real, _real), generate

    return weigh


def _rounded(builder: Any, value: Any) -> Any:
    """Round to bfloat16, half to even: (16-bit integers)."""
    words = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(words, _words(16)), _words(1))
    words = builder.add(builder.add(words, _words(0x7FFF)), odd)
    return builder.trunc(builder.lshr(words, _words(16)), ir.VectorType(_I16, LANES))


weigh_floats = _weigh(pairs=False)
weigh_pairs = _weigh(pairs=True)


def _panel_sums(rows: int) -> Any:
    """Return `f(c, a, a_step, b, count)`: c += a times b, where b is a panel of bfloat16.

    Addresses and the step from row to row of a are in bytes. a has `rows` rows of `count` floats; b
    `count` rows of `LANES` pairs, the first of all pairs before the second of all; c `rows` rows of
    `2 * LANES` floats. Each lane of c is added up in the order of a's row, for each row alone.
    """
    places = [(r, v) for r in range(rows) for v in range(2)]

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        c, a, a_step, b, count = args
        a_rows = [builder.add(a, _times(builder, a_step, r)) for r in range(rows)]
        sums = [_at(builder, c, 4 * LANES * (2 * r + v), _VECTOR) for r, v in places]
        before = [builder.load(place, align=4) for place in sums]
        with _counted(builder, count, before) as (step, totals, after):
            b_row = builder.add(b, _times(builder, step, 4 * LANES))
            pairs = builder.load(_at(builder, b_row, 0, _VECTOR), align=4)
            right = [_low(builder, pairs), _high(builder, pairs)]
            left = _lanes(builder, a_rows, step)
            after += [
                _multiply_floats(builder, total, left[r], right[v])
                for total, (r, v) in zip(totals, places, strict=True)
            ]
        for place, value in zip(sums, after, strict=True):
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def panel_sums(_: Any, c: Any, a: Any, a_step: Any, b: Any, count: Any) -> Any:
        return _nothing(*[_address] * 5), generate

    return panel_sums


panel_sums_of_2 = _panel_sums(2)
panel_sums_of_1 = _panel_sums(1)


@intrinsic  # type: ignore[untyped-decorator]
def widen_panel(_: Any, panel: Any, out: Any, count: Any) -> Any:
    """Write `count` rows of `LANES` pairs of bfloat16 to `out` as floats, `2 * LANES` a row."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[2]) as loop:
            source = builder.add(args[0], _times(builder, loop.index, 4 * LANES))
            target = builder.add(args[1], _times(builder, loop.index, 8 * LANES))
            pairs = builder.load(_at(builder, source, 0, _VECTOR), align=4)
            for v, half in enumerate((_low, _high)):
                place = _at(builder, target, 4 * LANES * v, _VECTOR)
                builder.store(half(builder, pairs), place, align=4)
        return context.get_dummy_value()

    return _nothing(*[_address] * 3), generate


@intrinsic  # type: ignore[untyped-decorator]
def round_panel(_: Any, row: Any, out: Any) -> Any:
    """Write a row of `2 * LANES` floats to `out` as bfloat16."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        for v in range(2):
            value = builder.load(_at(builder, args[0], 4 * LANES * v, _VECTOR), align=4)
            halves = _rounded(builder, value)
            builder.store(halves, _at(builder, args[1], 2 * LANES * v, halves.type), align=2)
        return context.get_dummy_value()

    return _nothing(_address, _address), generate


@intrinsic  # type: ignore[untyped-decorator]
def cap(_: Any, row: Any, scale: Any, limit: Any) -> Any:
    """Turn each score x of a row into limit * tanh(x * scale / limit)."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        limit, one = _splat(builder, args[2]), _floats(1.0)
        scale = builder.fdiv(_splat(builder, args[1]), limit)
        for place in _row(builder, args[0]):
            x = builder.fmul(builder.load(place, align=4), scale)
            size = _float_op(builder, "fabs", x)
            power = _exp2(builder, builder.fmul(size, _floats(-2.0 * 1.4426950408889634)))
            far = builder.fdiv(builder.fsub(one, power), builder.fadd(one, power))
            far = _float_op(builder, "copysign", far, x)
            near = builder.fmul(x, _polynomial(builder, _TANH, builder.fmul(x, x)))
            small = builder.fcmp_ordered("<", size, _floats(_TANH_TAYLOR))
            tanh = builder.select(small, near, far)
            builder.store(builder.fmul(tanh, limit), place, align=4)
        return context.get_dummy_value()

    return _nothing(_address, _real, _real), generate


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_: Any, address: Any, nbytes: Any) -> Any:
    """Ask for memory that will be read soon."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        lines = builder.sdiv(args[1], ir.Constant(_I64, 64))
        how = [ir.Constant(_I32, n) for n in (0, 3, 1)]  # to read, into the L1 cache, data
        with cgutils.for_range(builder, lines) as loop:
            line = builder.add(args[0], _times(builder, loop.index, 64))
            place = builder.inttoptr(line, _BYTES)
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, *how)
        return context.get_dummy_value()

    return _nothing(_address, _address), generate


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_: Any, address: Any) -> Any:
    """What `numba.carray` takes, from an address."""
    signature = types.voidptr(_address)
    return signature, lambda _, builder, __, args: builder.inttoptr(args[0], _BYTES)
