"""Data sets in memory: what is read, and which batches come out of it."""

import hashlib
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, cifar
from torchvision.transforms import v2

from hawq.data import Cifar10, Cifar100, Digits, Images, Splits, TrainBatches, fixed_batches, sample_indices
from hawq.records import Normalization, Preprocessing

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.5, 0.25, 0.125), (0.5, 0.25, 1.0))
KEPT_SIZE = Preprocessing(224, 0.875, "bilinear")  # images in memory keep their size
PREPARE = Digits(8).prepare(KEPT_SIZE, NORMALIZATION)


def shifting(side):
    """A preparation of training images that shifts them by up to two pixels."""
    crop = v2.RandomCrop(side, padding=2)
    return lambda image: crop(PREPARE(image))


def image_set(values, augment=None):
    return Images(values["train_images"], values["train_labels"], PREPARE, augment)


def arrays(num_train=7, num_test=3, side=4):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (num_train, side, side, 3), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, num_train),
        "test_images": rng.integers(0, 256, (num_test, side, side, 3), dtype=np.uint8),
        "test_labels": rng.integers(0, 10, num_test),
    }


def test_digits_are_split_by_class():
    splits = Digits().open()
    assert splits.train_images.shape == (1437, 32, 32, 3)
    assert splits.test_images.shape == (360, 32, 32, 3)
    assert splits.train_images.dtype == np.uint8
    shares = [np.bincount(labels, minlength=10) / len(labels) for labels in (splits.train_labels, splits.test_labels)]
    np.testing.assert_allclose(*shares, atol=0.003)


def test_digits_are_the_same_every_time():
    first, second, smaller = Digits(8).open(), Digits(8).open(), Digits(9).open()
    assert first.identity() == second.identity()
    assert first.identity() != smaller.identity()
    np.testing.assert_array_equal(first.test_labels, smaller.test_labels)


def test_digits_state_their_normalisation():
    images = Digits(augment=False).open().train_images / 255
    np.testing.assert_allclose(images.mean((0, 1, 2)), Digits.normalization.mean, atol=0.01)
    np.testing.assert_allclose(images.std((0, 1, 2)), Digits.normalization.std, atol=0.02)


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "test_labels"])
def test_identity_depends_on_every_array(key, tmp_path):
    def identity(values):
        np.savez(tmp_path / "data.npz", **values)
        return Cifar10(str(tmp_path / "data.npz")).open().identity()

    changed = {name: values.copy() for name, values in arrays().items()}
    changed[key].flat[0] ^= 1
    assert identity(arrays()) == identity(arrays()) != identity(changed)


def test_npz_is_read_as_it_is(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays(), class_names=["a", "b"])
    splits = Cifar10(str(tmp_path / "data.npz")).open()
    for name, expected in arrays().items():
        np.testing.assert_array_equal(getattr(splits, name), expected)


def saved(values):
    return lambda path: np.savez(path, **values)


