"""The `jattn` command: list, run, resume, runs, show, compare, report, bench, compile, tune, data, weights, doctor."""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import tyro
from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.markup import escape

from jattn import pretrained, terminal
from jattn.bench import BENCHMARKS
from jattn.data.catalogue import list_sets
from jattn.data.source import fetch
from jattn.data.sources import SOURCES
from jattn.doctor import diagnose
from jattn.pretrained.catalogue import list_models
from jattn.pretrained.known import MODELS
from jattn.runs import CheckpointError, Experiment, RunError, Stopped, discover, load_experiment, open_run
from jattn.runs.directory import CONFIG, ENVIRONMENT, read_json, read_verdicts, to_json
from jattn.runs.index import RUNS, find_run, last_metrics, list_runs, summarise
from jattn.runs.report import write_report
from jattn.runs.trackers import TRACKERS, open_tracker
from jattn.train import NonFiniteError
from jattn.tune import tune
from kernels.compile import KERNELS, TARGETS, CompileError, CompilerMissing, compile_kernel, text
from kernels.compile.case import parse_settings

FILE_WIDTH = 200
"""Columns of what goes to a file or a pipe, so that lines are seldom broken there."""


def open_console(*, stderr: bool = False) -> Console:
    """Standard output or error; as wide as the terminal, or as COLUMNS says, where there is either."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)


console = open_console()
log = logging.getLogger("jattn")

EXIT_CLAIM_FAILED, EXIT_USAGE, EXIT_FAILED = 1, 2, 3
RUN_OPTIONS = {"preset", "dir", "root", "strict", "quiet", "track", "help"}
EXPECTED = (RunError, CheckpointError, NonFiniteError, OSError)
"""What a run may fail with through no fault of the code; the message is all there is to say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit status: 0 done, 1 a claim did not hold (--strict), 2 usage, 3 failed, 128 + n signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)} (see: jattn {options.command} --help)")
    _log_to_stderr()
    try:
        return options.handle(options, rest)
    except BrokenPipeError:
        return 0
    except EXPECTED as error:
        return _complain(error, EXIT_FAILED)
    except (ValueError, TypeError) as error:
        return _complain(error, EXIT_USAGE)
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything but an experiment's own config fields."""
    parser = argparse.ArgumentParser(prog="jattn", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, handle: Any, summary: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False, **options)
        command.set_defaults(handle=handle)
        return command

    def add_root(command: argparse.ArgumentParser) -> None:
        command.add_argument("--root", type=Path, default=RUNS, help="where runs lie (default: %(default)s)")

    def add_session(command: argparse.ArgumentParser) -> None:
        command.add_argument("--strict", action="store_true", help="exit 1 if a claim does not hold")
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument(
            "--track", nargs="*", default=["tensorboard"], choices=sorted(TRACKERS), help="where metrics are copied"
        )

    add("list", _list, "experiments, their papers and presets, and what each costs")

    run = add(
        "run",
        _run,
        "run an experiment; its config fields are options too",
        usage="jattn run EXPERIMENT [options] [config fields]",
        add_help=False,
    )
    run.add_argument("experiment", nargs="?", help="a name from `jattn list`, or a path/to/file.py of your own")
    run.add_argument("--preset", help="smoke, laptop (the default), paper, or another the experiment offers")
    run.add_argument("--dir", type=Path, help="the run directory (default: a new one under --root)")
    run.add_argument("-h", "--help", action="store_true", help="show this and the experiment's config fields")
    add_root(run)
    add_session(run)
    run.set_defaults(parser=run)

    resume = add("resume", _resume, "go on with a run that was stopped, killed or failed")
    show = add("show", _show, "a run's config, claims and last metrics")
    for command in (resume, show):
        command.add_argument("run", metavar="RUN", help="a path, a name or a part of one, or `latest`")
        add_root(command)
    add_session(resume)
    show.add_argument("--markdown", action="store_true", help="the claims as a Markdown table, nothing else")

    runs = add("runs", _runs, "a table of runs")
    runs.add_argument("filters", nargs="*", metavar="FIELD=VALUE", help="experiment, preset, status or a config field")
    add_root(runs)

    compare = add("compare", _compare, "where runs differ: config, claims, last metrics")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    add_root(compare)

    report = add("report", _report, "one self-contained HTML page of runs: claims, figures, curves, configs")
    report.add_argument("runs", nargs="*", metavar="RUN", help="default: every run under --root")
    report.add_argument("--out", type=Path, default=Path("report.html"))
    add_root(report)

    bench = add("bench", _bench, "speed, as ratios measured side by side in one run")
    bench.add_argument("benchmark", choices=sorted(BENCHMARKS))
    bench.add_argument("--markdown", action="store_true", help="the table as the documentation has it")

    compiling = add("compile", _compile, "what a kernel's compiler says of it, for a GPU or TPU that is not there")
    compiling.add_argument("kernel", metavar="KERNEL", help=f"{', '.join(KERNELS)}, or module:function of your own")
    compiling.add_argument("--target", required=True, choices=list(TARGETS))
    compiling.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a parameter, as head_dim=64"
    )
    compiling.add_argument("--timeout", type=float, default=300.0, help="seconds (default: %(default)g)")
    compiling.add_argument("--json", action="store_true", help="one JSON object")

    tuning = add("tune", _tune, "measure which tiles of attention are fastest on this device, and use those")
    tuning.add_argument("--head-dim", type=int, nargs="+", default=[64, 128])
    tuning.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    tuning.add_argument("--length", type=int, nargs="+", default=[1024, 4096])

    data = add("data", _data, "real data sets: what there is, where it was found, its licence")
    actions = data.add_subparsers(dest="action", metavar="fetch")
    fetching = actions.add_parser("fetch", help="get data sets into the user's cache", allow_abbrev=False)
    fetching.add_argument("names", nargs="+", choices=sorted(SOURCES), metavar="NAME", help=", ".join(sorted(SOURCES)))

    weights = add("weights", _weights, "pretrained models: what there is, where it was found, its licence")
    actions = weights.add_subparsers(dest="action", metavar="fetch")
    fetching = actions.add_parser("fetch", help="get models into the user's cache", allow_abbrev=False)
    fetching.add_argument("names", nargs="+", choices=list(MODELS), metavar="NAME", help=", ".join(MODELS))

    add("doctor", _doctor, "versions, devices, what would run where; what is missing and how to install it")
    return parser


