"""PTX text -> a tree of functions, scopes and instructions.

The grammar is read by tokens, not by lines: inline asm puts several statements on a line, opens scopes
of its own and writes registers without `%`. Only `.loc` and `.file` end at the newline, so the lexer
takes those as single tokens. Names are left as they are; translator.py resolves them scope by scope.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field


class PtxError(ValueError):
    """Text that this parser does not understand, with its line."""


@dataclass(frozen=True)
class Source:
    """Where an instruction comes from: a line of PTX and, through `.loc`, of the .cu file."""

    ptx_line: int
    file: str | None = None
    line: int = 0
    text: str = ""

    def __str__(self) -> str:
        where = f" ({self.file}:{self.line})" if self.file else ""
        return f"PTX line {self.ptx_line}{where}: {self.text}"


# --- operands


@dataclass(frozen=True)
class Name:
    """A register, label, variable or function; `!p` is negated."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Number:
    """An integer, or a float as the bits of its type ("f32" or "f64"; "" for an integer)."""

    value: int
    kind: str = ""


@dataclass(frozen=True)
class Address:
    """`[base + offset]`; the base may also be a number or absent."""

    base: Name | None
    offset: int


@dataclass(frozen=True)
class Vector:
    """`{a, b}`, or the argument list `(a, b)` of a call."""

    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Both:
    """`d|p`: two results of one instruction."""

    first: "Operand"
    second: "Operand"


Operand = Name | Number | Address | Vector | Both


# --- statements


@dataclass(frozen=True)
class Instruction:
    opcode: str  # up to the first dot
    modifiers: tuple[str, ...]  # the others, without dots: "shared::cta", "L2::128B"
    operands: tuple[Operand, ...]
    guard: Name | None
    source: Source


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Registers:
    type: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    space: str  # global, const, shared, local, param
    align: int
    type: str
    name: str
    size: int  # in bytes
    initial: bytes | None = None
    external: bool = False


@dataclass(frozen=True)
class BranchTargets:
    name: str
    labels: tuple[str, ...]


@dataclass
class Scope:
    statements: list["Statement"] = field(default_factory=list)


Statement = Instruction | Label | Registers | Variable | BranchTargets | Scope


@dataclass
class Function:
    name: str
    is_entry: bool
    results: list[Variable]
    parameters: list[Variable]
    body: Scope | None
    max_threads: int
    source: Source


@dataclass
class Module:
    version: str = ""
    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)


