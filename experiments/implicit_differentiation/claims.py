"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Blondel et al., NeurIPS 2022, arXiv 2105.15183. Its data are other data, but for sizes alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments.implicit_differentiation.dictionary import Areas
from experiments.implicit_differentiation.support_vectors import Measured
from jattn.runs import Bar, Claim, Run

BOUNDED = Claim(
    "theorem 1 bounds the error",
    "largest error of the implicit Jacobian over its bound, of all steps of the solver",
    "below the bound at every step (ridge)",
    Bar(high=1.0),
    "a bound with the largest singular value of A in place of the smallest",
)
FIRST_ORDER = Claim(
    "the error is first order",
    "slope of log error of the implicit Jacobian against log distance from the solution, from the last half of steps",
    "1 by theorem 1",
    Bar(0.95, 1.05),
    "the derivative of one step",
)
BELOW_UNROLLING = Claim(
    "implicit is below unrolling",
    "share of the solver's steps after which the implicit Jacobian's error is below that of unrolling them",
    "below at every step (ridge)",
    Bar(low=0.95),
    "the derivative of one step in the implicit one's place",
)
CATALOGUED = Claim(
    "every condition of the catalogue is right",
    "largest error of a Jacobian over the largest entry of central differences, of all rows, in double precision",
    "not in the paper, which lists the rows",
    Bar(high=1e-6),
    "each row with a term left out",
)
SAME_LOSS = Claim(
    "implicit and unrolled end alike",
    "largest relative difference of the outer loss after all outer steps from that by unrolling, of all solvers, both "
    "fixed points and all numbers of features",
    "the same outer loss",
    Bar(high=0.01),
    "the outer loss before the first step",
)
RESPONDS = Claim(
    "solver and mapping may differ",
    "largest relative difference of the first hypergradient from that by unrolling, of all solvers, both fixed points "
    "and all numbers of features",
    "any fixed point serves any solver",
    Bar(high=0.1),
    "the hypergradient without the response of the dual variables",
)
FASTER = Claim(
    "implicit is faster",
    "smallest CPU time of unrolled over implicit differentiation, of all solvers, both fixed points and all numbers of "
    "features",
    "faster for each solver",
    Bar(low=1.0),
    "implicit differentiation by one fixed point over that by the other, both ways",
)
FASTER_WHEN_LARGE = Claim(
    "more so for many features",
    "that ratio with the most features over that with the fewest: the smallest of all solvers and both fixed points",
    "more so for large p",
    Bar(low=1.0),
    "with the fewest over with the most",
)
FLAT = Claim(
    "memory does not grow with steps",
    "compiled program's temporary bytes with twice the solver's steps over those with its steps, fewest features: the "
    "most of all solvers and both fixed points",
    "constant, where unrolling's grows",
    Bar(high=1.05),
    "unrolled",
)
DISTILS = Claim(
    "images are distilled",
    "outer loss of the classifier of ten learned images, at the end over the start",
    "shown as ten images of MNIST",
    Bar(high=0.5),
    "random directions of the hypergradient's size",
)
BETTER_THAN_DRAWN = Claim(
    "learned images teach more than drawn ones",
    "test accuracy of the classifier of ten learned images less that of a random one of each class",
    "not in the paper",
    Bar(low=0.05),
    "other random ones less these",
)
BETTER_THAN_MEANS = Claim(
    "learned images teach more than means",
    "test accuracy of the classifier of ten learned images less that of the means of classes",
    "not in the paper",
    Bar(low=0.0),
    "random images of each class less the means",
)
DISTILS_FASTER = Claim(
    "distillation is faster by implicit derivatives",
    "CPU time of a hypergradient by unrolling over that by the implicit function theorem",
    "about 4",
    Bar(low=2.0),
    "the outer loss alone over the implicit hypergradient",
)
TASK_DRIVEN = Claim(
    "task-driven codes beat raw features",
    "area under the curve of test samples: task-driven codes less logistic regression with a squared penalty",
    "73 against 72 of 100",
    Bar(low=0.0),
    "learned from shuffled labels",
)
SUPERVISED = Claim(
    "task-driven codes beat unsupervised ones",
    "area under the curve of test samples: task-driven codes less codes in a dictionary of the samples alone",
    "73 against 68 of 100",
    Bar(low=0.0),
    "learned from shuffled labels",
)
SENSITIVE = Claim(
    "implicit sensitivities are right",
    "share of starts whose implicit sensitivities, by MINRES and by BiCGSTAB, are central differences to 0.001",
    "implicit ones converge",
    Bar(low=0.9),
    "forces between discs left out of the Hessian",
)
UNROLLED_FAILS = Claim(
    "unrolled sensitivities do not converge",
    "share of starts whose unrolled sensitivities are off by more than 0.1 after all steps",
    "they do not for many starts",
    Bar(low=0.25),
    "the implicit ones",
)


