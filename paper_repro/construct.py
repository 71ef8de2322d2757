"""Methods named on a command line by the expression that constructs them, which is also how they print."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from certify import InputError


def construct(text: str, names: Mapping[str, Callable[..., Any]]) -> Any:
    """Build what an expression like `PGDTraining(Threat("Linf", 8/255), steps=7)` says; nothing else is evaluated.

    Args:
        text: Calls of known names on numbers, strings, None, True, False, tuples, quotients, and such calls.
        names: What may be called. A name alone calls it without arguments.

    Raises:
        InputError: anything else, an unknown name or field, or what the constructor refuses.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: too deeply nested
        why = getattr(error, "msg", error)
        raise InputError(f"need an expression such as Erm() or Free(...); got {text!r} ({why})") from error
    return _call(tree, names) if isinstance(tree, ast.Name) else _value(tree, names)


def _value(node: ast.expr, names: Mapping[str, Callable[..., Any]]) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element, names) for element in elements)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(
            left=ast.Constant(value=int() | float() as left),
            op=ast.Div(),
            right=ast.Constant(value=int() | float() as right),
        ) if right:
            try:
                return left / right
            except OverflowError:
                raise InputError(f"need a quotient that a float holds; got {ast.unparse(node)!r}") from None
        case ast.Call():
            return _call(node, names)
        case _:
            raise InputError(f"need numbers, strings, tuples and calls; got {ast.unparse(node)!r}")


def _call(node: ast.Call | ast.Name, names: Mapping[str, Callable[..., Any]]) -> Any:
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name) or called.id not in names:
        raise InputError(f"need one of {', '.join(sorted(names))}; got {ast.unparse(called)!r}")
    make = names[called.id]
    arguments = [_value(a, names) for a in node.args] if isinstance(node, ast.Call) else []
    keywords = node.keywords if isinstance(node, ast.Call) else []
    given = {k.arg or "**": _value(k.value, names) for k in keywords}
    if len(given) < len(keywords):
        raise InputError(f"{called.id} is given an argument twice")
    try:
        return make(*arguments, **given)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(make) if f.init) if is_dataclass(make) else "?"
        raise InputError(f"{called.id} takes {known}; {error}") from error
