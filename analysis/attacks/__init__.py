"""Attacks: upper bounds on the robust radius, one attack per file."""

from analysis.attacks.apgd import APGD, TargetedAPGD
from analysis.attacks.attacked import Attack, Attacked
from analysis.attacks.carlini_wagner import CarliniWagner
from analysis.attacks.ddn import DDN
from analysis.attacks.deepfool import DeepFool, deepfool_perturbation
from analysis.attacks.fgsm import FGSM
from analysis.attacks.fmn import FMN
from analysis.attacks.hop_skip_jump import HopSkipJump
from analysis.attacks.pgd import PGD
from analysis.attacks.random_noise import RandomNoise
from analysis.attacks.simba import SimBA
from analysis.attacks.smoothadv import SmoothAdv
from analysis.attacks.square import Square
from analysis.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "DDN",
    "FGSM",
    "FMN",
    "PGD",
    "Attack",
    "Attacked",
    "CarliniWagner",
    "DeepFool",
    "HopSkipJump",
    "RandomNoise",
    "SimBA",
    "SmoothAdv",
    "Square",
    "TargetedAPGD",
    "Transfer",
    "deepfool_perturbation",
]
