"""The command line: compare, resume, coordinate, device, report, list."""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsync import catalogue
from sparsync import settings as written
from sparsync.errors import Interrupted, SparsyncError, UsageError
from sparsync.progress import tell
from sparsync.storage import file_name

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distributed deep learning that communicates only when, what and with whom it must.",
)

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line; a mistake of the user's is one line on standard error and a non-zero exit."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the program)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show costs no result
    with _reported():
        app()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        _say(str(stop))
        sys.exit(INTERRUPTED)
    except SparsyncError as error:
        _say(f"sparsync: {error}")
        sys.exit(MISTAKE if isinstance(error, UsageError) else FAILED)
    except KeyboardInterrupt:
        _say("sparsync: stopped")
        sys.exit(INTERRUPTED)


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sparsync {version('sparsync')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


_REPEATED = {"strategies": "--strategy", "imports": "--import"}
_SHORT = {  # flags for keys of a table
    "rounds": ("federation", "rounds"),
    "cohort": ("federation", "cohort"),
    "participation": ("federation", "participation"),
    "epochs": ("federation", "epochs"),
    "client_optimizer": ("federation", "optimizer"),
}


def _flags() -> dict[str, tuple[str, str]]:
    """Return the flags of ``compare`` by name, each with the table and key that it sets."""
    tables = catalogue.settings()
    return {**{key: ("", key) for key in tables[""] if key not in tables}, **_SHORT}


def _option(name: str, table: str, key: str) -> inspect.Parameter:
    """Return the flag of a setting, as typer takes it: name, type and help follow from the setting."""
    setting = catalogue.settings()[table][key]
    names = [_REPEATED.get(name, f"--{name.replace('_', '-')}")]
    kind: Any = list[str] if name in _REPEATED else str
    if setting.annotation in (bool, int, float) or typing.get_args(setting.annotation)[:1] in ((int,), (float,)):
        kind = setting.annotation
    elif name == "seeds":
        kind = int
    if kind is bool:
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    text = setting.meaning.replace("``", "").replace("`", "")
    if "Default: " not in text and setting.default != "none" and name not in _REPEATED:
        text += f" Default: {setting.default}."
    text = f"Federated: {text[0].lower()}{text[1:]}" if table == "federation" else text
    annotation = Annotated[kind | None, typer.Option(*names, help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every setting, where it has ``**flags``."""
    signature = inspect.signature(command, eval_str=True)
    *explicit, _ = signature.parameters.values()
    options = [_option(name, *place) for name, place in _flags().items()]
    keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in explicit]
    command.__signature__ = signature.replace(parameters=[*keywords[:1], *options, *keywords[1:]])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


@app.command()
@_with_settings
def compare(
    experiment: Annotated[Path | None, typer.Argument(help="An experiment file (TOML). Flags override it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE for any key of an experiment file, such as split.epochs=5; repeat for more."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: the next free runs/NAME-N.")
    ] = None,
    draw: Annotated[bool, typer.Option("--report/--no-report", help="Draw figures and write report.html.")] = True,
    **flags: Any,
) -> None:
    """Train one task under several strategies, and compare what each cost for the accuracy it reached."""
    values = {(table, key): value for table, key, value in map(written.assigned, settings or [])}
    for name, place in _flags().items():
        if flags[name] not in (None, []):
            if place in values:
                raise UsageError(f"--set {'.'.join(filter(None, place))}: its flag is given, too; give one of them")
            values[place] = flags[name]
    source = str(experiment) if experiment else ""
    read = written.read(experiment) if experiment else {}
    variants = written.variants(read, source)
    for name, variant in variants.items() if variants else [("", read)]:
        written.override(variant, values)
        written.check(variant, f"variant {name}" if name else source)
    _say_code(source, [read, *(variants or {}).values()])
    tell("loading torch")
    from sparsync import comparison, study
    from sparsync.experiment import build

    if variants and experiment:
        with _folder(out, experiment.stem) as folder:
            _finish(study.compare(variants, folder, comparison.watch), draw)
        return
    made = build(read, source)
    with _folder(out, experiment.stem if experiment else made.data.partition(":")[0]) as folder:
        _finish([(folder, comparison.compare(made, folder, comparison.watch))], draw)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of an interrupted or killed run.")],
    draw: Annotated[bool, typer.Option("--report/--no-report", help="Draw figures and write report.html.")] = True,
) -> None:
    """Go on with a run where its last checkpoint is; the end is the same, bit for bit."""
    _is_folder(folder)
    tell("loading torch")
    from sparsync import comparison, deployment, study

    several = study.parts(folder) is not None
    if several:
        _say_code(str(folder / "study.json"), study.read(folder).values())
    elif (file := folder / "experiment.toml").is_file():
        _say_code(str(file), [written.read(file)])
    if deployment.is_coordinated(folder):
        _finish([(folder, deployment.resume(folder, watch=comparison.watch, tell=_say))], draw)
        return
    if several:
        _finish(study.resume(folder, comparison.watch), draw)
    else:
        _finish([(folder, comparison.resume(folder, comparison.watch))], draw)


@app.command()
def coordinate(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML), the same as on all devices.")],
    strategy: Annotated[str | None, typer.Option(help="Label of the strategy, if several are HADFL.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder (or file) that holds the dataset.")] = None,
    port: Annotated[int, typer.Option(help="Where to listen; 0 for any port that is free.")] = 0,
    begin_with: Annotated[int | None, typer.Option(help="Devices that must be there at first. Default: all.")] = None,
    heartbeat_timeout: Annotated[
        float, typer.Option(help="Seconds after which a device that does not answer is given up.")
    ] = 10,
    patience: Annotated[float, typer.Option(help="Seconds to wait for devices.")] = 600,
    here: Annotated[
        bool, typer.Option("--here", help="Start all devices here, slowed down as the profile says.")
    ] = False,
    slowdown: Annotated[float, typer.Option(help="With --here: of the fastest device.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: the next free runs/NAME-N.")
    ] = None,
    draw: Annotated[bool, typer.Option("--report/--no-report", help="Draw figures and write report.html.")] = True,
) -> None:
    """Train with HADFL on real machines: plan, and say who averages, for devices that `sparsync device` starts."""
    made = _read(experiment, data_root)
    from sparsync import comparison, deployment

    made, _ = deployment.only(made, strategy)
    settings = deployment.DeploymentSettings(port, begin_with, heartbeat_timeout, patience, here, slowdown)
    with _folder(out, experiment.stem) as folder:
        _finish([(folder, deployment.coordinate(made, folder, settings, watch=comparison.watch, tell=_say))], draw)


@app.command()
def device(
    experiment: Annotated[Path, typer.Argument(help="The experiment file (TOML) that the coordinator has.")],
    coordinator: Annotated[str, typer.Option(help="Where it listens: HOST:PORT.")],
    token: Annotated[Path, typer.Option(help="A copy of the file `token` in its folder.")],
    number: Annotated[int | None, typer.Option(help="Which device this is. Default: the rank under torchrun.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Label of the strategy, if several are HADFL.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder (or file) that holds the dataset.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where this one computes, e.g. cuda. Default: as the file.")
    ] = None,
    slowdown: Annotated[float, typer.Option(help="How many times longer than it does a step is to take.")] = 1,
    patience: Annotated[float, typer.Option(help="Seconds to train on without a coordinator.")] = 600,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with. Default: one per core.")] = None,
) -> None:
    """Be a device of HADFL on real machines, until its coordinator says that training is over."""
    rank = os.environ.pop("RANK", None)  # each device speaks for itself
    if number is None:
        if rank is None:
            raise UsageError("--number: say which device this is, from 0 on; torchrun says it by itself")
        number = int(rank)
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise UsageError(f"--coordinator {coordinator}: expected HOST:PORT, as in 192.168.1.10:29400")
    made = _read(experiment, data_root, device)
    from sparsync import deployment

    made, hadfl = deployment.only(made, strategy)
    deployment.serve(
        made,
        hadfl,
        number,
        (host, int(port)),
        deployment.read_token(token),
        slowdown=slowdown,
        patience=patience,
        threads=threads,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, complete or not.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Only print the table, as Markdown.")] = False,
    target: Annotated[
        str | None,
        typer.Option(help="As if this had been the target; common: half a point below what every run has reached."),
    ] = None,
) -> None:
    """Draw the figures and write report.html again, from what the folder holds."""
    _is_folder(folder)
    from sparsync import reporting, study

    parts = study.parts(folder)
    if not markdown:
        _finish([(part, None) for part in parts or [folder]], draw=True, target=target)
        return
    for part in parts or [folder]:
        print((f"### {part.name}\n\n" if parts else "") + reporting.markdown(_loaded(part, target)))


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Show this one in full. Default: a line for each.")] = None,
    imports: Annotated[
        list[str] | None, typer.Option("--import", help="Module of yours to import first; repeat for more.")
    ] = None,
) -> None:
    """Show all that has a name, from strategies to profile presets, with its parameters and their defaults."""
    kinds = _registries(imports) if imports else catalogue.kinds()
    print(catalogue.listed(kinds) if name is None else catalogue.described(kinds, name))


def _is_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one that `sparsync compare --out FOLDER` has written")


def _registries(imports: list[str]) -> catalogue.Kinds:
    """All that has a name, with what modules of the user's register."""
    from sparsync.experiment import import_modules
    from sparsync.registries import KINDS

    import_modules(imports)
    return KINDS


def _read(path: Path, data_root: Path | None, device: str | None = None) -> Any:
    settings = written.read(path)
    if "variants" in settings:
        raise UsageError(f"{path}: a study; real devices train one variant, so write a file for that")
    written.check(settings, str(path))
    _say_code(str(path), [settings])
    tell("loading torch")
    from sparsync.experiment import build

    flags = {"data_root": data_root, "device": device}
    return build({**settings, **{key: value for key, value in flags.items() if value is not None}}, str(path))


def _say_code(source: str, several: Iterable[dict[str, Any]]) -> None:
    """Say in one line which Python code a file names, before that runs."""
    named = dict.fromkeys(name for settings in several for name in written.code(settings))
    if source and named:
        _say(f"{source} has Python code run: {', '.join(named)}")


@contextmanager
def _folder(out: Path | None, name: str) -> Iterator[Path]:
    """Give the folder that the user names, or a new one: the next of ``runs/NAME-N``, unless nothing is put into it."""
    if out is not None:
        yield out
        return
    if "RANK" in os.environ:
        raise UsageError("under torchrun give --out FOLDER, the same for all ranks")
    folder = _next_free(Path("runs"), file_name(name))
    try:
        yield folder
    finally:
        with suppress(OSError):  # they hold something
            folder.rmdir()
            folder.parent.rmdir()


def _next_free(parent: Path, name: str) -> Path:
    n = 1
    while True:
        folder = parent / f"{name}-{n}"
        try:
            folder.mkdir(parents=True)  # by one process alone
            return folder
        except FileExistsError:
            n += 1
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made ({error.strerror}); give --out FOLDER") from None


def _loaded(folder: Path, target: str | None) -> Any:
    """A run, perhaps as if it had had another target."""
    from sparsync import reporting

    run = reporting.load(folder)
    if target is None:
        return run
    try:
        goal = run.common_target if target == "common" else float(target)
    except ValueError:
        goal = None
    if goal is None or not 0 < goal < 1:
        raise UsageError(f"--target {target}: an accuracy between 0 and 1 (0.985 is 98.5 %), or common")
    return run.at(goal)


def _finish(runs: Iterable[tuple[Path, dict[str, Any] | None]], draw: bool, target: str | None = None) -> None:
    """Print each run's table, draw its figures, write its report; a strategy that failed makes the exit non-zero."""
    failed = []
    for folder, summary in runs:
        if os.environ.get("RANK", "0") != "0":
            continue
        from rich.console import Console

        from sparsync import reporting

        run = _loaded(folder, target)
        if draw:  # first, since nobody may be reading what is printed
            reporting.draw(run, folder)
            page = reporting.write(folder, run)
        Console().print(reporting.table(run))
        print(reporting.headline(run))
        if draw:
            print(f"report: {page}")
        failed += [one for one in (summary or {}).get("results", []) if one["error"]]
    for one in failed:
        print(f"sparsync: {one['label']} (seed {one['seed']}): {one['error']}", file=sys.stderr)
    if failed:
        sys.exit(FAILED)
