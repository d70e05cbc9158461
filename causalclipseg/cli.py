"""The command line, `causalclipseg` or `python -m causalclipseg`.

It holds no model code: each command reads its arguments and calls one job. Whatever needs torch is imported
inside the commands, so that `--help` answers at once.

Exit status: 0; 2 for a wrong argument, setting or input; 1 for anything else that fails; 130 after Ctrl-C. A
failure is one line on stderr; `--debug`, or CAUSALCLIPSEG_DEBUG=1, shows the traceback instead.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from . import __version__
from ._cli_measure import AverageOption, CheckOption, SplitRuleOption, add_commands

PACKAGE = Path(__file__).resolve().parent
SHIPPED_MODEL = PACKAGE.parent / "assets" / "models" / "mini"
if not SHIPPED_MODEL.is_dir():  # installed apart from the checkout: pyproject.toml puts it here
    SHIPPED_MODEL = PACKAGE / "models" / "mini"

app = typer.Typer(
    name="causalclipseg", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Segment chest X-rays from a sentence, with causal intervention. A teaching package, not a medical device.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Fetch, check, describe and make data sets.")
app.add_typer(data_app, name="data")
hub_app = typer.Typer(no_args_is_help=True, help="Runs on the Hugging Face hub.")
app.add_typer(hub_app, name="hub")

ModelOption = Annotated[
    Optional[str],
    typer.Option("--model", help="Folder with config.json and model.safetensors, or a hub id.", show_default="the shipped mini"),
]
ThresholdOption = Annotated[float, typer.Option(help="A pixel is lesion where its probability is at least this; in (0, 1).")]


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: the arguments without the program's name; None: those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("CAUSALCLIPSEG_DEBUG", "") not in ("", "0")
    argv = [argument for argument in argv if argument != "--debug"]  # wherever it stands
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "×" shall not end the program
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # images.py says itself what is wrong with a picture
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        try:
            app(args=argv, prog_name="causalclipseg")
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            # Our jobs raise ValueError for what the user can put right (ImageError, DataError, TrainingError, …).
            status = 2 if isinstance(error, ValueError) else 1
            if debug:
                _end_at_once(status, traceback.format_exc())
                raise
            _say(_one_line(error))
            _end_at_once(status)
            sys.exit(status)
        finally:
            _leave_the_others()


def _others():
    """torch.distributed where this is one of several processes, else None; a command that has not needed torch imports nothing."""
    torch = sys.modules.get("torch")
    several = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed if several else None


def _leave_the_others() -> None:
    """One of several processes takes leave of the rest; gloo's threads, left to Python's end, abort it now and then."""
    if distributed := _others():
        distributed.destroy_process_group()


def _end_at_once(status: int, last_words: str = "") -> None:
    """End a process that failed beside others on GPUs: to take leave, NCCL would wait for them, and they wait for it."""
    if (distributed := _others()) and distributed.get_backend() != "gloo":
        print(last_words, end="", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,  # read by main()
):
    if version:
        typer.echo(f"causalclipseg {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit()


@app.command()
def predict(
    image: Annotated[str, typer.Argument(help="PNG, JPEG, TIFF, …; 8 or 16 bits, grey or colour.")],
    report: Annotated[str, typer.Argument(help='A sentence, e.g. "One infected area, lower left lung."; "" for none.')],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results; made where it is missing.")],
    model: ModelOption = None,
    threshold: Annotated[str, typer.Option(help="A pixel is lesion where its probability is at least this; in (0, 1). Or expected-dice: each picture's own.")] = "0.5",
    average_views: AverageOption = False,
    check_side: CheckOption = False,
):
    """Segment what a sentence names in a picture: masks, probability, overlay and result.json."""
    from .images import read_picture

    read_picture(image)
    from .evaluation import read_threshold
    from .inference import save_result, segment

    level = read_threshold(threshold)
    network, name = _load(model)
    result = segment(network, image, report, threshold=level, average_views=average_views, check_side=check_side)
    result.model = name
    save_result(result, out)
    for warning in result.warnings:
        _say(f"warning: {warning}")
    typer.echo(f"{result.finding} ({100 * result.area_fraction:.1f} % of the picture)")
    for line in result.disagreements:
        typer.echo(line)
    typer.echo(f"Written to {out}.")


@app.command()
def train(
    data: Annotated[list[str], typer.Option(help="Folder of a data set (Kaggle, LViT or CSV layout); may be repeated.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the run.")],
    preset: Annotated[Optional[str], typer.Option(help='"mini", "paper", or a network to compare with: "monai:UNet", …', show_default="mini")] = None,
    objective: Annotated[Optional[str], typer.Option(help='"none", "causal", "bounded", "minimax", "interventional" or "adjusted".', show_default="the preset's")] = None,
    settings: Annotated[Optional[list[str]], typer.Option("--set", help="key=value of a setting, e.g. epochs=5; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Use only the first pictures of each split (for trials).")] = None,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="The file in `weights` is a TorchScript archive, which may run code: only with a digest.")
    ] = False,
):
    """Train a model; the weights that validate best are kept in --out."""
    from .checkpoints import not_begun
    from .config import apply_settings
    from .config import preset as settings_of

    changes = list(settings or []) + ([f"objective={objective}"] if objective is not None else [])
    if resume and not_begun(out):
        typer.echo(f"{out} holds no run yet; this starts it.")
        resume = False
    if resume:
        from .training import load_run

        model_config, config = load_run(out)  # `train` refuses what differs from these
        model_config = dataclasses.replace(model_config, preset=preset or model_config.preset)
        model_config, config = apply_settings(changes, model_config, config)
    else:
        model_config, config = apply_settings(changes, *settings_of(preset or "mini"))
    from .training import train as run

    run(data, out, model_config, config, resume=resume, limit=limit, torchscript=torchscript)
    typer.echo(f"Trained: {out}.")


@app.command()
def audit(
    data: Annotated[str, typer.Option(help="Folder of a data set (Kaggle, LViT or CSV layout).")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for audit.json and audit.html.")],
    model: ModelOption = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[Optional[int], typer.Option(min=2, help="Use only so many pictures, spread evenly over the groups.")] = None,
    threshold: ThresholdOption = 0.5,
    split_rule: SplitRuleOption = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Show pictures of patients on the page, too (phantoms are always shown).")] = False,
):
    """What a model's answer depends on: other acquisitions, other sentences, groups, and where its masks look."""
    from . import audit as job
    from .baselines import best_device
    from ._files import check_folder
    from .checkpoints import kept_settings
    from .evaluation import check_threshold, not_held_out, predictor

    check_threshold(threshold)
    network, name = _load(model)
    trained = kept_settings(model or SHIPPED_MODEL)
    split_rule = split_rule or trained.get("split_rule", "published")
    network.to(best_device())
    with _tqdm(unit="predictions") as bar:
        def show(done, total):
            bar.total = total
            bar.update(done - bar.n)

        check_folder(out)
        found = job.audit(
            predictor(network), data, model=name, attention=job.attention(network) if network.config.intervention else None,
            image_size=network.config.image_size, split=split, threshold=threshold, splits=split_rule, limit=limit, pictures=pictures or None,
            progress=show,
        )  # fmt: skip
    if warning := not_held_out(trained, split, (), split_rule):
        found.result["note"] += f" {warning}"
        _say(f"warning: {warning}")
    found.save(out)
    plain, worst = found.result["plain"]["per_image"]["dice"], found.result["worst"]
    typer.echo(f"{found.result['n']} of {found.result['of']} pictures ({split}), per-image Dice {plain['mean']:.4f}")
    typer.echo(f"worst edit: {worst['edit']}, severity {worst['severity']}: Dice {worst['dice']['mean']:.4f}, {worst['change']['mean']:.1%} of the answer moved")
    typer.echo(f"Written to {out}.")


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Two or more folders or hub ids of models with the same settings.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the model; made where it is missing.")],
):
    """The mean of several models' weights: runs from one start, tuned with other seeds or data."""
    from .averaging import average as mean

    typer.echo(f"The mean of {len(models)} models is in {mean(models, out)}.")


