"""The checklist of gradient masking on smoothed classifiers, which the review of stability training asks for."""

from dataclasses import dataclass, replace

from analysis.masking import MaskingReport, masking_report
from analysis.masking_attacks import Effort
from certify import Stream, Threat
from certify.smoothed import SmoothedClassifier
from paper_repro.recipes import stability
from paper_repro.recipes.bench import Bench, Setting, spaced
from paper_repro.recipes.checklist import OPEN, flags, masking_record, masking_table
from paper_repro.recipes.recipe import Above, Claim, Near, Recipe
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.stability import StabilityTraining
from paper_repro.recipes.statistics import Measured, exactly

_RIVAL = {"stn": "gaussian", "gaussian": "stn"}


@dataclass(frozen=True, slots=True)
class MaskingOfG:
    """The experiment.

    Args:
        networks: Those of `stability`, with their noise.
        eps: L2 budget.
        samples: Noisy copies whose mean softmax is what the checks see of g.
        effort: Of the checklist.
        checked: Test images, evenly spaced.
    """

    networks: StabilityTraining
    eps: float
    samples: int
    effort: Effort
    checked: int

    @property
    def setting(self) -> Setting:
        """That of the networks."""
        return self.networks.setting


def masking(bench: Bench) -> Record:
    """For every check whether it was passed (0), open (1) or flagged (2)."""
    config: MaskingOfG = bench.config
    data = spaced(bench.test, config.checked)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    of_networks = replace(bench, config=config.networks)

    def smoothed(name: str, seed: int) -> SmoothedClassifier:
        # The same noise at every call: a deterministic function, as the checks take for granted.
        stream = Stream(seed).child("copies", name)
        base, noise = stability.trained(of_networks, name, seed), config.networks.smoothing.noise
        return SmoothedClassifier(base, noise, config.samples, stream=stream, fresh=False).eval()

    def look(name: str, seed: int) -> MaskingReport:
        return masking_report(
            smoothed(name, seed),
            x,
            y,
            threat=Threat("L2", config.eps),
            rng=Stream(seed).child("masking"),
            effort=config.effort,
            surrogate=smoothed(_RIVAL[name], seed),
        )

    notes = {"effort": repr(config.effort), "samples": config.samples, "threat": repr(Threat("L2", config.eps))}
    return masking_record(list(_RIVAL), config.setting.seeds, look, {**notes, "example": data.id.tolist()})


def _decided(records: Records) -> Measured:
    return exactly(float((records["masking"].arrays["verdict"] != OPEN).mean()))


_CLAIMS = (
    Claim(
        "Most checks are decided: share that is passed or flagged, over networks and seeds",
        "An open check says nothing of masking",
        "D",
        Above(0.5),
        _decided,
        ("small", "paper"),
    ),
    *(
        Claim(
            f"g of {title} masks no gradients: flags of the checklist over all seeds",
            "Review of Li et al. (2019); Athalye et al. (2018), section 3.1; Carlini et al. (2019)",
            "A",
            Near(0.0, 0.0),
            lambda r, name=name: flags(r, name),
            ("small", "paper"),
            {
                "small": "all flags are of attacks too short: twice the steps or restarts break one more image of 24, "
                "or a loss still grew; no attack without gradients beats those with them"
            },
        )
        for name, title in (("stn", "stability training"), ("gaussian", "Gaussian augmentation"))
    ),
)

# The budgets are the largest of `stability`; all else is ours.
_OF = stability.RECIPE.scales
RECIPE = Recipe(
    name="masking_of_g",
    paper="Li, Chen, Wang & Carin, NeurIPS 2019: the checklist on the smoothed classifier, as its review asks",
    scales={
        "smoke": MaskingOfG(_OF["smoke"], 1.0, 4, Effort(20, 1, 20, 1, 20), 4),
        "small": MaskingOfG(_OF["small"], 2.5, 16, Effort(20, 1, 500, 2, 200), 25),
        "paper": MaskingOfG(_OF["paper"], 2.5, 64, Effort(), 200),
    },
    stages={"masking": masking},
    tables={"Signs of gradient masking": masking_table},
    claims=_CLAIMS,
    deviations=(
        "The checks see g as the mean softmax of a few noisy copies, with the same noise at every call for the same "
        "place in a batch: neither the votes of a certificate nor fresh noise. Attacks with both are in `stability`.",
        "The network of the transfer check is the other one's g, trained alike and smoothed with other noise.",
    ),
)
