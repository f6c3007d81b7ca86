"""The commands of `icam`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..evaluate._benchmark import ALL
from ..models import DEFAULT
from ..query import Question
from . import _options as options
from ._app_page import serve_page
from ._compare import compare_methods, print_methods
from ._evaluate import Settings, run_evaluation
from ._explain import Request, run
from ._report import write_report
from ._run import run as run_data_set
from ._taps import list_taps

app = typer.Typer(
    help="Ask a convolutional network why: a class activation map fused over all of its layers.",
    epilog="First steps:  icam explain   |   icam explain photo.jpg --target top3   |   icam taps --model resnet18",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # or each line of a docstring ends a line of help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"icam {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def explain(
    context: typer.Context,
    images: options.Images = None,
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    labels: options.Labels = None,
    task: options.Task = None,
    target: options.Target = "top1",
    versus: options.Versus = None,
    within: options.Within = None,
    similar_to: options.SimilarTo = None,
    probability: options.Probability = False,
    step: options.Step = None,
    negate: options.Negate = False,
    out: options.Out = Path("icam-out"),
    method: options.Method = "integrative",
    taps: options.TapChoice = None,
    readout: options.Readout = None,
    aggregation: options.AggregationChoice = None,
    negative_share: options.NegativeShare = None,
    bias: options.BiasChoice = None,
    bias_share: options.BiasShare = None,
    weighting: options.WeightingChoice = None,
    weight_exponent: options.WeightExponent = None,
    path_exponent: options.PathExponent = None,
    stride_exponent: options.StrideExponent = None,
    stage_share: options.StageShare = None,
    signed: options.Signed = None,
    fusion: options.FusionChoice = None,
    gamma: options.Gamma = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Explain what a network sees in photographs.

    Prints what the network says, the layers that mattered and how the score splits, and writes for each image an
    overlay, a panel, a record for `icam report`, and the explanation, which `Explanation.load` reads back.

    Why a tabby and not a tiger cat:  icam explain photo.jpg --target tabby --versus "tiger cat"

    Why a cat in this part:  icam explain photo.jpg -m deeplab.onnx --target cat --within 40,60,200,180

    Why a dog where the mask is:  icam explain photo.jpg -m deeplab.onnx --target dog --within mask.png

    Why this box:  icam explain photo.jpg -m fastestdet.onnx --task fastestdet --within 40,60,200,180

    Why these two are alike:  icam explain photo.jpg --similar-to other.jpg

    An image that cannot be explained is reported at the end, with exit code 1; the others are done.
    """
    question = Question(target, versus, within, similar_to, probability, step, negate)
    chosen = options.chosen_method(context)
    request = Request(tuple(images or ()), model, weights, labels, task, question, out, chosen, as_json, debug)
    raise typer.Exit(run(request))


@app.command()
def compare(
    image: Annotated[Path | None, typer.Argument(help="A photograph; without it, the bundled cat.")] = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas between them; see icam methods.")
    ] = "integrative,gradcam,gradcam++,hirescam,layercam-fused",
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    labels: options.Labels = None,
    task: options.Task = None,
    target: options.Target = "top1",
    versus: options.Versus = None,
    within: options.Within = None,
    similar_to: options.SimilarTo = None,
    probability: options.Probability = False,
    step: options.Step = None,
    negate: options.Negate = False,
    out: options.Out = Path("icam-out"),
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Draw several methods' maps of one photograph side by side; what is explained is said as in icam explain.

    icam compare photo.jpg --methods integrative,gradcam,layercam-fused

    One picture shows how methods differ, not which is right: icam evaluate measures them over many.
    """
    question = Question(target, versus, within, similar_to, probability, step, negate)
    compare_methods(image, _names(methods), model, weights, labels, task, question, out, as_json)


@app.command()
def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="A folder of photographs, a CSV file with a column named file, or a folder with boxes or masks as in "
            "Pascal VOC."
        ),
    ],
    models: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A network, repeatable, as in icam explain.")
    ] = None,
    weights: options.WeightsOfSeveral = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas between them; see icam methods.")
    ] = "integrative,gradcam,gradcam++,hirescam,layercam-fused",
    metrics: Annotated[
        str, typer.Option(help=f"Any of {', '.join(ALL)}.")
    ] = "insertion,deletion,ins-del,drop,increase,area",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="What is explained: top1, the network's own top class; label, from the CSV file's column named label, "
            "an index or name; object, each class of objects that has boxes or masks, the default where any has.",
        ),
    ] = None,
    regions: Annotated[
        str | None, typer.Option(help="Where the objects are: boxes (the default where there are any) or masks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many photographs, at even distances.", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Steps of insertion and deletion.", min=1)] = 16,
    reference: Annotated[str, typer.Option(help="The method that the others are paired with.")] = "integrative",
    out: options.Out = Path("icam-evaluation"),
    seed: Annotated[int, typer.Option(help="Of ties and of the bootstrap.")] = 0,
    processes: Annotated[
        int,
        typer.Option(help="How many photographs are measured at once, each by a process of its own.", min=1),
    ] = 1,
    debug: options.Debug = False,
) -> None:
    """Measure methods over many photographs.

    icam evaluate photos/ --methods integrative,gradcam,layercam-fused --limit 50

    Prints means with 95 % bootstrap intervals, paired differences and win rates, and writes one row per network,
    photograph, object, method and metric to results.parquet and results.csv, plots, and report.html. Run the same
    command again after an interruption, and it goes on where it stopped.
    """
    settings = Settings(
        dataset=str(dataset),
        models=tuple(models or (DEFAULT,)),
        weights=tuple(weights or ()),
        methods=_names(methods),
        metrics=_names(metrics),
        target=target,
        regions=regions,
        limit=limit,
        steps=steps,
        seed=seed,
    )
    raise typer.Exit(run_evaluation(settings, out, reference, processes))


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@app.command("methods")
def show_methods() -> None:
    """List the methods that have a name, with their sources."""
    print_methods()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What icam explain wrote its results to, its --out.")],
    truth: Annotated[
        str | None,
        typer.Option(
            help="True classes: a CSV file with columns named file and label; a folder with boxes as in Pascal VOC; or "
            "folders, where each photograph's folder is named after its class."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--out", "-o", help="The page; FOLDER/report.html.")] = None,
    debug: options.Debug = False,
) -> None:
    """Write explanations as one HTML file to sort and filter, the most suspicious first.

    The file loads nothing and can be moved; only its links to panels need the folder beside it.

    icam explain photos/*.jpg --out run  &&  icam report run --truth photos/labels.csv
    """
    write_report(folder, truth, file)


@app.command()
def taps(
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    taps: options.TapChoice = None,
    every: Annotated[bool, typer.Option("--all", help="Every feature map that can be named.")] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the layers that would be fused: name, kind, channels and size, from input to output.

    The network needs no weights for it:  icam taps --model torchvision/resnet18
    """
    list_taps(model, weights, tuple(taps) if taps else "activations", every, as_json)


app.command("run")(run_data_set)


@app.command("app")
def page(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A network that visitors may choose, repeatable, as in icam explain."),
    ] = None,
    weights: options.WeightsOfSeveral = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 7860,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in your browser.")] = True,
    debug: options.Debug = False,
) -> None:
    """Serve a web page: drop a photograph, choose a class, click through the layers, switch the ingredients.

    icam app --model torchvision/resnet18 --weights resnet18.safetensors

    Only this machine can visit it unless --host says otherwise. Photographs stay in memory and are forgotten.
    """
    serve_page(models or (DEFAULT,), weights or (), host, port, browse)
