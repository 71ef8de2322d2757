"""Properties of networks from VNN-LIB files, version 1.0.

The file asserts what must not happen: X_i are the inputs, Y_j the logits, and what satisfies every assertion is a
counterexample. Here it becomes cases, each a box of inputs and rows of linear inequalities of the logits.

Source: the VNN-LIB standard 1.0, a subset of SMT-LIB: linear comparisons under `and` and `or`, each input in bounds.
"""

import gzip
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from certify.errors import InputError
from certify.property import Case

_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DEEPEST, _MOST = 50, 10_000

Expression = str | list["Expression"]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """The sum of coefficient * variable, plus a constant; as a constraint, that it is <= 0."""

    terms: dict[str, float]
    constant: float


Conjunction = list[Linear]


def read_vnnlib(path: str | Path, shape: Sequence[int] | None = None) -> list[Case]:
    """Read a property.

    Args:
        path: A VNN-LIB 1.0 file, as it is or compressed by gzip.
        shape: Of the network's input, without the batch; X_i is its i-th value in row-major order. None for flat.

    Returns: The cases, any of which breaks the property. Numbers are float64, and so is arithmetic on them.

    Raises:
        InputError: the file is missing or not of this form; an input has no bounds; or its count is not the shape's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"need a VNN-LIB file; no file at {path}")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
        return parse_vnnlib(text, shape)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a text file: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_vnnlib(text: str, shape: Sequence[int] | None = None) -> list[Case]:
    """The cases of a property; see `read_vnnlib`.

    Raises:
        InputError: as for `read_vnnlib`, the file apart.
    """
    names: set[str] = set()
    common: Conjunction = []
    choices: list[list[Conjunction]] = []
    for command in _expressions(text):
        match command:
            case ["declare-const", str(name), "Real"] if _VARIABLE.fullmatch(name) and name not in names:
                names.add(name)
            case ["assert", formula]:
                found = _cases(formula, names)
                if len(found) == 1:
                    common += found[0]
                else:
                    choices.append(found)
            case _:
                raise InputError(
                    f"need (declare-const X_i Real), each once, or (assert ...) of VNN-LIB 1.0; got {_text(command)}"
                )
    inputs, outputs = (_count(kind, names) for kind in "XY")
    if shape is not None and math.prod(shape) != inputs:
        raise InputError(f"need {math.prod(shape)} inputs X_i for shape {tuple(shape)}; got {inputs}")
    if math.prod(len(choice) for choice in choices) > _MOST:
        raise InputError(f"need a property of at most {_MOST} cases; the alternatives multiply to more")
    conjunctions = (common + list(itertools.chain(*chosen)) for chosen in itertools.product(*choices))
    cases = [_case(c, inputs, outputs, tuple(shape or (inputs,))) for c in conjunctions]
    kept = [case for case in cases if case is not None]
    if not kept:
        raise InputError("no input satisfies the assertions: every box is empty, and the property says nothing")
    return kept


def _expressions(text: str) -> list[Expression]:
    """The parenthesised expressions of a file.

    Raises:
        InputError: parentheses do not match, or nest too deeply.
    """
    stack: list[list[Expression]] = [[]]
    for token in _TOKEN.findall(text):
        if token[0] == ";":
            continue
        if token == "(":
            stack.append([])
            if len(stack) > _DEEPEST:
                raise InputError(f"need at most {_DEEPEST} parentheses within one another")
        elif token == ")":
            if len(stack) == 1:
                raise InputError("need a '(' before each ')'")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) > 1:
        raise InputError(f"need a ')' after each '('; {len(stack) - 1} missing at the end")
    return stack[0]


def _text(expression: Expression, longest: int = 80) -> str:
    words = expression if isinstance(expression, str) else f"({' '.join(_text(e) for e in expression)})"
    return words if len(words) <= longest else words[:longest] + "..."


def _cases(formula: Expression, names: set[str]) -> list[Conjunction]:
    """A formula in disjunctive normal form.

    Raises:
        InputError: it is not of this form.
    """
    match formula:
        case ["and", *parts] if parts:
            found = [_cases(part, names) for part in parts]
            if math.prod(len(f) for f in found) > _MOST:
                raise InputError(f"need a property of at most {_MOST} cases; the alternatives multiply to more")
            return [list(itertools.chain(*chosen)) for chosen in itertools.product(*found)]
        case ["or", *parts] if parts:
            return list(itertools.chain(*(_cases(part, names) for part in parts)))
        case ["<=", left, right]:
            return [[_difference(_linear(left, names), _linear(right, names))]]
        case [">=", left, right]:
            return [[_difference(_linear(right, names), _linear(left, names))]]
    raise InputError(f"need <= or >= of two terms, under 'and' and 'or'; got {_text(formula)}")


def _linear(term: Expression, names: set[str]) -> Linear:
    """A linear term.

    Raises:
        InputError: it is not linear, or a variable is not declared.
    """
    match term:
        case str() if term in names:
            return Linear({term: 1.0}, 0.0)
        case str() if _NUMBER.fullmatch(term):
            return Linear({}, float(term))
        case str():
            raise InputError(f"need a number or a declared variable; got {term}")
        case ["-", only]:
            return _scaled(_linear(only, names), -1.0)
        case ["+" | "-" as sign, first, *rest] if rest:
            total = _linear(first, names)
            for part in rest:
                value = _linear(part, names)
                total = _difference(total, value if sign == "-" else _scaled(value, -1.0))
            return total
        case ["*", left, right]:
            a, b = _linear(left, names), _linear(right, names)
            if a.terms and b.terms:
                raise InputError(f"need linear terms; got {_text(term)}")
            return _scaled(b, a.constant) if b.terms else _scaled(a, b.constant)
    raise InputError(f"need a linear term; got {_text(term)}")


def _scaled(value: Linear, factor: float) -> Linear:
    return Linear({name: factor * c for name, c in value.terms.items()}, factor * value.constant)


def _difference(a: Linear, b: Linear) -> Linear:
    terms = dict(a.terms)
    for name, coefficient in b.terms.items():
        terms[name] = terms.get(name, 0.0) - coefficient
    return Linear({name: c for name, c in terms.items() if c}, a.constant - b.constant)


def _count(kind: str, names: set[str]) -> int:
    """How many variables of a kind there are.

    Raises:
        InputError: none, or their numbers leave gaps.
    """
    numbers = {int(name[2:]) for name in names if name[0] == kind}
    if not numbers or numbers != set(range(len(numbers))):
        raise InputError(f"need {kind}_0, {kind}_1, ... declared without gaps; got {len(numbers)} of them")
    return len(numbers)


def _case(conjunction: Conjunction, inputs: int, outputs: int, shape: tuple[int, ...]) -> Case | None:
    """The box and the rows of a conjunction, or None where the box is empty.

    Raises:
        InputError: an inequality is about more than one input, mixes inputs and outputs, or is not finite; or an input
            has no bounds.
    """
    lower, upper = [-math.inf] * inputs, [math.inf] * inputs
    rows, limits = [], []
    for constraint in conjunction:
        if not all(math.isfinite(number) for number in (constraint.constant, *constraint.terms.values())):
            raise InputError("need numbers, and sums and products of them, in the range of float64")
        kinds = {name[0] for name in constraint.terms}
        if not kinds and constraint.constant <= 0:
            continue
        if not kinds:
            return None
        if kinds == {"Y"}:
            row = [0.0] * outputs
            for name, coefficient in constraint.terms.items():
                row[int(name[2:])] = coefficient
            rows.append(row)
            limits.append(-constraint.constant)
        elif len(constraint.terms) == 1:
            ((name, coefficient),) = constraint.terms.items()
            i, end = int(name[2:]), -constraint.constant / coefficient
            if coefficient > 0:
                upper[i] = min(upper[i], end)
            else:
                lower[i] = max(lower[i], end)
        else:
            raise InputError(
                f"need bounds on single inputs; got an inequality of {', '.join(sorted(constraint.terms))}"
            )
    unbounded = [i for i in range(inputs) if math.isinf(lower[i]) or math.isinf(upper[i])]
    if unbounded:
        raise InputError(f"need a lower and an upper bound for every input; X_{unbounded[0]} lacks one")
    if any(low > high for low, high in zip(lower, upper, strict=True)):
        return None
    return Case(
        lower=torch.tensor(lower, dtype=torch.float64).view(shape),
        upper=torch.tensor(upper, dtype=torch.float64).view(shape),
        rows=torch.tensor(rows, dtype=torch.float64).view(-1, outputs),
        limits=torch.tensor(limits, dtype=torch.float64),
    )
