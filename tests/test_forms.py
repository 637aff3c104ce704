"""Forms of batches, targets and outputs that fine-tuning takes, against the same training written plainly; refusals."""

import collections
import copy

import pytest
import torch
from networks import Fresh, samples
from sensitivities import plan_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hawq
from hawq.blocks import find_blocks
from hawq.errors import UserError
from hawq.finetuning import RepeatedLoader
from hawq.finetuning.step import CrossEntropy, Objective, add_gradients, try_out
from hawq.records import BlockSensitivity, Estimate, Sensitivity
from hawq.structures import main_output, map_tensors, tensors_in

IMAGES, LABELS = samples(12, torch.float32)
BATCHES = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))
CPU = torch.device("cpu")
SETTINGS = {"epochs": 2, "lr": 0.05, "order": "joint"}


class Headed(nn.Module):
    """Two heads, whose outputs leave it as `form` says: (training, main, auxiliary) → output."""

    def __init__(self, form=lambda training, main, auxiliary: main):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.auxiliary = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
        self.form = form

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return self.form(self.training, self.head(features), self.auxiliary(features))


Both = collections.namedtuple("Both", "logits aux_logits")
FORMS = {
    "tuple in training": lambda training, main, auxiliary: (main, auxiliary) if training else main,
    "named tuple in training": lambda training, main, auxiliary: Both(main, auxiliary) if training else main,
    "tuple": lambda training, main, auxiliary: (main, auxiliary),
    "list": lambda training, main, auxiliary: [main, auxiliary],
    "nested": lambda training, main, auxiliary: ((main, auxiliary), {"more": auxiliary}),
    "mapping": lambda training, main, auxiliary: {"out": main, "aux": auxiliary},
}


def sensitivity_of(blocks):
    errors = dict.fromkeys(range(1, 9), 1.0)
    rows = tuple(BlockSensitivity(block, Estimate(1.0, 0.0, 1, True), errors) for block in blocks)
    return Sensitivity(rows, "none", 1, 0.0)


def tuned(form=None, data=BATCHES, loss=None, **settings):
    model = Headed(form).eval() if form else Headed().eval()
    blocks = find_blocks(model, IMAGES)
    sensitivity = sensitivity_of(blocks)
    plan = plan_of(blocks, 3, 4)
    network, history = hawq.finetune(
        model, sensitivity, plan, data, IMAGES, hawq.FineTuning(**(SETTINGS | settings)), loss=loss
    )
    return network, [row["loss"] for row in history]


