"""The page's parts without a server: limits, memory, sessions, what is shown, the lines that make it again."""

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
from integrative_cam.app._choice import INGREDIENTS, Choice, methods_offered, python_lines, recipe_of
from integrative_cam.app._guard import Guard, holds_address
from integrative_cam.app._photograph import MAX_BYTES, photograph, safe_name
from integrative_cam.app._screen import STEPS, Screen, Selection, screen_of
from integrative_cam.app._server import offer_of
from integrative_cam.app._session import LruCache, Offered, Session, SessionStore, bytes_of
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
def sessions(network: Network) -> SessionStore:
    return SessionStore({"small": Offered(network, ("small.py:make",))})


def encoded(seed: int = 0, size: tuple[int, int] = (60, 40), kind: str = "PNG") -> bytes:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    stored = io.BytesIO()
    Image.fromarray(pixels.byte().numpy()).save(stored, kind)
    return stored.getvalue()


@pytest.fixture
def session(sessions: SessionStore) -> Session:
    return sessions.open(photograph(encoded(), "photo.png"))


DEFAULT = Recipe()


def selection(**changes: Any) -> Selection:
    return Selection(**{"network": "small", "target": 2, "method": "integrative", "recipe": DEFAULT, **changes})


def changed(*ingredients: Any, method: str = "integrative") -> Recipe:
    return replace(get_method(method).recipe, **dict(zip(INGREDIENTS, ingredients, strict=True)))


def parts(screen: Screen) -> tuple[str, ...]:
    return screen.stage(), screen.profile(), screen.numbers(), screen.code()


# What is shown.


def test_maps_are_those_of_the_package(session: Session, network: Network) -> None:
    tensor = network.preprocessing(session.photograph.full()).tensor
    for name in ("integrative", "gradcam", "layercam-fused", "fullgrad", "winsorcam"):
        (shown,) = screen_of(session, selection(method=name, recipe=recipe_of(name))).maps
        torch.testing.assert_close(shown.explanation.map, get_method(name)(network.model, tensor, 2).map)


def test_switches_run_the_network_once(session: Session, network: Network) -> None:
    parts(screen_of(session, selection(target=3)))  # a class that the biases speak for too
    runs = network.model.runs
    seen = set()
    for readout in ("exp", "identity", "softplus"):
        for bias in ("layers", "complete", "residual", "none"):
            for weighting in ("joint", "uniform"):
                for negative_share in (0.0, 1.0):
                    chosen = selection(target=3, recipe=changed(readout, bias, weighting, negative_share))
                    shown = screen_of(session, chosen).maps[0].explanation
                    seen.add(shown.map.numpy().tobytes())
    assert network.model.runs == runs
    # And they do something.
    assert len(seen) == 48
    parts(screen_of(session, selection(target=4)))
    assert network.model.runs == runs + 1


def test_a_session_that_forgets_everything_computes_the_same(sessions: SessionStore, session: Session) -> None:
    forgetful = replace(session, computed=LruCache(0, 60))
    chosen = selection(compare="two methods", other_method="gradcam++")
    assert parts(screen_of(forgetful, chosen)) == parts(screen_of(session, chosen))
    assert forgetful.computed.bytes == 0


def test_sessions_do_not_share(sessions: SessionStore) -> None:
    one, two = (sessions.open(photograph(encoded(seed), "photo.png")) for seed in (1, 2))
    assert one.key != two.key
    assert len(one.key) >= 32
    first, second = (parts(screen_of(each, selection())) for each in (one, two))
    assert first[0] != second[0]
    assert parts(screen_of(one, selection())) == first
    sessions.close(one.key)
    with pytest.raises(InputError, match="forgotten"):
        sessions.get(one.key)
    assert parts(screen_of(sessions.get(two.key), selection())) == second
    with pytest.raises(InputError, match="Choose a photograph first"):
        sessions.get(None)


def test_a_photograph_that_cannot_be_explained_is_not_kept(sessions: SessionStore) -> None:
    """And the one before stays."""
    gradio = pytest.importorskip("gradio")
    from integrative_cam.app._handlers import Handlers

    earlier = sessions.open(photograph(encoded(), "photo.png"))
    kept = sessions.photographs.bytes
    fields = (
        "small",
        None,
        "integrative",
        *(getattr(DEFAULT, name) for name in INGREDIENTS),
        "one map",
        None,
        None,
        None,
    )
    narrow = base64.b64encode(encoded(size=(1, 120_000))).decode()
    with pytest.raises(gradio.Error, match="less narrow"):
        Handlers(sessions, None).photograph(earlier.key, *fields, event={"name": "narrow.png", "data": narrow})
    assert sessions.photographs.bytes == kept
    assert sessions.get(earlier.key) == earlier


