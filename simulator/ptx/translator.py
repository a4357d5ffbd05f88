"""PTX -> C++: each kernel becomes `void kernel(sim::Thread&)` in a file of its own.

Registers are C++ integers of their width and nothing more: what the bits mean is said by each
instruction, as in PTX. Labels and branches stay labels and gotos. What an instruction computes is in
instructions.h; here is only which template it is and which operands it takes, most of it as tables.
Whatever the tables do not know is an error with the line of PTX and of the .cu file: a modifier that
was overlooked would be a wrong number instead.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import parser


class TranslationError(ValueError):
    pass


# --- tables: operations without side effects
# "opcode" or "opcode.modifier": (template, types of the result and of the operands, what it computes with).
# Types: T is the instruction's, W twice as wide, u is u32, b is b32, p a predicate.
_FLOAT = {"rn", "rz", "rm", "rp", "ftz", "sat", "relu", "NaN"}

PURE: dict[str, tuple[str, str, set[str]]] = {
    "add": ("add", "TTT", _FLOAT),
    "sub": ("sub", "TTT", _FLOAT),
    "mul": ("mul", "TTT", _FLOAT),
    "fma": ("fma", "TTTT", _FLOAT),
    "mad": ("fma", "TTTT", _FLOAT),
    "mul.lo": ("mul_lo", "TTT", set()),
    "mul.hi": ("mul_hi", "TTT", set()),
    "mul.wide": ("mul_wide", "WTT", set()),
    "mad.lo": ("mad_lo", "TTTT", set()),
    "mad.hi": ("mad_hi", "TTTT", {"sat"}),
    "mad.wide": ("mad_wide", "WTTW", set()),
    "mul24.lo": ("mul24_lo", "TTT", set()),
    "mad24.lo": ("mad24_lo", "TTTT", set()),
    "sad": ("sad", "TTTT", set()),
    "div": ("div", "TTT", _FLOAT),
    "rem": ("rem", "TTT", set()),
    "rcp": ("rcp", "TT", _FLOAT),
    "sqrt": ("sqrt", "TT", _FLOAT),
    "abs": ("abs", "TT", {"ftz"}),
    "neg": ("neg", "TT", {"ftz"}),
    "min": ("min", "TTT", {"ftz", "NaN", "relu"}),
    "max": ("max", "TTT", {"ftz", "NaN", "relu"}),
    "copysign": ("copysign", "TTT", set()),
    "and": ("and_", "TTT", set()),
    "or": ("or_", "TTT", set()),
    "xor": ("xor_", "TTT", set()),
    "not": ("not_", "TT", set()),
    "cnot": ("cnot", "TT", set()),
    "shl": ("shl", "TTu", set()),
    "shr": ("shr", "TTu", set()),
    "bfi": ("bfi", "TTTuu", set()),
    "bfe": ("bfe", "TTuu", set()),
    "popc": ("popc", "uT", set()),
    "clz": ("clz", "uT", set()),
    "brev": ("brev", "TT", set()),
    "bfind": ("bfind", "uT", {"shiftamt"}),
    "szext": ("szext", "TTu", {"clamp", "wrap"}),
}
# Those that take the thread, whose seed perturbs them.
APPROXIMATE: dict[str, tuple[str, str, set[str]]] = {
    "ex2.approx": ("ex2_approx", "TT", {"ftz"}),
    "lg2.approx": ("lg2_approx", "TT", {"ftz"}),
    "sin.approx": ("sin_approx", "TT", {"ftz"}),
    "cos.approx": ("cos_approx", "TT", {"ftz"}),
    "tanh.approx": ("tanh_approx", "TT", set()),
    "rcp.approx": ("rcp_approx", "TT", {"ftz"}),
    "sqrt.approx": ("sqrt_approx", "TT", {"ftz"}),
    "rsqrt.approx": ("rsqrt_approx", "TT", {"ftz"}),
    "div.approx": ("div_approx", "TTT", {"ftz"}),
    "div.full": ("div_full", "TTT", {"ftz"}),
}
# The types an operation is defined for, where a wrong one would still compile.
_HALVES = {"f16", "bf16", "f16x2", "bf16x2"}
_FLOATS = {"f32", "f64"} | _HALVES
TYPES = {
    "fma": _FLOATS,
    **{name: {"f32"} | _HALVES for name in ("ex2_approx", "tanh_approx")},
    **{name: {"f32"} for name in ("lg2_approx", "sin_approx", "cos_approx", "sqrt_approx")},
    **{name: {"f32"} for name in ("div_approx", "div_full")},
    **{name: {"f32", "f64"} for name in ("rcp", "sqrt", "rcp_approx", "rsqrt_approx", "copysign")},
}
# Modifiers that change nothing here.
_SILENT = {"noftz", "clamp"}

MUFU = {"ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh"}
CLASS_OF_TYPE = {
    "f32": "fp32",
    "f64": "fp64",
    **dict.fromkeys(_HALVES, "fp16"),
}
CLASS_OF_OPCODE = {
    **dict.fromkeys(MUFU, "mufu"),
    "cvt": "convert",
    "mma": "mma",
    **dict.fromkeys(("shfl", "vote", "match", "redux"), "shuffle"),
    **dict.fromkeys(("bra", "brx", "call", "ret"), "branch"),
}
COMPUTES = {key.split(".")[0] for key in PURE} | {
    *(
        "setp",
        "set",
        "selp",
        "slct",
        "testp",
        "prmt",
        "lop3",
        "shf",
        "bmsk",
        "dp4a",
        "addc",
        "subc",
    ),
    *("madc", "div"),
}

SPECIAL_REGISTERS = {
    **{
        f"%{name}.{axis}": f"t.{name}[{i}]"
        for name in ("tid", "ntid", "ctaid", "nctaid")
        for i, axis in enumerate("xyz")
    },
    "%laneid": "t.lane",
    "WARP_SZ": "32u",
    "%lanemask_eq": "(1u << t.lane)",
    "%lanemask_lt": "((1u << t.lane) - 1)",
    "%lanemask_le": "((2u << t.lane) - 1)",
    "%lanemask_gt": "~((2u << t.lane) - 1)",
    "%lanemask_ge": "~((1u << t.lane) - 1)",
    "%clock": "static_cast<uint32_t>(sim::clock(t))",
    "%clock_hi": "static_cast<uint32_t>(sim::clock(t) >> 32)",
    "%clock64": "sim::clock(t)",
    "%globaltimer": "sim::globaltimer(t)",
    "%globaltimer_lo": "static_cast<uint32_t>(sim::globaltimer(t))",
    "%globaltimer_hi": "static_cast<uint32_t>(sim::globaltimer(t) >> 32)",
    **{
        register: f"sim::special(t, sim::{constant})"
        for register, constant in {
            "%envreg1": "kEnvreg1",
            "%envreg2": "kEnvreg2",
            "%smid": "kSmid",
            "%nsmid": "kNsmid",
            "%gridid": "kGridid",
            "%warpid": "kWarpid",
            "%nwarpid": "kNwarpid",
            "%dynamic_smem_size": "kDynamicSharedBytes",
            "%total_smem_size": "kTotalSharedBytes",
        }.items()
    },
}

_SPACE = {
    "global": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "local": "local",
    "const": "constant",
    "param": "param",
    "param::entry": "param",
    "param::func": "param",
}
_ORDER = {
    "weak": "weak",
    "relaxed": "relaxed",
    "acquire": "acquire",
    "release": "release",
    "acq_rel": "acq_rel",
    "volatile": "volatile_",
}
_SCOPE = {"cta": "cta", "cluster": "cluster", "gpu": "gpu", "gl": "gpu", "sys": "sys"}
_CACHE = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "L1", "L2"}
_UPDATE = {
    **{name: name for name in ("add", "min", "max", "exch", "cas", "inc", "dec")},
    **{name: name + "_" for name in ("and", "or", "xor")},
}
_COMPARISONS = [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "lo",
    "ls",
    "hi",
    "hs",
    "equ",
    "neu",
    "ltu",
    "leu",
    "gtu",
    "geu",
    "num",
    "nan",
]
# shape and operand type: K
_MMA = {
    ("m16n8k16", "f16"): 16,
    ("m16n8k16", "bf16"): 16,
    ("m16n8k8", "f16"): 8,
    ("m16n8k8", "bf16"): 8,
    ("m16n8k8", "tf32"): 8,
    ("m16n8k4", "tf32"): 4,
}
# Hints to caches and schedulers.
_NO_OPERATION = {
    *(
        "prefetch",
        "prefetchu",
        "discard",
        "applypriority",
        "griddepcontrol",
        "brkpt",
        "createpolicy",
    ),
    *("pmevent", "setmaxnreg"),
}
_INTRINSICS = {"vprintf", "__assertfail"}


# --- names


@dataclass(frozen=True)
class Symbol:
    kind: str  # register, label, targets, shared, local, global, const, parameter (of a kernel), bytes
    cpp: str  # for shared, local and parameter the offset
    type: str = ""
    labels: tuple[str, ...] = ()


def width(kind: str) -> int:
    return 8 * parser.SIZES[kind]


def bits_type(kind: str) -> str:
    if kind == "pred":
        return "bool"
    return f"uint{width(kind)}_t"


def wider(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def align_up(value: int, to: int) -> int:
    return -(-value // to) * to


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.replace("$", "_S"))


def quoted(text: str | None) -> str:
    """A C++ string literal."""
    return "nullptr" if text is None else json.dumps(text)


def walk(scope: parser.Scope) -> Iterator[parser.Statement]:
    for statement in scope.statements:
        if isinstance(statement, parser.Scope):
            yield from walk(statement)
        else:
            yield statement


def names_in(operand: parser.Operand | None) -> Iterator[str]:
    match operand:
        case parser.Name(name):
            yield name
        case parser.Address(base, _):
            yield from names_in(base)
        case parser.Vector(items):
            for item in items:
                yield from names_in(item)
        case parser.Both(first, second):
            yield from names_in(first)
            yield from names_in(second)


@dataclass
class Kernel:
    """What a kernel and the functions it calls share: one file, one frame of memory."""

    module: parser.Module
    entry: parser.Function
    functions: list[parser.Function] = field(default_factory=list)  # callees before callers
    symbols: dict[str, Symbol] = field(default_factory=dict)  # of the module's variables
    shared_bytes: int = 0
    local_bytes: int = 0

    def __post_init__(self) -> None:
        self.collect(self.entry, ())
        used = {
            name
            for function in self.functions
            for statement in walk(function.body or parser.Scope())
            if isinstance(statement, parser.Instruction)
            for operand in statement.operands
            for name in names_in(operand)
        }
        variables = [v for v in self.module.variables if v.name in used]
        for variable in variables:
            if variable.space in ("global", "const"):
                cpp = f"sim_global_{identifier(variable.name)}"
                self.symbols[variable.name] = Symbol(variable.space, cpp, variable.type)
            elif variable.space == "shared" and not variable.external:
                self.symbols[variable.name] = self.place_shared(variable)
        for function in self.functions:
            for statement in walk(function.body or parser.Scope()):
                if isinstance(statement, parser.Variable) and statement.space == "shared":
                    self.symbols[f"{function.name} {statement.name}"] = self.place_shared(statement)
        for variable in variables:
            if variable.space == "shared" and variable.external:
                self.symbols[variable.name] = Symbol("shared", str(align_up(self.shared_bytes, 16)))

    def collect(self, function: parser.Function, callers: tuple[str, ...]) -> None:
        if function.name in callers:
            raise TranslationError(f"{function.source}: recursion, which has no fixed frame")
        if function in self.functions:
            return
        for statement in walk(function.body or parser.Scope()):
            if isinstance(statement, parser.Instruction) and statement.opcode == "call":
                for operand in statement.operands:
                    if isinstance(operand, parser.Name) and operand.name not in _INTRINSICS:
                        callee = self.module.functions.get(operand.name)
                        if callee is None or callee.body is None:
                            raise TranslationError(
                                f"{statement.source}: call of {operand.name!r}, which is not defined here"
                            )
                        self.collect(callee, (*callers, function.name))
        self.functions.append(function)

    def place_shared(self, variable: parser.Variable) -> Symbol:
        offset = align_up(self.shared_bytes, variable.align)
        self.shared_bytes = offset + variable.size
        return Symbol("shared", str(offset), variable.type)

    def place_local(self, variable: parser.Variable) -> Symbol:
        offset = align_up(self.local_bytes, variable.align)
        self.local_bytes = offset + variable.size
        return Symbol("local", str(offset), variable.type)


# --- one function


class FunctionTranslator:
    def __init__(self, kernel: Kernel, function: parser.Function) -> None:
        self.kernel = kernel
        self.function = function
        self.scopes: list[dict[str, Symbol]] = [{}]
        self.registers: dict[str, str] = {}  # C++ name: type, those in use
        self.arrays: list[str] = []  # parameters of calls
        self.sites: list[str] = []
        self.emitted_labels: set[str] = set()
        self.taken: set[str] = set()
        self.lines: list[str] = []
        self.block_counts: Counter[str] = Counter()
        self.block_start = 0
        self.source = function.source
        self.sites_name = f"sites_{identifier(function.name)}"

    # -- output
    def error(self, what: str) -> TranslationError:
        return TranslationError(f"{what}, at {self.source}")

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def end_block(self) -> None:
        """Counts of a basic block are added once, where it begins."""
        counts = "".join(
            f"  sim::count(t, sim::Counter::{name}, {n});\n"
            for name, n in self.block_counts.items()
        )
        if counts:
            self.lines.insert(self.block_start, counts.rstrip("\n"))
        self.block_counts.clear()
        self.block_start = len(self.lines)

    def site(self) -> str:
        s = self.source
        # Counted from the kernel's first one: a change elsewhere in the module leaves it as it is.
        line = s.ptx_line - self.kernel.entry.source.ptx_line + 1
        entry = f"{{{quoted(self.kernel.entry.name)}, {line}, {quoted(s.file)}, {s.line}, {quoted(s.text)}}}"
        if not self.sites or self.sites[-1] != entry:
            self.sites.append(entry)
        return f"{self.sites_name}[{len(self.sites) - 1}]"

    def unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.taken:
            n += 1
            name = f"{wanted}_{n}"
        self.taken.add(name)
        return name

    # -- names
    def lookup(self, name: str) -> Symbol | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return self.kernel.symbols.get(name)

    def need(self, name: str) -> Symbol:
        symbol = self.lookup(name)
        if symbol is None:
            raise self.error(f"unknown name {name!r}")
        return symbol

    def register(self, symbol: Symbol) -> str:
        self.registers[symbol.cpp] = symbol.type
        return symbol.cpp

    # -- operands
    def value(self, operand: parser.Operand, kind: str) -> str:
        """An expression of the bits of type `kind`."""
        match operand:
            case parser.Number(value, literal):
                return self.literal(value, literal, kind)
            case parser.Address():  # name + offset
                return f"static_cast<{bits_type(kind)}>({self.address(operand)})"
            case parser.Name(name, negated):
                symbol = self.lookup(name)
                if symbol is None and name in SPECIAL_REGISTERS:
                    return f"static_cast<{bits_type(kind)}>({SPECIAL_REGISTERS[name]})"
                if symbol is None:
                    raise self.error(f"unknown name {name!r}")
                if symbol.kind != "register":
                    return f"static_cast<{bits_type(kind)}>({self.address(parser.Address(operand, 0))})"
                cpp = self.register(symbol)
                if (kind == "pred") != (symbol.type == "pred"):
                    raise self.error(f"{name} is no {kind}")
                if negated:
                    return f"!{cpp}"
                return (
                    cpp
                    if width(symbol.type) == width(kind)
                    else f"static_cast<{bits_type(kind)}>({cpp})"
                )
        raise self.error("an operand of this form is not known here")

    def literal(self, value: int, literal: str, kind: str) -> str:
        if kind == "pred":
            return "true" if value else "false"
        if literal == "f64" and kind == "f32":
            return (
                f"std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>({value:#x}ull)))"
            )
        if literal and literal != kind and width(literal) != width(kind):
            raise self.error(f"a literal of {literal} where {kind} is expected")
        value &= (1 << width(kind)) - 1
        if width(kind) == 64:
            return f"{value:#x}ull"
        return f"{value:#x}u" if width(kind) == 32 else f"{bits_type(kind)}({value:#x})"

    def result(self, operand: parser.Operand) -> tuple[str, str]:
        """The lvalue of a result and its register's type."""
        if isinstance(operand, parser.Name) and not operand.negated:
            if operand.name == "_":
                return "sink", "b64"
            symbol = self.need(operand.name)
            if symbol.kind == "register":
                return self.register(symbol), symbol.type
        raise self.error("a result must be a register")

    def assign(self, operand: parser.Operand, kind: str, expression: str) -> None:
        """Signed results narrower than their register are sign-extended."""
        name, register_type = self.result(operand)
        if (kind == "pred") != (register_type == "pred") and name != "sink":
            raise self.error("predicate and value mixed")
        if kind[0] == "s" and width(register_type) > width(kind):
            expression = f"op::extend<op::{kind}>({expression})"
        self.emit(f"{name} = {expression};")

    def address(self, operand: parser.Operand) -> str:
        """The address of an operand, or of a variable as a value."""
        if isinstance(operand, parser.Name):
            operand = parser.Address(operand, 0)
        if not isinstance(operand, parser.Address):
            raise self.error("an address is expected")
        if operand.base is None:
            return f"{operand.offset & (2**64 - 1):#x}ull"
        symbol = self.need(operand.base.name)
        if symbol.kind in ("shared", "local", "parameter"):
            return f"{int(symbol.cpp) + operand.offset}ull"
        if symbol.kind in ("global", "const"):
            base = symbol.cpp
        elif symbol.kind == "register":
            base = self.register(symbol)
            if operand.offset and symbol.type != "pred":
                return f"({base} + {self.literal(operand.offset, '', symbol.type)})"
        else:
            raise self.error(f"{operand.base.name} has no address")
        return f"({base} + {operand.offset}ll)" if operand.offset else base

    def items(self, operand: parser.Operand) -> tuple[parser.Operand, ...]:
        return operand.items if isinstance(operand, parser.Vector) else (operand,)

    # -- statements
    def translate(self) -> str:
        function = self.function
        assert function.body is not None
        top = self.scopes[0]
        arguments = ["sim::Thread& t"]
        if function.is_entry:
            offset = 0
            for parameter in function.parameters:
                offset = align_up(offset, parameter.align)
                top[parameter.name] = Symbol("parameter", str(offset), parameter.type)
                offset += parameter.size
        else:
            for parameter in function.results:
                name = self.unique(identifier(parameter.name))
                top[parameter.name] = Symbol("bytes", name)
                arguments.append(f"[[maybe_unused]] std::byte* {name}")
            for parameter in function.parameters:
                name = self.unique(identifier(parameter.name))
                top[parameter.name] = Symbol("bytes", name)
                arguments.append(f"[[maybe_unused]] const std::byte* {name}")
        self.scope(function.body)
        self.end_block()
        declarations = [
            f"{bits_type(kind)} {name} = {'false' if kind == 'pred' else f'static_cast<{bits_type(kind)}>(kUnset)'};"
            for name, kind in self.registers.items()
        ]
        sites = ",\n    ".join(self.sites)
        return "\n".join(
            [
                f"const sim::Site {self.sites_name}[] = {{\n    {sites}}};" if sites else "",
                f"void {function_name(function)}({', '.join(arguments)}) {{",
                "[[maybe_unused]] bool carry = false, no_carry;",
                "[[maybe_unused]] uint64_t sink;",
                "[[maybe_unused]] bool sink_pred;",
                *declarations,
                *self.arrays,
                *self.lines,
                "}",
            ]
        )

    def scope(self, scope: parser.Scope) -> None:
        names: dict[str, Symbol] = {}
        for statement in scope.statements:  # labels and targets may be named before they come
            if isinstance(statement, parser.Label):
                names[statement.name] = Symbol(
                    "label", self.unique(f"L_{identifier(statement.name)}")
                )
            elif isinstance(statement, parser.BranchTargets):
                names[statement.name] = Symbol("targets", "", labels=statement.labels)
        self.scopes.append(names)
        for statement in scope.statements:
            match statement:
                case parser.Scope():
                    self.scope(statement)
                case parser.Label(name):
                    self.end_block()
                    self.emitted_labels.add(names[name].cpp)
                    self.emit(f"{names[name].cpp}:;")
                    self.block_start = len(self.lines)
                case parser.Registers(kind, registers):
                    for name in registers:
                        cpp = self.unique(f"r_{identifier(name.removeprefix('%'))}")
                        names[name] = Symbol("register", cpp, kind)
                case parser.Variable(space="param"):
                    cpp = self.unique(f"a_{identifier(statement.name)}")
                    names[statement.name] = Symbol("bytes", cpp)
                    self.arrays.append(f"alignas(16) std::byte {cpp}[{max(statement.size, 1)}];")
                case parser.Variable(space="local"):
                    names[statement.name] = self.kernel.place_local(statement)
                case parser.Variable(space="shared"):
                    names[statement.name] = self.kernel.symbols[
                        f"{self.function.name} {statement.name}"
                    ]
                case parser.Variable():
                    raise self.error(f"a .{statement.space} variable inside of a function")
                case parser.Instruction():
                    self.instruction(statement)
        self.scopes.pop()

    def instruction(self, i: parser.Instruction) -> None:
        self.source = i.source
        self.block_counts["instructions"] += 1
        if kind := self.classify(i):
            self.block_counts[kind] += 1
        start = len(self.lines)
        handler: Callable[[parser.Instruction], None] | None = getattr(self, f"do_{i.opcode}", None)
        if handler is not None:
            handler(i)
        elif i.opcode not in _NO_OPERATION:
            self.computation(i)
        if i.guard is not None:
            guard = self.value(i.guard, "pred")
            self.lines[start:] = [f"if ({guard}) {{", *self.lines[start:], "}"]
        if i.opcode in ("bra", "brx", "ret", "exit", "trap"):
            self.end_block()

    def classify(self, i: parser.Instruction) -> str | None:
        if i.opcode in CLASS_OF_OPCODE:
            return CLASS_OF_OPCODE[i.opcode]
        if i.opcode in COMPUTES:
            return CLASS_OF_TYPE.get(i.modifiers[-1] if i.modifiers else "", "integer")
        return None

    # -- computation
    def computation(self, i: parser.Instruction) -> None:
        key = next(
            (k for m in i.modifiers if (k := f"{i.opcode}.{m}") in PURE or k in APPROXIMATE),
            i.opcode,
        )
        if key not in PURE and key not in APPROXIMATE:
            raise self.error(f"unknown instruction {i.opcode}")
        template, signature, allowed = PURE.get(key) or APPROXIMATE[key]
        kind = i.modifiers[-1] if i.modifiers else ""
        if kind == "bf16" and i.opcode in ("ex2",):
            allowed = allowed | {"ftz"}
        if kind not in parser.SIZES or kind not in TYPES.get(template, parser.SIZES):
            raise self.error(f"type .{kind} of {i.opcode} is not known")
        modifiers = [m for m in i.modifiers[:-1] if f"{i.opcode}.{m}" != key]
        chain = "cc" in modifiers
        flags = self.flags([m for m in modifiers if m != "cc"], allowed)
        types = [
            {
                "T": kind,
                "W": wider(kind) if "W" in signature else "",
                "u": "u32",
                "b": "b32",
                "p": "pred",
            }[c]
            for c in signature
        ]
        if len(i.operands) != len(types):
            raise self.error(f"{i.opcode} takes {len(types)} operands")
        arguments = [self.value(o, k) for o, k in zip(i.operands[1:], types[1:], strict=True)]
        if chain:
            self.carry_chain(i, key, kind, arguments, "false", "carry")
            return
        thread = ["t"] if key in APPROXIMATE else []
        templated = f"op::{kind}, {flags}" if allowed else f"op::{kind}"
        self.assign(
            i.operands[0],
            types[0],
            f"op::{template}<{templated}>({', '.join([*thread, *arguments])})",
        )

    def flags(self, modifiers: list[str], allowed: set[str]) -> str:
        """Modifiers as a set of bits; `xorsign` and whatever else is not allowed is an error."""
        known = []
        for m in modifiers:
            if m in _SILENT and (m in allowed or m == "noftz"):
                continue
            if m not in allowed:
                raise self.error(f"unknown modifier .{m}")
            known.append(f"op::{m}")
        return " | ".join(known) or "0"

    def carry_chain(
        self,
        i: parser.Instruction,
        key: str,
        kind: str,
        values: list[str],
        carry_in: str,
        carry_out: str,
    ) -> None:
        base = key.removesuffix(".cc")
        if base in ("add", "addc", "sub", "subc"):
            a, b = values
            template = "add_carry" if base.startswith("add") else "sub_borrow"
        elif base in ("mad.lo", "mad.hi", "madc.lo", "madc.hi"):
            a, b = f"op::mul_{base[-2:]}<op::{kind}>({values[0]}, {values[1]})", values[2]
            template = "add_carry"
        else:
            raise self.error("no carry here")
        # The carry is a flag of its own, whatever the guard; signs do not matter to it.
        self.assign(
            i.operands[0],
            kind,
            f"op::{template}<op::{kind}>({a}, {b}, {carry_in}, {carry_out})",
        )

    def with_carry(self, i: parser.Instruction) -> None:
        kind = i.modifiers[-1]
        part = next((f".{m}" for m in i.modifiers if m in ("lo", "hi")), "")
        if unknown := set(i.modifiers[:-1]) - {"lo", "hi", "cc"}:
            raise self.error(f"unknown modifier .{unknown.pop()}")
        values = [self.value(o, kind) for o in i.operands[1:]]
        self.carry_chain(
            i,
            i.opcode + part,
            kind,
            values,
            "carry",
            "carry" if "cc" in i.modifiers else "no_carry",
        )

    do_addc = do_subc = do_madc = with_carry

    def do_setp(self, i: parser.Instruction) -> None:
        comparison, *modifiers = i.modifiers
        kind = modifiers.pop()
        combine = modifiers.pop(0) if modifiers and modifiers[0] in ("and", "or", "xor") else None
        if comparison not in _COMPARISONS:
            raise self.error(f"unknown comparison .{comparison}")
        flags = self.flags(modifiers, {"ftz"})
        a, b = (self.value(o, kind) for o in i.operands[1:3])
        lane = {"f16x2": "f16", "bf16x2": "bf16"}.get(kind, kind)

        def test(shift: str) -> str:
            cast = f"static_cast<{bits_type(lane)}>"
            x, y = (
                (f"{cast}({a}{shift})", f"{cast}({b}{shift})") if shift or lane != kind else (a, b)
            )
            return f"op::compare<op::{lane}, op::Compare::{comparison}, {flags}>({x}, {y})"

        results = (
            (i.operands[0].first, i.operands[0].second)
            if isinstance(i.operands[0], parser.Both)
            else (i.operands[0],)
        )
        tests = [test(""), test(" >> 16") if lane != kind else f"!{test('')}"]
        extra = self.value(i.operands[3], "pred") if len(i.operands) > 3 else None
        if (extra is None) != (combine is None):
            raise self.error("a third predicate needs .and, .or or .xor")
        symbol = {"and": "&", "or": "|", "xor": "^", None: ""}[combine]
        values = [f"{x} {symbol} ({extra})" if extra else x for x in tests]
        # Both results before either is written: one may be the third predicate.
        names = [self.result(r)[0] if not self.is_sink(r) else "sink_pred" for r in results]
        if len(names) == 1:
            self.emit(f"{names[0]} = {values[0]};")
        else:
            self.emit(f"{{ const bool first = {values[0]}, second = {values[1]};")
            self.emit(f"{names[0]} = first; {names[1]} = second; }}")

    def is_sink(self, operand: parser.Operand) -> bool:
        return isinstance(operand, parser.Name) and operand.name == "_"

    def do_set(self, i: parser.Instruction) -> None:
        comparison, *modifiers, to, kind = i.modifiers
        if comparison not in _COMPARISONS or len(i.operands) != 3:
            raise self.error("this form of set is not known")
        flags = self.flags(modifiers, {"ftz"})
        a, b = (self.value(o, kind) for o in i.operands[1:])
        self.assign(
            i.operands[0],
            to,
            f"op::set<op::{to}, op::{kind}, op::Compare::{comparison}, {flags}>({a}, {b})",
        )

    def do_selp(self, i: parser.Instruction) -> None:
        (kind,) = i.modifiers
        a, b = (self.value(o, kind) for o in i.operands[1:3])
        self.assign(i.operands[0], kind, f"{self.value(i.operands[3], 'pred')} ? {a} : {b}")

    def do_slct(self, i: parser.Instruction) -> None:
        *modifiers, kind, tested = i.modifiers
        a, b = (self.value(o, kind) for o in i.operands[1:3])
        c = self.value(i.operands[3], tested)
        condition = f"op::not_negative<op::{tested}, {self.flags(modifiers, {'ftz'})}>({c})"
        self.assign(i.operands[0], kind, f"{condition} ? {a} : {b}")

    def do_testp(self, i: parser.Instruction) -> None:
        test, kind = i.modifiers
        value = self.value(i.operands[1], kind)
        self.assign(i.operands[0], "pred", f"op::testp<op::{kind}, op::Property::{test}>({value})")

    def do_prmt(self, i: parser.Instruction) -> None:
        mode = i.modifiers[1] if len(i.modifiers) > 1 else "generic"
        values = ", ".join(self.value(o, "b32") for o in i.operands[1:])
        self.assign(i.operands[0], "b32", f"op::prmt<op::Permute::{mode}>({values})")

    def do_lop3(self, i: parser.Instruction) -> None:
        table = i.operands[-1]
        if i.modifiers != ("b32",) or not isinstance(table, parser.Number) or len(i.operands) != 5:
            raise self.error("this form of lop3 is not known")
        values = ", ".join(self.value(o, "b32") for o in i.operands[1:4])
        self.assign(i.operands[0], "b32", f"op::lop3<{table.value}>({values})")

    def do_shf(self, i: parser.Instruction) -> None:
        direction, mode, kind = i.modifiers
        values = ", ".join(self.value(o, kind) for o in i.operands[1:])
        flags = self.flags([mode], {"wrap", "clamp"})
        self.assign(i.operands[0], kind, f"op::shf_{direction}<{flags}>({values})")

    def do_bmsk(self, i: parser.Instruction) -> None:
        mode, kind = i.modifiers
        values = ", ".join(self.value(o, kind) for o in i.operands[1:])
        self.assign(
            i.operands[0], kind, f"op::bmsk<{self.flags([mode], {'wrap', 'clamp'})}>({values})"
        )

    def do_dp4a(self, i: parser.Instruction) -> None:
        a, b = i.modifiers
        values = ", ".join(self.value(o, "b32") for o in i.operands[1:])
        self.assign(i.operands[0], "b32", f"op::dp4a<op::{a}, op::{b}>({values})")

    def do_cvt(self, i: parser.Instruction) -> None:
        *modifiers, to, kind = i.modifiers
        whole = [m for m in modifiers if m in ("rni", "rzi", "rmi", "rpi")]
        allowed = {"rn", "rz", "rm", "rp", "rna", "ftz", "sat", "relu"}
        flags = self.flags([m for m in modifiers if m not in whole], allowed)
        values = [self.value(o, kind) for o in i.operands[1:]]
        if to in ("f16x2", "bf16x2") and kind == "f32" and len(values) == 2:
            self.assign(i.operands[0], to, f"op::cvt_pair<op::{to}, {flags}>({', '.join(values)})")
        elif to == "tf32" and kind == "f32":
            self.assign(i.operands[0], "b32", f"op::cvt_tf32<{flags}>({values[0]})")
        elif (
            to in parser.SIZES
            and kind in parser.SIZES
            and not {to, kind} & {"pred", "f16x2", "bf16x2"}
        ):
            if to[0] in "su" and kind[0] in "fb" and not whole:
                raise self.error("a conversion to an integer needs its rounding")
            rounding = f"op::Whole::{whole[0] if whole else 'none'}"
            self.assign(
                i.operands[0],
                to,
                f"op::cvt<op::{to}, op::{kind}, {flags}, {rounding}>({values[0]})",
            )
        else:
            raise self.error("this conversion is not known")

    def do_mov(self, i: parser.Instruction) -> None:
        (kind,) = i.modifiers
        to, source = i.operands
        if isinstance(to, parser.Vector):
            part = f"b{width(kind) // len(to.items)}"
            self.emit(f"{{ const {bits_type(kind)} whole = {self.value(source, kind)};")
            for n, item in enumerate(to.items):
                self.assign(
                    item, part, f"static_cast<{bits_type(part)}>(whole >> {n * width(part)})"
                )
            self.emit("}")
        elif isinstance(source, parser.Vector):
            part = f"b{width(kind) // len(source.items)}"
            pieces = [
                f"static_cast<{bits_type(kind)}>({self.value(item, part)}) << {n * width(part)}"
                for n, item in enumerate(source.items)
            ]
            self.assign(to, kind, " | ".join(pieces))
        else:
            self.assign(to, kind, self.value(source, kind))

    # -- memory
    @dataclass
    class Access:
        space: str = "generic"
        order: str = ""
        scope: str = ""
        lanes: int = 1
        type: str = ""
        modifiers: list[str] = field(default_factory=list)

        def spell(self) -> str:
            order, scope = self.order or "weak", self.scope or "none"
            return f"sim::Space::{self.space}, sim::Order::{order}, sim::Scope::{scope}"

    def access(self, i: parser.Instruction) -> "FunctionTranslator.Access":
        a = self.Access()
        for m in i.modifiers:
            if m in _SPACE:
                a.space = _SPACE[m]
            elif m in _ORDER:
                a.order = _ORDER[m]
            elif m in _SCOPE:
                a.scope = _SCOPE[m]
            elif m in ("v2", "v4", "v8"):
                a.lanes = int(m[1])
            elif m in parser.SIZES:
                a.type = m
            elif m.split("::")[0] not in _CACHE and m != "noftz":
                a.modifiers.append(m)
        return a

    def bytes_of(self, operand: parser.Operand) -> str | None:
        """Where a parameter's bytes are, if the operand names one."""
        if not isinstance(operand, parser.Address) or operand.base is None:
            return None
        symbol = self.lookup(operand.base.name)
        if symbol is None or symbol.kind not in ("bytes", "parameter"):
            return None
        if symbol.kind == "parameter":
            return f"t.params + {int(symbol.cpp) + operand.offset}"
        return f"{symbol.cpp} + {operand.offset}"

    def loaded(self, operand: parser.Operand, lanes: int) -> str:
        items = self.items(operand)
        if len(items) != lanes:
            raise self.error("the vector's length differs from the instruction's")
        return ", ".join(self.result(o)[0] for o in items)

    def do_ld(self, i: parser.Instruction) -> None:
        a = self.access(i)
        if a.modifiers or not a.type:
            raise self.error(
                f"unknown modifier .{a.modifiers[0]}" if a.modifiers else "a load without type"
            )
        registers = self.loaded(i.operands[0], a.lanes)
        if (where := self.bytes_of(i.operands[1])) is not None:
            self.emit(f"op::ld_bytes<op::{a.type}>({where}, {registers});")
        else:
            address = self.address(i.operands[1])
            self.emit(
                f"op::ld<op::{a.type}>(t, {self.site()}, {a.spell()}, {address}, {registers});"
            )

    def do_st(self, i: parser.Instruction) -> None:
        a = self.access(i)
        items = self.items(i.operands[1])
        if a.modifiers or not a.type or len(items) != a.lanes:
            raise self.error("this form of store is not known")
        values = ", ".join(self.value(o, a.type) for o in items)
        if (where := self.bytes_of(i.operands[0])) is not None:
            self.emit(f"op::st_bytes<op::{a.type}>({where}, {values});")
        else:
            address = self.address(i.operands[0])
            self.emit(f"op::st<op::{a.type}>(t, {self.site()}, {a.spell()}, {address}, {values});")

    do_ldu = do_ld

    def update(
        self, i: parser.Instruction, address: parser.Operand, values: tuple[parser.Operand, ...]
    ) -> tuple[str, str]:
        a = self.access(i)
        if (
            len(a.modifiers) != 1
            or a.modifiers[0] not in _UPDATE
            or a.lanes != 1
            or width(a.type) > 64
        ):
            raise self.error("this atomic operation is not known")
        if len(values) != (2 if a.modifiers[0] == "cas" else 1):
            raise self.error("an atomic operation with cache hints or wrong operands")
        a.order, a.scope = a.order or "relaxed", a.scope or "gpu"
        operands = ", ".join(self.value(o, a.type) for o in values)
        expression = (
            f"op::atom<op::{a.type}, op::Update::{_UPDATE[a.modifiers[0]]}>"
            f"(t, {self.site()}, {a.spell()}, {self.address(address)}, {operands})"
        )
        return a.type, expression

    def do_atom(self, i: parser.Instruction) -> None:
        kind, expression = self.update(i, i.operands[1], i.operands[2:])
        self.assign(i.operands[0], kind, expression)

    def do_red(self, i: parser.Instruction) -> None:
        if i.modifiers[0] == "async":
            raise self.error("red.async is not known")
        self.emit(f"{self.update(i, i.operands[0], i.operands[1:])[1]};")

    def do_fence(self, i: parser.Instruction) -> None:
        if i.modifiers == ("proxy", "alias"):
            return
        order = {"sc": "acq_rel", "acq_rel": "acq_rel", "acquire": "acquire", "release": "release"}
        kind, scope = i.modifiers if len(i.modifiers) == 2 else ("acq_rel", i.modifiers[0])
        if kind not in order or scope not in _SCOPE:
            raise self.error("this fence is not known")
        self.emit(
            f"sim::fence(t, {self.site()}, sim::Order::{order[kind]}, sim::Scope::{_SCOPE[scope]});"
        )

    do_membar = do_fence  # membar.gl is fence.sc.gpu

    def do_cvta(self, i: parser.Instruction) -> None:
        *direction, space, kind = i.modifiers
        function = "from_generic" if direction == ["to"] else "to_generic"
        if space not in _SPACE or (direction and direction != ["to"]):
            raise self.error("this cvta is not known")
        value = self.value(i.operands[1], kind)
        self.assign(
            i.operands[0], kind, f"sim::{function}(t, sim::Space::{_SPACE[space]}, {value})"
        )

    def do_isspacep(self, i: parser.Instruction) -> None:
        (space,) = i.modifiers
        if space not in _SPACE:
            raise self.error(f"unknown space .{space}")
        value = self.value(i.operands[1], "u64")
        self.assign(
            i.operands[0], "pred", f"sim::is_space(t, sim::Space::{_SPACE[space]}, {value})"
        )

    def do_cp(self, i: parser.Instruction) -> None:
        if i.modifiers[0] != "async":
            raise self.error("this copy is not known")
        match i.modifiers[1:]:
            case ("commit_group",):
                self.emit(f"sim::copy_async_commit(t, {self.site()});")
            case ("wait_group",):
                self.emit(
                    f"sim::copy_async_wait(t, {self.site()}, {self.value(i.operands[0], 'b32')});"
                )
            case ("wait_all",):
                self.emit(f"sim::copy_async_wait(t, {self.site()}, -1);")
            case ("ca" | "cg", "shared" | "shared::cta", "global", *hints) if all(
                h.startswith("L2::") and h != "L2::cache_hint" for h in hints
            ):
                to, source = (self.address(o) for o in i.operands[:2])
                size = self.value(i.operands[2], "b32")
                used = size
                if len(i.operands) > 3:
                    last = i.operands[3]
                    symbol = self.lookup(last.name) if isinstance(last, parser.Name) else None
                    if symbol is not None and symbol.type == "pred":  # ignore the source
                        used = f"({self.value(last, 'pred')} ? 0 : {size})"
                    else:
                        used = self.value(last, "b32")
                self.emit(f"sim::copy_async(t, {self.site()}, {to}, {source}, {size}, {used});")
            case _:
                raise self.error("this copy is not known")

    # -- threads that meet
    def do_bar(self, i: parser.Instruction) -> None:
        kinds = [m for m in i.modifiers if m not in ("cta", "aligned")]
        if kinds[:1] == ["warp"]:
            self.emit(f"op::warp_sync(t, {self.site()}, {self.value(i.operands[0], 'b32')});")
            return
        if kinds in (["sync"], ["arrive"]):
            barrier, *count = (self.value(o, "b32") for o in i.operands)
            wait = "true" if kinds == ["sync"] else "false"
            self.emit(
                f"sim::barrier(t, {self.site()}, {barrier}, {count[0] if count else -1}, {wait});"
            )
        elif kinds[:1] == ["red"] and kinds[1] in ("popc", "and", "or"):
            to, number, *threads_given, predicate = i.operands
            operation = f"sim::kReduce{kinds[1].capitalize()}"
            threads = self.value(threads_given[0], "b32") if threads_given else "-1"
            expression = (
                f"sim::barrier_reduce(t, {self.site()}, {self.value(number, 'b32')}, {threads}, {operation}, "
                f"{self.value(predicate, 'pred')})"
            )
            self.assign(to, "u32" if kinds[1] == "popc" else "pred", expression)
        else:
            raise self.error("this barrier is not known")

    do_barrier = do_bar

    def both(self, operand: parser.Operand) -> tuple[str, str]:
        """d|p, where p may be missing; the results of templates that take references."""
        if isinstance(operand, parser.Both):
            second = "sink_pred" if self.is_sink(operand.second) else self.result(operand.second)[0]
            return self.result(operand.first)[0], second
        return self.result(operand)[0], "sink_pred"

    def do_shfl(self, i: parser.Instruction) -> None:
        if len(i.modifiers) != 3 or i.modifiers[0] != "sync" or i.modifiers[2] != "b32":
            raise self.error("only shfl.sync is known")
        values = ", ".join(self.value(o, "b32") for o in i.operands[1:])
        d, p = self.both(i.operands[0])
        self.emit(f"op::shfl<op::Shuffle::{i.modifiers[1]}>(t, {self.site()}, {d}, {p}, {values});")

    def do_vote(self, i: parser.Instruction) -> None:
        if len(i.modifiers) != 3 or i.modifiers[0] != "sync":
            raise self.error("only vote.sync is known")
        predicate, mask = self.value(i.operands[1], "pred"), self.value(i.operands[2], "b32")
        expression = f"op::vote<op::Vote::{i.modifiers[1]}>(t, {self.site()}, {predicate}, {mask})"
        self.assign(i.operands[0], i.modifiers[2], expression)

    def do_match(self, i: parser.Instruction) -> None:
        which, _, kind = i.modifiers
        d, p = self.both(i.operands[0])
        value, mask = self.value(i.operands[1], kind), self.value(i.operands[2], "b32")
        every = "true" if which == "all" else "false"
        self.emit(f"op::match<{every}>(t, {self.site()}, {d}, {p}, {value}, {mask});")

    def do_redux(self, i: parser.Instruction) -> None:
        _, operation, kind = i.modifiers
        if operation not in ("add", "min", "max", "and", "or", "xor") or kind not in (
            "s32",
            "u32",
            "b32",
        ):
            raise self.error("this reduction is not known")
        value, mask = (self.value(o, kind) for o in i.operands[1:])
        name = f"op::redux<op::{kind}, op::Update::{_UPDATE[operation]}>"
        self.assign(i.operands[0], kind, f"{name}(t, {self.site()}, {value}, {mask})")

    def do_activemask(self, i: parser.Instruction) -> None:
        self.assign(i.operands[0], "b32", f"sim::activemask(t, {self.site()})")

    def do_ldmatrix(self, i: parser.Instruction) -> None:
        head, modifiers = i.modifiers[:4], list(i.modifiers[4:])
        if head[:3] != ("sync", "aligned", "m8n8") or head[3] not in ("x1", "x2", "x4"):
            raise self.error("this ldmatrix is not known")
        transpose = "trans" in modifiers
        spaces = [m for m in modifiers if m not in ("trans", "b16")]
        if "b16" not in modifiers or any(m not in ("shared", "shared::cta") for m in spaces):
            raise self.error("this ldmatrix is not known")
        space = "shared" if spaces else "generic"
        registers = self.loaded(i.operands[0], int(head[3][1]))
        self.emit(
            f"op::ldmatrix<{head[3][1]}, {str(transpose).lower()}>(t, {self.site()}, sim::Space::{space}, "
            f"{self.address(i.operands[1])}, {registers});"
        )

    def do_mma(self, i: parser.Instruction) -> None:
        if len(i.modifiers) != 9 or i.modifiers[:2] != ("sync", "aligned"):
            raise self.error("this mma is not known")
        shape, row, column, d, a, b, c = i.modifiers[2:]
        k = _MMA.get((shape, a))
        accumulators = {"f32", "f16"} if a == "f16" else {"f32"}
        if (
            k is None
            or a != b
            or c != d
            or c not in accumulators
            or (row, column) != ("row", "col")
        ):
            raise self.error("this mma is not known")
        per_register = 1 if a == "tf32" else 2
        lengths = [
            4 if c == "f32" else 2,
            16 * k // 32 // per_register,
            8 * k // 32 // per_register,
        ]
        lengths.append(lengths[0])
        operands = [self.items(o) for o in i.operands]
        if [len(o) for o in operands] != lengths:
            raise self.error(f"fragments of {lengths} registers are expected")
        fragments = ", ".join(
            f"{{{', '.join(self.value(o, 'b32') for o in fragment)}}}" for fragment in operands[1:]
        )
        self.emit(f"{{ op::Fragments<op::{a}, {k}> fragments{{{fragments}}};")
        self.emit(f"op::mma<op::{a}, op::{c}, {k}>(t, {self.site()}, fragments);")
        for n, o in enumerate(operands[0]):
            self.assign(o, "b32", f"fragments.c[{n}]")
        self.emit("}")

    # -- control
    def jump(self, symbol: Symbol) -> str:
        spend = "sim::backward_branch(t); " if symbol.cpp in self.emitted_labels else ""
        return f"{spend}goto {symbol.cpp};"

    def do_bra(self, i: parser.Instruction) -> None:
        target = i.operands[0]
        symbol = self.need(target.name) if isinstance(target, parser.Name) else None
        if symbol is None or symbol.kind != "label":
            raise self.error("a branch needs a label")
        self.emit(self.jump(symbol))

    def do_brx(self, i: parser.Instruction) -> None:
        targets = self.need(i.operands[1].name) if isinstance(i.operands[1], parser.Name) else None
        if targets is None or targets.kind != "targets":
            raise self.error("brx.idx needs its list of labels")
        self.emit(f"switch ({self.value(i.operands[0], 'u32')}) {{")
        for n, label in enumerate(targets.labels):
            self.emit(f"case {n}: {self.jump(self.need(label))}")
        self.emit(f'default: sim::fail(t, {self.site()}, "brx.idx beyond its list of labels"); }}')

    def do_call(self, i: parser.Instruction) -> None:
        operands = list(i.operands)
        results = self.items(operands.pop(0)) if isinstance(operands[0], parser.Vector) else ()
        callee = operands.pop(0)
        arguments = self.items(operands[0]) if operands else ()
        if not isinstance(callee, parser.Name) or len(operands) > 1:
            raise self.error("indirect calls are not known")
        names = [
            self.need(o.name).cpp for o in (*results, *arguments) if isinstance(o, parser.Name)
        ]
        if callee.name in _INTRINSICS:
            name = f"op::{callee.name.strip('_')}"
            if callee.name == "vprintf" and not results:
                names.insert(0, "nullptr")
            self.emit(f"{name}(t, {self.site()}, {', '.join(names)});")
        else:
            function = self.kernel.module.functions[callee.name]
            self.emit(f"{function_name(function)}({', '.join(['t', *names])});")

    def do_ret(self, i: parser.Instruction) -> None:
        self.emit("return;")

    def do_exit(self, i: parser.Instruction) -> None:
        self.emit("sim::exit_thread(t);")

    def do_trap(self, i: parser.Instruction) -> None:
        self.emit(f"sim::trap(t, {self.site()});")

    def do_nanosleep(self, i: parser.Instruction) -> None:
        self.emit(f"sim::nanosleep(t, {self.value(i.operands[0], 'u32')});")


