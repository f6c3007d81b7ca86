"""The commands of `icam`: what each takes and says of itself; what a command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .._choices import DEFAULT_METHODS, DEFAULT_METRICS, DEFAULT_NETWORK, NOISE_CONTROLS
from . import _options as options
from ._command import command

METHODS = ",".join(DEFAULT_METHODS)
THUMBNAIL = 128

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
@command
def explain(
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...")] = None,
    *,
    network: options.Network,
    question: options.Question,
    out: Path = Path("icam-out"),
    method: options.MethodChoice,
    as_json: bool = False,
    debug: bool = False,
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

    Args:
        images: Photographs. Without any: the cat that comes with scikit-image.
    """
    from ._explain import explain_images

    raise typer.Exit(explain_images(images or [], network, question, out, method, as_json, debug))


@app.command()
@command
def compare(
    image: Path | None = None,
    *,
    methods: str = METHODS,
    network: options.Network,
    question: options.Question,
    out: Path = Path("icam-out"),
    as_json: bool = False,
) -> None:
    """Draw several methods' maps of one photograph side by side. The target is named as for icam explain.

    icam compare photo.jpg --methods integrative,gradcam,layercam-fused

    One picture shows how methods differ, not which is right: icam evaluate measures them over many.

    Args:
        image: a photograph; without it, the bundled cat.
    """
    from ._compare import compare_methods

    compare_methods(image, _names(methods), network, question, out, as_json)


