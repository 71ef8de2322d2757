"""What is proved: lower bounds on the robust radius."""

from certify.binomial import lower_confidence_bound, upper_confidence_bound
from certify.certificate import ABSTAIN, Certificate, Deterministic, Guarantee, PerExample
from certify.errors import Contradiction, InputError, UnsupportedModule
from certify.noise import Gaussian
from certify.rng import Stream
from certify.smoothing import Smoothing
from certify.voting import BaseClassifier, Execution

__all__ = [
    "ABSTAIN",
    "BaseClassifier",
    "Certificate",
    "Contradiction",
    "Deterministic",
    "Execution",
    "Gaussian",
    "Guarantee",
    "InputError",
    "PerExample",
    "Smoothing",
    "Stream",
    "UnsupportedModule",
    "lower_confidence_bound",
    "upper_confidence_bound",
]
