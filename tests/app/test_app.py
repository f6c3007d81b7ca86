"""The page's parts without a server: limits, memory, visits, what is shown, the lines that make it again."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam import Explanation, explain, get_method
from integrative_cam.app import _screen as screens
from integrative_cam.app._choice import Choice, Switches, lines, methods_offered
from integrative_cam.app._guard import Guard, holds_address
from integrative_cam.app._lru_cache import LruCache, bytes_of
from integrative_cam.app._photograph import MAX_BYTES, photograph, safe_name
from integrative_cam.app._server import offer_of
from integrative_cam.app._session import Offered, Session
from integrative_cam.app._session_store import SessionStore
from integrative_cam.errors import CamError, ImageError, InputError, ModelError
from integrative_cam.evaluate import deletion, insertion
from integrative_cam.models import Network, Preprocessing
from integrative_cam.recipe import Recipe


class Counted(nn.Module):
    """A small network that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(8, 7)
        self.runs = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.head(self.layers(images).flatten(1))


LABELS = ("crane", "crane", "owl, bird", "<script>alert(1)</script>", "a", "b", "c")


@pytest.fixture
def network() -> Network:
    return Network("small", Counted().eval(), Preprocessing(32, (32, 32)), LABELS)


@pytest.fixture
def desk(network: Network) -> SessionStore:
    return SessionStore({"small": Offered(network, ("small.py:make",))})


def encoded(seed: int = 0, size: tuple[int, int] = (60, 40), kind: str = "PNG") -> bytes:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    stored = io.BytesIO()
    Image.fromarray(pixels.byte().numpy()).save(stored, kind)
    return stored.getvalue()


@pytest.fixture
def visit(desk: SessionStore) -> Session:
    return desk.open(photograph(encoded(), "photo.png"))


DEFAULT = Switches.of(Recipe())


def screen(**changes: Any) -> screens.Screen:
    return screens.Screen(**{"network": "small", "target": 2, "method": "integrative", "switches": DEFAULT, **changes})


# What is shown.


def test_maps_are_those_of_the_package(visit: Session, network: Network) -> None:
    tensor = network.preprocessing(visit.photograph.full()).tensor
    for name in ("integrative", "gradcam", "layercam-fused", "fullgrad", "winsorcam"):
        way = get_method(name).way
        switches = Switches.of(way) if isinstance(way, Recipe) else None
        (shown,) = screens.titled(visit, screen(method=name, switches=switches))
        torch.testing.assert_close(shown.explanation.map, get_method(name)(network.model, tensor, 2).map)


def test_switches_run_the_network_once(visit: Session, network: Network) -> None:
    screens.show(visit, screen())
    runs = network.model.runs
    seen = set()
    for readout in ("exp", "identity", "softplus"):
        for bias in ("layers", "complete", "residual", "none"):
            for weighting in ("joint", "uniform"):
                for negative_share in (0.0, 1.0):
                    chosen = screen(switches=Switches(readout, bias, weighting, negative_share))
                    shown = screens.titled(visit, chosen)[0].explanation
                    seen.add(shown.map.numpy().tobytes())
    assert network.model.runs == runs
    # And they do something.
    assert len(seen) > 20
    screens.show(visit, screen(target=4))
    assert network.model.runs == runs + 1


def test_a_visit_that_forgets_everything_computes_the_same(desk: SessionStore, visit: Session) -> None:
    forgetful = replace(visit, kept=LruCache(0, 60))
    chosen = screen(compare="two methods", other_method="gradcam++")
    assert screens.show(forgetful, chosen) == screens.show(visit, chosen)
    assert forgetful.kept.bytes == 0


def test_visitors_do_not_share(desk: SessionStore) -> None:
    one, two = (desk.open(photograph(encoded(seed), "photo.png")) for seed in (1, 2))
    assert one.visitor != two.visitor
    assert len(one.visitor) >= 32
    first, second = (screens.show(each, screen()) for each in (one, two))
    assert first.stage != second.stage
    assert screens.show(one, screen()) == first
    desk.close(one.visitor)
    with pytest.raises(InputError, match="forgotten"):
        desk.visit(one.visitor)
    assert screens.show(desk.visit(two.visitor), screen()) == second
    with pytest.raises(InputError, match="Choose a photograph first"):
        desk.visit(None)