SIZES = {
    "pred": 1,
    **{f"{kind}{bits}": bits // 8 for kind in "bsu" for bits in (8, 16, 32, 64)},
    "b128": 16,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "f16x2": 4,
    "bf16x2": 4,
    "s16x2": 4,
    "u16x2": 4,
}

_SPACES = ("global", "const", "shared", "local", "param")

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<loc>\.loc[ \t][^\n]*)
  | (?P<file>\.file[ \t][^\n]*)
  | (?P<string>"(?:\\.|[^"\\])*")
  | (?P<float>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+\.\d*(?:[eE][+-]?\d+)?)
  | (?P<number>0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?)
  | (?P<word>\.[a-zA-Z][\w$]*|[%$_a-zA-Z][\w$]*(?:(?:\.|::)[\w$]+)*)
  | (?P<mark>[{}()\[\],;:+\-|!@<>=])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def _lex(text: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PtxError(f"PTX line {line}: cannot read {text[position : position + 30]!r}")
        kind = match.lastgroup or ""
        if kind != "skip":
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
        position = match.end()
    yield _Token("end", "", line)


def number(text: str) -> int:
    """An integer literal: `0X1FU`, `-4`, `0b101`."""
    return (
        int(text.rstrip("U"), 0) if not re.fullmatch(r"0\d+U?", text) else int(text.rstrip("U"), 8)
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.tokens = list(_lex(text))
        self.at = 0
        self.files: dict[int, str] = {}
        self.source_file: str | None = None
        self.source_line = 0
        # `.file` directives follow the functions that name them.
        for token in self.tokens:
            if token.kind == "file" and (m := re.match(r'\.file\s+(\d+)\s+"(.*?)"', token.text)):
                self.files[int(m[1])] = m[2]

    # -- tokens
    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> str:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)].text

    def next(self) -> str:
        text = self.token.text
        self.at += 1
        return text

    def accept(self, text: str) -> bool:
        if self.token.text == text and self.token.kind != "string":
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}, found {self.token.text!r}")

    def error(self, what: str) -> PtxError:
        line = self.token.line
        return PtxError(f"PTX line {line}: {what}: {self.lines[line - 1].strip()}")

    def here(self) -> Source:
        line = self.token.line
        return Source(line, self.source_file, self.source_line, self.lines[line - 1].strip())

    def integer(self) -> int:
        negative = self.accept("-")
        self.accept("+")
        if self.token.kind != "number":
            raise self.error("expected an integer")
        value = number(self.next())
        return -value if negative else value

    def take_loc(self) -> bool:
        """`.loc file line column...`, or `.file`: where the next instructions come from."""
        if self.token.kind not in ("loc", "file"):
            return False
        if self.token.kind == "loc":
            numbers = self.token.text.split()
            self.source_file = self.files.get(int(numbers[1]))
            self.source_line = int(numbers[2].rstrip(","))
        self.at += 1
        return True

    # -- the module
    def module(self) -> Module:
        result = Module()
        while self.token.kind != "end":
            if self.take_loc():
                continue
            word = self.token.text
            if word == ".version":
                self.next()
                result.version = self.next()
            elif word == ".target":
                self.next()
                result.target = self.next()
                while self.accept(","):
                    self.next()
            elif word == ".address_size":
                self.next()
                if self.integer() != 64:
                    raise self.error("only 64-bit addresses")
            elif word == ".section":
                self.skip_section()
            elif word == ".pragma":
                self.skip_to_semicolon()
            elif word == ".alias":
                raise self.error("aliases of functions are not known")
            else:
                self.definition(result)
        return result

    def skip_section(self) -> None:
        while not self.accept("{"):
            self.next()
        while not self.accept("}"):
            self.next()

    def skip_to_semicolon(self) -> None:
        while not self.accept(";"):
            self.next()

    def definition(self, module: Module) -> None:
        external = False
        while self.token.text in (".visible", ".extern", ".weak", ".common"):
            external |= self.next() == ".extern"
        if self.token.text in (".entry", ".func"):
            function = self.function()
            known = module.functions.get(function.name)
            if known is None or known.body is None:  # a declaration may come first
                module.functions[function.name] = function
        elif self.token.text.startswith(".") and self.token.text[1:] in _SPACES:
            module.variables.extend(self.variables(external))
        else:
            raise self.error(f"unknown directive {self.token.text!r}")

    def variables(self, external: bool = False) -> list[Variable]:
        """`.space .align 4 .v2 .b8 name[n] = {...}, other;`"""
        space = self.next()[1:]
        align, lanes, kind = 0, 1, ""
        while self.token.text.startswith("."):
            word = self.next()[1:]
            if word == "align":
                align = self.integer()
            elif word in ("v2", "v4"):
                lanes = int(word[1])
            elif word == "ptr":  # of a kernel's parameter: what it points to
                while self.token.text in (".global", ".shared", ".const", ".local", ".param"):
                    self.next()
            elif word in SIZES:
                if kind:  # `.param .u64 .ptr .global .align 4 name`: the first type counts
                    continue
                kind = word
            else:
                raise self.error(f"unknown attribute .{word}")
            if word == "ptr" and self.token.text == ".align":
                self.next()
                self.integer()
        variables = []
        while True:
            name = self.next()
            count, unsized = 1, False
            while self.accept("["):
                if self.accept("]"):
                    unsized = True
                else:
                    count *= self.integer()
                    self.expect("]")
            size = SIZES[kind] * lanes
            initial = self.initial(SIZES[kind]) if self.accept("=") else None
            if unsized:
                count = len(initial) // size if initial else 0
            total = size * count
            if initial is not None:
                initial = initial.ljust(total, b"\0")
            variables.append(
                Variable(space, align or size, kind, name, total, initial, external and unsized)
            )
            if self.accept(","):
                continue
            if self.token.text not in (")", "("):
                self.expect(";")
            return variables

    def initial(self, size: int) -> bytes:
        if self.accept("{"):
            parts = []
            while not self.accept("}"):
                parts.append(self.initial(size))
                self.accept(",")
            return b"".join(parts)
        if self.token.kind == "float":
            value = self.float_bits().value
        elif self.token.kind == "number" or self.token.text in ("-", "+"):
            value = self.integer()
        else:
            raise self.error("an initial value that is an address is not known")
        return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def parameters(self) -> list[Variable]:
        parameters: list[Variable] = []
        self.expect("(")
        while not self.accept(")"):
            if self.token.text == ".reg":
                raise self.error("parameters in registers are not known")
            self.at_parameter(parameters)
        return parameters

    def at_parameter(self, parameters: list[Variable]) -> None:
        start = self.at
        end = start
        while self.tokens[end].text not in (",", ")"):
            end += 1
        # One declaration a parameter: read it as a variable whose end is a semicolon.
        ending = self.tokens[end]
        self.tokens[end] = _Token("mark", ";", ending.line)
        parameters.extend(self.variables())
        if ending.text == ")":
            self.at -= 1
        self.tokens[end] = ending

    def function(self) -> Function:
        source = self.here()
        is_entry = self.next() == ".entry"
        results = self.parameters() if self.token.text == "(" else []
        name = self.next()
        parameters = self.parameters() if self.token.text == "(" else []
        max_threads = 0
        while self.token.text not in ("{", ";"):
            if self.take_loc():
                continue
            word = self.next()
            if word in (".maxntid", ".reqntid"):
                max_threads = self.integer()
                while self.accept(","):
                    max_threads *= self.integer()
            elif word in (".minnctapersm", ".maxnreg", ".maxclusterrank"):
                self.integer()
            elif word == ".pragma":
                self.skip_to_semicolon()
            elif word not in (".noreturn",):
                self.at -= 1
                raise self.error(f"unknown directive {word!r} of a function")
        body = None
        if self.accept("{"):
            body = self.scope()
        else:
            self.expect(";")
        return Function(name, is_entry, results, parameters, body, max_threads, source)

    # -- bodies
    def scope(self) -> Scope:
        scope = Scope()
        while not self.accept("}"):
            if self.token.kind == "end":
                raise self.error("a body without end")
            if self.take_loc() or self.accept(";"):
                continue
            if self.accept("{"):
                scope.statements.append(self.scope())
                continue
            scope.statements.extend(self.statement())
        return scope

    def statement(self) -> list[Statement]:
        word = self.token.text
        if self.peek() == ":" and self.token.kind == "word":
            self.at += 2
            if self.token.text == ".branchtargets":
                self.next()
                labels = [self.next()]
                while self.accept(","):
                    labels.append(self.next())
                self.expect(";")
                return [BranchTargets(word, tuple(labels))]
            if self.token.text == ".callprototype":
                raise self.error("indirect calls are not known")
            return [Label(word)]
        if word == ".reg":
            return self.registers()
        if word.startswith(".") and word[1:] in _SPACES:
            return list(self.variables())
        if word == ".pragma":
            self.skip_to_semicolon()
            return []
        if word.startswith("."):
            raise self.error(f"unknown directive {word!r}")
        return [self.instruction()]

    def registers(self) -> list[Statement]:
        self.next()
        kind = self.next()[1:]
        if kind not in SIZES:
            raise self.error(f"unknown type of registers .{kind}")
        names: list[str] = []
        while True:
            name = self.next()
            if self.accept("<"):
                names.extend(f"{name}{i}" for i in range(self.integer()))
                self.expect(">")
            else:
                names.append(name)
            if not self.accept(","):
                break
        self.expect(";")
        return [Registers(kind, tuple(names))]

    def instruction(self) -> Instruction:
        source = self.here()
        guard = None
        if self.accept("@"):
            negated = self.accept("!")
            guard = Name(self.next(), negated)
        if self.token.kind != "word":
            raise self.error("expected an instruction")
        opcode, *modifiers = self.next().split(".")
        operands: list[Operand] = []
        while not self.accept(";"):
            operands.append(self.operand())
            if self.accept("|"):
                operands[-1] = Both(operands[-1], self.operand())
            if not self.accept(",") and self.token.text != ";":
                raise self.error("expected a comma or a semicolon")
        return Instruction(opcode, tuple(modifiers), tuple(operands), guard, source)

    def operand(self) -> Operand:
        if self.accept("["):
            return self.address()
        for opening, closing in (("{", "}"), ("(", ")")):
            if self.accept(opening):
                items = []
                while not self.accept(closing):
                    items.append(self.operand())
                    self.accept(",")
                return Vector(tuple(items))
        if self.accept("!"):
            return Name(self.next(), True)
        if self.token.kind == "float":
            return self.float_bits()
        if self.token.kind == "number" or self.token.text in ("-", "+"):
            if self.peek() and self.tokens[self.at + 1].kind == "float":
                negative = self.next() == "-"
                bits = self.float_bits()
                sign = 1 << (31 if bits.kind == "f32" else 63)
                return Number(bits.value ^ (sign if negative else 0), bits.kind)
            return Number(self.integer())
        if self.token.kind != "word":
            raise self.error(f"expected an operand, found {self.token.text!r}")
        name = self.next()
        if self.token.text in ("+", "-"):  # `mov.u64 %rd1, name+16;`
            return Address(Name(name), self.offset())
        return Name(name)

    def offset(self) -> int:
        total = 0
        while self.token.text in ("+", "-"):
            negative = self.next() == "-"
            value = self.integer()
            total += -value if negative else value
        return total

    def address(self) -> Address:
        base = None
        total = 0
        if self.token.kind == "word":
            base = Name(self.next())
        else:
            total = self.integer()
        total += self.offset()
        self.expect("]")
        return Address(base, total)

    def float_bits(self) -> Number:
        text = self.next()
        if text[:2] in ("0f", "0F"):
            return Number(int(text[2:], 16), "f32")
        if text[:2] in ("0d", "0D"):
            return Number(int(text[2:], 16), "f64")
        return Number(struct.unpack("<Q", struct.pack("<d", float(text)))[0], "f64")


def parse(text: str) -> Module:
    return _Parser(text).module()


_ENTRY = re.compile(r"^(?:\.visible )?\.entry (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)


def entries(text: str) -> list[str]:
    """The names of the kernels that nvcc's text defines, without parsing it."""
    return [match[1] for match in _ENTRY.finditer(text)]


def with_entry(text: str, name: str) -> str:
    """nvcc's text without the other kernels, which parses in a fraction of the time."""
    return _ENTRY.sub(lambda match: match[0] if match[1] == name else "", text)
