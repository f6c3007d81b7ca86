"""Data sets with labels, boxes and masks: what is read, where it lies in the network's view, which class it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from PIL import Image

from integrative_cam.errors import ImageError, InputError
from integrative_cam.evaluate._dataset import Sample, objects_in, read_boxes, read_dataset, spread, target_of
from integrative_cam.evaluate._voc import VOC_TO_IMAGENET
from integrative_cam.models import Network, Preprocessing, read_image
from integrative_cam.models._image import read_classes


def annotation(*objects: tuple[str, int, int, int, int], size: tuple[int, int] = (8, 6), head: str = "") -> str:
    boxes = "".join(
        f"<object><name>{name}</name><part><name>head</name></part><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    return f"{head}<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{boxes}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four photographs: boxes and a mask, boxes only, a mask only, and neither."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    for name in "abcd":
        Image.new("RGB", (8, 6)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    for name in "ab":
        (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(("dog", 1, 1, 4, 6)))
    for name in "ac":
        Image.new("P", (8, 6)).save(tmp_path / "SegmentationClassAug" / f"{name}.png")
    return tmp_path


# --- what there is


def test_voc_folders(voc: Path) -> None:
    def sample(name: str, boxes: bool, masks: bool) -> Sample:
        return Sample(
            voc / "JPEGImages" / f"{name}.jpg",
            f"{name}.jpg",
            boxes=voc / "Annotations" / f"{name}.xml" if boxes else None,
            masks=voc / "SegmentationClassAug" / f"{name}.png" if masks else None,
        )

    assert read_dataset(voc) == [sample("a", True, True), sample("b", True, False), sample("c", False, True)]
    (voc / "JPEGImages").rename(voc / "images")
    assert [each.name for each in read_dataset(voc)] == ["a.jpg", "b.jpg", "c.jpg"]


def test_labels_come_from_the_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("label,file\n3,x/a.png\n tabby ,b.png\n,c.png\n")
    found = read_dataset(tmp_path / "list.csv")
    assert [(each.path, each.name, each.label) for each in found] == [
        (tmp_path / "x/a.png", "x/a.png", "3"),
        (tmp_path / "b.png", "b.png", "tabby"),
        (tmp_path / "c.png", "c.png", ""),
    ]
    (tmp_path / "list.csv").write_text("file\na.png\n")
    assert [each.label for each in read_dataset(tmp_path / "list.csv")] == [""]


def test_a_limit_takes_samples_at_even_distances() -> None:
    samples = [Sample(Path(name), name) for name in "abcdefgh"]
    assert "".join(each.name for each in spread(samples, 3)) == "acf"
    assert spread(samples, 8) == spread(samples, None) == spread(samples, 99) == samples


# --- boxes


def test_boxes_by_hand(tmp_path: Path) -> None:
    """VOC's pixels 2 to 4 reach from 1 to 4."""
    file = tmp_path / "a.xml"
    file.write_text(annotation(("dog", 2, 1, 4, 6), ("person", 1, 1, 8, 6), ("dog", 8, 6, 8, 6)))
    found = read_boxes(file, (8, 6))
    assert {name: boxes.tolist() for name, boxes in found.items()} == {
        "dog": [[1, 0, 4, 6], [7, 5, 8, 6]],
        "person": [[0, 0, 8, 6]],
    }
    file.write_text("<annotation></annotation>")
    assert read_boxes(file, (8, 6)) == {}