def test_a_photograph_that_cannot_be_explained_is_not_kept(desk: SessionStore) -> None:
    """And the one before stays."""
    gradio = pytest.importorskip("gradio")
    from integrative_cam.app._handlers import Handlers

    earlier = desk.open(photograph(encoded(), "photo.png"))
    kept = desk.photographs.bytes
    fields = ("small", None, "integrative", *vars(DEFAULT).values(), False, "one map", None, None, None)
    narrow = base64.b64encode(encoded(size=(1, 120_000))).decode()
    with pytest.raises(gradio.Error, match="less narrow"):
        Handlers(desk, None).photograph(earlier.visitor, *fields, event={"name": "narrow.png", "data": narrow})
    assert desk.photographs.bytes == kept
    assert desk.visit(earlier.visitor) == earlier


def test_two_classes_and_two_methods(visit: Session) -> None:
    classes = screens.titled(visit, screen(target=0, compare="two classes", other_target=1))
    assert [each.title for each in classes] == ["crane (0)", "crane (1)"]
    assert [each.choice.target for each in classes] == [0, 1]
    methods = screens.titled(visit, screen(compare="two methods", other_method="gradcam"))
    assert [each.title for each in methods] == ["owl, integrative", "owl, gradcam"]
    assert methods[1].explanation.recipe == get_method("gradcam").recipe


def test_a_layer_is_shown_where_it_is_there(visit: Session) -> None:
    name = screens.titled(visit, screen())[0].explanation.layers[0].name
    first, second = screens.titled(visit, screen(layer=name, compare="two methods", other_method="gradcam"))
    assert (first.layer, second.layer) == (0, None)
    assert first.map().shape == (16, 16)
    assert "icam-signed" in screens.stage(visit, screen(layer=name))
    assert "icam-signed" not in screens.stage(visit, screen())


def test_what_a_file_says_is_escaped(visit: Session) -> None:
    shown = screens.show(visit, screen(target=3))
    assert "<script>" not in shown.stage + shown.profile + shown.numbers
    assert "&lt;script&gt;" in shown.stage


def test_favourites_are_the_softmax_of_the_network(visit: Session, network: Network) -> None:
    with torch.no_grad():
        chances = network.model(visit.seen("small").tensor)[0].double().softmax(0)
    best = screens.top_classes(visit, "small", 3)
    assert [index for index, _ in best] == chances.argsort(descending=True)[:3].tolist()
    assert [chance for _, chance in best] == pytest.approx(chances.sort(descending=True).values[:3].tolist())


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 7},
        {"target": -1},
        {"network": "other"},
        {"method": "scorecam"},
        {"switches": replace(DEFAULT, readout="cube")},
        {"switches": replace(DEFAULT, negative_share=2.0)},
    ],
)
def test_what_does_not_fit_is_told(visit: Session, changes: dict[str, Any]) -> None:
    with pytest.raises(CamError):
        screens.show(visit, screen(**changes))


def test_measured_as_the_metrics_measure(visit: Session, network: Network) -> None:
    (found,) = screens.measure(visit, screen())
    arguments = (network.model, visit.seen("small").tensor, visit.explanation(screen().choices()[0]).map, 2)
    assert found.insertion == pytest.approx(float(insertion(*arguments, screens.STEPS)), abs=1e-6)
    assert found.deletion == pytest.approx(float(deletion(*arguments, screens.STEPS)), abs=1e-6)
    assert len(found.inserted) == len(found.deleted) == screens.STEPS + 1


def test_the_archive_is_what_save_writes(visit: Session, tmp_path: Path) -> None:
    chosen = screen(compare="two classes", other_target=5)
    zipfile.ZipFile(io.BytesIO(screens.archive(visit, chosen))).extractall(tmp_path)
    for folder, target in (("explanation", 2), ("other", 5)):
        found = Explanation.load(tmp_path / folder)
        assert found.target_names == (str(target),)
        torch.testing.assert_close(found.map, visit.explanation(replace(screen().choices()[0], target=target)).map)
    assert (tmp_path / "again.py").read_text() == screens.code(visit, chosen)


def test_the_picture_covers_the_whole_photograph(visit: Session) -> None:
    assert Image.open(io.BytesIO(screens.picture(visit, screen()))).size == (60, 40)
    both = Image.open(io.BytesIO(screens.picture(visit, screen(compare="two methods", other_method="gradcam"))))
    assert both.width > both.height


def test_the_picture_holds_all_that_is_on_the_screen(visit: Session) -> None:
    """A method beside itself with other switches, and a layer of both."""
    same = screen(compare="two methods", other_method="integrative", switches=replace(DEFAULT, bias="none"))
    assert [each.title for each in screens.titled(visit, same)] == ["owl, integrative, changed", "owl, integrative"]
    fused = screens.picture(visit, same)
    assert Image.open(io.BytesIO(fused)).size != (60, 40)
    layer = screens.titled(visit, same)[0].explanation.layers[0].name
    assert screens.picture(visit, replace(same, layer=layer)) != fused


