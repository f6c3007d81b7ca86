"""The page's endpoints as a program calls them, and what it must not reach through them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from serving import served

from integrative_cam import Explanation, explain
from integrative_cam.models import Network, read_image

gradio_client = pytest.importorskip("gradio_client", reason="the page needs gradio: pip install 'integrative-cam[app]'")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def address(log: Path) -> Iterator[str]:
    with served(log) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_explain_gives_what_the_package_gives(client: Any, photographs: Path, lite0: Network) -> None:
    photograph = photographs / "chelsea.png"
    picture, numbers = client.predict(
        gradio_client.handle_file(str(photograph)), target="Egyptian cat", bias="none", api_name="/explain"
    )
    image = read_image(photograph)
    expected = explain(lite0.model, lite0.preprocessing(image).tensor, 285, bias="none")
    assert numbers["target"] == {"index": 285, "label": lite0.labels[285]}
    assert numbers["recipe"]["bias"] == "none"
    assert numbers["score"]["score"] == pytest.approx(float(expected.score), rel=1e-4)
    assert [layer["name"] for layer in numbers["layers"]] == [layer.name for layer in expected.layers]
    weights = [layer["weight"] for layer in numbers["layers"]]
    torch.testing.assert_close(torch.tensor(weights), expected.weights[0], rtol=1e-3, atol=1e-5)
    assert Image.open(picture).size == image.size


def test_the_archive_holds_the_explanation(client: Any, photographs: Path, lite0: Network, tmp_path: Path) -> None:
    photograph = photographs / "coffee.png"
    archive = client.predict(
        gradio_client.handle_file(str(photograph)), method="gradcam", negative_share=0.25, api_name="/explanation"
    )
    zipfile.ZipFile(archive).extractall(tmp_path)
    found = Explanation.load(tmp_path / "explanation")
    assert found.recipe is not None
    assert (found.recipe.taps, found.recipe.negative_share) == ("last", 0.25)
    expected = explain(lite0.model, lite0.preprocessing(read_image(photograph)).tensor, None, found.recipe)
    torch.testing.assert_close(found.map, expected.map, rtol=1e-3, atol=1e-4)


def test_classes_and_networks(client: Any) -> None:
    assert client.predict(api_name="/networks") == ["efficientnet-lite0"]
    found = client.predict("tiger cat", api_name="/classes")
    assert found == [{"index": 282, "label": "tiger cat"}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "unicorn"}, "no class"),
        ({"target": "1000"}, "there is no class 1000"),
        ({"method": "scorecam"}, "method must be one of"),
        ({"readout": "cube"}, "readout must be one of"),
        ({"negative_share": 7}, "between 0 and 1"),
        ({"network": "resnet18"}, "This page offers efficientnet-lite0"),
        ({"network": "/etc/passwd.py:make"}, "This page offers efficientnet-lite0"),
        ({"layer": "no.such"}, "no layer"),
    ],
)
def test_errors_are_messages(client: Any, photographs: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match=message) as told:
        client.predict(gradio_client.handle_file(str(photographs / "chelsea.png")), **changed, api_name="/explain")
    assert "Traceback" not in str(told.value)
    assert "/work" not in str(told.value)


@pytest.mark.parametrize("odd", [5, [1], {"a": 1}, True])
@pytest.mark.parametrize("place", ["network", "target", "readout", "layer"])
def test_texts_of_another_kind_are_told(client: Any, address: str, photographs: Path, place: str, odd: Any) -> None:
    arguments = dict.fromkeys(("network", "target", "method", "readout", "bias", "weighting"), "")
    arguments |= {"method": "integrative", "negative_share": -1, "layer": "", place: odd}
    answer = called(address, "explain", [uploaded(address, photographs / "chelsea.png"), *arguments.values()])
    assert f"{place} must be text" in answer, answer


@pytest.mark.parametrize("odd", [None, "x", [0.5], float("nan"), 1e400, 10**400])
def test_numbers_of_another_kind_are_told(client: Any, address: str, photographs: Path, odd: Any) -> None:
    photograph = uploaded(address, photographs / "chelsea.png")
    answer = called(address, "explain", [photograph, "", "", "integrative", "", "", "", odd, ""])
    assert "negative_share must be" in answer, answer


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "5", "null", '{"data": 5}', '{"data": {}}', "[" * 50_000, "\0", "9" * 5000]
)
@pytest.mark.parametrize(
    "path", ["call/explain", "queue/join", "cancel", "reset", "component_server", "upload", "nowhere"]
)
def test_requests_that_are_none_are_refused(address: str, path: str, body: str) -> None:
    status, _ = posted(address, f"/gradio_api/{path}", body.encode())
    assert 400 <= status < 500


@pytest.mark.parametrize("name", ["../../../../x.png", "/etc/x.png", "..", "a\0b.png"])
def test_uploads_stay_in_their_folder(address: str, name: str) -> None:
    import httpx

    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (name, b"123")}, timeout=60)
    if answer.status_code == 200:
        (place,) = map(Path, answer.json())
        assert ".." not in place.parts
        assert place.parent.parent.name.startswith("icam-")
    else:
        assert answer.status_code == 400


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of all folders that the server may read, which would be an image if it read it."""
    path = tmp_path / "secret.png"
    Image.new("RGB", (32, 32)).save(path)
    return path