SECRET = "a line of another file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(("dog", 1, 1, 4, 6), size=(6, 8)), "describes 6 x 8 pixels, but the image is 8 x 6"),
        (annotation(("dog", 4, 1, 2, 6)), "a box of dog has no width or height"),
        (annotation(("", 1, 1, 2, 2)), "an object without name"),
        ("<annotation><object><name>dog</name></object></annotation>", "an object without bndbox/xmin"),
        ("<annotation>", "no VOC annotation that can be read"),
        (annotation(("dog", 1, 1, 2, 2)).replace("<xmin>1", "<xmin>one"), "could not convert"),
        (annotation(head='<!DOCTYPE a [<!ENTITY x SYSTEM "secret.txt">]>', size=(8, 6)), "has a document type, a"),
        (annotation(("&x;", 1, 1, 2, 2), head='<!DOCTYPE a [<!ENTITY x SYSTEM "secret.txt">]>'), "has a document type"),
        (annotation(("&x;", 1, 1, 2, 2), head='<!DOCTYPE a [<!ENTITY x "dog">]>'), "has a document type"),
        (annotation(head='<!DOCTYPE a SYSTEM "other.dtd">'), "has a document type"),
        (annotation(("&x;", 1, 1, 2, 2)), "undefined entity"),
        (" " * 2**20 + annotation(), "is over 1 MB"),
    ],
)
def test_unusable_annotations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_boxes(tmp_path / "a.xml", (8, 6))
    assert SECRET not in str(caught.value)


# --- where they lie in the view


def test_the_view_of_boxes_by_hand() -> None:
    """12 x 8 pixels, the shorter side scaled to 4: halved to 6 x 4; the crop of 4 x 2 starts at (1, 1)."""
    seen = Preprocessing(resize=4, crop=(2, 4))
    boxes = torch.tensor([[2.0, 2, 4, 4], [0, 0, 12, 8], [6, 5, 11, 8], [0, 0, 2, 8], [3, 6, 9, 8]])
    # The second fills the view; the fourth and fifth end where it begins.
    assert seen.boxes(boxes, (12, 8)).tolist() == [[0, 0, 1, 1], [0, 0, 4, 2], [2, 1.5, 4, 2]]
    assert seen.boxes(boxes[3:], (12, 8)).shape == (0, 4)
    # Squashed to 4 x 4: across a third, down a half; the crop of 2 x 4 starts at (0, 1).
    assert Preprocessing(resize=4, crop=(2, 4), squash=True).boxes(
        torch.tensor([[3.0, 4, 9, 6]]), (12, 8)
    ).tolist() == [[1, 1, 3, 2]]
    # A crop of 8 x 8 around 6 x 4 begins at (-1, -2).
    assert Preprocessing(resize=4, crop=(8, 8)).boxes(boxes[:1], (12, 8)).tolist() == [[2, 3, 3, 4]]


def test_the_view_of_masks_by_hand() -> None:
    """4 x 6 pixels halved to 2 x 3: the second pixel of each pair; then the middle, and what lies beyond is 0."""
    classes = torch.arange(1, 25).reshape(4, 6)
    assert Preprocessing(resize=2, crop=(2, 1)).classes(classes).tolist() == [[10], [22]]
    assert Preprocessing(resize=2, crop=(4, 3)).classes(classes).tolist() == [
        [0, 0, 0], [8, 10, 12], [20, 22, 24], [0, 0, 0],
    ]  # fmt: skip
    assert Preprocessing(resize=4, crop=(4, 6)).classes(classes).tolist() == classes.tolist()