def test_the_picture_is_as_opaque_as_the_map_on_the_page(visit: Session) -> None:
    def drawn(*opacity: float) -> Tensor:
        file = io.BytesIO(screens.picture(visit, screen(), *opacity))
        return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float()

    photograph = torch.from_numpy(np.array(visit.photograph.shown.convert("RGB"))).float()
    assert torch.equal(drawn(0), photograph)
    assert not torch.equal(drawn(1), photograph)
    assert torch.equal(drawn(1), drawn())
    torch.testing.assert_close(drawn(0.25), 0.75 * photograph + 0.25 * drawn(1), atol=1, rtol=0)


def test_the_map_lies_where_the_network_looked(visit: Session) -> None:
    # 60 x 40 is scaled to 48 x 32 and cropped to its middle 32 columns: 8 of 48 on either side.
    left, top, right, bottom = visit.seen("small").region
    assert (left, top, right, bottom) == pytest.approx((10, 0, 50, 40))
    style = re.search(r'class="icam-seen" style="([^"]*)"', screens.stage(visit, screen()))
    assert style is not None
    assert style[1] == "left:16.6667%;top:0.0000%;width:66.6667%;height:100.0000%"


# The lines.


@pytest.mark.parametrize(
    "choice",
    [
        Choice("n", 3),
        Choice("n", 3, raw=True),
        Choice("n", 3, switches=Switches("identity", "none", "uniform", 0.25)),
        Choice("n", 3, "gradcam++", Switches("exp", "residual", "last", 1.0)),
        Choice("n", 3, "fullgrad"),
    ],
)
def test_the_lines_make_the_same_map(
    choice: Choice, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visit: Session
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(visit.photograph.encoded)
    monkeypatch.setattr("integrative_cam.models.load", lambda *files: network if files == ("net", "w.pt") else None)
    text = lines([choice], ["net", "w.pt"], "photo.png", ["owl\nimport os"], [None])
    assert "\nimport os" not in text
    made: dict[str, Any] = {}
    exec(text, made)
    shown = visit.explanation(replace(choice, network="small"))
    torch.testing.assert_close(made["explanation"].map, shown.map)
    assert Image.open("explanation.png").size == (60, 40)


def test_only_what_was_changed_is_written() -> None:
    text = lines([Choice("n", 3, switches=DEFAULT)], ["net"], "p.png", ["owl"], [None])
    assert "IntegrativeCAM(network.model)(view.tensor, target=3)" in text
    changed = lines([Choice("n", 3, switches=replace(DEFAULT, bias="none"))], ["net"], "p.png", ["owl"], [None])
    assert "IntegrativeCAM(network.model, bias='none')(view.tensor, target=3)" in changed


def test_slow_methods_are_not_offered() -> None:
    names = methods_offered()
    assert names[0] == "integrative"
    assert not {"scorecam", "ablationcam", "random"} & set(names)


# Photographs.


def test_a_photograph_is_kept_small_and_read_whole() -> None:
    large = photograph(encoded(size=(2000, 500)), "large.png")
    assert large.shown.size == (1600, 400)
    assert large.full().size == (2000, 500)
    assert large.bytes == len(large.encoded) + 3 * 1600 * 400


def test_a_photograph_is_turned_upright() -> None:
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(stored, "JPEG", exif=exif)
    assert photograph(stored.getvalue(), "x.jpg").shown.size == (20, 30)


def png_head(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"words", "no photograph"),
        (b"", "no photograph"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no photograph"),
        (encoded()[:2000], "broken"),
        (png_head(7072, 7071), "7072 x 7071 pixels; up to 50 megapixels"),
        (png_head(60_000, 60_000), "up to 50 megapixels"),
        (bytes(MAX_BYTES + 1), "20 MB"),
    ],
)
def test_what_is_no_photograph_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        photograph(content, "x.png")


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("cat.jpg", "cat.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\secret\\me.png", "me.png"),
        ("a'); import os #.png", "a_import_os_.png"),
        ("", "photograph"),
        ("...", "photograph"),
        ("käse\n.png", "k_se_.png"),
    ],
)
def test_names_are_made_safe(given: str, safe: str) -> None:
    assert safe_name(given) == safe


# Memory.


