"""Derivatives of solutions, by what holds at them."""

from jattn.implicit.adjoint import Implicit, Neumann, OneStep, Truncated, Unrolled
from jattn.implicit.check import ImplicitError, ImplicitWarning
from jattn.implicit.condition import Condition, fixed, stationary
from jattn.implicit.differentiate import Certificate, Solution, fixed_point, minimise, root
from jattn.implicit.iteration import Iteration, descent, on_host
from jattn.implicit.krylov import Report
from jattn.implicit.linear_solve import (
    Automatic,
    BiCGStab,
    ConjugateGradient,
    Dense,
    Gmres,
    LinearSolver,
    Minres,
    solve_linear,
)

__all__ = [
    "Automatic",
    "BiCGStab",
    "Certificate",
    "Condition",
    "ConjugateGradient",
    "Dense",
    "Gmres",
    "Implicit",
    "ImplicitError",
    "ImplicitWarning",
    "Iteration",
    "LinearSolver",
    "Minres",
    "Neumann",
    "OneStep",
    "Report",
    "Solution",
    "Truncated",
    "Unrolled",
    "descent",
    "fixed",
    "fixed_point",
    "minimise",
    "on_host",
    "root",
    "solve_linear",
    "stationary",
]
