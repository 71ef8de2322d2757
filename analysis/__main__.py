"""python -m analysis COMMAND: what is observed. `--help` lists the commands."""

from analysis.commands.attack import attack
from analysis.commands.curvature import density, hessian
from analysis.commands.curve import curve_eps, curve_restarts, curve_steps, distances, grid
from analysis.commands.falsify import falsify
from analysis.commands.landscape import landscape, surface
from analysis.commands.linear import linear
from analysis.commands.masking import masking
from analysis.commands.property import falsify_property
from analysis.commands.scattering import scattering
from certify.campaign.cli import make_app, start

app = make_app(__doc__)
ATTACKS = (attack, falsify, falsify_property, curve_eps, curve_restarts, curve_steps, grid, distances, masking)
LANDSCAPES = (hessian, density, scattering, linear, landscape, surface)
for command in (*ATTACKS, *LANDSCAPES):
    app.command()(command)

if __name__ == "__main__":
    start(app)