@pytest.mark.parametrize("shape", ["plain", "dict", "file", "up", "data"])
def test_no_path_of_the_server_is_read(client: Any, address: str, secret: Path, shape: str) -> None:
    meta = {"_type": "gradio.FileData"}
    payload: Any = {
        "plain": str(secret),
        "dict": {"path": str(secret)},
        "file": {"path": str(secret), "meta": meta},
        "up": {"path": f"../../../../../../..{secret}", "meta": meta},
        "data": {"path": str(secret), "url": f"file://{secret}", "orig_name": "x.png", "meta": meta},
    }[shape]
    answer = called(address, "explain", [payload, "", "", "integrative", "", "", "", -1, ""])
    assert "map.png" not in answer, answer
    assert "error" in answer


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.png", "https://example.com/x.png", "HTTP://example.com/x.png", "file:///etc/passwd"]
)
@pytest.mark.parametrize("escaped", [False, True])
def test_no_address_is_fetched(address: str, url: str, escaped: bool) -> None:
    photograph = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [photograph, "", "", "integrative", "", "", "", -1, ""]})
    if escaped:
        body = body.replace('"path"', '"p\\u0061th"')
    status, answer = posted(address, "/gradio_api/call/explain", body.encode())
    assert status == 400, answer
    assert "upload only" in answer


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={secret}",
        "/gradio_api/file=..%2f..%2f..%2f..%2f{secret}",
        "/gradio_api/file/{secret}",
        "/file={secret}",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2f{secret}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f{secret}",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
    ],
)
def test_no_path_of_the_server_is_served(address: str, secret: Path, path: str) -> None:
    status, content = fetched(address + path.format(secret=secret))
    assert status in (200, 403, 404)
    assert secret.read_bytes() not in content


def test_a_large_body_is_refused(address: str) -> None:
    status, _ = posted(address, "/gradio_api/queue/join", b"x" * (29 * 2**20))
    assert status == 413


def test_the_queue_cannot_be_passed_by(address: str) -> None:
    status, _ = posted(address, "/gradio_api/run/networks", b'{"data": []}')
    assert status == 404


def test_the_browser_is_told_to_stay_here(address: str) -> None:
    with urllib.request.urlopen(address, timeout=20) as answer:
        policy = answer.headers["content-security-policy"]
        page = answer.read().decode()
    assert policy.startswith("default-src 'self'")
    assert "fonts.googleapis" not in page


def test_nothing_unforeseen_was_logged(log: Path) -> None:
    assert "unexpected error" not in log.read_text()


def called(address: str, endpoint: str, data: list[Any]) -> str:
    """All that the server says to a call made by hand."""
    status, answer = posted(address, f"/gradio_api/call/{endpoint}", json.dumps({"data": data}).encode())
    if status != 200:
        return f"error {status}: {answer}"
    event = json.loads(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{endpoint}/{event}", timeout=60) as stream:
        return stream.read().decode()


def uploaded(address: str, file: Path) -> dict[str, Any]:
    """A file that was sent to the server, as its endpoints take it."""
    import httpx

    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (file.name, file.read_bytes())}, timeout=60)
    return {"path": answer.json()[0], "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}


def posted(address: str, path: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    except (ConnectionError, urllib.error.URLError):
        # Refused before all of it was sent.
        return 413, ""


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()