def test_two_classes_and_two_methods(session: Session) -> None:
    classes = screen_of(session, selection(target=0, compare="two classes", other_target=1)).maps
    assert [each.title for each in classes] == ["crane (0)", "crane (1)"]
    assert [each.choice.target for each in classes] == [0, 1]
    methods = screen_of(session, selection(compare="two methods", other_method="gradcam")).maps
    assert [each.title for each in methods] == ["owl, integrative", "owl, gradcam"]
    assert methods[1].explanation.recipe == get_method("gradcam").recipe


def test_a_layer_is_shown_where_it_is_there(session: Session) -> None:
    name = screen_of(session, selection()).maps[0].explanation.layers[0].name
    first, second = screen_of(session, selection(layer=name, compare="two methods", other_method="gradcam")).maps
    assert (first.layer, second.layer) == (0, None)
    assert first.map().shape == (16, 16)
    assert "icam-signed" in screen_of(session, selection(layer=name)).stage()
    assert "icam-signed" not in screen_of(session, selection()).stage()


def test_what_a_file_says_is_escaped(session: Session) -> None:
    screen = screen_of(session, selection(target=3))
    assert "<script>" not in screen.stage() + screen.profile() + screen.numbers()
    assert "&lt;script&gt;" in screen.stage()


def test_top_classes_are_the_softmax_of_the_network(session: Session, network: Network) -> None:
    with torch.no_grad():
        chances = network.model(session.seen("small").tensor)[0].double().softmax(0)
    best = session.ranking("small").classes[:3]
    assert [entry.index for entry in best] == chances.argsort(descending=True)[:3].tolist()
    assert [entry.value for entry in best] == pytest.approx(chances.sort(descending=True).values[:3].tolist())


def under(network: Network, task: str) -> Session:
    other = SessionStore({"small": Offered(replace(network, task=task), ("small.py:make",))})
    return other.open(photograph(encoded(), "photo.png"))


def test_labels_have_each_their_own_probability(network: Network) -> None:
    session = under(network, "multi-label")
    with torch.no_grad():
        logits = network.model(session.seen("small").tensor)[0].double()
    screen = screen_of(session, selection())
    probability = float(logits[2].sigmoid())
    assert abs(probability - float(logits.softmax(0)[2])) > 0.1
    assert f"<span>{probability:.1%} probable</span>" in screen.stage()
    assert f"owl, {probability:.1%} probable: score {float(logits[2]):.2f} splits into" in screen.numbers()
    assert "labels that do not exclude each other" in screen.numbers()
    # No label is another's rival: the logit is explained, and the lines say so.
    tensor = session.seen("small").tensor
    torch.testing.assert_close(screen.maps[0].map(), explain(network.model, tensor, 2, score="logit").map[0])
    assert "IntegrativeCAM(network.model, score='logit')(view.tensor, target=2)" in screen.code()
    record = screen.record()
    assert record["probability"] == pytest.approx(probability)
    assert [entry["probability"] for entry in record["top"]] == pytest.approx(
        logits.sigmoid().sort(descending=True).values[:5].tolist()
    )
    (measured,) = screen.measure()
    # All pixels shown, and none taken away.
    assert measured["inserted"][-1] == pytest.approx(probability, abs=1e-6)
    assert measured["deleted"][0] == pytest.approx(probability, abs=1e-6)


def test_values_are_no_probabilities(network: Network) -> None:
    session = under(network, "regression")
    with torch.no_grad():
        value = float(network.model(session.seen("small").tensor)[0, 2])
    screen = screen_of(session, selection())
    assert f"<span>{value:.4g}</span>" in screen.stage()
    assert "probable" not in screen.stage() + screen.numbers()
    assert "gives values, not probabilities" in screen.numbers()
    assert f": score {value:.2f} splits into" in screen.numbers()
    assert "score='logit'" in screen.code()
    assert screen.record()["value"] == pytest.approx(value)
    with pytest.raises(InputError, match="follow a probability, but small gives values"):
        screen.measure()


def test_classes_that_exclude_each_other_need_no_note(session: Session) -> None:
    assert "icam-hint" not in screen_of(session, selection()).numbers()


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 7},
        {"target": -1},
        {"network": "other"},
        {"method": "scorecam"},
        {"recipe": replace(DEFAULT, readout="cube")},
        {"recipe": replace(DEFAULT, negative_share=2.0)},
    ],
)
def test_what_does_not_fit_is_told(session: Session, changes: dict[str, Any]) -> None:
    with pytest.raises(CamError):
        parts(screen_of(session, selection(**changes)))


def test_measured_as_the_metrics_measure(session: Session, network: Network) -> None:
    (found,) = screen_of(session, selection()).measure()
    arguments = (network.model, session.seen("small").tensor, session.explanation(selection().choices()[0]).map, 2)
    assert found["insertion"] == pytest.approx(float(insertion(*arguments, STEPS)), abs=1e-6)
    assert found["deletion"] == pytest.approx(float(deletion(*arguments, STEPS)), abs=1e-6)
    assert len(found["inserted"]) == len(found["deleted"]) == STEPS + 1


