"""Each instruction against numpy: a row gives the PTX, the types and what it must compute.

All rows are run by a few kernels of 2,048 threads each, a thread a sample; inputs hold every kind of
special value. Expected values are computed from other formulas than instructions.h uses: numpy's own
types, float64, or Python's integers. The last sections test collectives, the parser and errors.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import simulator
from simulator.cache import digest
from simulator.ptx import module, parser, translator

N = 2048
ROWS_PER_KERNEL = 40
BITS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
CANONICAL_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


# --- types: bits <-> values


def width(kind: str) -> int:
    return 8 * parser.SIZES[kind] if kind != "pred" else 32


def value(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind in ("f16", "f32", "f64"):
        return bits.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])
    return bits.view(np.dtype(f"{'i' if kind[0] == 's' else 'u'}{width(kind) // 8}"))


def round_to(x: np.ndarray, exponent_bits: int, mantissa: int, mode: str = "rn") -> np.ndarray:
    """Float64 rounded to a smaller format, as float64; overflow by IEEE's rules."""
    bias = (1 << (exponent_bits - 1)) - 1
    with np.errstate(all="ignore"):
        x = np.asarray(x, np.float64)
        _, e = np.frexp(x)
        last = np.maximum(e - 1, 1 - bias) - mantissa
        scaled = np.ldexp(x, -last)
        away = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
        rounding: dict[str, Any] = {
            "rn": np.rint,
            "rz": np.trunc,
            "rm": np.floor,
            "rp": np.ceil,
            "rna": lambda _: away,
        }
        whole = rounding[mode](scaled)
        result = np.copysign(np.ldexp(whole, last), x)
        largest = (2 - 2.0**-mantissa) * 2.0**bias
        over = np.abs(result) > largest
        to_infinity = (
            np.isin(mode, ("rn", "rna")) | (mode == "rp") & (x > 0) | (mode == "rm") & (x < 0)
        )
        result = np.where(
            over & np.isfinite(x),
            np.where(to_infinity, np.copysign(np.inf, x), np.copysign(largest, x)),
            result,
        )
        return np.where(np.isfinite(x), result, x)


FORMAT = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23)}


