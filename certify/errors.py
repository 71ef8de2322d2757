"""What can go wrong, in three words: the caller's input, a layer without a rule, a proof against a counterexample."""


class InputError(ValueError):
    """A value breaks a stated rule. The message gives the rule, then the value."""


class UnsupportedModule(InputError):
    """A network holds a layer for which no sound rule is known."""


class Contradiction(RuntimeError):
    """A deterministic lower bound exceeds an upper bound on the same radius: one of the two is wrong."""


def check_count(name: str, value: int) -> None:
    """Refuse a number of things, such as votes or steps, that is not a positive integer.

    Raises:
        InputError: the rule is broken.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"need an integer {name} >= 1; got {value!r}")