def _list(options: argparse.Namespace, rest: list[str]) -> int:
    console.print(terminal.experiments_list(discover()))
    return 0


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    if options.experiment is None:
        if not options.help:
            options.parser.error("the experiment is missing; jattn list names those there are")
        options.parser.print_help()
        return 0
    experiment = load_experiment(options.experiment)
    if clash := RUN_OPTIONS & {field.name for field in fields(experiment.config_type)}:
        raise ValueError(f"config fields of {experiment.name} must not be named as options of run; got {sorted(clash)}")
    preset = options.preset or experiment.default_preset
    if preset not in experiment.presets:
        raise ValueError(f"preset must be one of {', '.join(experiment.presets)}; got {preset!r}")
    if options.help:
        options.parser.print_help()
    config = tyro.cli(
        experiment.config_type,
        prog=f"jattn run {options.experiment}",
        description=f"{experiment.summary}\n\nConfig fields, with the defaults of preset {preset!r}:",
        default=experiment.presets[preset].config,
        args=["--help"] if options.help else rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    directory = options.dir or _fresh_directory(options.root, f"{Path(experiment.name).stem}-{preset}")
    return _work(experiment, preset, config, directory, options)


def _resume(options: argparse.Namespace, rest: list[str]) -> int:
    directory = find_run(options.run, options.root)
    frozen = summarise(directory)
    experiment = load_experiment(frozen.experiment)
    defaults = to_json(experiment.presets[experiment.default_preset].config)
    changed = sorted(set(defaults) ^ set(frozen.config))
    if changed:
        raise RunError(
            f"{directory} was made by another version of {experiment.name}: its config differs in {', '.join(changed)}"
        )
    try:
        config = msgspec.convert(frozen.config, experiment.config_type)
    except msgspec.ValidationError as error:
        raise RunError(f"{directory / CONFIG} does not fit {experiment.name}: {error}") from None
    return _work(experiment, frozen.preset, config, directory, options)


def _fresh_directory(root: Path, name: str) -> Path:
    """Make a directory that was not there before, named by the time; runs begun in the same second are numbered."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    directory, number = root / f"{stamp}-{name}", 1
    while True:
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            number += 1
            directory = root / f"{stamp}.{number}-{name}"


def _work(experiment: Experiment, preset: str, config: Any, directory: Path, options: argparse.Namespace) -> int:
    trackers = [partial(open_tracker, name) for name in options.track]
    _say(f"{experiment.name} ({preset}) in {directory}")
    run = None
    try:
        with open_run(experiment, preset, config, directory, trackers=trackers, quiet=options.quiet) as run:
            experiment.run(config, run)
    except (Stopped, KeyboardInterrupt) as stop:
        _say(str(stop) or f"interrupted; go on with: jattn resume {directory}")
        return 128 + ((run and run.stop_request.signal) or signal.SIGINT)
    except Exception as error:
        if run is None or isinstance(error, EXPECTED):
            raise
        traceback.print_exc()  # a fault of the experiment's own code: a ValueError there means no wrong usage
        return _complain(f"{experiment.name} failed; when it is mended: jattn resume {directory}", EXIT_FAILED)
    verdicts = read_verdicts(directory)
    if verdicts:
        _print_apart(terminal.claims_table(verdicts))
    _say(f"Report: jattn report {directory}")
    return EXIT_CLAIM_FAILED if options.strict and not all(v.held for v in verdicts) else 0


def _runs(options: argparse.Namespace, rest: list[str]) -> int:
    console.print(terminal.runs_table(list_runs(options.root, options.filters)))
    return 0


def _show(options: argparse.Namespace, rest: list[str]) -> int:
    directory = find_run(options.run, options.root)
    if options.markdown:
        _say(terminal.claims_markdown(read_verdicts(directory)))
        return 0
    summary = summarise(directory)
    _say(str(directory))
    _print_apart(
        terminal.summary_table(summary, read_json(directory / ENVIRONMENT) or []),
        terminal.claims_table(summary.verdicts),
        terminal.metrics_table({directory.name: last_metrics(directory)}),
    )
    return 0


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    summaries = [summarise(find_run(name, options.root)) for name in options.runs]
    _print_apart(
        terminal.config_differences_table(summaries),
        terminal.claims_side_by_side(summaries),
        terminal.metrics_table({run.directory.name: last_metrics(run.directory) for run in summaries}),
    )
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    directories = [find_run(name, options.root) for name in options.runs]
    directories = directories or [run.directory for run in list_runs(options.root)]
    if not directories:
        raise RunError(f"there is no run under {options.root} to report on")
    write_report(directories, options.out)
    _say(f"Wrote {options.out}")
    return 0


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    title, measure = BENCHMARKS[options.benchmark]
    rows = measure()
    if options.markdown:
        _say(terminal.rows_markdown(rows))
    else:
        console.print(terminal.rows_table(title, rows))
    return 0


def _compile(options: argparse.Namespace, rest: list[str]) -> int:
    parameters = parse_settings(options.settings)
    try:
        report = compile_kernel(options.kernel, options.target, timeout=options.timeout, **parameters)
    except CompilerMissing as error:
        return _complain(error, EXIT_USAGE)
    except CompileError as error:
        return _complain(error, EXIT_FAILED)
    if options.json:
        _say(json.dumps(report.to_json(), indent=2))
    else:
        _say(text.heading(report))
        if report.kernels:
            console.print(terminal.rows_table("", text.kernel_rows(report)))
        _say("\n".join(text.summary(report)))
    return EXIT_FAILED if report.refused else 0


def _tune(options: argparse.Namespace, rest: list[str]) -> int:
    path, entries = tune(options.head_dim, options.dtype, options.length)
    console.print(terminal.rows_table("fastest tiles", [asdict(entry) for entry in entries]))
    _say(f"Wrote {path}")
    return 0


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    if options.action == "fetch":
        for name in options.names:
            _say(f"{name} is in {fetch(SOURCES[name])}")
    else:
        console.print(terminal.rows_table("Data sets", list_sets()))
    return 0


def _weights(options: argparse.Namespace, rest: list[str]) -> int:
    if options.action == "fetch":
        for name in options.names:
            _say(f"fetching {name}")
            _say(f"{name} is in {pretrained.fetch(name).weights.parent}; licence: {MODELS[name].licence}")
    else:
        console.print(terminal.rows_table("Pretrained models", list_models()))
    return 0


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    console.print(terminal.rows_table("This machine", [asdict(finding) for finding in diagnose()]))
    return 0


def _log_to_stderr() -> None:
    handler = RichHandler(console=open_console(stderr=True), show_path=False, show_level=False)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _say(text: str) -> None:
    """Print a line as it is: nothing in it is markup, and no path in it is broken."""
    console.print(text, markup=False, soft_wrap=True)


def _print_apart(*parts: RenderableType) -> None:
    """Print each part with an empty line after it."""
    for part in parts:
        console.print(part)
        console.print()


def _complain(error: Exception | str, status: int) -> int:
    open_console(stderr=True).print(f"[bold red]jattn:[/] {escape(str(error))}", soft_wrap=True)
    return status


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