def encode(x: Any, kind: str) -> np.ndarray:
    """Values as bits; floats must be representable or are rounded to nearest."""
    with np.errstate(all="ignore"):
        if kind == "bf16":
            bits = (round_to(x, 8, 7).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        elif kind == "f16":
            bits = round_to(x, 5, 10).astype(np.float16).view(np.uint16)
        elif kind == "f32":
            bits = np.asarray(x).astype(np.float32).view(np.uint32)
        elif kind == "f64":
            return np.asarray(x).astype(np.float64).view(np.uint64)
        else:
            return np.asarray(x).astype(BITS[width(kind)])
        return np.where(np.isnan(np.asarray(x, np.float64)), CANONICAL_NAN[kind], bits).astype(
            bits.dtype
        )


def samples(kind: str, seed: int) -> np.ndarray:
    """Bits: special values in all pairs with others, then random ones."""
    random = np.random.default_rng(seed)
    bits = width(kind)
    noise = (
        random.integers(0, 1 << bits, N, dtype=np.uint64, endpoint=False)
        if bits < 64
        else random.integers(0, 2**64, N, dtype=np.uint64)
    )
    out = noise.astype(BITS[bits])
    if kind in ("f16", "bf16", "f32", "f64"):
        exponent, mantissa = {**FORMAT, "f64": (11, 52)}[kind]
        one, top = ((1 << exponent - 1) - 1) << mantissa, ((1 << exponent) - 1) << mantissa
        sign = 1 << bits - 1
        special = [
            0,
            1,
            1 << mantissa,
            (1 << mantissa) - 1,
            one,
            one + 1,
            one - 1,
            top - 1,
            top,
            top + 1,
            top | 1 << mantissa - 1,
        ]
        special += [s | sign for s in special]
        moderate = encode(random.normal(size=N) * 2.0 ** random.integers(-6, 7, N), kind)
        out = np.where(np.arange(N) % 2 == 0, moderate, out)
    else:
        special = [
            0,
            1,
            2,
            31,
            32,
            33,
            (1 << bits) - 1,
            (1 << bits) - 2,
            1 << bits - 1,
            (1 << bits - 1) - 1,
            0xFF,
            0x80,
        ]
    table = np.array([s & ((1 << bits) - 1) for s in special], dtype=BITS[bits])
    n = len(table)
    # The first operand changes slowest, so that two operands meet in all pairs.
    index = np.arange(n * n)
    pairs = table[index // n] if seed % 2 == 0 else table[index % n]
    out[: n * n] = pairs
    return out


# --- rows


@dataclass
class Row:
    code: str  # "add.s32 {d}, {a}, {b};"
    result: str
    operands: tuple[str, ...]
    expected: Callable[..., Any]  # of values; gives values, or bits where `bits`
    bits: bool = False
    inputs: tuple[np.ndarray, ...] | None = None  # bits, in place of the usual samples

    def arrays(self) -> list[np.ndarray]:
        return list(self.inputs or (samples(k, i) for i, k in enumerate(self.operands)))

    def want(self) -> np.ndarray:
        values = [
            a if self.bits else value(a, k)
            for a, k in zip(self.arrays(), self.operands, strict=True)
        ]
        with np.errstate(all="ignore"):
            out = self.expected(*values)
        out = np.broadcast_to(out, (N,))
        return out.astype(BITS[width(self.result)]) if self.bits else encode(out, self.result)


def python(function: Callable[..., int]) -> Callable[..., np.ndarray]:
    """A function of Python's integers for each sample; the result is cut to the type's width."""

    def apply(*arrays: np.ndarray) -> np.ndarray:
        return np.array(
            [function(*map(int, v)) & (2**64 - 1) for v in zip(*arrays, strict=True)],
            dtype=np.uint64,
        )

    return apply


INTS = ("s32", "u32", "s64", "u64", "s16", "u16")


def quotient(a: int, b: int) -> int:
    if b == 0:
        return -1
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> bits - 1 else x


def integer_rows() -> list[Row]:
    rows = []
    for t in INTS:
        w = width(t)
        rows += [
            Row(f"add.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(lambda a, b: a + b)),
            Row(f"sub.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(lambda a, b: a - b)),
            Row(f"mul.lo.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(lambda a, b: a * b)),
            Row(
                f"mul.hi.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(lambda a, b, w=w: a * b >> w)
            ),
            Row(f"div.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(quotient)),
            Row(
                f"rem.{t} {{d}}, {{a}}, {{b}};",
                t,
                (t, t),
                python(lambda a, b: a - b * quotient(a, b) if b else a),
            ),
            Row(f"min.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(min)),
            Row(f"max.{t} {{d}}, {{a}}, {{b}};", t, (t, t), python(max)),
            Row(
                f"mad.lo.{t} {{d}}, {{a}}, {{b}}, {{c}};",
                t,
                (t, t, t),
                python(lambda a, b, c: a * b + c),
            ),
            Row(
                f"shr.{t} {{d}}, {{a}}, {{b}};", t, (t, "u32"), python(lambda a, n: a >> min(n, 64))
            ),
        ]
    for t in ("s32", "u32", "s16", "u16"):
        wide = translator.wider(t)
        rows += [
            Row(f"mul.wide.{t} {{d}}, {{a}}, {{b}};", wide, (t, t), python(lambda a, b: a * b)),
            Row(
                f"mad.wide.{t} {{d}}, {{a}}, {{b}}, {{c}};",
                wide,
                (t, t, wide),
                python(lambda a, b, c: a * b + c),
            ),
        ]
    for t in ("s32", "s64", "s16"):
        rows += [
            Row(f"abs.{t} {{d}}, {{a}};", t, (t,), python(abs)),
            Row(f"neg.{t} {{d}}, {{a}};", t, (t,), python(lambda a: -a)),
        ]

    def saturate(x: int) -> int:
        return max(-(2**31), min(2**31 - 1, x))

    rows += [
        Row("add.sat.s32 {d}, {a}, {b};", "s32", ("s32", "s32"), python(lambda a, b: saturate(a + b))),
        Row("sub.sat.s32 {d}, {a}, {b};", "s32", ("s32", "s32"), python(lambda a, b: saturate(a - b))),
        Row("mad.hi.s32 {d}, {a}, {b}, {c};", "s32", ("s32",) * 3, python(lambda a, b, c: (a * b >> 32) + c)),
        Row("mul24.lo.s32 {d}, {a}, {b};", "s32", ("s32", "s32"), python(lambda a, b: signed(a, 24) * signed(b, 24))),
        Row("mul24.lo.u32 {d}, {a}, {b};", "u32", ("u32", "u32"), python(lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF))),
        Row("sad.s32 {d}, {a}, {b}, {c};", "s32", ("s32",) * 3, python(lambda a, b, c: c + abs(a - b))),
        Row("dp4a.s32.s32 {d}, {a}, {b}, {c};", "u32", ("u32",) * 3,
            python(lambda a, b, c: c + sum(signed(a >> s, 8) * signed(b >> s, 8) for s in (0, 8, 16, 24)))),
    ]  # fmt: skip
    for t in ("b16", "b32", "b64"):
        rows += [
            Row(f"and.{t} {{d}}, {{a}}, {{b}};", t, (t, t), lambda a, b: a & b),
            Row(f"or.{t} {{d}}, {{a}}, {{b}};", t, (t, t), lambda a, b: a | b),
            Row(f"xor.{t} {{d}}, {{a}}, {{b}};", t, (t, t), lambda a, b: a ^ b),
            Row(f"not.{t} {{d}}, {{a}};", t, (t,), lambda a: ~a),
            Row(f"cnot.{t} {{d}}, {{a}};", t, (t,), lambda a: a == 0),
            Row(
                f"shl.{t} {{d}}, {{a}}, {{b}};", t, (t, "u32"), python(lambda a, n: a << min(n, 64))
            ),
        ]
    for w in (32, 64):

        def field(a: int, b: int, c: int, w: int = w) -> int:
            p, n = b & 255, c & 255
            return (a >> p) & ((1 << n) - 1)

        def signed_field(a: int, b: int, c: int, w: int = w) -> int:
            p, n = b & 255, c & 255
            sign = a >> min(p + n - 1, w - 1) & 1 if n else 0
            bits = [(a >> (p + i) & 1) if i < n and p + i < w else sign for i in range(w)]
            return sum(bit << i for i, bit in enumerate(bits))

        def insert(a: int, b: int, c: int, d: int, w: int = w) -> int:
            p, n = c & 255, d & 255
            mask = ((1 << n) - 1) << p
            return (b & ~mask) | (a << p & mask)

        small = np.random.default_rng(5).integers(0, w + 9, (2, N)).astype(np.uint32)
        a, b = samples(f"b{w}", 0), samples(f"b{w}", 1)
        rows += [
            Row(f"popc.b{w} {{d}}, {{a}};", "u32", (f"b{w}",), python(int.bit_count)),
            Row(f"clz.b{w} {{d}}, {{a}};", "u32", (f"b{w}",), python(lambda a, w=w: w - a.bit_length())),
            Row(f"brev.b{w} {{d}}, {{a}};", f"b{w}", (f"b{w}",), python(lambda a, w=w: int(f"{a:0{w}b}"[::-1], 2))),
            Row(f"bfind.u{w} {{d}}, {{a}};", "u32", (f"u{w}",), python(lambda a: a.bit_length() - 1)),
            Row(f"bfind.s{w} {{d}}, {{a}};", "u32", (f"s{w}",), python(lambda a: (a if a >= 0 else ~a).bit_length() - 1)),
            Row(f"bfind.shiftamt.u{w} {{d}}, {{a}};", "u32", (f"u{w}",), python(lambda a, w=w: w - a.bit_length() if a else -1)),
            Row(f"bfe.u{w} {{d}}, {{a}}, {{b}}, {{c}};", f"u{w}", (f"u{w}", "u32", "u32"), python(field), inputs=(a, *small)),
            Row(f"bfe.s{w} {{d}}, {{a}}, {{b}}, {{c}};", f"u{w}", (f"u{w}", "u32", "u32"), python(signed_field), inputs=(a, *small)),
            Row(f"bfi.b{w} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};", f"b{w}", (f"b{w}", f"b{w}", "u32", "u32"), python(insert), inputs=(a, b, *small)),
        ]  # fmt: skip

    def permute(a: int, b: int, c: int) -> int:
        source = (b << 32 | a).to_bytes(8, "little")
        out = []
        for i in range(4):
            s = c >> 4 * i & 15
            byte = source[s & 7]
            out.append((0xFF if byte & 0x80 else 0) if s & 8 else byte)
        return int.from_bytes(bytes(out), "little")

    def table(lut: int) -> Callable[[int, int, int], int]:
        return lambda a, b, c: sum(
            (lut >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i
            for i in range(32)
        )

    modes = {
        "f4e": lambda s: [s, s + 1, s + 2, s + 3],
        "b4e": lambda s: [s, s + 7, s + 6, s + 5],
        "rc8": lambda s: [s] * 4,
        "ecl": lambda s: [max(s, i) for i in range(4)],
        "ecr": lambda s: [min(s, i) for i in range(4)],
        "rc16": lambda s: [0, 1, 0, 1] if s % 2 == 0 else [2, 3, 2, 3],
    }
    three = ("b32",) * 3
    rows += [Row("prmt.b32 {d}, {a}, {b}, {c};", "b32", three, python(permute))]
    rows += [
        Row(f"prmt.b32.{m} {{d}}, {{a}}, {{b}}, {{c}};", "b32", three,
            python(lambda a, b, c, f=f: int.from_bytes(bytes((b << 32 | a).to_bytes(8, "little")[i % 8] for i in f(c & 3)), "little")))
        for m, f in modes.items()
    ]  # fmt: skip
    rows += [
        Row(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {lut};", "b32", three, python(table(lut)))
        for lut in (0x80, 0x96, 0xE8, 0x1D, 0xCA)
    ]
    for mode in ("wrap", "clamp"):

        def amount(c: int, mode: str = mode) -> int:
            return c & 31 if mode == "wrap" else min(c, 32)

        rows += [
            Row(
                f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};",
                "b32",
                three,
                python(lambda a, b, c, n=amount: (b << 32 | a) << n(c) >> 32),
            ),
            Row(
                f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};",
                "b32",
                three,
                python(lambda a, b, c, n=amount: (b << 32 | a) >> n(c)),
            ),
        ]
    # Carry chains: 96-bit sums and a 64-bit product from 32-bit words.
    rows += [
        Row("add.cc.u32 x, {a}, {b}; addc.cc.u32 x, {a}, {c}; addc.u32 {d}, {b}, {c};", "u32", ("u32",) * 3,
            python(lambda a, b, c: b + c + ((a << 32 | a) + (c << 32 | b) >> 64))),
        Row("sub.cc.u32 x, {a}, {b}; subc.cc.u32 x, {a}, {c}; subc.u32 {d}, {b}, {c};", "u32", ("u32",) * 3,
            python(lambda a, b, c: b - c + ((a << 32 | a) - (c << 32 | b) >> 64))),
        Row("mad.lo.cc.u32 x, {a}, {b}, {c}; madc.hi.u32 {d}, {a}, {b}, {c};", "u32", ("u32",) * 3,
            python(lambda a, b, c: a * b + c + (c << 32) >> 32)),
    ]  # fmt: skip
    return rows


def exact_fma(kind: str) -> Callable[..., np.ndarray]:
    """a b + c of a half type in rationals, rounded once."""
    exponent_bits, mantissa = FORMAT[kind]
    lowest = 2 - (1 << (exponent_bits - 1)) - mantissa

    def one(a: float, b: float, c: float) -> float:
        plain = a * b + c
        if not np.isfinite([a, b, c]).all() or plain == 0:
            return plain
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        last = Fraction(2) ** max(int(np.frexp(plain)[1]) - 1 - mantissa, lowest)
        return float(np.copysign(float(round(exact / last) * last), plain))  # to even

    return lambda *v: np.array([one(*map(float, x)) for x in zip(*v, strict=True)])


def float_rows() -> list[Row]:
    rows = []
    for t in ("f32", "f64", "f16", "bf16"):
        two, three = (t, t), (t, t, t)
        exact = {"f16": np.longdouble, "bf16": np.longdouble, "f32": np.float32, "f64": np.float64}[
            t
        ]

        def in_type(f: Callable[..., Any], exact: Any = exact) -> Callable[..., Any]:
            return lambda *v: f(*(x.astype(exact) for x in v))

        m = "rn" if t in ("f16", "bf16") else ""
        op = "add.rn" if t == "bf16" else f"add{'.' if m else ''}{m}"
        arch_has = t != "bf16"
        if arch_has:
            rows += [
                Row(f"{op}.{t} {{d}}, {{a}}, {{b}};", t, two, in_type(lambda a, b: a + b)),
                Row(
                    f"{op.replace('add', 'sub')}.{t} {{d}}, {{a}}, {{b}};",
                    t,
                    two,
                    in_type(lambda a, b: a - b),
                ),
                Row(
                    f"{op.replace('add', 'mul')}.{t} {{d}}, {{a}}, {{b}};",
                    t,
                    two,
                    in_type(lambda a, b: a * b),
                ),
            ]
        if t in ("f16", "bf16"):
            fma = exact_fma(t)

            def relu(a: np.ndarray, b: np.ndarray, c: np.ndarray, fma: Any = fma) -> np.ndarray:
                return np.where(
                    np.isnan(fma(a, b, c)),
                    np.nan,
                    np.where(np.signbit(fma(a, b, c)), 0, fma(a, b, c)),
                )

            rows.append(Row(f"fma.rn.{t} {{d}}, {{a}}, {{b}}, {{c}};", t, three, fma))
            rows.append(Row(f"fma.rn.relu.{t} {{d}}, {{a}}, {{b}}, {{c}};", t, three, relu))

        def negative_zero_first(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a < b) | (a == b) & np.signbit(a)

        rows += [
            Row(
                f"min.{t} {{d}}, {{a}}, {{b}};",
                t,
                two,
                lambda a, b, f=negative_zero_first: np.where(
                    np.isnan(a), b, np.where(np.isnan(b), a, np.where(f(a, b), a, b))
                ),
            ),
            Row(
                f"max.{t} {{d}}, {{a}}, {{b}};",
                t,
                two,
                lambda a, b, f=negative_zero_first: np.where(
                    np.isnan(a), b, np.where(np.isnan(b), a, np.where(f(a, b), b, a))
                ),
            ),
        ]
        if t != "f64":
            rows.append(
                Row(
                    f"max.NaN.{t} {{d}}, {{a}}, {{b}};",
                    t,
                    two,
                    lambda a, b, f=negative_zero_first: np.where(
                        np.isnan(a) | np.isnan(b), np.nan, np.where(f(a, b), b, a)
                    ),
                )
            )
        sign = 1 << width(t) - 1
        rows += [
            Row(
                f"abs.{t} {{d}}, {{a}};", t, (t,), lambda a, s=sign: a & ~a.dtype.type(s), bits=True
            ),
            Row(
                f"neg.{t} {{d}}, {{a}};", t, (t,), lambda a, s=sign: a ^ a.dtype.type(s), bits=True
            ),
        ]
        tests = {
            "eq": lambda a, b: a == b, "ne": lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b), "lt": lambda a, b: a < b,
            "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
            "equ": lambda a, b: (a == b) | np.isnan(a) | np.isnan(b), "neu": lambda a, b: a != b,
            "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b),
            "num": lambda a, b: ~np.isnan(a) & ~np.isnan(b), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
        }  # fmt: skip
        rows += [
            Row(f"setp.{c}.{t} p, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, p;", "u32", two, f)
            for c, f in tests.items()
        ]
    fma64 = lambda a, b, c: (a.astype(np.longdouble) * b + c).astype(np.float64)  # noqa: E731
    small = np.random.default_rng(3)
    f64 = tuple(
        small.integers(-(2**24), 2**24, N).astype(np.float64).view(np.uint64) for _ in range(3)
    )
    exactly = lambda a, b, c: a.astype(np.float64) * b + c  # noqa: E731  # product exact, one rounding to 53 bits before
    moderate = tuple(
        encode(np.random.default_rng(i).integers(-4096, 4096, N), "f32") for i in range(3)
    )
    rows += [
        Row("fma.rn.f64 {d}, {a}, {b}, {c};", "f64", ("f64",) * 3, fma64, inputs=f64),
        Row("fma.rn.f32 {d}, {a}, {b}, {c};", "f32", ("f32",) * 3, exactly, inputs=moderate),
        Row("mad.rn.f32 {d}, {a}, {b}, {c};", "f32", ("f32",) * 3, exactly, inputs=moderate),
        Row("div.rn.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), lambda a, b: a / b),
        Row("div.rn.f64 {d}, {a}, {b};", "f64", ("f64", "f64"), lambda a, b: a / b),
        Row("sqrt.rn.f32 {d}, {a};", "f32", ("f32",), np.sqrt),
        Row("sqrt.rn.f64 {d}, {a};", "f64", ("f64",), np.sqrt),
        Row("rcp.rn.f32 {d}, {a};", "f32", ("f32",), lambda a: np.float32(1) / a),
        Row("add.sat.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), lambda a, b: np.where(np.isnan(a + b), 0, np.clip(a + b, 0, 1)) + np.float32(0)),
        Row("copysign.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), lambda a, b: (a & 0x80000000) | (b & 0x7FFFFFFF), bits=True),
        Row("slct.f32.s32 {d}, {a}, {b}, {c};", "f32", ("f32", "f32", "s32"), lambda a, b, c: np.where(c.view(np.int32) >= 0, a, b), bits=True),
        Row("slct.u32.f32 {d}, {a}, {b}, {c};", "u32", ("u32", "u32", "f32"), lambda a, b, c: np.where(c >= 0, a, b)),
        Row("set.lt.u32.f32 {d}, {a}, {b};", "u32", ("f32", "f32"), lambda a, b: np.where(a < b, 0xFFFFFFFF, 0)),
        Row("set.lt.f32.s32 {d}, {a}, {b};", "f32", ("s32", "s32"), lambda a, b: (a < b) * 1.0),
        Row("set.geu.f16.f16 {d}, {a}, {b};", "f16", ("f16", "f16"), lambda a, b: ~(a < b) * 1.0),
        Row("testp.subnormal.f32 p, {a}; selp.u32 {d}, 1, 0, p;", "u32", ("f32",), lambda a: (a != 0) & (np.abs(a) < 2.0**-126)),
        Row("testp.finite.f64 p, {a}; selp.u32 {d}, 1, 0, p;", "u32", ("f64",), np.isfinite),
        Row("add.ftz.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), lambda a, b: flush(flush(a) + flush(b))),
        Row("mul.ftz.f32 {d}, {a}, {b};", "f32", ("f32", "f32"), lambda a, b: flush(flush(a) * flush(b))),
    ]  # fmt: skip
    for mode in ("rz", "rm", "rp"):
        # Sums and products of these floats are exact in float64, so that one rounding is left.
        near = tuple(
            encode(
                np.ldexp(
                    np.random.default_rng(i).integers(-(2**24), 2**24, N).astype(np.float64),
                    np.random.default_rng(i + 9).integers(-20, 5, N),
                ),
                "f32",
            )
            for i in range(2)
        )
        rows += [
            Row(f"add.{mode}.f32 {{d}}, {{a}}, {{b}};", "f32", ("f32", "f32"), lambda a, b, m=mode: round_to(a.astype(np.float64) + b, 8, 23, m), inputs=near),
            Row(f"mul.{mode}.f32 {{d}}, {{a}}, {{b}};", "f32", ("f32", "f32"), lambda a, b, m=mode: round_to(a.astype(np.float64) * b, 8, 23, m), inputs=near),
            Row(f"fma.{mode}.f32 {{d}}, {{a}}, {{b}}, 0f3F800000;", "f32", ("f32", "f32"), lambda a, b, m=mode: round_to(a.astype(np.longdouble) * b + 1, 8, 23, m), inputs=near),
        ]  # fmt: skip
    return rows


def flush(a: np.ndarray) -> np.ndarray:
    return np.where(np.abs(a) < 2.0**-126, np.copysign(np.float32(0), a), a)


def conversion_rows() -> list[Row]:
    rows = []
    for to in ("f16", "bf16"):
        e, m = FORMAT[to]
        for mode in ("rn", "rz"):
            rows.append(
                Row(
                    f"cvt.{mode}.{to}.f32 {{d}}, {{a}};",
                    to,
                    ("f32",),
                    lambda a, x=(e, m, mode): round_to(a, *x),
                )
            )
        rows += [
            Row(f"cvt.rn.relu.{to}.f32 {{d}}, {{a}};", to, ("f32",), lambda a, x=(e, m): np.where(np.isnan(a), a, np.where(np.signbit(a), 0, round_to(a, *x)))),
            Row(f"cvt.f32.{to} {{d}}, {{a}};", "f32", (to,), lambda a: a),
            Row(f"cvt.rn.{to}x2.f32 {{d}}, {{a}}, {{b}};", "b32", ("f32", "f32"),
                lambda a, b, k=to: encode(value(a, "f32"), k).astype(np.uint32) << 16 | encode(value(b, "f32"), k), bits=True),
        ]  # fmt: skip

    def tf32(a: np.ndarray) -> np.ndarray:
        x = value(a, "f32")
        return np.where(
            np.isnan(x), 0x7FFFFFFF, round_to(x, 8, 10, "rna").astype(np.float32).view(np.uint32)
        )

    rows += [
        Row("cvt.rna.tf32.f32 {d}, {a};", "b32", ("f32",), tf32, bits=True),
        Row("cvt.rn.f32.f64 {d}, {a};", "f32", ("f64",), lambda a: a.astype(np.float32)),
        Row("cvt.rz.f32.f64 {d}, {a};", "f32", ("f64",), lambda a: round_to(a, 8, 23, "rz")),
        Row("cvt.rm.f32.f64 {d}, {a};", "f32", ("f64",), lambda a: round_to(a, 8, 23, "rm")),
        Row("cvt.rp.f32.f64 {d}, {a};", "f32", ("f64",), lambda a: round_to(a, 8, 23, "rp")),
        Row("cvt.f64.f32 {d}, {a};", "f64", ("f32",), lambda a: np.where(np.isnan(value(a, "f32")), 0, value(a, "f32")).astype(np.float64).view(np.uint64), bits=True,
            inputs=(np.where(np.isnan(samples("f32", 0).view(np.float32)), 0, samples("f32", 0)).astype(np.uint32),)),
        Row("cvt.sat.f32.f32 {d}, {a};", "f32", ("f32",), lambda a: np.where(np.isnan(a), 0, np.clip(a, 0, 1)) + np.float32(0)),
        Row("cvt.rni.f32.f32 {d}, {a};", "f32", ("f32",), np.rint),
        Row("cvt.rmi.f32.f32 {d}, {a};", "f32", ("f32",), np.floor),
        Row("cvt.rpi.f64.f64 {d}, {a};", "f64", ("f64",), np.ceil),
        Row("cvt.rzi.f16.f16 {d}, {a};", "f16", ("f16",), np.trunc),
        Row("cvt.rn.f16.s32 {d}, {a};", "f16", ("s32",), lambda a: a.astype(np.float64)),
        Row("cvt.rn.f64.u64 {d}, {a};", "f64", ("u64",), lambda a: a.astype(np.float64)),
    ]  # fmt: skip
    for t in ("s32", "u32", "s64", "u64"):
        rows.append(
            Row(f"cvt.rn.f32.{t} {{d}}, {{a}};", "f32", (t,), lambda a: a.astype(np.float32))
        )
        lowest, highest = (
            (-(2 ** (width(t) - 1)), 2 ** (width(t) - 1) - 1)
            if t[0] == "s"
            else (0, 2 ** width(t) - 1)
        )
        for mode, f in {
            "rni": round,
            "rzi": int,
            "rmi": lambda x: int(np.floor(x)),
            "rpi": lambda x: int(np.ceil(x)),
        }.items():
            for source in ("f32", "f64"):
                nan = 1 << width(t) - 1 if width(t) == 64 or source == "f64" else 0

                def convert(
                    a: np.ndarray,
                    f: Any = f,
                    low: int = lowest,
                    high: int = highest,
                    nan: int = nan,
                ) -> np.ndarray:
                    def one(x: float) -> int:
                        if np.isnan(x):
                            return nan
                        if np.isinf(x):
                            return high if x > 0 else low
                        return max(low, min(high, f(float(x))))

                    return np.array([one(x) & (2**64 - 1) for x in a], dtype=np.uint64)

                rows.append(Row(f"cvt.{mode}.{t}.{source} {{d}}, {{a}};", t, (source,), convert))
    rows += [
        Row("cvt.s64.s32 {d}, {a};", "s64", ("s32",), python(lambda a: a)),
        Row("cvt.u64.u32 {d}, {a};", "u64", ("u32",), python(lambda a: a)),
        Row("cvt.u32.u64 {d}, {a};", "u32", ("u64",), python(lambda a: a)),
        Row("cvt.s32.s8 {d}, {a};", "s32", ("u32",), python(lambda a: signed(a, 8))),
        Row("cvt.u32.u8 {d}, {a};", "u32", ("u32",), python(lambda a: a & 255)),
        Row("cvt.s16.s8 {d}, {a};", "s16", ("u16",), python(lambda a: signed(a, 8))),
        Row("cvt.s8.s32 {d}, {a};", "s32", ("s32",), python(lambda a: signed(a, 8))),
        Row("cvt.sat.u8.s32 {d}, {a};", "u32", ("s32",), python(lambda a: max(0, min(255, a)))),
        Row(
            "cvt.sat.s16.s32 {d}, {a};",
            "s16",
            ("s32",),
            python(lambda a: max(-32768, min(32767, a))),
        ),
        Row("cvt.sat.s32.u32 {d}, {a};", "s32", ("u32",), python(lambda a: min(a, 2**31 - 1))),
        Row(
            "cvt.sat.u32.s64 {d}, {a};",
            "u32",
            ("s64",),
            python(lambda a: max(0, min(2**32 - 1, a))),
        ),
    ]
    return rows


def move_and_pair_rows() -> list[Row]:
    def lanes(f: Callable[..., Any], kind: str) -> Callable[..., np.ndarray]:
        def apply(*words: np.ndarray) -> np.ndarray:
            halves = [
                encode(
                    f(
                        *(
                            value((w >> s).astype(np.uint16), kind).astype(np.longdouble)
                            for w in words
                        )
                    ),
                    kind,
                ).astype(np.uint32)
                for s in (0, 16)
            ]
            return halves[0] | halves[1] << 16

        return apply

    two, three = ("b32", "b32"), ("b32",) * 3
    integers = ("s32", "s32")
    rows = [
        Row("add.f16x2 {d}, {a}, {b};", "b32", two, lanes(lambda a, b: a + b, "f16"), bits=True),
        Row("mul.f16x2 {d}, {a}, {b};", "b32", two, lanes(lambda a, b: a * b, "f16"), bits=True),
        Row("fma.rn.f16x2 {d}, {a}, {b}, {c};", "b32", three, lanes(exact_fma("f16"), "f16"), bits=True),
        Row("fma.rn.bf16x2 {d}, {a}, {b}, {c};", "b32", three, lanes(exact_fma("bf16"), "bf16"), bits=True),
        Row("neg.f16x2 {d}, {a};", "b32", ("b32",), lambda a: a ^ 0x80008000, bits=True),
        Row("abs.bf16x2 {d}, {a};", "b32", ("b32",), lambda a: a & 0x7FFF7FFF, bits=True),
        Row("set.lt.f16x2.f16x2 {d}, {a}, {b};", "b32", two, lanes(lambda a, b: (a < b) * 1.0, "f16"), bits=True),
        Row("setp.lt.f16x2 p|q, {a}, {b}; selp.u32 x, 1, 0, p; selp.u32 {d}, 2, 0, q; or.b32 {d}, {d}, x;", "u32", two,
            lambda a, b: (value(a.astype(np.uint16), "f16") < value(b.astype(np.uint16), "f16"))
            + 2 * (value((a >> 16).astype(np.uint16), "f16") < value((b >> 16).astype(np.uint16), "f16")), bits=True),
        Row("mov.b32 {{h, l}}, {a}; mov.b32 {d}, {{l, h}};", "b32", ("b32",), lambda a: a >> 16 | a << 16, bits=True),
        Row("mov.b64 {{x, y}}, {a}; mov.b64 {d}, {{y, x}};", "b64", ("b64",), lambda a: a >> np.uint64(32) | a << np.uint64(32), bits=True),
        Row("mov.b64 {{_, {d}}}, {a};", "b32", ("b64",), lambda a: a >> np.uint64(32), bits=True),
        Row("setp.lt.s32 p|q, {a}, {b}; selp.u32 x, 1, 0, p; selp.u32 {d}, 2, 0, q; or.b32 {d}, {d}, x;", "u32", integers, lambda a, b: np.where(a < b, 1, 2)),
        Row("setp.eq.s32 q, {a}, 0; setp.lt.and.s32 p, {a}, {b}, !q; selp.u32 {d}, 1, 0, p;", "u32", integers, lambda a, b: (a < b) & (a != 0)),
        Row("setp.lo.u32 p, {a}, {b}; setp.hs.or.u32 p, {a}, 7, p; selp.u32 {d}, 1, 0, p;", "u32", ("u32", "u32"), lambda a, b: (a < b) | (a >= 7)),
        Row("setp.gt.s32 p, {a}, {b}; not.pred q, p; xor.pred p, p, q; and.pred p, p, q; selp.u32 {d}, 1, 0, p;", "u32", integers, lambda a, b: a <= b),
        Row("mov.u32 {d}, 5; setp.gt.s32 p, {a}, {b}; @!p mov.u32 {d}, 0X1FU;", "u32", integers, lambda a, b: np.where(a > b, 5, 31)),
        Row("{{ .reg.b32 t,u; mov.b32 t, {a}; {{ .reg .b32 t; mov.b32 t, 3; add.u32 u, t, t; }} add.u32 {d}, t, u; }}", "u32", ("u32",), lambda a: a + 6),
        Row("setp.lt.s32 p, {a}, 0; mov.u32 {d}, 1; @p bra skip_{id}; mov.u32 {d}, 2; skip_{id}:", "u32", ("s32",), lambda a: np.where(a < 0, 1, 2)),
        Row("and.b32 x, {a}, 15; mov.u32 {d}, 0; again_{id}: add.u32 {d}, {d}, x; sub.u32 x, x, 1; setp.gt.s32 p, x, 0; @p bra again_{id};", "u32", ("u32",),
            lambda a: (a & 15) * ((a & 15) + 1) // 2),
        Row("and.b32 x, {a}, 1; t_{id}: .branchtargets a_{id}, b_{id}; brx.idx x, t_{id}; a_{id}: mov.u32 {d}, 10; bra c_{id}; b_{id}: mov.u32 {d}, 20; c_{id}:", "u32", ("u32",),
            lambda a: np.where(a & 1, 20, 10)),
        Row("{{ .param .b32 p0; .param .b32 r0; st.param.b32 [p0+0], {a}; call.uni (r0), twice, (p0); ld.param.b32 {d}, [r0+0]; }}", "u32", ("u32",), lambda a: 2 * a),
        Row("mov.u64 z, table; ld.global.u32 {d}, [z+4];", "u32", ("u32",), lambda a: np.full(N, 77)),
        Row("mov.u64 z, bytes; cvta.const.u64 z, z; ld.s8 {d}, [z+1];", "s32", ("u32",), lambda a: np.full(N, -3)),
        Row("ld.const.u8 {d}, [bytes+1];", "u32", ("u32",), lambda a: np.full(N, 253)),
        Row("st.local.u32 [frame+8], {a}; mov.u64 z, frame; cvta.local.u64 z, z; ld.u32 {d}, [z+8];", "u32", ("u32",), lambda a: a),
        Row("mov.u32 {d}, %lanemask_le;", "u32", ("u32",), lambda a: np.tile((2 << np.arange(32)) - 1, N // 32)),
        Row("mov.u32 {d}, %tid.x; mad.lo.u32 {d}, %ctaid.x, 1024, {d};", "u32", ("u32",), lambda a: np.arange(N)),
    ]  # fmt: skip
    return rows


ROWS = integer_rows() + float_rows() + conversion_rows() + move_and_pair_rows()

HEADER = """.version 8.0
.target sm_80
.address_size 64
.global .align 4 .b32 table[2] = {5, 77};
.const .align 1 .b8 bytes[2] = {1, -3};
.func (.param .b32 result) twice(.param .b32 a)
{ .reg .b32 %r<3>; ld.param.b32 %r1, [a]; add.u32 %r2, %r1, %r1; st.param.b32 [result+0], %r2; ret; }
"""


def register_of(kind: str, name: str) -> str:
    return f".reg .b{width(kind)} {name};"


def kernel_text(name: str, rows: list[tuple[int, Row]]) -> str:
    """One parameter: a table of pointers, for each row the operands' arrays and the result's."""
    lines = [f".visible .entry {name}(.param .u64 pointers) {{"]
    lines += [".local .align 8 .b8 frame[16];", ".reg .b64 %tab, %i, %off, %ptr; .reg .b32 %t, %c;"]
    lines += [
        "mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; mad.lo.u32 %t, %c, 1024, %t; cvt.u64.u32 %i, %t;"
    ]
    lines += ["ld.param.u64 %tab, [pointers]; cvta.to.global.u64 %tab, %tab;"]
    slot = 0
    for number, row in rows:
        names = dict(zip("abce", row.operands))  # noqa: B905
        lines.append("{ .reg .pred p, q; .reg .b32 x, y; .reg .b64 z; .reg .b16 l, h;")
        lines += [register_of(kind, f"in_{n}") for n, kind in names.items()] + [
            register_of(row.result, "out")
        ]
        for n, kind in names.items():
            w = width(kind)
            lines.append(
                f"ld.global.u64 %ptr, [%tab+{8 * slot}]; mad.lo.u64 %ptr, %i, {w // 8}, %ptr; ld.global.b{w} in_{n}, [%ptr];"
            )
            slot += 1
        lines.append(row.code.format(d="out", id=number, **{n: f"in_{n}" for n in names}))
        w = width(row.result)
        lines.append(
            f"ld.global.u64 %ptr, [%tab+{8 * slot}]; mad.lo.u64 %ptr, %i, {w // 8}, %ptr; st.global.b{w} [%ptr], out; }}"
        )
        slot += 1
    return "\n".join([*lines, "ret; }"])


@pytest.fixture(scope="session")
def results() -> list[np.ndarray]:
    """The result of each row."""
    sim = simulator()
    groups = [
        list(enumerate(ROWS))[i : i + ROWS_PER_KERNEL] for i in range(0, len(ROWS), ROWS_PER_KERNEL)
    ]
    text = HEADER + "\n".join(kernel_text(f"rows_{g}", rows) for g, rows in enumerate(groups))
    sim.load(module.build_module(text))
    out = []
    for g, rows in enumerate(groups):
        arrays, outputs, table = [], [], []
        for _, row in rows:
            inputs = [sim.put(a) for a in row.arrays()]
            output = sim.empty(N, BITS[width(row.result)])
            arrays += inputs
            outputs.append(output)
            table += [a.address for a in (*inputs, output)]
        pointers = sim.put(np.array(table, np.uint64))
        with sim.watch(numeric_seed=0):
            sim.check(sim.launch(f"rows_{g}", 2, 1024, pointers))
        out += [o.get() for o in outputs]
    return out


@pytest.mark.parametrize(
    "number", range(len(ROWS)), ids=lambda n: ROWS[n].code.replace("{", "").replace("}", "")
)
def test_row(results: list[np.ndarray], number: int) -> None:
    row = ROWS[number]
    got, want = results[number], row.want()
    if row.result == "f64" and not row.bits:  # which NaN is left open
        got, want = (np.where(np.isnan(value(x, "f64")), np.uint64(0), x) for x in (got, want))
    wrong = np.flatnonzero(got != want)
    shown = [
        f"({', '.join(hex(a[i]) for a in row.arrays())}) gave {got[i]:#x}, expected {want[i]:#x}"
        for i in wrong[:5]
    ]
    assert not len(wrong), f"{len(wrong)} of {N} samples of `{row.code}`: " + "; ".join(shown)


# --- approximate functions: within the manual's bounds, and using them


APPROXIMATE: dict[str, tuple[str, Any, Any]] = {
    # instruction: (type, exact function, bound of the error, from the exact value and the argument)
    "ex2.approx.f32": ("f32", np.exp2, lambda y, x: 2.5 * np.spacing(y.astype(np.float32)).astype(np.float64)),
    "ex2.approx.f16": ("f16", np.exp2, lambda y, x: np.abs(y) * 2.0**-9.9 + 2.0**-25),
    "ex2.approx.ftz.bf16": ("bf16", np.exp2, lambda y, x: np.abs(y) * 2.0**-7),
    "tanh.approx.f32": ("f32", np.tanh, lambda y, x: np.abs(y) * 2.0**-11),
    "tanh.approx.f16": ("f16", np.tanh, lambda y, x: np.full_like(y, 2.0**-10.987)),
    "tanh.approx.bf16": ("bf16", np.tanh, lambda y, x: np.abs(y) * 2.0**-8),
    "lg2.approx.f32": ("f32", np.log2, lambda y, x: np.where((x > 0.5) & (x < 2), 2.0**-22, np.abs(y) * 2.0**-22)),
    "sin.approx.f32": ("f32", np.sin, lambda y, x: np.where(np.abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)),
    "cos.approx.f32": ("f32", np.cos, lambda y, x: np.where(np.abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7)),
    "rcp.approx.f32": ("f32", lambda x: 1 / x, lambda y, x: 1.5 * np.spacing(np.abs(y).astype(np.float32)).astype(np.float64)),
    "rcp.approx.ftz.f32": ("f32", lambda x: 1 / x, lambda y, x: np.abs(y) * 2.0**-23 * 1.5 + (np.abs(y) < 2.0**-126) * 2.0**-126),
    "rsqrt.approx.f32": ("f32", lambda x: 1 / np.sqrt(x), lambda y, x: np.abs(y) * 2.0**-22.9),
    "sqrt.approx.f32": ("f32", np.sqrt, lambda y, x: np.abs(y) * 2.0**-23),
}  # fmt: skip


@pytest.fixture(scope="session")
def approximations() -> dict[tuple[str, int], np.ndarray]:
    sim = simulator()
    text = HEADER
    for n, instruction in enumerate(APPROXIMATE):
        kind = APPROXIMATE[instruction][0]
        row = Row(f"{instruction} {{d}}, {{a}};", kind, (kind,), lambda a: a)
        text += kernel_text(f"approximate_{n}", [(n, row)])
    sim.load(module.build_module(text))
    out = {}
    for n, (instruction, (kind, _, _)) in enumerate(APPROXIMATE.items()):
        x = sim.put(arguments(kind))
        for seed in (0, 1, 2):
            y = sim.empty(N, BITS[width(kind)])
            with sim.watch(numeric_seed=seed):
                sim.check(
                    sim.launch(
                        f"approximate_{n}",
                        2,
                        1024,
                        sim.put(np.array([x.address, y.address], np.uint64)),
                    )
                )
            out[instruction, seed] = y.get()
    return out


def arguments(kind: str) -> np.ndarray:
    return encode(np.random.default_rng(0).normal(size=N) * np.geomspace(1e-3, 30, N), kind)


@pytest.mark.parametrize("instruction", APPROXIMATE)
def test_approximate(approximations: dict[tuple[str, int], np.ndarray], instruction: str) -> None:
    kind, exact, bound = APPROXIMATE[instruction]
    x = value(arguments(kind), kind).astype(np.float64)
    with np.errstate(all="ignore"):
        y = exact(x)
        allowed = bound(y, x)
    shares = []
    for seed in (0, 1, 2):
        got = value(approximations[instruction, seed], kind).astype(np.float64)
        assert np.array_equal(np.isnan(got), np.isnan(y))
        defined = np.isfinite(y) & np.isfinite(got) & (allowed > 0)
        error = np.abs(got - y)[defined] / allowed[defined]
        assert error.max() <= 1.001, f"seed {seed}: {error.max()} of the bound"
        shares.append(error.max())
    if instruction != "tanh.approx.bf16":  # the rounding alone fills that bound
        assert shares[1] > 0.7 and shares[2] > 0.7, f"the perturbation uses {shares} of the bound"
        assert not np.array_equal(approximations[instruction, 1], approximations[instruction, 2])


# --- warp instructions


def run_ptx(
    body: str,
    operands: list[np.ndarray],
    results: int,
    threads: int = 32,
    shared: int = 4096,
    **settings: Any,
) -> np.ndarray:
    """A block runs `body` with inputs %in0.. (b32 each, [threads] arrays) and writes %out0..: [results, threads]."""
    name = f"k_{digest(body)}"
    lines = [
        HEADER,
        f".visible .entry {name}(.param .u64 from, .param .u64 to) {{",
        f".shared .align 16 .b8 tile[{shared}];",
    ]
    lines += [
        ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %d<16>; .reg .b64 %a; .reg .b64 %from, %to;"
    ]
    lines += [f".reg .b32 %in<{len(operands) + 1}>; .reg .b32 %out<{results + 1}>; .reg .b32 %t;"]
    lines += [
        "mov.u32 %t, %tid.x; mul.wide.u32 %a, %t, 4; ld.param.u64 %from, [from]; ld.param.u64 %to, [to];"
    ]
    lines += ["add.u64 %from, %from, %a; add.u64 %to, %to, %a;"]
    lines += [f"ld.global.b32 %in{i}, [%from+{4 * threads * i}];" for i in range(len(operands))]
    lines += [body]
    lines += [f"st.global.b32 [%to+{4 * threads * i}], %out{i};" for i in range(results)]
    sim = simulator()
    sim.load(module.build_module("\n".join([*lines, "ret; }"])))
    source = sim.put(
        np.stack([o.astype(np.uint32) for o in operands])
        if operands
        else np.zeros((1, threads), np.uint32)
    )
    target = sim.empty((results, threads), np.uint32)
    with sim.watch(**settings):
        sim.check(sim.launch(name, 1, threads, source, target))
    return target.get()


LANES = np.arange(32)


def test_shuffles() -> None:
    body = """
    shfl.sync.up.b32 %out0|%p0, %in0, 3, 0, -1; selp.u32 %out1, 1, 0, %p0;
    shfl.sync.down.b32 %out2|%p1, %in0, 5, 0x1f, -1; selp.u32 %out3, 1, 0, %p1;
    shfl.sync.bfly.b32 %out4, %in0, 6, 0x1f, 0xffffffff;
    shfl.sync.idx.b32 %out5|%p2, %in0, %in1, 0x181f, -1; selp.u32 %out6, 1, 0, %p2;
    shfl.sync.down.b32 %out7, %in0, 2, 0x181f, -1;"""
    data, index = 100 + LANES, (7 * LANES) % 32
    out = run_ptx(body, [data, index], 8)
    assert np.array_equal(out[0], np.where(LANES >= 3, data - 3, data))
    assert np.array_equal(out[1], LANES >= 3)
    assert np.array_equal(out[2], np.where(LANES + 5 < 32, data + 5, data))
    assert np.array_equal(out[3], LANES + 5 < 32)
    assert np.array_equal(out[4], 100 + (LANES ^ 6))
    assert np.array_equal(out[5], 100 + LANES // 8 * 8 + index % 8)  # segments of 8 lanes
    assert np.array_equal(out[6], np.ones(32))
    assert np.array_equal(out[7], np.where(LANES % 8 + 2 < 8, data + 2, data))


def test_votes_matches_and_reductions() -> None:
    body = """
    setp.gt.s32 %p0, %in0, 4;
    vote.sync.ballot.b32 %out0, %p0, -1;
    vote.sync.any.pred %p1, %p0, -1; selp.u32 %out1, 1, 0, %p1;
    vote.sync.all.pred %p2, !%p0, -1; selp.u32 %out2, 1, 0, %p2;
    vote.sync.uni.pred %p3, %p0, -1; selp.u32 %out3, 1, 0, %p3;
    match.any.sync.b32 %out4, %in0, -1;
    match.all.sync.b32 %out5|%p4, 3, -1; selp.u32 %out6, 1, 0, %p4;
    redux.sync.add.s32 %out7, %in0, -1;
    redux.sync.min.s32 %out8, %in0, -1;
    redux.sync.max.u32 %out9, %in0, -1;
    redux.sync.xor.b32 %out10, %in0, -1;
    activemask.b32 %out11;
    barrier.sync 0;
    bar.red.popc.u32 %out12, 0, %p0;"""
    data = (LANES * 5) % 7 - 1
    out = run_ptx(body, [data], 13)
    ballot = int(sum(1 << i for i in LANES if data[i] > 4))
    assert (
        (out[0] == ballot).all()
        and (out[1] == 1).all()
        and (out[2] == 0).all()
        and (out[3] == 0).all()
    )
    assert np.array_equal(out[4], [sum(1 << j for j in LANES if data[j] == data[i]) for i in LANES])
    assert (out[5] == 0xFFFFFFFF).all() and (out[6] == 1).all()
    assert (out[7].view(np.int32) == data.sum()).all() and (out[8].view(np.int32) == -1).all()
    assert (out[9] == 0xFFFFFFFF).all()
    assert (out[10] == np.bitwise_xor.reduce(data.astype(np.uint32))).all()
    assert (out[11] == 0xFFFFFFFF).all() and (out[12] == (data > 4).sum()).all()


def test_ldmatrix() -> None:
    fill = "mov.u32 %r0, tile; mad.lo.u32 %r1, %t, 16, %r0; " + " ".join(
        f"st.shared.b32 [%r1+{4 * i}], %in{i};" for i in range(4)
    )
    body = (
        fill
        + """ bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%out0, %out1, %out2, %out3}, [%r1];
    ldmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 {%out4, %out5, %out6, %out7}, [%r1];
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%out8}, [%r1];
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%out9, %out10}, [%r1];"""
    )
    matrices = np.random.default_rng(0).integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    words = np.ascontiguousarray(matrices.reshape(32, 8)).view(
        np.uint32
    )  # row r of matrix m comes from lane 8 m + r
    out = run_ptx(body, list(words.T), 11)

    def fragments(m: np.ndarray) -> np.ndarray:
        """Lane l holds columns 2 (l % 4) and the next of row l / 4."""
        return np.ascontiguousarray(
            m[LANES // 4][LANES[:, None], (2 * (LANES % 4))[:, None] + np.arange(2)]
        ).view(np.uint32)[:, 0]

    for i in range(4):
        assert np.array_equal(out[i], fragments(matrices[i])), i
        assert np.array_equal(out[4 + i], fragments(matrices[i].T)), i
    assert np.array_equal(out[8], fragments(matrices[0]))
    assert np.array_equal(out[9], fragments(matrices[0].T)) and np.array_equal(
        out[10], fragments(matrices[1].T)
    )


# mma: matrices are laid into fragments by the tables of the manual's figures, written out here lane by lane.
MMA = [("m16n8k16", "f16", "f32"), ("m16n8k16", "bf16", "f32"), ("m16n8k16", "f16", "f16"), ("m16n8k8", "f16", "f32"),
       ("m16n8k8", "bf16", "f32"), ("m16n8k8", "f16", "f16"), ("m16n8k8", "tf32", "f32"), ("m16n8k4", "tf32", "f32")]  # fmt: skip


def mma_operands(
    kind: str, a: np.ndarray, b: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Registers of A [16, K] and B [K, 8]. A's 8-row halves alternate within each group of columns; a register
    holds two neighbours along K of a half type, or one tf32 value."""
    group, thread = LANES // 4, LANES % 4
    k = a.shape[1]

    def pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return encode(low, kind).astype(np.uint32) | encode(high, kind).astype(np.uint32) << 16

    if kind == "tf32":
        registers_a = [
            encode(a[group + 8 * h, thread + c], "f32") for c in range(0, k, 4) for h in (0, 1)
        ]
        registers_b = [encode(b[thread + c, group], "f32") for c in range(0, k, 4)]
    else:
        registers_a = [
            pair(a[group + 8 * h, 2 * thread + c], a[group + 8 * h, 2 * thread + c + 1])
            for c in range(0, k, 8)
            for h in (0, 1)
        ]
        registers_b = [
            pair(b[2 * thread + c, group], b[2 * thread + c + 1, group]) for c in range(0, k, 8)
        ]
    return registers_a, registers_b


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("shape", "kind", "accumulator"), MMA)
def test_mma(shape: str, kind: str, accumulator: str, seed: int) -> None:
    random = np.random.default_rng(1)
    k = int(shape.split("k")[1])
    mantissa = 7 if kind == "bf16" else 10
    a, b = (round_to(random.normal(size=s), 8, mantissa) for s in ((16, k), (k, 8)))
    c = round_to(random.normal(size=(16, 8)), 5, 10)
    group, thread = LANES // 4, LANES % 4
    registers_a, registers_b = mma_operands(kind, a, b)
    corners = [c[group + 8 * h, 2 * thread + j] for h in (0, 1) for j in (0, 1)]
    if accumulator == "f32":
        registers_c = [encode(x, "f32") for x in corners]
    else:
        registers_c = [
            encode(corners[i], "f16").astype(np.uint32)
            | encode(corners[i + 1], "f16").astype(np.uint32) << 16
            for i in (0, 2)
        ]
    operands = [*registers_a, *registers_b, *registers_c]
    sizes = np.cumsum([0, len(registers_a), len(registers_b), len(registers_c)])
    parts = [
        "{" + ", ".join(f"%in{i}" for i in range(lo, hi)) + "}"
        for lo, hi in itertools.pairwise(sizes)
    ]
    d = "{" + ", ".join(f"%out{i}" for i in range(len(registers_c))) + "}"
    body = f"mma.sync.aligned.{shape}.row.col.{accumulator}.{kind}.{kind}.{accumulator} {d}, {', '.join(parts)};"
    out = run_ptx(body, operands, len(registers_c), numeric_seed=seed)
    if accumulator == "f32":
        got = [o.view(np.float32) for o in out]
    else:
        got = [o.view(np.float16).reshape(32, 2)[:, j] for o in out for j in (0, 1)]
    result = np.empty((16, 8))
    for i, x in enumerate(got):
        result[group + 8 * (i // 2), 2 * thread + i % 2] = x
    np.testing.assert_allclose(
        result, a @ b + c, atol=2e-6 if accumulator == "f32" else 2e-2, rtol=1e-6
    )


def test_atomics_and_copies() -> None:
    body = """
    mov.u32 %r0, tile; mad.lo.u32 %r1, %t, 4, %r0; setp.eq.u32 %p0, %t, 0;
    @%p0 st.shared.v4.b32 [tile+512], {0, 0, 0, 0}; @%p0 st.shared.v2.b32 [tile+528], {-1, 0};
    bar.sync 0;
    atom.shared.add.u32 %r2, [tile+512], 3;
    atom.shared.add.f32 %r2, [tile+516], 0f3F800000;
    atom.shared.max.s32 %r2, [tile+520], %in0;
    red.shared.or.b32 [tile+524], %in0;
    atom.shared.and.b32 %r2, [tile+528], %in0;
    atom.shared.inc.u32 %r2, [tile+532], 9;
    cp.async.ca.shared.global [%r1], [%from], 4;
    cp.async.commit_group; cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.b32 %out0, [tile+512]; ld.shared.b32 %out1, [tile+516]; ld.shared.b32 %out2, [tile+520];
    ld.shared.b32 %out3, [tile+524]; ld.shared.b32 %out4, [tile+528]; ld.shared.b32 %out5, [tile+532];
    ld.shared.b32 %out6, [%r1]; add.u64 %d0, %to, 896; mov.b32 %r3, 7; st.relaxed.gpu.global.b32 [%d0], %r3;
    atom.global.cas.b32 %r4, [%d0], 7, %t; atom.relaxed.gpu.global.exch.b32 %out7, [%d0], 5;"""
    data = LANES * 3 + 8
    out = run_ptx(body, [data], 8)
    assert (
        (out[0] == 96).all()
        and (out[1].view(np.float32) == 32).all()
        and (out[2] == data.max()).all()
    )
    assert (out[3] == np.bitwise_or.reduce(data)).all() and (
        out[4] == np.bitwise_and.reduce(data)
    ).all()
    assert (out[5] == 2).all()  # 32 increments modulo 10
    assert np.array_equal(out[6], data) and np.array_equal(out[7], LANES)


# --- CUDA's own functions: long chains of instructions whose sum is known


FUNCTIONS: dict[str, Any] = {
    "exp(x)": np.exp,
    "expm1(x)": np.expm1,
    "log(x)": np.log,
    "log1p(x)": np.log1p,
    "tanh(x)": np.tanh,
    "sin(x)": np.sin,
    "cos(x * T(100000))": lambda x: np.cos(x * type(x.flat[0])(100000)),  # Payne-Hanek, with carry chains
    "pow(x, T(1.3))": lambda x: np.power(x, type(x.flat[0])(1.3)),
    "atan2(x, T(2))": lambda x: np.arctan2(x, 2),
    "hypot(x, T(2))": lambda x: np.hypot(x, 2),
    "cbrt(x)": np.cbrt,
    "fmod(x, T(0.7))": lambda x: np.fmod(x, type(x.flat[0])(0.7)),
    "rsqrt(x)": lambda x: 1 / np.sqrt(x),
    "T(1) / (T(1) + exp(-x))": lambda x: 1 / (1 + np.exp(-x)),
    "floor(x) + rint(x) + ceil(x) + trunc(x)": lambda x: np.floor(x) + np.rint(x) + np.ceil(x) + np.trunc(x),
    "ldexp(x, 3) + copysign(x, T(-1))": lambda x: 8 * x - np.abs(x),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cuda_functions(tmp_path: Any, dtype: Any, seed: int) -> None:
    kind = {np.float32: "float", np.float64: "double"}[dtype]
    lines = [f"y[{i} * n + i_] = {f};" for i, f in enumerate(FUNCTIONS)]
    source = tmp_path / f"functions_{kind}.cu"
    source.write_text(
        f'typedef {kind} T; extern "C" __global__ void functions_{kind}(const T* in, T* y, int n) {{\n'
        "int i_ = threadIdx.x + blockIdx.x * blockDim.x; T x = in[i_];\n" + "\n".join(lines) + "}\n"
    )
    sim = simulator()
    sim.load(module.build_source(source))
    x = np.geomspace(1e-3, 50, N).astype(dtype)
    out = sim.empty((len(FUNCTIONS), N), dtype)
    with sim.watch(numeric_seed=seed):
        sim.check(sim.launch(f"functions_{kind}", 8, N // 8, sim.put(x), out, np.int32(N)))
    with np.errstate(all="ignore"):
        for got, (name, function) in zip(out.get(), FUNCTIONS.items(), strict=True):
            exact = function(x).astype(np.float64)
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(got, exact, rtol=8 * eps, atol=4 * eps, err_msg=name)


# --- the parser and the errors


def wrap(body: str) -> str:
    return f"{HEADER}.visible .entry k(.param .u64 p)\n{{\n.reg .pred %p<4>; .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .b16 %h<4>;\n{body}\nret;\n}}\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown instruction frobnicate"),
        ("add.wonderful.s32 %r1, %r2, %r3;", "unknown modifier .wonderful"),
        ("min.xorsign.abs.f32 %r1, %r2, %r3;", "unknown modifier .xorsign"),
        ("barrier.cluster.arrive;", "barrier is not known"),
        ("ld.global.odd.b32 %r1, [%rd1];", "unknown modifier .odd"),
        ("ld.global.v2.b32 %r1, [%rd1];", "length differs"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 {%r0}, {%r0}, {%r0}, {%r0};",
            "mma is not known",
        ),
        ("add.s32 %r1, %r2;", "takes 3 operands"),
        ("add.s32 %r1, %r2, %missing;", "unknown name '%missing'"),
        ("add.s32 %r1, %r2, %p1;", "is no s32"),
        ("selp.b32 %p1, 1, 0, %p2;", "predicate and value mixed"),
        ("cvt.s32.f32 %r1, %r2;", "needs its rounding"),
        ("atom.global.add.v2.f32 {%r1, %r2}, [%rd1], {%r1, %r2};", "atomic operation is not known"),
        ("shfl.down.b32 %r1, %r2, 1, 31;", "only shfl.sync"),
        ("bra %r1;", "needs a label"),
        ("cp.async.bulk.commit_group;", "copy is not known"),
        ("tanh.approx.f64 %rd1, %rd2;", "type .f64"),
    ],
)
def test_unknown_instruction(code: str, message: str) -> None:
    text = wrap(f'.loc 1 42 7\nadd.u32 %r1, %r1, %r1;\n{code}\n.file 1 "some/kernel.cu"')
    line = text[: text.index(code)].count("\n") + 1
    with pytest.raises(translator.TranslationError) as caught:
        translator.translate(text)
    assert message in str(caught.value)
    assert f"PTX line {line}" in str(caught.value)
    assert "some/kernel.cu:42" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("add.u32 %r1 %r2;", "expected a comma"),
        (".strange x;", "unknown directive"),
        ("mov.u32 %r1, #;", "cannot read"),
    ],
)
def test_unreadable_text(code: str, message: str) -> None:
    with pytest.raises(parser.PtxError, match=message):
        parser.parse(wrap(code))


def test_parser() -> None:
    text = """.version 8.0
.target sm_80, debug
.address_size 64
.func (.param .b32 r) later(.param .b32 a) ;
.extern .shared .align 16 .b8 pool[];
.global .align 8 .f32 numbers[3] = {0f3F800000, 0f40000000};
.visible .entry k(.param .u64 .ptr .global .align 16 k_0, .param .align 8 .b8 k_1[24])
.maxntid 64, 2
.minnctapersm 1
{
.reg.b16 hl, hu; /* a
comment */ .reg .f32 %f<3>;
.local .align 8 .b8 __depot[16];
.loc 1 3 5, function_name $L__info0, inlined_at 1 9 2
L1: @!%p2 ld.global.L2::128B.v2.f32 {%f1, %f2}, [%rd45+-4];
mov.u32 %r1, 0X1FU;
}
.file 1 "a.cu"
.section .debug_str { $L__info0: .b8 95,0 }
"""
    parsed = parser.parse(text)
    kernel = parsed.functions["k"]
    assert kernel.max_threads == 128 and [p.size for p in kernel.parameters] == [8, 24]
    assert parsed.functions["later"].body is None
    pool, numbers = parsed.variables
    assert pool.external and pool.size == 0
    assert numbers.size == 12 and numbers.initial == b"\0\0\x80\x3f\0\0\0\x40\0\0\0\0"
    assert kernel.body is not None
    registers, floats, depot, label, load, move = kernel.body.statements
    assert registers == parser.Registers("b16", ("hl", "hu"))
    assert floats == parser.Registers("f32", ("%f0", "%f1", "%f2"))
    assert isinstance(depot, parser.Variable) and depot.space == "local" and depot.size == 16
    assert label == parser.Label("L1")
    assert isinstance(load, parser.Instruction) and load.guard == parser.Name("%p2", True)
    assert load.modifiers == ("global", "L2::128B", "v2", "f32")
    assert load.operands[1] == parser.Address(parser.Name("%rd45"), -4)
    assert (load.source.file, load.source.line) == ("a.cu", 3)
    assert isinstance(move, parser.Instruction) and move.operands[1] == parser.Number(31)


def test_recursion_is_refused() -> None:
    text = HEADER.replace(
        "add.u32 %r2", "{ .param .b32 q; .param .b32 s; call.uni (s), twice, (q); } add.u32 %r2"
    )
    with pytest.raises(translator.TranslationError, match="recursion"):
        translator.translate(
            text
            + ".visible .entry k() { .param .b32 q; .param .b32 s; call.uni (s), twice, (q); ret; }"
        )


def test_equal_folders_share_their_ptx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR_CACHE", str(tmp_path / "cache"))
    texts = []
    for name in ("one", "copy"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "value.h").write_text("constexpr int kValue = 1;\n")
        (folder / "k.cu").write_text(
            '#include "value.h"\nextern "C" __global__ void k(int* x) { *x = kValue; }\n'
        )
        texts.append(module.compile_ptx("k.cu", flags=["-I."], folder=folder))
    assert texts[0] == texts[1] and '"k.cu"' in texts[0]
    assert len(list((tmp_path / "cache").glob("*.ptx"))) == 1


def test_source_reaches_findings(tmp_path: Any) -> None:
    """From a .cu file to a finding that names its line; printf and assert on the way."""
    source = tmp_path / "small.cu"
    source.write_text(
        "#include <cassert>\n#include <cstdio>\n"
        'extern "C" __global__ void small(int* x, int n) {\n'
        '  if (threadIdx.x == 0) printf("%d of %s: %5.2f\\n", n, "me", 1.5);\n'
        "  assert(n < 4);\n"
        "  x[threadIdx.x] = n;\n"
        "}\n"
    )
    sim = simulator()
    sim.load(module.build_source(source))
    x = sim.empty(32, np.int32)
    with sim.watch() as report:
        sim.check(sim.launch("small", 1, 32, x, np.int32(3)))
    assert report.printed == "3 of me:  1.50\n"
    assert (x.get() == 3).all()
    with pytest.raises(AssertionError, match="n < 4"), sim.watch():
        sim.launch("small", 1, 32, x, np.int32(4))