def truncated(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    """One byte of a stored array is another one: the zip's checksum notices."""
    np.savez(path, **arrays())
    data = bytearray(path.read_bytes())
    data[data.index(GOOD["train_images"].tobytes()) + 5] ^= 1
    path.write_bytes(data)


def single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def with_header(name, shape, dtype="|u1", data=b"x"):
    """An .npz in which one array states a shape and a type of its own."""

    def write(path):
        np.savez(path, **{key: value for key, value in GOOD.items() if key != name})
        member = io.BytesIO()
        np.lib.format.write_array_header_2_0(member, {"shape": shape, "fortran_order": False, "descr": dtype})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", member.getvalue() + data)

    return write


def other(**changed):
    return saved(GOOD | changed)


GOOD = arrays()
LABELS = GOOD["train_labels"]
BAD_FILES = {
    "missing array": (saved({name: GOOD[name] for name in GOOD if name != "test_labels"}), "test_labels"),
    "channels first": (other(test_images=GOOD["test_images"].transpose(0, 3, 1, 2)), r"test_images.*3, 4, 4"),
    "grey": (other(test_images=GOOD["test_images"][..., :1]), r"test_images is uint8 \(3, 4, 4, 1\)"),
    "floats": (other(train_images=GOOD["train_images"] / 255), "train_images is float64"),
    "signed": (other(train_images=GOOD["train_images"].astype(np.int8)), "train_images is int8"),
    "no pixels": (other(train_images=GOOD["train_images"][:, :0]), r"train_images is uint8 \(7, 0, 4, 3\)"),
    "fewer labels": (other(train_labels=LABELS[:-1]), "train_labels"),
    "labels in a column": (other(train_labels=LABELS[:, None]), r"train_labels has shape \(7, 1\), \(7,\) is needed"),
    "fractions as labels": (other(train_labels=LABELS / 2), "train_labels is float64: whole numbers are needed"),
    "truths as labels": (other(test_labels=np.ones(3, bool)), "test_labels is bool: whole numbers are needed"),
    "text as labels": (other(test_labels=np.array(["a", "b", "c"])), "test_labels is <U1: whole numbers are needed"),
    "label too large": (
        other(train_labels=LABELS * 0 + 10),
        "train_labels holds 10, which is not a class: give 0 to 9",
    ),
    "label too small": (other(test_labels=np.array([1, -1, 2])), "test_labels holds -1, which is not a class"),
    "label of 64 bits": (
        other(test_labels=np.array([1, 2**63, 2], np.uint64)),
        "test_labels holds 9223372036854775808",
    ),
    "no test images": (
        other(test_images=GOOD["test_images"][:0], test_labels=GOOD["test_labels"][:0]),
        "test_images is empty: at least one image is needed",
    ),
    "images of two sizes": (other(test_images=GOOD["test_images"][:, :2]), "images of one size are needed"),
    "objects": (other(train_images=np.array([[1], [2, 3]], object)), "train_images is object"),
    "objects as labels": (other(train_labels=LABELS.astype(object)), "train_labels is object: whole numbers"),
    "absurd header": (with_header("train_images", (10**9, 10**4, 10**4, 3)), "its header says 300,000,000,000,000,000"),
    "negative header": (with_header("train_images", (-7, -4, 4, 3)), "is not an .npz"),
    "other header": (with_header("test_images", (3, 4, 4, 3)), "train_images.*its header says 144"),
    "no header": (with_header("test_labels", (3,), data=b""), "is not an .npz"),
    "text": (lambda path: path.write_text("hello"), "is not an .npz"),
    "empty": (lambda path: path.write_bytes(b""), "is not an .npz"),
    "truncated": (truncated, "is not an .npz"),
    "damaged": (flipped, "is not an .npz"),
    "single array": (single_array, "is not an .npz"),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_npz_is_refused(write, message, tmp_path):
    path = tmp_path / "data.npz"
    write(path)
    with pytest.raises(ValueError, match=f"^path=[^\n]*data.npz[^\n]*{message}[^\n]*$"):
        Cifar10(str(path)).open()


def test_images_that_the_memory_cannot_hold_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "data.npz", **arrays())
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    with pytest.raises(ValueError, match=r"^path=.*data.npz: its images need .* GiB and this machine has"):
        Cifar10(str(tmp_path / "data.npz")).open()


def test_damaged_npz_files_are_refused_in_one_sentence_or_read_as_they_were(tmp_path):
    path, rng = tmp_path / "data.npz", np.random.default_rng(0)
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read = Cifar10(str(path)).open()
        except ValueError as error:
            assert str(error).startswith("path=") and "\n" not in str(error)
        else:
            assert all(np.array_equal(getattr(read, name), value) for name, value in GOOD.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_images": [], "test_labels": np.zeros(0, np.int64)}, "no test images"),
        ({"train_labels": np.array([0, 3])}, "train_labels holds 3, which is not a class: give 0 to 2"),
        ({"test_labels": np.array([-1])}, "test_labels holds -1"),
        ({"train_labels": np.array([0.0, 1.0])}, "train_labels is float64"),
        ({"train_labels": np.array([0])}, r"train_labels have shape \(1,\), \(2,\) is needed"),
    ],
)
def test_splits_that_do_not_fit_their_classes(changed, message):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    good = {
        "train_images": images,
        "train_labels": np.array([0, 1]),
        "test_images": images[:1],
        "test_labels": np.array([2]),
    }
    assert Splits(**good, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=message):
        Splits(**good | changed, num_classes=3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (16, 40)])
