"""Derivatives of solutions, by what holds at them."""

from jattn.implicit import projections, proximal
from jattn.implicit.adjoint import Implicit, Neumann, OneStep, Truncated, Unrolled
from jattn.implicit.certificate import Certificate, DerivativeCertificate
from jattn.implicit.check import ImplicitError, ImplicitWarning
from jattn.implicit.condition import Condition, fixed, stationary
from jattn.implicit.constrained import (
    ConeSolution,
    PrimalDual,
    block_proximal_gradient,
    conic,
    kkt,
    kkt_of_quadratic_program,
    mirror_descent,
    newton,
    projected_gradient,
    proximal_gradient,
)
from jattn.implicit.differentiate import Solution, fixed_point, minimise, root
from jattn.implicit.error import ErrorBound, error_bound
from jattn.implicit.hypergradient import (
    Hypergradient,
    HypergradientReport,
    HypergradientState,
    Tolerances,
    hypergradient,
)
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
from jattn.implicit.quadratic_program import QuadraticSolution, solve_quadratic_program

__all__ = [
    "Automatic",
    "BiCGStab",
    "Certificate",
    "Condition",
    "ConeSolution",
    "ConjugateGradient",
    "Dense",
    "DerivativeCertificate",
    "ErrorBound",
    "Gmres",
    "Hypergradient",
    "HypergradientReport",
    "HypergradientState",
    "Implicit",
    "ImplicitError",
    "ImplicitWarning",
    "Iteration",
    "LinearSolver",
    "Minres",
    "Neumann",
    "OneStep",
    "PrimalDual",
    "QuadraticSolution",
    "Report",
    "Solution",
    "Tolerances",
    "Truncated",
    "Unrolled",
    "block_proximal_gradient",
    "conic",
    "descent",
    "error_bound",
    "fixed",
    "fixed_point",
    "hypergradient",
    "kkt",
    "kkt_of_quadratic_program",
    "minimise",
    "mirror_descent",
    "newton",
    "on_host",
    "projected_gradient",
    "projections",
    "proximal",
    "proximal_gradient",
    "root",
    "solve_linear",
    "solve_quadratic_program",
    "stationary",
]