@app.command()
def ensemble(
    models: Annotated[list[str], typer.Argument(help="Two or more folders or hub ids; the first answers alone where not all are asked for, and decides what stays empty. Or one, with --silent.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the model; made where it is missing.")],
    data: Annotated[
        Optional[list[str]],
        typer.Option(help="Folder they were trained on: tokens that its sentences never use are left out of the file; may be repeated."),
    ] = None,
    silent: Annotated[Optional[str], typer.Option(help="One more, trained without sentences: asked only where none is given. Beside a single model it takes the place of that one's own; the rest stays as stored.")] = None,
    bits: Annotated[int, typer.Option(help="8, or 4 for the large weights of all networks after the first.")] = 8,
):
    """One model that holds several networks, asked together by --average-views."""
    from .averaging import ensemble as join
    from .config import ModelConfig, load_json
    from .model import CONFIG_FILE

    folder = join(models, out, data or [], silent, bits)
    typer.echo(f"{1 + len(load_json(ModelConfig, folder / CONFIG_FILE).further)} networks are in {folder}.")


@data_app.command("check")
def check_data(
    directory: Annotated[Path, typer.Argument(help="Folder of a data set (Kaggle, LViT or CSV layout).")],
    out: Annotated[Optional[Path], typer.Option("--out", help="JSON file for everything that was found, with all names.")] = None,
):
    """Look at every file and sentence of a data set; exit status 1 where something is wrong."""
    import json

    from ._files import check_writable, write_text
    from .data import check

    if out:
        check_writable(out)
    with _tqdm(unit="pictures") as bar:
        def show(done, total):
            bar.total = total
            bar.update(1)

        result = check(directory, show)
    if out:
        write_text(out, json.dumps(result.to_dict(), indent=2) + "\n")
    typer.echo("\n".join(result.lines()))
    if result.errors:
        raise typer.Exit(1)