def test_the_least_recently_used_goes_first() -> None:
    memory: LruCache[str] = LruCache(30, 60)
    for visitor in ("a", "b", "c"):
        memory.put(visitor, visitor.upper(), 10)
    assert memory.get("a") == "A"
    memory.put("d", "D", 10)
    assert [memory.get(each) for each in "abcd"] == ["A", None, "C", "D"]
    assert memory.bytes == 30
    memory.put("a", "large", 31)
    assert memory.get("a") is None
    memory.put("c", "replaced", 20)
    assert (memory.get("c"), memory.get("d"), memory.bytes) == ("replaced", "D", 30)


def test_what_is_idle_is_forgotten() -> None:
    now = [0.0]
    memory: LruCache[str] = LruCache(100, 60, clock=lambda: now[0])
    memory.put("a", "A", 1)
    memory.put("b", "B", 1)
    now[0] = 50
    assert memory.get("a") == "A"
    now[0] = 61
    memory.sweep()
    assert memory.bytes == 1
    assert (memory.get("a"), memory.get("b")) == ("A", None)
    now[0] = 122
    assert memory.get("a") is None


def test_names_belong_to_a_visitor() -> None:
    memory: LruCache[str] = LruCache(100, 60)
    memory.put("a", "1", 1, "x")
    memory.put("a", "2", 1, "y")
    memory.put("b", "3", 1, "x")
    memory.forget("a")
    assert (memory.get("a", "x"), memory.get("a", "y"), memory.get("b", "x")) == (None, None, "3")


def test_shared_storage_counts_once() -> None:
    @dataclass
    class Holder:
        whole: torch.Tensor
        parts: tuple[torch.Tensor, ...]

    whole = torch.zeros(10, 4)
    assert bytes_of(Holder(whole, (whole[2:], whole[:, 0].expand(5, 10), torch.zeros(3)))) == 160 + 12


# The guard.


@pytest.mark.parametrize(
    ("body", "held"),
    [
        ('{"data": [{"path": "a.png"}]}', False),
        ('{"data": [{"path": "http://a/b"}]}', True),
        ('{"data": [[{"x": {"path": "HTTPS://a/b"}}]]}', True),
        ('{"data": [{"p\\u0061th": "http://a/b"}]}', True),
        ('{"data": [{"path": "ftp://a/b"}]}', True),
        ('{"data": ["http://a/b"]}', False),
        ('{"path": ', True),
        ("[" * 100_000 + '"path"', True),
    ],
)
def test_files_named_by_address_are_seen(body: str, held: bool) -> None:
    assert holds_address(body.encode()) == held


def through(path: str, body: bytes, parts: int = 1, limit: int = 100, announced: int | None = None) -> tuple[int, Any]:
    """Status and what the app behind the guard got, None where it was not asked."""
    got: list[bytes] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        got.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    size = max(1, -(-len(body) // parts))
    pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    length = len(body) if announced is None else announced
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(length).encode())],
    }
    asyncio.run(Guard(app, limit)(scope, receive, send))
    return sent[0]["status"], got[0] if got else None


def test_the_guard_passes_whole_bodies_and_refuses_large_ones() -> None:
    body = json.dumps({"data": ["x" * 60]}).encode()
    assert through("/gradio_api/queue/join", body, parts=4) == (200, body)
    assert through("/gradio_api/queue/join", bytes(101)) == (413, None)
    # A length that lies does not help.
    assert through("/gradio_api/queue/join", bytes(101), parts=5, announced=3) == (413, None)
    assert through("/gradio_api/queue/join", b'{"path": "http://a"}') == (400, None)
    assert through("/gradio_api/proxy=http://a", b"") == (403, None)
    assert through("/gradio_api/file=http://a", b"") == (403, None)


# What the operator offers.


def make_network(folder: Path, name: str = "small.py") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "def maps():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())\n"
    )
    return str(path)


def test_visitors_see_no_folder(tmp_path: Path) -> None:
    offer = offer_of([f"{make_network(tmp_path)}:make"], {})
    assert list(offer) == ["small.py:make"]
    assert offer["small.py:make"].files == ("small.py:make",)


def test_an_offer_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CamError):
        offer_of([f"{make_network(tmp_path)}:maps"], {})
    twice = [f"{make_network(tmp_path / folder)}:make" for folder in ("a", "b")]
    with pytest.raises(ModelError, match=r"two networks would be called 'small\.py:make'"):
        offer_of(twice, {})
    with pytest.raises(ModelError, match="no such --model"):
        offer_of([twice[0]], {"resnet18": tmp_path})


def test_explain_is_the_reference(visit: Session, network: Network) -> None:
    """The default screen is the package's default."""
    expected = explain(network.model, visit.seen("small").tensor, 2)
    torch.testing.assert_close(visit.explanation(screen().choices()[0]).map, expected.map)
