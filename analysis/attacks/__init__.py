"""Attacks: upper bounds on the robust radius, one attack per file."""

from analysis.attacks.attacked import Attack, Attacked

__all__ = ["Attack", "Attacked"]