@app.command()
@command
def evaluate(
    dataset: Path,
    *,
    models: list[str] | None = None,
    weights: list[str] | None = None,
    methods: str = ",".join((*DEFAULT_METHODS, *NOISE_CONTROLS)),
    metrics: str = ",".join(DEFAULT_METRICS),
    target: str | None = None,
    regions: str | None = None,
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    steps: Annotated[int, typer.Option(min=1)] = 16,
    cells: Annotated[int, typer.Option(min=1)] = 16,
    reference: str = "integrative",
    out: Path = Path("icam-evaluation"),
    seed: int = 0,
    processes: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Measure methods over many photographs.

    icam evaluate photos/ --methods integrative,gradcam,layercam-fused --limit 50

    Prints means with 95 % bootstrap intervals, paired differences and win rates, and writes one row per network,
    photograph, object, method and metric to results.parquet and results.csv, plots, and report.html. Run the same
    command again after an interruption, and it goes on where it stopped.

    Args:
        dataset: a folder of photographs, a CSV file with a column named file, or a folder with boxes or masks as in
            Pascal VOC.
        models: a network, repeatable, named as in icam explain.
        weights: local weights: FILE for the only network; MODEL=FILE, repeatable, for several.
        metrics: any of insertion, deletion, ins-del, srg, insertion-cells, deletion-cells, ins-del-cells, srg-cells,
            single-cell, faithfulness-correlation, drop, increase, road, road-cells, coherency, complexity, adcc, arcc,
            area, variation, randomisation, class-dependence, class-dependence-second, grid-pointing, planted-patch,
            planted-patch-pointing, infidelity, sensitivity, pointing, energy, top-share, best-iou, maxboxacc.
        target: what is explained: top1, the network's own top class; label, from the CSV file's column named label, an
            index or name; object, each class of objects that has boxes or masks, the default where any has.
        regions: where the objects are: boxes (the default where there are any) or masks.
        limit: at most so many photographs, at even distances.
        steps: steps of insertion, deletion and srg.
        cells: pixels per side of a cell, for the metrics by cells.
        reference: the method that the others are paired with.
        seed: seed of ties and of the bootstrap.
        processes: how many photographs are measured at once, each by a process of its own.
    """
    from ._evaluate import run_evaluation

    code = run_evaluation(
        tuple(models or (DEFAULT_NETWORK,)),
        tuple(weights or ()),
        dataset=dataset,
        methods=_names(methods),
        metrics=_names(metrics),
        out=out,
        target=target,
        regions=regions,
        limit=limit,
        steps=steps,
        cells=cells,
        seed=seed,
        reference=reference,
        processes=processes,
    )
    raise typer.Exit(code)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@app.command("methods")
@command
def show_methods() -> None:
    """List the methods that have a name, with their sources."""
    from ._compare import print_methods

    print_methods()


@app.command()
@command
def report(folder: Path, *, truth: str | None = None, out: Path | None = None) -> None:
    """Write explanations as one HTML file to sort and filter, the most suspicious first.

    The file loads nothing and can be moved; only its links to panels need the folder beside it.

    icam explain photos/*.jpg --out run  &&  icam report run --truth photos/labels.csv

    Args:
        folder: what icam explain wrote its results to, its --out.
        truth: true classes: a CSV file with columns named file and label; a folder with boxes as in Pascal VOC; or
            folders, where each photograph's folder is named after its class.
        out: the page; FOLDER/report.html.
    """
    from ._report import write_report

    write_report(folder, truth, out)


@app.command()
@command
def taps(
    *,
    model: str = DEFAULT_NETWORK,
    weights: Path | None = None,
    taps: list[str] | None = None,
    every: bool = False,
    as_json: bool = False,
) -> None:
    """List the layers that would be fused: name, kind, channels and size, from input to output.

    The network needs no weights for it:  icam taps --model torchvision/resnet18

    Args:
        model: as in icam explain.
        weights: local weights: safetensors, or a torch state dict. Random ones do.
        taps: the layers, repeatable; see icam explain.
        every: every feature map that can be named.
    """
    from ._taps import list_taps

    list_taps(model, weights, tuple(taps) if taps else "activations", every, as_json)


@app.command()
@command
def run(
    source: str,
    *,
    out: str,
    model: str = DEFAULT_NETWORK,
    weights: Path | None = None,
    target: str = "top1",
    threshold: float = 0.5,
    thumbnails: bool = False,
    method: options.MethodChoice,
    engine: str = "local",
    address: str | None = None,
    workers: Annotated[int | None, typer.Option(min=0)] = None,
    decoders: Annotated[int, typer.Option(min=0)] = 1,
    batch: int = 16,
    shard: int = 256,
    device: str = "auto",
    precision: str = "float32",
    timeout: float = 30.0,
    attempts: int = 4,
) -> None:
    """Explain a whole data set: a table with a row per image and target, and all maps.

    Run the same command again after an interruption, whatever it was, and it goes on where it stopped.

    icam run photos/ --out results

    In Python, integrative_cam.run.Results("results") reads tables and maps back. For overlays and a report to look
    through, see icam explain and icam report.

    Exit code 0: every image has its results; 1: all was tried, but some images failed, as failures.csv says; 2: the
    command could not be carried out; 3: not at its end, run it again.

    Args:
        source: a folder of images, a CSV or Parquet list with a column named file, WebDataset tars (a file, a folder
            or a pattern with *), Parquet files with images inside, or a data set that Hugging Face's save_to_disk
            wrote; a path, or a URL that fsspec reads (s3://, gs://, https://, ...).
        out: folder or URL for the results.
        model: as in icam explain.
        weights: local weights: safetensors, or a torch state dict. Without it, the library's pretrained ones.
        target: "top1", "top3", ... (the network's highest classes, a row each), or a class index or name.
        threshold: share of the map's maximum above which its area and box count.
        thumbnails: keep a small overlay, 128 pixels, with each map.
        engine: "local" (this machine) or ray.
        address: with --engine ray: of the cluster, or auto. Without it, Ray starts here.
        workers: processes with a network each; by default one per GPU, or one; with ray, as many as have room.
        decoders: processes per worker that read and decode.
        batch: images that a network takes at once; halved where memory ends.
        shard: images that are written at once, and lost at most by a kill.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: of the network's arithmetic: float32, bfloat16 or float16 (autocast).
        timeout: seconds to wait for an answer of the source.
        attempts: how often to ask the source, with growing pauses.
    """
    from ..run import Job, RetryPolicy
    from ._run import run_job

    job = Job(
        source=source,
        dest=out,
        model=model,
        method=method,
        weights=weights.resolve() if weights else None,
        target=target,
        threshold=threshold,
        shard=shard,
        thumbnail=THUMBNAIL if thumbnails else 0,
        batch=batch,
        decoders=decoders,
        device=device,
        precision=precision,
        patience=RetryPolicy(timeout, attempts),
    )
    raise typer.Exit(run_job(job, engine, workers, address))


@app.command("app")
@command
def page(
    *,
    models: list[str] | None = None,
    weights: list[str] | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
    browse: bool = True,
) -> None:
    """Serve a web page: drop a photograph, choose a class, click through the layers, switch the ingredients.

    icam app --model torchvision/resnet18 --weights resnet18.safetensors

    Only this machine can visit it unless --host says otherwise. Photographs stay in memory and are forgotten.

    Args:
        models: a network that visitors may choose, repeatable, named as in icam explain.
        weights: local weights: FILE for the only network; MODEL=FILE, repeatable, for several.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: 0 for any that is free.
        browse: open the page in your browser.
    """
    from ..app._server import serve

    models = models or [DEFAULT_NETWORK]
    serve(models, options.weights_by_model(weights or (), models), host, port, browse, typer.echo)
