"""Image files in folders: labels, decoding on demand, and batches that are a function of (seed, step)."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from runs import read_json, run_folder, run_here
from torch.utils.data import IterableDataset

from hawq.data import ImageFolder, ImageNet, Images, TimmData, TrainBatches, timm_data
from hawq.data.file_identity import files_identity, printable
from hawq.data.listing import find_images
from hawq.errors import UserError
from hawq.records import Normalization, Preprocessing

SUBSET = Path(__file__).parents[2] / "shared" / "data" / "imagenet_val_subset"
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PREPROCESSING = Preprocessing(16, 0.8, "bilinear")


def save_image(path, width=30, height=20, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images each for training and one for testing."""
    for seed, (part, count) in enumerate({"train": 3, "val": 1}.items()):
        for index in range(count):
            for name in ("cat", "dog"):
                save_image(tmp_path / part / name / f"{name}{index}.png", seed=9 * seed + index + (name == "dog") * 50)
    return tmp_path


def test_folder_classes_and_labels(folder):
    splits = ImageFolder(str(folder)).open()
    assert (len(splits.train_images), len(splits.test_images), splits.num_classes) == (6, 2, 2)
    assert (splits.train_labels.tolist(), splits.test_labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1])


def test_evaluation_resizes_the_shorter_side_and_cuts_out_the_middle(folder):
    image = ImageFolder(str(folder)).open().test_images[0]
    made = ImageFolder(str(folder)).prepare(PREPROCESSING, PLAIN)(image)
    resized = image.resize((30, 20), Image.Resampling.BILINEAR)  # 16 / 0.8
    expected = np.asarray(resized.crop((7, 2, 23, 18))) / 255
    np.testing.assert_allclose(made.permute(1, 2, 0), expected, atol=1e-6)
    halved = ImageFolder(str(folder)).prepare(PREPROCESSING, Normalization((0.5,) * 3, (0.25,) * 3))(image)
    torch.testing.assert_close(halved, (made - 0.5) / 0.25)


def batches(folder, seed=3, workers=0, augment=True):
    data = ImageFolder(str(folder), augment)
    splits = data.open()
    prepare, changed = (data.prepare(PREPROCESSING, PLAIN, augmented=augmented) for augmented in (False, True))
    images = Images(splits.train_images, splits.train_labels, prepare, changed)
    return TrainBatches(images, 2, seed, torch.device("cpu"), workers)


def first(iterator, count):
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("first_step", [1, 4])
def test_batches_are_a_function_of_the_step(first_step, workers, folder):
    expected = first(batches(folder).batches(0), 5)[first_step:]
    for (images, labels), (other, other_labels) in zip(
        first(batches(folder, workers=workers).batches(first_step), 5 - first_step), expected, strict=True
    ):
        assert torch.equal(images, other)
        assert torch.equal(labels, other_labels)


def test_training_images_change_and_only_if_wanted(folder):
    def views(augment):
        made = batches(folder, augment=augment)
        return {tuple(image.flatten().tolist()) for images, _ in first(made.batches(0), 9) for image in images}

    assert len(views(False)) == 6
    assert len(views(True)) > 12


def test_identity_knows_names_and_sizes(folder):
    before = ImageFolder(str(folder)).open().identity()
    assert ImageFolder(str(folder)).open().identity() == before
    (folder / "train" / "cat" / "cat0.png").rename(folder / "train" / "cat" / "cat9.png")
    renamed = ImageFolder(str(folder)).open().identity()
    save_image(folder / "val" / "dog" / "dog0.png", width=31)
    assert len({before, renamed, ImageFolder(str(folder)).open().identity()}) == 3


def test_identity_knows_an_image_that_is_replaced_by_another_of_its_name_size_and_time(folder):
    place = folder / "train" / "cat" / "cat0.bmp"  # all images of one size have files of one size
    save_image(place)
    stat, before = place.stat(), ImageFolder(str(folder)).open().identity()
    save_image(place, seed=9)
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert place.stat().st_size == stat.st_size
    assert ImageFolder(str(folder)).open().identity() != before


def test_identity_stays_when_the_data_set_is_moved(folder, tmp_path_factory):
    before = ImageFolder(str(folder)).open().identity()
    moved = folder.rename(tmp_path_factory.mktemp("other") / "place")
    assert ImageFolder(str(moved)).open().identity() == before


CHANGES = {  # of a file of 40,000 zero bytes: what changes, and whether its time of change is put back
    "first byte": (0, True),
    "middle": (20_000, True),
    "last byte": (39_999, True),
    "between the samples": (10_000, False),
}


@pytest.mark.parametrize(("place", "back"), CHANGES.values(), ids=CHANGES)
def test_samples_stand_for_files_that_are_too_many_to_be_read(place, back, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(40_000))
    os.utime(path, ns=(10**18, 10**18))

    def identity():
        return files_identity([("x", str(path))], whole_bytes=39_999)

    before = identity()
    path.write_bytes(bytes(place) + b"1" + bytes(39_999 - place))
    if back:
        os.utime(path, ns=(10**18, 10**18))
    assert identity() != before
    path.write_bytes(bytes(40_000))
    os.utime(path, ns=(10**18, 10**18))
    assert identity() == before