def settle_precision(run: Run, curves: Mapping[str, Float[np.ndarray, "seeds steps"]]) -> None:
    """Judge the claims on ridge from a `precision.Curve` of every seed."""
    error, distance = curves["implicit"], curves["distance"]
    run.settle(BOUNDED, (error / curves["bound"]).max(axis=1), (error / curves["loose"]).max(axis=1))
    late = slice(error.shape[1] // 2, None)

    def slopes(errors: Float[np.ndarray, "seeds steps"]) -> list[float]:
        pairs = zip(np.log(distance[:, late]), np.log(errors[:, late]), strict=True)
        return [float(np.polyfit(x, y, 1)[0]) for x, y in pairs]

    run.settle(FIRST_ORDER, slopes(error), slopes(curves["one_step"]))
    below, control = ((each < curves["unrolled"]).mean(axis=1) for each in (error, curves["one_step"]))
    run.settle(BELOW_UNROLLING, below, control)


def settle_catalogue(run: Run, errors: Mapping[str, tuple[float, float]]) -> None:
    """Judge the catalogue from every row's error, and its error with a wrong condition."""
    run.settle(CATALOGUED, max(right for right, _ in errors.values()), [wrong for _, wrong in errors.values()])


def settle_support_vectors(run: Run, found: Measured) -> None:
    """Judge the claims on support vector machines. The last way of differentiation is unrolling."""

    def apart(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.abs(values / reference - 1).max(axis=(1, 2, 3))

    loss, slope = found.last[..., -1:], found.slope[..., -1:]
    run.settle(SAME_LOSS, apart(found.last[..., :-1], loss), apart(found.first[..., -1:], loss))
    run.settle(RESPONDS, apart(found.slope[..., :-1], slope), apart(found.direct[..., -1:], slope))
    implicit = found.seconds[..., :-1]
    ratios, crossed = found.seconds[..., -1:] / implicit, implicit / implicit[..., ::-1]
    run.settle(FASTER, ratios.min(axis=(1, 2, 3)), crossed.min(axis=(1, 2, 3)))
    growth = ratios[:, -1] / ratios[:, 0]
    run.settle(FASTER_WHEN_LARGE, growth.min(axis=(1, 2)), (1 / growth).min(axis=(1, 2)))
    doubled = found.doubled / found.bytes[0]
    run.settle(FLAT, float(doubled[:, :-1].max()), doubled[:, -1])


def settle_distillation(
    run: Run, found: Mapping[str, np.ndarray], seconds: Mapping[str, Float[np.ndarray, " rounds"]]
) -> None:
    """Judge the claims on distillation, from `distillation.Compared` of every split, and times of a program."""
    learned, drawn, again, means = found["accuracies"].T
    run.settle(DISTILS, found["fall"], found["random_fall"])
    run.settle(BETTER_THAN_DRAWN, learned - drawn, again - drawn)
    run.settle(BETTER_THAN_MEANS, learned - means, drawn - means)
    run.settle(DISTILS_FASTER, seconds["unrolled"] / seconds["implicit"], seconds["loss"] / seconds["implicit"])


def settle_dictionary(run: Run, areas: Sequence[Areas]) -> None:
    """Judge the claims on dictionaries, from every split."""
    task, unsupervised, raw, shuffled = np.asarray(areas).T
    run.settle(TASK_DRIVEN, task - raw, shuffled - raw)
    run.settle(SUPERVISED, task - unsupervised, shuffled - unsupervised)


def settle_spheres(run: Run, found: Mapping[str, Float[np.ndarray, "starts ..."]]) -> None:
    """Judge the claims on discs, from `spheres.Sensitivities` of every start."""
    right = (found["by_theorem"][:, -1] < 1e-3) & (found["bicgstab"] < 1e-3)
    run.settle(SENSITIVE, float(right.mean()), float((found["unstressed"] < 1e-3).mean()))
    # Not-a-number is off too.
    off, control = (float((~(found[each][:, -1] <= 0.1)).mean()) for each in ("unrolled", "by_theorem"))
    run.settle(UNROLLED_FAILS, off, control)
