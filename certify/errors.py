"""What can go wrong, in three words: the caller's input, a layer without a rule, a proof against a counterexample."""


class InputError(ValueError):
    """A value breaks a stated rule. The message gives the rule, then the value."""


class UnsupportedModule(InputError):
    """A network holds a layer for which no sound rule is known."""


class Contradiction(RuntimeError):
    """A deterministic lower bound exceeds an upper bound on the same radius: one of the two is wrong."""
