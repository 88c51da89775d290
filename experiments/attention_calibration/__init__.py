"""Attention calibration: sinks beyond the first token, and what shrinking them in chosen heads does to answers.

    jattn weights fetch smollm2-135m
    jattn data fetch moby_dick state_of_the_union
    jattn run attention_calibration

SmolLM2-135M-Instruct says of beginnings of sentences whether they are from a novel or from a speech. For each head,
attention sinks are found in each prompt and calibrated in this head alone (`jattn.interpret.CalibrateSinks`); heads
with which more prompts are answered rightly are calibrated together on other prompts.

Read in this order: config, texts, sweep, measure, claims, figures.
"""

import numpy as np
from flax import nnx

from experiments.attention_calibration import claims, figures
from experiments.attention_calibration.config import PRESETS, Config
from experiments.attention_calibration.measure import frequent_sinks, measure, summary
from experiments.attention_calibration.sweep import stack
from experiments.attention_calibration.texts import build_task, random_task
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.pretrained.load import load
from jattn.runs import Experiment, Paper, Run


def run(config: Config, run: Run) -> None:
    """Measure, judge, draw."""
    sizes = config.length, config.calibration, config.test, config.seed
    if config.model is None:
        small = LanguageModelConfig(30, 16, 2, 2, 24, kv_heads=1, implementation="reference")  # compiles sooner
        model = LanguageModel(small, rngs=nnx.Rngs(config.seed))
        task, decode = random_task(model.config.vocabulary, *sizes), str
    else:
        model, tokenizer = load(config.model)
        task, decode = (
            build_task(lambda text: tokenizer.encode(text, add_special_tokens=False).ids, *sizes),
            tokenizer.decode,
        )
    found = measure(stack(model, task.answers, config.at_once), task, config, run.stop_if_asked)
    claims.settle(run, found, config)
    results = summary(found, config)
    results["tokens that are sinks most often"] = frequent_sinks(found, task.calibration.tokens, decode)
    run.save_results(results)
    absolute, relative = results["sinks per head and prompt, by layer"], results["the same by the relative rule"]
    run.figure("profile", figures.profile(absolute, relative), "Sinks beyond the first token, by layer and rule.")
    changes = np.array(results["change of the margin with one head calibrated"])
    run.figure("heads", figures.grid(changes, config.layers[0]), "What calibrating each head alone does to the margin.")
    run.figure("test", figures.arms(results["test"]), "Accuracy and margin on the test prompts; a dot for each set.")


EXPERIMENT = Experiment(
    name="attention_calibration",
    summary="Attention sinks beyond the first token, found and shrunk in chosen heads of a small published model.",
    paper=Paper(
        "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through "
        "Attention Calibration",
        "Yu, Wang, Fu, Shi, Shaikh, Lin",
        "ICML 2024",
        "2406.15765",
    ),
    presets=PRESETS,
    run=run,
)