LEFT_OUT = {
    "text": lambda folder: (folder / "cat" / "notes.txt").write_text("hello"),
    "nothing in it": lambda folder: (folder / "cat" / "Thumbs.db").touch(),
    "hidden": lambda folder: save_image(folder / "cat" / ".cat.png"),
    "outside of a class": lambda folder: save_image(folder / "loose.png"),
    "hidden folder": lambda folder: save_image(folder / ".cache" / "x.png"),
    "broken link": lambda folder: (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png"),
    "pipe": lambda folder: os.mkfifo(folder / "dog" / "pipe.png"),
    "stub": lambda folder: (folder / "dog" / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)),
    "not UTF-8": lambda folder: (folder / "dog" / os.fsdecode(b"caf\xe9.txt")).touch(),
}


@pytest.mark.parametrize("add", LEFT_OUT.values(), ids=LEFT_OUT)
def test_whatever_is_left_out_is_counted_and_named(add, folder, caplog):
    before = set(map(str, folder.rglob("*")))
    ImageFolder(str(folder)).open()
    assert caplog.text == ""
    add(folder / "train")
    (new,) = {Path(path) for path in set(map(str, folder.rglob("*"))) - before if not path.endswith("/.cache/x.png")}
    assert len(ImageFolder(str(folder)).open().train_labels) == 6
    assert (
        f"train: left out, as they are no images of a class: 1 files or folders ({printable(new.name)})" in caplog.text
    )


def test_a_class_without_images(folder, caplog):
    (folder / "train" / "elk").mkdir()
    assert ImageFolder(str(folder)).open().num_classes == 3
    assert "elk is a class without images" in caplog.text
    (folder / "train" / "elk" / "elk.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    with pytest.raises(ValueError, match=r"elk has 1 files but no image that Pillow reads \(elk.heic\): convert them"):
        ImageFolder(str(folder)).open()


def test_images_in_folders_of_a_class_and_through_links_are_of_that_class(folder):
    save_image(folder / "train" / "cat" / "dog" / "inner.png")
    (folder / "train" / "dog" / "loop").symlink_to(folder / "train" / "dog")
    elsewhere = folder / "elsewhere"
    save_image(elsewhere / "far.png")
    (folder / "train" / "dog" / "link").symlink_to(elsewhere)
    assert ImageFolder(str(folder)).open().train_labels.tolist() == [0] * 4 + [1] * 4


def test_files_are_in_natural_order(folder):
    for number in (10, 9, 100):
        save_image(folder / "test2" / "a" / f"IMG{number}.png", seed=number)
    paths = [path for path, _ in find_images(str(folder / "test2"), {"a": 0})]
    assert [Path(path).name for path in paths] == ["IMG9.png", "IMG10.png", "IMG100.png"]


def test_names_that_are_not_utf8(folder):
    for part in ("train", "val"):
        place = folder / part / os.fsdecode(b"\xe9lan") / os.fsdecode(b"caf\xe9.png")
        save_image(place, seed=5)
    splits = ImageFolder(str(folder)).open()
    assert splits.train_labels.tolist() == [0] * 3 + [1] * 3 + [2]
    assert splits.train_images[6].size == (30, 20)
    assert splits.identity() == ImageFolder(str(folder)).open().identity()
    place.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"caf\\xe9.png cannot be decoded") as told:
        ImageFolder(str(folder)).open().test_images[2]
    str(told.value).encode("utf-8")


def test_a_folder_without_training_images_evaluates(tmp_path):
    save_image(tmp_path / "test" / "a" / "x.jpg")
    splits = ImageFolder(str(tmp_path)).open()
    assert (len(splits.train_images), len(splits.test_images)) == (0, 1)
    assert splits.identity() == ImageFolder(str(tmp_path)).open().identity()


def test_a_broken_image_is_named(folder):
    (folder / "val" / "cat" / "cat0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cat0.png cannot be decoded"):
        ImageFolder(str(folder)).open().test_images[0]


@pytest.mark.parametrize("data", [ImageFolder, ImageNet])
def test_missing_data_is_told_with_the_layout(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no images.*train/<.*val/<.*stages=\[\]"):
        data(str(tmp_path)).open()


@pytest.mark.parametrize("data", [ImageFolder, ImageNet])
def test_foreign_classes_are_refused(data, folder):
    save_image(folder / "val" / "elk" / "x.png")
    with pytest.raises(ValueError, match=r"has folders that are not classes of .*(elk|cat, dog)"):
        data(str(folder)).open()


def test_imagenet_labels_are_places_among_all_classes(tmp_path):
    for wnid in ("n15075141", "n01440764", "n01484850"):  # the last, the first and the third
        save_image(tmp_path / "val" / wnid / "ILSVRC2012_val_1.JPEG")
    splits = ImageNet(str(tmp_path)).open()
    assert splits.num_classes == 1000
    assert splits.test_labels.tolist() == [0, 2, 999]


def test_imagenet_subset_is_labelled_by_line_numbers():
    if not SUBSET.is_dir():
        pytest.skip(f"{SUBSET} is not there")
    lines = (SUBSET / "synset_words.txt").read_text().splitlines()
    place = {line.split()[0]: number for number, line in enumerate(lines)}
    splits = ImageNet(str(SUBSET)).open()
    expected = [place[path.parent.name] for path in sorted((SUBSET / "val").glob("*/*.JPEG"))]
    assert splits.test_labels.tolist() == expected
    assert (len(expected), len(set(expected)), max(expected) >= 725) == (1300, 725, True)
    assert splits.test_images[0].size == (227, 227)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(Image.new("RGB", (4, 5), (shade, 0, 0)), shade % 3) for shade in (7, 8, 9)])


