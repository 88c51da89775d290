"""Bilevel optimisation: one problem, one loop, and methods that are swapped by one name."""

from jattn.bilevel.aipod import AiPOD
from jattn.bilevel.bic_gaffa import BiCGAFFA
from jattn.bilevel.blocc import BLOCC
from jattn.bilevel.bome import BOME
from jattn.bilevel.bvfsm import BVFSM
from jattn.bilevel.f2sa import F2SA
from jattn.bilevel.implicit_differentiation import ConjugateGradientAID, NeumannAID, StocBiO
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
from jattn.bilevel.pbgd import PBGD
from jattn.bilevel.penalty import extrapolate, growing_penalty
from jattn.bilevel.problem import Blocks, Problem
from jattn.bilevel.projections import onto_affine, onto_convex, onto_halfspace, onto_margins
from jattn.bilevel.soba import SABA, SOBA
from jattn.bilevel.solve import AtInnerSolution, Records, Trajectory, advance, at_inner_solution, solve
from jattn.bilevel.unrolled import Unrolled

__all__ = [
    "BLOCC",
    "BOME",
    "BVFSM",
    "F2SA",
    "LVHBA",
    "PBGD",
    "SABA",
    "SOBA",
    "AiPOD",
    "AtInnerSolution",
    "BiCGAFFA",
    "Blocks",
    "ConjugateGradientAID",
    "Method",
    "MultiplierRadiusWarning",
    "NeumannAID",
    "Problem",
    "Proximity",
    "Records",
    "SaddlePoint",
    "State",
    "StepSizeWarning",
    "StocBiO",
    "Trajectory",
    "Unrolled",
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