def test_the_archive_is_what_save_writes(session: Session, tmp_path: Path) -> None:
    chosen = selection(compare="two classes", other_target=5)
    zipfile.ZipFile(io.BytesIO(screen_of(session, chosen).archive())).extractall(tmp_path)
    for folder, target in (("explanation", 2), ("other", 5)):
        found = Explanation.load(tmp_path / folder)
        assert found.target_names == (str(target),)
        torch.testing.assert_close(found.map, session.explanation(replace(selection().choices()[0], target=target)).map)
    assert (tmp_path / "again.py").read_text() == screen_of(session, chosen).code()


def test_the_picture_covers_the_whole_photograph(session: Session) -> None:
    assert Image.open(io.BytesIO(screen_of(session, selection()).picture())).size == (60, 40)
    both = Image.open(
        io.BytesIO(screen_of(session, selection(compare="two methods", other_method="gradcam")).picture())
    )
    assert both.width > both.height


def test_the_picture_holds_all_that_is_on_the_screen(session: Session) -> None:
    """A method beside itself with other switches, and a layer of both."""
    same = selection(compare="two methods", other_method="integrative", recipe=replace(DEFAULT, bias="none"))
    assert [each.title for each in screen_of(session, same).maps] == ["owl, integrative, changed", "owl, integrative"]
    fused = screen_of(session, same).picture()
    assert Image.open(io.BytesIO(fused)).size != (60, 40)
    layer = screen_of(session, same).maps[0].explanation.layers[0].name
    assert screen_of(session, replace(same, layer=layer)).picture() != fused


def test_the_picture_is_as_opaque_as_the_map_on_the_page(session: Session) -> None:
    def drawn(*opacity: float) -> Tensor:
        file = io.BytesIO(screen_of(session, selection()).picture(*opacity))
        return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float()

    photograph = torch.from_numpy(np.array(session.photograph.shown.convert("RGB"))).float()
    assert torch.equal(drawn(0), photograph)
    assert not torch.equal(drawn(1), photograph)
    assert torch.equal(drawn(1), drawn())
    torch.testing.assert_close(drawn(0.25), 0.75 * photograph + 0.25 * drawn(1), atol=1, rtol=0)


def test_the_map_lies_where_the_network_looked(session: Session) -> None:
    # 60 x 40 is scaled to 48 x 32 and cropped to its middle 32 columns: 8 of 48 on either side.
    left, top, right, bottom = session.seen("small").region
    assert (left, top, right, bottom) == pytest.approx((10, 0, 50, 40))
    style = re.search(r'class="icam-seen" style="([^"]*)"', screen_of(session, selection()).stage())
    assert style is not None
    assert style[1] == "left:16.6667%;top:0.0000%;width:66.6667%;height:100.0000%"


# The lines.


@pytest.mark.parametrize(
    "choice",
    [
        Choice("n", 3, "integrative", DEFAULT),
        Choice("n", 3, "integrative", changed("identity", "none", "uniform", 0.25)),
        Choice("n", 3, "gradcam++", changed("exp", "residual", "last", 1.0, method="gradcam++")),
        Choice("n", 3, "fullgrad", None),
    ],
)
def test_the_lines_make_the_same_map(
    choice: Choice, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(session.photograph.encoded)
    monkeypatch.setattr("integrative_cam.models.load", lambda *files: network if files == ("net", "w.pt") else None)
    text = python_lines([choice], ["net", "w.pt"], "photo.png", ["owl\nimport os"], [None])
    assert "\nimport os" not in text
    made: dict[str, Any] = {}
    exec(text, made)
    shown = session.explanation(replace(choice, network="small"))
    torch.testing.assert_close(made["explanation"].map, shown.map)
    assert Image.open("explanation.png").size == (60, 40)


def test_only_what_was_changed_is_written() -> None:
    text = python_lines([Choice("n", 3, "integrative", DEFAULT)], ["net"], "p.png", ["owl"], [None])
    assert "IntegrativeCAM(network.model)(view.tensor, target=3)" in text
    lines = python_lines(
        [Choice("n", 3, "integrative", replace(DEFAULT, bias="none"))], ["net"], "p.png", ["owl"], [None]
    )
    assert "IntegrativeCAM(network.model, bias='none')(view.tensor, target=3)" in lines


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
        (b"words", "not an image that can be read"),
        (b"", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (encoded()[:2000], "broken"),
        (png_head(7072, 7071), "7072 x 7071 pixels is over the limit of 50 megapixels"),
        (png_head(60_000, 60_000), "over the limit of 50 megapixels"),
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


def test_explain_is_the_reference(session: Session, network: Network) -> None:
    """The default screen is the package's default."""
    expected = explain(network.model, session.seen("small").tensor, 2)
    torch.testing.assert_close(session.explanation(selection().choices()[0]).map, expected.map)