@examples(40)
@given(
    st.integers(20, 60),
    st.integers(20, 60),
    st.integers(16, 40),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_a_painted_box_is_seen_where_its_box_is(
    width: int, height: int, resize: int, crop: tuple[int, int], squash: bool, seed: int
) -> None:
    """White pixels of a photograph, the box around them, and their mask, through one view: they agree to a pixel."""
    chosen = np.random.default_rng(seed)
    left, top = chosen.integers(0, width - 8), chosen.integers(0, height - 8)
    right, bottom = left + chosen.integers(6, width - left), top + chosen.integers(6, height - top)
    painted = np.zeros((height, width), np.uint8)
    painted[top:bottom, left:right] = 255
    preprocessing = Preprocessing(resize, crop, "bilinear", (0.0,), (1.0,), squash)
    shown = preprocessing(Image.fromarray(painted)).tensor[0, 0] > 0.5
    marked = preprocessing.classes(torch.from_numpy(painted).long()) > 0
    seen = preprocessing.boxes(torch.tensor([[left, top, right, bottom]]), (width, height))
    if not len(seen):
        assert not marked.any()
        return
    for mask in (shown, marked):
        rows, columns = mask.nonzero().T
        if not len(rows):
            assert min(seen[0, 2] - seen[0, 0], seen[0, 3] - seen[0, 1]) <= 1
            continue
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert all(abs(float(a) - float(b)) <= 1 for a, b in zip(around, seen[0], strict=True))


def test_masks_are_read_as_indices(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 2))
    picture.putpalette([200, 100, 50] * 256)
    picture.putdata([0, 15, 255, 1, 1, 20])
    picture.save(tmp_path / "a.png")
    found = read_classes(tmp_path / "a.png")
    assert found.tolist() == [[0, 15, 255], [1, 1, 20]]
    assert objects_in(found) == {"aeroplane": 1, "person": 15, "tvmonitor": 20}
    assert objects_in(torch.tensor([[0, 21, 255]])) == {}
    picture.convert("RGB").save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b.png: must hold one class index per pixel .* but is RGB"):
        read_classes(tmp_path / "b.png")
    with pytest.raises(ImageError, match="no such file"):
        read_classes(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    for read in (read_classes, read_image):
        with pytest.raises(ImageError, match=r"d\.png: "):
            read(tmp_path / "d.png")


# --- which class they are


def test_the_kinds_of_each_voc_class_are_imagenet_classes_of_that_kind(lite0: Network) -> None:
    assert len(VOC_TO_IMAGENET) == 20
    kinds = [index for indices in VOC_TO_IMAGENET.values() for index in indices]
    assert len(kinds) == len(set(kinds))
    # Words that the labels of these classes hold, and that no other label holds in this sense.
    words = {
        "aeroplane": "air|plane", "bicycle": "bike|bicycle", "boat": "boat|ship|liner|carrier|canoe|gondola|catamaran|"
        "schooner|trimaran|yawl|pirate", "bottle": "bottle", "bus": "bus", "chair": "chair|throne", "cow": "ox",
        "diningtable": "dining table", "horse": "sorrel", "motorbike": "moped|scooter", "pottedplant": "pot",
        "sheep": "ram|sheep", "sofa": "studio couch",
        "train": "train|locomotive|car", "tvmonitor": "monitor|screen|tele",
        "cat": "cat", "car": "car|cab|wagon|ambulance|convertible|jeep|limo|minivan|model t|racer",
        "person": "player|groom|diver",
    }  # fmt: skip
    for name, alternatives in words.items():
        for index in VOC_TO_IMAGENET[name]:
            label = lite0.label(index).lower()
            assert any(word in label for word in alternatives.split("|")), (name, label)
    edges = {"dog": {151: "chihuahua", 268: "mexican hairless"}, "bird": {7: "cock", 24: "grey owl", 80: "black grouse",
             100: "black swan", 127: "white stork", 146: "albatross"}}  # fmt: skip
    for name, ends in edges.items():
        for index, word in ends.items():
            assert index in VOC_TO_IMAGENET[name]
            assert word in lite0.label(index).lower()
    assert not {6, 25, 101, 126, 147, 150, 269, 280, 286} & set(kinds)


def test_the_best_ranked_kind_is_explained() -> None:
    logits = torch.zeros(1000)
    logits[[3, 281, 285, 207]] = torch.tensor([9.0, 5.0, 6.0, 4.0])
    assert target_of("cat", (), logits) == 285
    assert target_of("Dog", (), logits) == 207
    logits[300:319] = 8
    # Twenty are better than any cat.
    with pytest.raises(InputError, match="no cat within the network's top 20"):
        target_of("cat", (), logits)
    assert target_of("cat", (), logits, among=21) == 285
    with pytest.raises(InputError, match="no class of the network stands for unicorn"):
        target_of("unicorn", (), logits)


def test_a_networks_own_names_come_first() -> None:
    labels = ("left", "Dog, domestic dog", "hot dog")
    assert target_of("dog", labels, torch.tensor([3.0, 1.0, 2.0])) == 1
    with pytest.raises(InputError, match="no class of the network stands for cat"):
        target_of("cat", labels, torch.tensor([3.0, 1.0, 2.0]))
    many = ("dog", *(f"c{index}" for index in range(999)))
    logits = torch.zeros(1000)
    logits[:152] = -1
    logits[[0, 151]] = torch.tensor([1.0, 2.0])
    assert target_of("dog", many, logits) == 0
