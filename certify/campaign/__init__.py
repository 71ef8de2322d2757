"""Certifying a whole data set: store, resume, logs, tables."""

from certify.campaign.logs import export_log, read_log
from certify.campaign.results import Published, Results
from certify.campaign.runner import run
from certify.campaign.store import Store

__all__ = ["Published", "Results", "Store", "export_log", "read_log", "run"]