def test_a_stream_is_read_once(monkeypatch):
    monkeypatch.setattr(timm.data, "create_dataset", lambda **request: Stream())
    splits = TimmData("wds/any", num_classes=3).open()
    assert splits.train_labels.tolist() == [1, 2, 0]
    assert splits.test_images[2].getpixel((0, 0)) == (9, 0, 0)
    assert splits.identity() == TimmData("wds/any", num_classes=3).open().identity()


def test_folders_that_timm_reads_keep_every_ending_and_name_what_is_left_out(folder, caplog):
    save_image(folder / "train" / "dog" / "far.BMP")
    data = TimmData("", num_classes=2, path=str(folder), test_split="val")
    splits = data.open()
    assert splits.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert splits.train_images[6].size == (30, 20) and caplog.text == ""
    before = splits.identity()
    save_image(folder / "train" / "dog" / "far.BMP", seed=5)
    assert data.open().identity() != before
    (folder / "val" / "dog" / "notes.txt").touch()
    data.open()
    assert "val: left out, as they are no images of a class: 1 files" in caplog.text and "notes.txt" in caplog.text


def test_archives_that_timm_reads(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("archives")

    def pack():
        for part in ("train", "val"):
            with tarfile.open(place / f"{part}.tar", "w") as tar:
                tar.add(folder / part, part)
        return [timm_data.read_with_timm("", str(place / f"{part}.tar"), part) for part in ("train", "val")]

    (images, labels), _ = pack()
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(np.asarray(images[4]), np.asarray(ImageFolder(str(folder)).open().train_images[4]))
    before = images.identity()
    assert pack()[0][0].identity() == before
    save_image(folder / "train" / "cat" / "cat0.png", seed=99)
    assert pack()[0][0].identity() != before


def test_data_sets_of_torchvision_are_read_into_memory(monkeypatch):
    deep = Image.fromarray(np.array([[0, 257 * 7]], np.uint16))
    monkeypatch.setattr(timm.data, "create_dataset", lambda **request: [(deep, 0), (Image.new("L", (2, 2)), 1)])
    splits = TimmData("torch/any", num_classes=2).open()
    assert splits.test_labels.tolist() == [0, 1]
    assert splits.test_images[0].getpixel((1, 0)) == (7, 7, 7)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_classes_are_refused(label, monkeypatch):
    monkeypatch.setattr(timm.data, "create_dataset", lambda **request: [(Image.new("L", (2, 2)), label)])
    with pytest.raises(ValueError, match=f"train_labels holds {label}, which is not a class: give 0 to 2"):
        TimmData("torch/any", num_classes=3).open()


@pytest.mark.parametrize("name", ["hfds/", "tfds/nothing", "zzz"])
def test_names_that_timm_cannot_read(name, tmp_path):
    with pytest.raises(ValueError, match=f"dataset {name} could not be read"):
        TimmData(name, num_classes=3, path=str(tmp_path)).open()


def test_all_stages_on_images_with_attention(folder, tmp_path_factory):
    """A small vision transformer at its own input size; what stays float stands in the report."""
    outputs = tmp_path_factory.mktemp("outputs")
    overrides = ["dataset=imagefolder", f"dataset.path={folder}", "model=timm", "model.name=test_vit", "workers=1"]
    assert run_here(outputs, *overrides, "bits.target=8", "finetune.order=joint") is None
    report = read_json(run_folder(outputs) / "report.json")
    assert {part["name"] for part in report["float_parts"] if part["macs"]} == {f"blocks.{i}.attn" for i in range(6)}
    assert {part["name"] for part in report["float_parts"] if part["num_weights"]} >= {"pos_embed"}


HALF, TEXT = (lambda data: data[: len(data) // 2]), (lambda data: b"not an image")


@pytest.mark.parametrize(("workers", "spoil"), [(0, HALF), (1, HALF), (0, TEXT)])
def test_a_broken_image_is_one_sentence_also_out_of_a_worker_process(workers, spoil, folder):
    place = folder / "train" / "cat" / "cat0.png"
    place.write_bytes(spoil(place.read_bytes()))
    with pytest.raises(UserError, match=r"^[^\n]*cat0.png cannot be decoded: [^\n]*; repair or remove it$"):
        first(batches(folder, workers=workers).batches(0), 3)


def test_too_few_classes():
    with pytest.raises(ValueError, match=r"^num_classes=1 is out of range"):
        TimmData("hfds/x", num_classes=1)
