"""The pictures of gallery.md, which-layer.md and README: python docs/gallery.py, with the extra `demo`, in a minute."""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, get_method
from integrative_cam.models import load, read_image
from integrative_cam.render import (
    comparison,
    contour,
    contrast,
    curve,
    decomposition,
    outline,
    overlay,
    panel,
    plot,
    presented_layer,
    profile,
    save,
    slices,
    streams,
)

WIDTH = 900
TABBY, TIGER_CAT = 281, 282


def cat(out: Path) -> None:
    """The bundled photograph and network."""
    network = load()
    photograph = read_image(Path(skimage.__file__).parent / "data" / "chelsea.png")
    view = network.preprocessing(photograph)
    explanation = explain(network.model, view.tensor)
    shown = explanation.map[0]
    whole = panel(explanation, photograph, "Why tiger cat")
    written(whole, out / "panel.jpg")
    written(whole, out.parent / "cat.jpg")  # of README
    written(plot(explanation, photograph, "Why tiger cat"), out / "plot.jpg")
    written(profile(explanation), out / "profile.png")
    written(decomposition(explanation), out / "decomposition.png")
    strips = [
        overlay(shown, photograph, view.region),
        outline(shown, photograph, 0.1, view.region),
        contour(shown, photograph, 0.75, view.region),
        overlay(presented_layer(explanation, 20)[0], photograph, view.region, signed=True),
    ]
    small(beside(strips), out / "overlays.jpg")
    names = ("integrative", "gradcam", "layercam", "gradcam++")
    maps = {name: get_method(name)(network.model, view.tensor, TIGER_CAT).map[0] for name in names}
    written(comparison(maps, photograph, "Four methods: why tiger cat", view.region), out / "comparison.jpg")
    sides = {f"Grad-CAM, {side} x {side}": f"{side}x{side}" for side in (112, 56, 28, 14, 7)}
    single = {
        name: IntegrativeCAM(network.model, get_method("gradcam").recipe, taps=taps)(view.tensor, TIGER_CAT).map[0]
        for name, taps in sides.items()
    }
    beside_all = comparison(
        {**single, "all layers": shown}, photograph, "Why tiger cat: one layer, or all", view.region
    )
    written(beside_all, out.parent / "which-layer.jpg")
    classes = {"tabby": TABBY, "tiger cat": TIGER_CAT}
    both = {name: explain(network.model, view.tensor, index).map[0] for name, index in classes.items()}
    written(contrast(both, photograph, region=view.region), out / "contrast.jpg")


def signal_and_volume(out: Path) -> None:
    """Networks that detect one thing: a bump in a signal, a bright ball in a volume."""
    torch.manual_seed(0)
    steps = torch.arange(200.0)
    signal = torch.sin(steps / 9) * 0.4 + torch.exp(-(((steps - 130) / 6) ** 2))
    written(curve(explain(bump_finder(1), signal[None, None]).map[0], signal, "Where is the bump?"), out / "signal.png")
    depth, height, width = torch.meshgrid(*(torch.arange(float(side)) for side in (16, 32, 32)), indexing="ij")
    ball = ((depth - 9) * 2) ** 2 + (height - 12) ** 2 + (width - 20) ** 2 < 36
    volume = 0.2 * torch.rand(16, 32, 32) + 0.15 * (height / 32) + 0.45 * ball
    explanation = explain(bump_finder(3), volume[None, None])
    written(slices(explanation.map[0], volume, title="Where is the ball?"), out / "volume.jpg")


def bump_finder(dims: int) -> nn.Module:
    """Where the mean of the surroundings exceeds a threshold."""
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[dims]
    mean = conv(1, 1, 5, padding=2)
    nn.init.constant_(mean.weight, 1 / 5**dims)
    nn.init.constant_(mean.bias, -0.45)
    again = conv(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(again.weight, 1 / 3**dims)
    return nn.Sequential(mean, nn.ReLU(), again, nn.ReLU(), pool(1), nn.Flatten()).eval()


class Pair(nn.Module):
    """The bright pixels of two pictures; the first picture counts double."""

    def __init__(self) -> None:
        super().__init__()
        self.warm, self.light = bright(), bright()

    def forward(self, infrared: Tensor, visible: Tensor) -> Tensor:
        """A score per sample."""
        return (2 * self.warm(infrared) + self.light(visible)).mean((2, 3))


def bright() -> nn.Module:
    """Where the mean over 5 x 5 pixels exceeds a threshold."""
    mean = nn.Conv2d(1, 1, 5, padding=2)
    nn.init.constant_(mean.weight, 1 / 25)
    nn.init.constant_(mean.bias, -0.4)
    return nn.Sequential(mean, nn.ReLU())


def two_streams(out: Path) -> None:
    """A network of two inputs."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spots = [torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 60) for row, column in ((20, 20), (44, 40))]
    images = {"infrared": spots[0][None, None], "visible": (spots[1] + 0.2 * columns / 64)[None, None]}
    explanation = explain(Pair().eval(), images, 0)
    written(
        streams(explanation, [picture[0] for picture in images.values()], "A warm and a bright spot"),
        out / "streams.jpg",
    )


def written(figure: Figure, path: Path) -> None:
    """Save a figure: with photographs as JPEG, others as PNG of few colours."""
    draft = path.with_suffix(".png")
    save(figure, draft)
    small(Image.open(draft).convert("RGB"), path)


def small(image: Image.Image, path: Path) -> None:
    """Save an image at most WIDTH wide."""
    width = min(WIDTH, image.width)
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    if path.suffix == ".png":
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        image.save(path, quality=85, optimize=True)
        path.with_suffix(".png").unlink(missing_ok=True)


def beside(images: list[Image.Image]) -> Image.Image:
    """The images in rows of two, with a gap."""
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width + 10, (height + 10) * (len(images) // 2) - 10), "white")
    for at, image in enumerate(images):
        sheet.paste(image, (at % 2 * (width + 10), at // 2 * (height + 10)))
    return sheet


def main() -> None:
    """Read the folder, draw all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "gallery")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    cat(out)
    signal_and_volume(out)
    two_streams(out)
    print(f"{len(list(out.iterdir()))} pictures in {out}")


if __name__ == "__main__":
    main()
