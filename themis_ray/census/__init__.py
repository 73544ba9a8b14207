"""Which environments there are, what is chosen for each, and whether everything works in it."""

from themis_ray.census.check import CHECKS, check_env, open_results, run_checks, status_of
from themis_ray.census.known import known_cause
from themis_ray.census.listing import describe_env, list_rows
from themis_ray.census.page import MARKER, census_page, summarise, write_page
from themis_ray.census.setup import Choice, explain_setup

__all__ = [
    "CHECKS",
    "MARKER",
    "Choice",
    "census_page",
    "check_env",
    "describe_env",
    "explain_setup",
    "known_cause",
    "list_rows",
    "open_results",
    "run_checks",
    "status_of",
    "summarise",
    "write_page",
]