@data_app.command("describe")
def describe_data(directory: Annotated[Path, typer.Argument(help="Folder with pictures and masks, and no sentences.")]):
    """Write sentences from the masks, in the published grammar, and say so in the file."""
    from .data import describe

    for path, count in describe(directory).items():
        typer.echo(f"{count} sentences written from masks to {path}.")


@data_app.command("download")
def download_data(directory: Annotated[Path, typer.Argument(help="Folder to put QaTa-COV19 into; must not exist, or be empty.")]):
    """Fetch QaTa-COV19's pictures and masks from Kaggle (with a Kaggle token, where Kaggle asks for one)."""
    from .data import download

    typer.echo(f"QaTa-COV19 is in {download(directory)}. Sentences: put the workbooks beside it, or run `causalclipseg data describe`.")


@data_app.command()
def phantoms(
    directory: Annotated[Path, typer.Argument(help="Folder to write; an earlier set of phantoms in it is replaced.")],
    count: Annotated[int, typer.Option(help="Number of pictures, over all splits.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Edge of a picture in pixels.")] = 224,
    coupling: Annotated[
        Optional[float], typer.Option(help="Patients of a world whose scanner goes with the side of the lesion: correlation, -1 to 1.", show_default="no such world")
    ] = None,
    precision: Annotated[Optional[str], typer.Option(help="In such a world, what sentences tell: generic, side or specific.", show_default="generic")] = None,
):
    """Write synthetic chest X-rays with masks, sentences and the truth behind them, in the Kaggle layout."""
    if precision is not None and coupling is None:
        raise ValueError("--precision belongs to a world; give --coupling, too (0 for none).")
    from .phantoms import World, write_dataset

    world = World(coupling, precision or "generic", size) if coupling is not None else None
    with _tqdm(total=count) as bar:
        write_dataset(directory, count, seed=seed, size=size, world=world, progress=lambda done, _: bar.update(done - bar.n))
    typer.echo(f"{count} phantoms written to {directory}.")


@hub_app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    name: Annotated[str, typer.Argument(help='Where to: "org/name"; made if it is not there.')],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
):
    """Upload a run: weights, settings, log, results and a model card made from them; no picture."""
    from .card import push_to_hub

    typer.echo(f"Published: {push_to_hub(run, name, private=private)}.")


@hub_app.command()
def pull(
    name: Annotated[str, typer.Argument(help='"org/name".')],
    out: Annotated[Path, typer.Argument(help="Folder to put it into; must not exist, or be empty.")],
):
    """Fetch a run that was pushed; --model and start take its name without this, too."""
    from .card import pull_run

    typer.echo(f"{name} is in {pull_run(name, out)}.")


@hub_app.command()
def card(run: Annotated[Path, typer.Argument(help="Folder of a run.")]):
    """Write the run's model card anew, with what `evaluate --out RUN/NAME.json` has measured since."""
    from .card import write_card

    typer.echo(f"Written: {write_card(run)}.")


# ---------------------------------------------------------------- helpers


def _load(model: str | None):
    """A model, and how results name it: a folder by its last name, a hub id as it is."""
    if model is None and not SHIPPED_MODEL.is_dir():
        raise ValueError(f"There is no shipped model at {SHIPPED_MODEL}; give one with --model (a folder or a hub id).")
    from .baselines import load_model

    if model == "":
        raise ValueError("--model is empty; give a folder or a hub id, or leave it out.")
    where = SHIPPED_MODEL if model is None else model
    network = load_model(where)
    return network, Path(where).resolve().name if Path(where).is_dir() else str(where)


def _tqdm(*args, **options):
    from tqdm import tqdm

    return tqdm(*args, disable=None, leave=False, **options)  # None: shown on a terminal only


def _one_line(error: Exception) -> str:
    if isinstance(error, shutil.Error):  # of a folder that is copied: a list, an entry a file
        return f"{len(error.args[0])} files could not be copied; the first: {error.args[0][0][1]}: {error.args[0][0][2]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    name = type(error).__name__
    return f"unexpected {name}{f' ({text[:300]})' if text else ''}; --debug shows where."


def _say(text: str) -> None:
    print(f"causalclipseg: {text}", file=sys.stderr)


add_commands(app, _load, _tqdm, SHIPPED_MODEL)
