"""Who races: every method of `jattn.bilevel` that fits the problem, with three numbers for each of two settings.

The first setting is the step of the outer variables; for methods whose outer and inner variables share a step, that
one. The second is the penalty for methods that have one, the barrier for BOME, else the step of the inner variables.
Inner steps are in units of 1 / L, L the largest curvature that the inner objective can have.
"""

from collections.abc import Callable
from typing import Any

import optax

from experiments.lv_hba.race import Entrant
from jattn.bilevel import (
    BLOCC,
    BOME,
    BVFSM,
    F2SA,
    LVHBA,
    PBGD,
    SABA,
    SOBA,
    AiPOD,
    BiCGAFFA,
    ConjugateGradientAID,
    NeumannAID,
    Proximity,
    StocBiO,
    Unrolled,
    growing_penalty,
)

OUTER_STEPS = (0.04, 0.2, 1.0)
SHARED_STEPS = (0.3, 1.0, 1.8)
INNER_STEPS = (0.3, 1.0, 1.8)
PENALTIES = (1.0, 10.0, 100.0)
BARRIERS = (0.1, 0.5, 1.0)
LOOP = 10
"""Inner steps, and those of the adjoint, of methods with an inner loop."""


def _penalty(scale: Any) -> Callable[[Any], Any]:
    return growing_penalty(scale, 0.3)


def of_smooth_problems(curvature: float) -> dict[str, Entrant]:
    """Methods for problems without constraints; SABA and StocBiO run on the form "blocks".

    Args:
      curvature: L.
    """
    unit, outer, shared = 1 / curvature, (OUTER_STEPS, INNER_STEPS), (SHARED_STEPS, PENALTIES)
    penalised = (OUTER_STEPS, PENALTIES)
    sgd = optax.sgd

    def adjoint(step: Any) -> dict[str, Any]:
        return {"adjoint_steps": LOOP, "neumann_step": step * unit}

    return {
        "Unrolled": Entrant(lambda a, b: Unrolled(LOOP, b * unit, sgd(a)), outer),
        "Unrolled, 3 differentiated": Entrant(lambda a, b: Unrolled(LOOP, b * unit, sgd(a), differentiated=3), outer),
        "Unrolled, 1 differentiated": Entrant(lambda a, b: Unrolled(LOOP, b * unit, sgd(a), differentiated=1), outer),
        "ConjugateGradientAID": Entrant(
            lambda a, b: ConjugateGradientAID(LOOP, b * unit, sgd(a), adjoint_steps=LOOP), outer
        ),
        "NeumannAID": Entrant(lambda a, b: NeumannAID(LOOP, b * unit, sgd(a), **adjoint(b)), outer),
        "StocBiO": Entrant(lambda a, b: StocBiO(LOOP, b * unit, sgd(a), **adjoint(b)), outer, on="blocks"),
        "SOBA": Entrant(lambda a, b: SOBA(a, b * unit, b * unit), outer),
        "SABA": Entrant(lambda a, b: SABA(a, b * unit, b * unit), outer, on="blocks"),
        "BOME": Entrant(lambda a, b: BOME(a * unit, LOOP, unit, b), (SHARED_STEPS, BARRIERS)),
        "F2SA": Entrant(lambda a, b: F2SA(a, LOOP, unit, _penalty(b)), penalised),
        "PBGD": Entrant(lambda a, b: PBGD(a * unit, LOOP, unit, _penalty(b)), shared),
        "BVFSM": Entrant(lambda a, b: BVFSM(a, LOOP, unit, _penalty(b)), penalised),
        "BLOCC": Entrant(lambda a, b: BLOCC(a, LOOP, unit, unit, _penalty(b)), penalised),
        "BiCGAFFA": Entrant(
            lambda a, b: BiCGAFFA(a * unit, a * unit, unit / 2, _penalty(b), curvature, curvature), shared
        ),
        "LVHBA": Entrant(lambda a, b: LVHBA(a * unit, a * unit, unit / 2, _penalty(b), Proximity(1.0, 1.0)), shared),
    }


def of_equalities() -> dict[str, Entrant]:
    """Methods for problems with equalities that couple all variables, for the first toy; L is 1 there.

    LV-HBA alone projects on the equalities: it runs on the form "joint".
    """
    shared = ((0.02, 0.06, 0.2), PENALTIES)
    hypergradient = (0.001, 0.01, 0.1)
    return {
        "AiPOD": Entrant(lambda a, b: AiPOD(LOOP, b, optax.sgd(a)), (hypergradient, INNER_STEPS)),
        "BLOCC": Entrant(lambda a, b: BLOCC(a, LOOP, 0.3, 0.3, _penalty(b)), (hypergradient, PENALTIES)),
        "BiCGAFFA": Entrant(lambda a, b: BiCGAFFA(a, a, 0.1, _penalty(b)), shared),
        "LVHBA": Entrant(lambda a, b: LVHBA(a, a, 0.1, _penalty(b)), shared, on="joint"),
    }