@pytest.mark.parametrize("distillation", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_main_output_is_trained_whatever_stands_around_it(form, distillation):
    """With the given loss on the first output, or cross-entropy unless given: as the network that has this alone."""
    _, expected = tuned(distillation=distillation)
    first = lambda outputs, targets: F.cross_entropy(main_output(outputs), targets)  # noqa: E731
    assert tuned(form, loss=first, distillation=distillation)[1] == pytest.approx(expected)
    if form is not FORMS["mapping"]:
        assert tuned(form, distillation=distillation)[1] == pytest.approx(expected)


def test_a_loss_of_all_heads_trains_all():
    def both(outputs, targets):
        return F.cross_entropy(outputs["out"], targets) + 0.4 * F.cross_entropy(outputs["aux"], targets)

    network, losses = tuned(FORMS["mapping"], loss=both, distillation=0.5, epochs=30)
    assert sum(losses[-9:]) < sum(losses[:9])
    assert not torch.equal(network.auxiliary.bias, Headed().auxiliary.bias)


class Stream(IterableDataset):
    """The batches one image at a time, without a length."""

    def __iter__(self):
        return iter([(image, label) for image, label in zip(IMAGES, LABELS, strict=True)])


class Indexed:
    """A sequence by __getitem__ alone."""

    def __getitem__(self, index):
        return BATCHES[index]


SOURCES = {
    "list": lambda: BATCHES,
    "lists of two": lambda: [list(batch) for batch in BATCHES],
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "training data": lambda: Fresh(BATCHES),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "by index": Indexed,
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_any_source_that_can_be_read_again_trains_alike(make):
    _, losses = tuned(data=make(), max_steps=5)
    assert losses == pytest.approx(tuned(data=BATCHES, max_steps=5)[1])


@pytest.mark.parametrize("make", [SOURCES["loader"], SOURCES["stream"]], ids=["loader", "stream"])
@pytest.mark.parametrize("first", [0, 1, 3, 7])
def test_reading_goes_on_at_any_step(make, first):
    batches = RepeatedLoader(make(), CPU).batches(first)
    for step in range(first, first + 4):
        images, labels = next(batches)
        assert torch.equal(images, BATCHES[step % 3][0]) and torch.equal(labels, BATCHES[step % 3][1])


def test_structured_targets_are_cut_and_moved_like_inputs():
    targets = [{"label": y, "pair": (y, [x.mean((1, 2, 3))])} for x, y in BATCHES]
    loss = lambda outputs, target: F.cross_entropy(outputs, target["label"]) + 0 * target["pair"][1][0].sum()  # noqa: E731
    data = [(x, target) for (x, _), target in zip(BATCHES, targets, strict=True)]
    assert tuned(data=data, loss=loss, accumulate=2)[1] == pytest.approx(tuned(accumulate=2)[1])


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_outputs_that_are_no_class_scores_are_matched_by_squares(columns):
    """(N,), (N, 1) and (N, 2) numbers: ½ · MSE to the targets + ½ · MSE to the float network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, columns or 1), nn.Flatten(0 if not columns else 1)).eval()
    targets = torch.randn(12, *[columns] * bool(columns))
    sensitivity = sensitivity_of(find_blocks(model, IMAGES))
    plan = plan_of(sensitivity.blocks, 2)
    outputs = []
    loss = lambda y, t: outputs.append(y.detach()) or F.mse_loss(y, t)  # noqa: E731
    settings = hawq.FineTuning(max_steps=1, order="joint")
    _, (row,) = hawq.finetune(model, sensitivity, plan, [(IMAGES, targets)], IMAGES, settings, loss=loss)
    expected = 0.5 * F.mse_loss(outputs[0], targets) + 0.5 * F.mse_loss(outputs[0], model(IMAGES))
    assert row["loss"] == pytest.approx(float(expected.detach()))


def test_a_network_that_changes_its_input_is_trained_on_what_was_given():
    class InPlace(Headed):
        def forward(self, x):
            return super().forward(x.mul_(2))

    images = IMAGES.clone()
    data = [(x, y) for x, y in zip(images.split(4), LABELS.split(4), strict=True)]
    model = InPlace().eval()
    sensitivity = sensitivity_of(find_blocks(model, IMAGES))
    hawq.finetune(model, sensitivity, plan_of(sensitivity.blocks, 3), data, images, hawq.FineTuning(**SETTINGS))
    assert torch.equal(images, IMAGES)


def test_checking_the_first_batch_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    objective = Objective(CrossEntropy(), None, "float32")
    try_out(model.train(), objective, BATCHES[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def refusals():
    """What is given instead, and the sentence."""
    yield "a generator", {"data": (batch for batch in BATCHES)}, "can be read only once: give a DataLoader"
    yield "a zip", {"data": zip(IMAGES, LABELS, strict=True)}, "can be read only once"
    yield "nothing", {"data": []}, "the training data is empty"
    yield "no batches", {"data": 3}, "the training data is of type int: give a DataLoader"
    yield "a tensor", {"data": IMAGES}, "no list of batches: give"
    yield "a mapping", {"data": {"x": IMAGES}}, "no list of batches: give"
    yield (
        "mappings",
        {"data": [{"image": IMAGES, "label": LABELS}]},
        "a training batch is a mapping of image, label: give",
    )
    yield "three", {"data": [(IMAGES, LABELS, LABELS)]}, "a training batch is a tuple of 3: give"
    yield "inputs alone", {"data": [IMAGES]}, r"a training batch is of shape \(12, 3, 6, 6\): give"
    yield "mappings as inputs", {"data": [({"x": IMAGES}, LABELS)]}, "a tuple of 2 with inputs a mapping of x: give"
    yield "an empty batch", {"data": [(IMAGES[:0], LABELS[:0])]}, r"inputs of the shape \(0, 3, 6, 6\)"
    yield "a stream without end", {"data": DataLoader(Stream(), batch_size=4)}, "no length: give max_steps="
    yield "mapping outputs", {"form": FORMS["mapping"]}, "output is a mapping of out, aux, .* give loss="
    yield "no outputs", {"form": lambda *_: "text"}, "output is of type str"
    yield "flat outputs", {"form": lambda t, main, a: main.sum(1)}, r"output is of shape \(4,\), .* give loss="
    yield "mapping targets", {"data": [(IMAGES, {"label": LABELS})]}, "target is a mapping of label, .* give loss="
    yield "labels beyond the classes", {"data": [(IMAGES, LABELS + 3)]}, "cross-entropy .*out of bounds.*: give targets"
    yield "labels of other length", {"data": [(IMAGES, LABELS[:5])]}, "cross-entropy .*batch_size.*: give targets"
    yield "a loss per sample", {"loss": nn.CrossEntropyLoss(reduction="none")}, r"the loss is of shape \(4,\): .* mean"
    yield "no loss", {"loss": lambda outputs, targets: None}, "the loss is of type NoneType"
    yield "a constant", {"loss": lambda y, t: torch.tensor(1.0), "distillation": 0}, "does not depend on any parameter"
    other = lambda training, main, auxiliary: main.repeat(1, 2) if training else main  # noqa: E731
    yield "other outputs in training", {"form": other}, r"shape \(4, 6\) in training .*: give distillation=0"


REFUSALS = {name: (given, message) for name, given, message in refusals()}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_trained_is_told_in_one_sentence(name):
    given, message = REFUSALS[name]
    with pytest.raises(UserError, match=message) as told:
        tuned(**given)
    assert "\n" not in str(told.value)


def test_pieces_of_structures_add_up():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets["label"][0])  # noqa: E731
    values = []
    for parts in (1, 3):
        model.zero_grad()
        value = add_gradients(model, Objective(loss, None, "float32"), (IMAGES, {"label": [LABELS]}), parts)
        values.append((float(value), model[1].weight.grad.clone()))
    assert values[0][0] == pytest.approx(values[1][0])
    torch.testing.assert_close(values[0][1], values[1][1])


def test_structures_keep_their_form():
    x = torch.ones(2)
    value = {"a": (x, [x, "text"]), "b": Both(x, None)}
    doubled = map_tensors(lambda t: 2 * t, value)
    assert doubled["a"][1][1] == "text" and type(doubled["b"]) is Both and doubled["b"].aux_logits is None
    assert [float(t[0]) for t in tensors_in(doubled)] == [2, 2, 2]
