"""Bilevel optimisation: one problem, one loop, and methods that are swapped by one name."""

from jattn.bilevel.lv_hba import (
    LVHBA,
    MultiplierRadiusWarning,
    Proximity,
    SaddlePoint,
    StepSizeWarning,
    saddle_point,
    value_function,
)
from jattn.bilevel.method import Method, State
from jattn.bilevel.penalty import extrapolate, growing_penalty
from jattn.bilevel.problem import Blocks, Problem
from jattn.bilevel.projections import onto_affine, onto_convex, onto_halfspace, onto_margins
from jattn.bilevel.solve import AtInnerSolution, Records, Trajectory, advance, at_inner_solution, solve

__all__ = [
    "LVHBA",
    "AtInnerSolution",
    "Blocks",
    "Method",
    "MultiplierRadiusWarning",
    "Problem",
    "Proximity",
    "Records",
    "SaddlePoint",
    "State",
    "StepSizeWarning",
    "Trajectory",
    "advance",
    "at_inner_solution",
    "extrapolate",
    "growing_penalty",
    "onto_affine",
    "onto_convex",
    "onto_halfspace",
    "onto_margins",
    "saddle_point",
    "solve",
    "value_function",
]
