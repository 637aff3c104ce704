"""Training in several processes: each step is that of one process on the whole batch."""

import contextlib
import itertools

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import Fresh, Residual, batches_of, build, samples
from processes import in_processes
from torch import nn
from tuning import prepared

import train  # noqa: F401 - once, for all the processes that are forked
from hawq.distributed import rank, shard
from hawq.errors import UserError
from hawq.finetuning import FineTuning, Training, finetune, fit
from hawq.finetuning.parallel import whole_batch_norm
from hawq.records import Phase

RAGGED = batches_of(3, 7)  # shares of 3 and 4 samples
PHASES = [Phase((), (), 4, 0.1, 0.1), Phase((), (), 4, 0.1, 0.0)]


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shares_are_contiguous_and_nearly_equal(parts):
    for count in range(10):
        shares = [list(range(count))[shard(count, part, parts)] for part in range(parts)]
        assert list(itertools.chain(*shares)) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (7, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_that_of_the_whole_batch(shape, affine):
    """Outputs, running statistics and all gradients, against PyTorch's batch norm on all samples; shares are ragged."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 20
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def found(part=0, parts=1):
        own = shard(len(x), part, parts)
        norm, inputs = kind(shape[1], affine=affine, dtype=torch.float64), x[own].clone().requires_grad_()
        with whole_batch_norm():
            out = norm(inputs)
        (out.sin() * weights[own]).sum().backward()
        return out.detach(), inputs.grad, [p.grad for p in norm.parameters()], [norm.running_mean, norm.running_var]

    out, grad, grads, statistics = found()
    results = in_processes(2, lambda: found(rank(), 2))
    torch.testing.assert_close(torch.cat([result[0] for result in results]), out)
    torch.testing.assert_close(torch.cat([result[1] for result in results]), grad)
    torch.testing.assert_close([sum(parts) for parts in zip(*(result[2] for result in results), strict=True)], grads)
    for result in results:
        torch.testing.assert_close(result[3], statistics)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("branches", {"accumulate": 2, "clip_norm": 0.5}),
        ("residual", {"ema_decay": 0.8, "clip_norm": 0.5, "label_smoothing": 0.1}),
    ],
)
def test_float_training_has_the_losses_of_one_process(name, options):
    """Without batch norm also in pieces: each would hold other samples."""

    def trained():
        model = build(name, torch.float32)
        history = fit(model, PHASES, Fresh(RAGGED), Training(**options), seed=0)
        return [row["loss"] for row in history], model.state_dict()

    losses, state = trained()
    first, second = in_processes(2, trained)
    assert first[0] == second[0] == pytest.approx(losses, rel=1e-5)
    for key, value in state.items():
        assert torch.equal(first[1][key], second[1][key]), key
        torch.testing.assert_close(first[1][key], value, rtol=1e-4, atol=1e-5)


SETTINGS = FineTuning(
    epochs=10,
    order="descending",
    max_steps=14,
    lr=0.05,
    checkpoint_every=3,
    oscillation="freeze",
    oscillation_threshold=0.005,
)


def tune(**options):
    """Ordered fine-tuning of a network without dropout, which each process would draw for itself."""
    model, sensitivity, plan = prepared()
    model.head[0].p = 0.0
    settings = options.pop("settings", SETTINGS)
    return finetune(model, sensitivity, plan, Fresh(RAGGED), [x for x, _ in RAGGED], settings, seed=1, **options)


def tuned(**options):
    """The tensors and the history of a fine-tuning, as they can be sent."""
    network, history = tune(**options)
    return {key: value for key, value in network.state_dict().items() if isinstance(value, torch.Tensor)}, history


def test_ordered_fine_tuning_has_the_losses_of_one_process():
    settings = FineTuning(epochs=10, order="descending", max_steps=14, lr=0.05, distillation=0.5, freeze_batch_norm=0.5)
    state, history = tuned(settings=settings)
    first, second = in_processes(2, lambda: tuned(settings=settings))
    assert first[1] == second[1]
    assert [row["loss"] for row in first[1]] == pytest.approx([row["loss"] for row in history], rel=1e-5)
    for key, value in state.items():
        assert torch.equal(first[0][key], second[0][key]), key
        torch.testing.assert_close(first[0][key], value, rtol=1e-3, atol=1e-4)


def test_all_go_on_from_what_the_first_process_stored():
    def killed():
        checkpoint = MemoryCheckpoint()
        with contextlib.suppress(Killed):
            tune(checkpoint=checkpoint if rank() == 0 else None, on_row=kill_after(8))
        return checkpoint.load()

    stored, nothing = in_processes(2, killed)
    assert stored["step"] == 6 and nothing is None

    def resumed():
        checkpoint = MemoryCheckpoint()
        checkpoint.save(stored)
        return tuned(checkpoint=checkpoint if rank() == 0 else None)

    straight = in_processes(2, tuned)
    for (state, history), (expected, expected_history) in zip(in_processes(2, resumed), straight, strict=True):
        assert history == expected_history
        assert state.keys() == expected.keys() and all(torch.equal(x, expected[k]) for k, x in state.items())


def test_only_the_first_process_evaluates_and_hears():
    def heard():
        rows, best = [], {}
        first = {"evaluate": lambda _: 50.0, "on_row": rows.append, "on_best": best.update} if rank() == 0 else {}
        network, _ = tune(**first)
        return len(rows), bool(best), network.head[1].weight

    (first, best, weight), (second, none, other) = in_processes(2, heard)
    assert (first, best, second, none) == (14, True, 0, False)
    assert torch.equal(weight, other)


def told(work):
    try:
        work()
    except UserError as error:
        return str(error)


def test_a_loss_that_is_not_finite_ends_all_and_is_named_where_it_arose():
    """The sample is in the second process' share; a network without batch norm keeps it there."""
    images, labels = samples(7, torch.float32)
    images[6] = float("inf")
    data = Fresh([*RAGGED[:2], (images, labels)])
    fails = in_processes(2, lambda: told(lambda: fit(build("mlp", torch.float32), PHASES, data, Training(), seed=0)))
    assert fails[0] == fails[1]
    assert "diverged at step 3" in fails[0] and "the output of 0 is not finite" in fails[0]


def test_more_processes_than_images_are_refused():
    fails = in_processes(
        2, lambda: told(lambda: fit(Residual(), PHASES, Fresh(RAGGED), Training(batch_size=1), seed=0))
    )
    assert fails[0] == fails[1] and fails[0].startswith("batch_size=1 leaves some of the 2 processes")


class Failing(Fresh):
    """The second process cannot read its share of the third batch."""

    def batches(self, first_step, part=0, parts=1):
        for index, batch in enumerate(super().batches(first_step, part, parts)):
            if part == 1 and index == 2:
                raise Killed
            yield batch


def test_no_process_waits_for_one_that_has_failed():
    def ended():
        try:
            fit(Residual(), PHASES, Failing(RAGGED), Training(), seed=0)
        except (Killed, RuntimeError) as error:
            return isinstance(error, Killed)

    assert in_processes(2, ended) == [False, True]