@pytest.mark.parametrize("data", [Cifar10("x"), Digits()])
def test_a_network_of_a_fixed_size_gets_images_of_that_size(data, height, width):
    """Against Pillow's own resizing; augmented images have the size too, whatever size is stored."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fixed = Preprocessing(48, 0.9, "bilinear", fixed_size=True)
    made = data.prepare(fixed, Normalization((0.0,) * 3, (1.0,) * 3))(image)
    expected = np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(made.permute(1, 2, 0), expected, atol=1.5 / 255)
    for preprocessing, sides in ((fixed, (48, 48)), (KEPT_SIZE, (height, width))):
        for augmented in (False, True):
            assert data.prepare(preprocessing, NORMALIZATION, augmented=augmented)(image).shape == (3, *sides)


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"workers": -1}, {"workers": 10**9}])
def test_numbers_that_no_loader_has_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name}={values[name]} is out of range"):
        TrainBatches(image_set(arrays()), **{"batch_size": 2, "seed": 0, "device": CPU} | values)


def test_training_without_images_is_refused():
    with pytest.raises(ValueError, match="no training images"):
        TrainBatches(Images(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), PREPARE), 2, 0, CPU)


def test_a_missing_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz does not exist: give an .npz with arrays train_images"):
        Cifar10(str(tmp_path / "absent.npz")).open()


def write_torchvision_folder(folder):
    """The layout of torchvision's CIFAR10, two images a file; returns all training and test images (N, 32, 32, 3)."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    for number, name in enumerate([*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"]):
        content = {"data": images[2 * number : 2 * number + 2].reshape(2, -1), "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return images.transpose(0, 2, 3, 1)


def archive(tmp_path, monkeypatch):
    """CIFAR-10 as an archive at an address of its own, and the images in it."""
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    images = write_torchvision_folder(tmp_path / "cifar-10-batches-py")
    packed = tmp_path / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", packed.as_uri())
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    return packed, images


def test_absent_cifar_is_downloaded_once_and_told(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    packed, images = archive(tmp_path, monkeypatch)
    place = tmp_path / "outputs" / "data"
    np.testing.assert_array_equal(Cifar10(str(place)).open().train_images, images[:10])
    assert packed.as_uri() in caplog.text and str(place) in caplog.text and "100 %" in caplog.text
    assert [path.name for path in place.iterdir()] == ["cifar-10-batches-py"]
    packed.unlink()
    np.testing.assert_array_equal(Cifar10(str(place)).open().test_images, images[10:])


def test_a_download_that_was_killed_begins_again(tmp_path, monkeypatch):
    archive(tmp_path, monkeypatch)
    left = tmp_path / "data" / ".cifar-10-batches-py.part"
    left.mkdir(parents=True)
    (left / "archive").write_text("half")
    assert len(Cifar10(str(tmp_path / "data")).open().train_labels) == 10
    assert not left.exists()


SPOILT = {
    "another checksum": (lambda packed: packed.write_bytes(packed.read_bytes() + b"x"), "has the MD5"),
    "gone": (lambda packed: packed.unlink(), "could not be downloaded"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_download_that_fails_leaves_nothing(spoil, message, tmp_path, monkeypatch):
    packed, _ = archive(tmp_path, monkeypatch)
    spoil(packed)
    with pytest.raises(FileNotFoundError, match=f"^path=.*holds no CIFAR10.*{message}.*give an .npz"):
        Cifar10(str(tmp_path / "outputs" / "data")).open()
    assert not (tmp_path / "outputs" / "data").exists()


def test_torchvision_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # MD5 of the original files
    images = write_torchvision_folder(tmp_path / "cifar-10-batches-py")
    splits = Cifar10(str(tmp_path)).open()
    np.testing.assert_array_equal(splits.train_images, images[:10])
    np.testing.assert_array_equal(splits.test_images, images[10:])
    assert splits.train_labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert splits.test_labels.tolist() == [5, 9]


@pytest.mark.parametrize(("data", "num_classes"), [(Cifar10, 10), (Cifar100, 100)])
def test_cifar_knows_its_classes(data, num_classes, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    assert data(str(tmp_path / "data.npz")).open().num_classes == num_classes
    with pytest.raises(FileNotFoundError, match=f"holds no CIFAR{num_classes}.*could not be downloaded"):
        data(str(tmp_path / "data.npz" / "below")).open()


@pytest.mark.parametrize("data", [Digits(8), Cifar10("")])
def test_augmentation_can_be_left_out(data):
    image = arrays(side=8 if data.name == "digits" else 32)["train_images"][0]
    plain, changed = (data.prepare(KEPT_SIZE, NORMALIZATION, augmented=augmented) for augmented in (False, True))
    still = type(data)(**{"size": 8} if data.name == "digits" else {"path": ""}, augment=False)
    assert torch.equal(still.prepare(KEPT_SIZE, NORMALIZATION, augmented=True)(image), plain(image))
    assert any(not torch.equal(changed(image), plain(image)) for _ in range(9))


def test_a_torchvision_folder_with_other_files_is_refused(tmp_path):
    write_torchvision_folder(tmp_path / "cifar-10-batches-py")
    with pytest.raises(FileNotFoundError, match=r"^path=.*holds no CIFAR10.*give an .npz"):
        Cifar10(str(tmp_path)).open()


def test_images_are_normalised():
    values = arrays()
    images = image_set(values)
    expected = (values["train_images"][2] / 255 - NORMALIZATION.mean) / NORMALIZATION.std
    np.testing.assert_allclose(images[2][0].permute(1, 2, 0), expected, atol=1e-6)
    assert images[2][1] == values["train_labels"][2]
    assert images[2][0].dtype == torch.float32


def train_batches(seed=0, num_train=11, batch_size=3):
    values = arrays(num_train, side=8)
    values["train_labels"] = np.arange(num_train)
    augment = Digits(8).prepare(KEPT_SIZE, NORMALIZATION, augmented=True)
    return TrainBatches(image_set(values, augment), batch_size, seed, CPU)


def first(iterator, count):
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 6, 7])
def test_batches_are_a_function_of_the_step(first_step):
    data = train_batches()
    assert data.steps_per_epoch == 3
    torch.manual_seed(first_step)
    expected = first(data.batches(0), 9)[first_step:]
    for (images, labels), (other_images, other_labels) in zip(
        first(data.batches(first_step), 9 - first_step), expected, strict=True
    ):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_batches_depend_on_the_seed():
    (images, _), (same, _), (other, _) = (next(train_batches(seed).batches(0)) for seed in (4, 4, 5))
    assert torch.equal(images, same)
    assert not torch.equal(images, other)


def test_every_image_comes_once_an_epoch_and_in_another_order_the_next():
    data = train_batches(num_train=12)
    labels = torch.stack([labels for _, labels in first(data.batches(0), 8)]).reshape(2, 12)
    assert labels.sort().values.tolist() == [list(range(12))] * 2
    assert labels[0].tolist() != labels[1].tolist()


def test_augmentation_changes_from_epoch_to_epoch_and_leaves_the_global_generator_alone():
    data = train_batches(num_train=1, batch_size=1)
    assert len({tuple(images.flatten().tolist()) for images, _ in first(data.batches(0), 6)}) > 1
    images = image_set(arrays(side=8), shifting(8))
    before = torch.get_rng_state()
    assert torch.equal(images[(0, 123)][0], images[(0, 123)][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_never_larger_than_the_data():
    data = train_batches(num_train=5, batch_size=64)
    assert data.steps_per_epoch == 1
    assert len(next(data.batches(0))[1]) == 5


def test_fixed_batches_are_not_augmented():
    values = arrays()
    images = image_set(values, shifting(4))
    batches = fixed_batches(images, [6, 1, 3, 0, 2], 2, CPU)
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == values["train_labels"][[6, 1, 3, 0, 2]].tolist()
    assert torch.equal(batches[0][0][1], images[1][0])


@pytest.mark.parametrize("height, width", [(8, 8), (16, 24), (7, 9), (32, 32)])
@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("data", [Digits(8), Digits(8, augment=False), Cifar10(""), Cifar10("", augment=False)])
def test_a_whole_batch_is_what_each_image_alone_gives(data, size, height, width):
    generator = np.random.default_rng(height)
    stored = generator.integers(0, 256, (20, height, width, 3), dtype=np.uint8)
    kept = KEPT_SIZE if size is None else Preprocessing(size, 1.0, "bicubic", fixed_size=True)
    prepare, augment = (data.prepare(kept, NORMALIZATION, augmented=augmented) for augmented in (False, True))
    images = Images(stored, np.arange(20), prepare, augment)
    chosen = generator.permutation(20)[:11].tolist()
    for items in (
        chosen,
        [(index, int(seed)) for index, seed in zip(chosen, generator.integers(2**31, size=11), strict=True)],
    ):
        inputs, labels = images.whole_batch(items, CPU)
        expected = [images[item] for item in items]
        assert torch.equal(inputs, torch.stack([image for image, _ in expected]))
        assert labels.tolist() == [label for _, label in expected]
        assert inputs.is_contiguous()
    batches = list(images.batches(range(20), 8, CPU))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), torch.stack([images[i][0] for i in range(20)]))


def test_images_that_are_prepared_one_by_one_come_in_the_same_batches():
    values = arrays(side=8)
    whole = image_set(values)
    single = Images(values["train_images"], values["train_labels"], lambda image: whole_prepare(image))
    whole_prepare = Digits(8).prepare(KEPT_SIZE, NORMALIZATION)
    assert single.whole_batch([0, 1], CPU) is None
    for (inputs, labels), (others, same) in zip(
        single.batches(range(5), 2, CPU), whole.batches(range(5), 2, CPU), strict=True
    ):
        assert torch.equal(inputs, others) and torch.equal(labels, same)


def test_samples_are_drawn_by_the_seed_without_repetition():
    assert sample_indices(50, 20, 3) == sample_indices(50, 20, 3) != sample_indices(50, 20, 4)
    assert len(set(sample_indices(50, 20, 3))) == 20
    assert sorted(sample_indices(5, 9, 0)) == list(range(5))


def test_too_small_digits_are_refused():
    with pytest.raises(ValueError, match=r"^size=7 is out of range"):
        Digits(7)