def function_name(function: parser.Function) -> str:
    return f"{'kernel' if function.is_entry else 'function'}_{identifier(function.name)}"


# --- files


def translate_kernel(module: parser.Module, entry: parser.Function) -> str:
    kernel = Kernel(module, entry)
    bodies = [FunctionTranslator(kernel, f).translate() for f in kernel.functions]
    includes = ['#include "instructions.h"']
    if any("op::vprintf(" in b or "op::assertfail(" in b for b in bodies):
        includes.append('#include "intrinsics.h"')
    variables = [
        f"extern uint64_t {symbol.cpp};"
        for symbol in kernel.symbols.values()
        if symbol.kind in ("global", "const")
    ]
    offset, parameters = 0, []
    for parameter in entry.parameters:
        offset = align_up(offset, parameter.align)
        parameters.append(f"{{{offset}, {parameter.size}}}")
        offset += parameter.size
    table = f"const sim::ParamInfo parameters[] = {{{', '.join(parameters) or '{0, 0}'}}};"
    info = ", ".join(
        [
            quoted(entry.name),
            function_name(entry),
            str(offset),
            str(kernel.shared_bytes),
            str(kernel.local_bytes),
            str(entry.max_threads),
            "parameters",
            str(len(parameters)),
        ]
    )
    return "\n".join(
        [
            f"// Translated from PTX: {entry.name}",
            *includes,
            *variables,
            "namespace {",
            "namespace op = sim::op;",
            "[[maybe_unused]] constexpr uint64_t kUnset = 0xcdcdcdcdcdcdcdcd;",
            *bodies,
            table,
            f"[[maybe_unused]] const bool registered = (sim::register_kernel({{{info}}}), true);",
            "}  // namespace",
            "",
        ]
    )


def translate_globals(module: parser.Module) -> str:
    """The module's variables, which its kernels share."""
    lines = ["// Translated from PTX: variables of the module", '#include "engine.h"']
    for variable in module.variables:
        if variable.space not in ("global", "const"):
            continue
        if variable.external:
            raise TranslationError(f"variable {variable.name} is defined elsewhere")
        name = identifier(variable.name)
        initial = "nullptr"
        if variable.initial is not None:
            initial = f"initial_{name}"
            numbers = ", ".join(map(str, variable.initial))
            lines.append(f"static const unsigned char {initial}[] = {{{numbers}}};")
        lines.append(
            f"uint64_t sim_global_{name} = sim::register_global({quoted(variable.name)}, {variable.size}, {initial});"
        )
    return "\n".join([*lines, ""])


def kernels(module: parser.Module) -> dict[str, parser.Function]:
    """The kernels that are defined there, by name."""
    return {f.name: f for f in module.functions.values() if f.is_entry and f.body is not None}


def translate(text: str) -> dict[str, str]:
    """PTX -> name of the kernel: C++; the module's variables come under the empty name."""
    module = parser.parse(text)
    translated = {name: translate_kernel(module, f) for name, f in kernels(module).items()}
    return {"": translate_globals(module), **translated}
