"""Runs that are compared: run folders in; scores with their intervals, curves, pictures, tables and a page out."""

from themis_ray.reporting.comparisons import Comparison
from themis_ray.reporting.folder import PAGE, write_report
from themis_ray.reporting.groups import ALL_TASKS, Cell, Groups, Method
from themis_ray.reporting.report import Profile, Report, Row, Verdict, make_report
from themis_ray.reporting.runs import LeftOutRun, Run, find_runs
from themis_ray.reporting.scales import Scale
from themis_ray.reporting.statistics import (
    Estimate,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from themis_ray.reporting.tables import num_labels, with_interval

__all__ = [
    "ALL_TASKS",
    "PAGE",
    "Cell",
    "Comparison",
    "Estimate",
    "Groups",
    "LeftOutRun",
    "Method",
    "Profile",
    "Report",
    "Row",
    "Run",
    "Scale",
    "Verdict",
    "find_runs",
    "interquartile_mean",
    "make_report",
    "num_labels",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "with_interval",
    "write_report",
]
