"""Nothing waits for the device but the log steps, the end of an epoch and a checkpoint."""

import pytest
import torch
from small_fits import make_module
from torch.utils._python_dispatch import TorchDispatchMode

import engine.fit
from engine.fit import fit
from pipelines.batch import Batch

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
METHODS = ("item", "tolist", "numpy", "cpu")  # of a CPU tensor some of them call no operator


class Waiting(TorchDispatchMode):
    """Fails where a number is asked for of which a GPU may not be through with the computation."""

    def __init__(self):
        super().__init__()
        self.is_allowed, self.num_allowed = False, 0

    def note(self, what):
        if not self.is_allowed:
            raise AssertionError(f"{what} waits for the device")
        self.num_allowed += 1

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in WAITS:
            self.note(operator)
        return operator(*args, **(kwargs or {}))


class Prepared:
    """The batches of another loader, made beforehand."""

    def __init__(self, loader):
        self._loader = loader
        self._batches = [Batch(*batch) for batch in loader]

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __iter__(self):
        return iter(self._batches)


@pytest.fixture
def waiting(monkeypatch):
    """Watches what is within it; log steps, ends of epochs and checkpoints may wait."""
    mode = Waiting()

    def allow(function):
        def allowed(*arguments, **named):
            before, mode.is_allowed = mode.is_allowed, True
            try:
                return function(*arguments, **named)
            finally:
                mode.is_allowed = before

        return allowed

    for name in ("_log_step", "_end_epoch", "save_state", "restore_state"):
        monkeypatch.setattr(engine.fit, name, allow(getattr(engine.fit, name)))
    for name in METHODS:
        method = getattr(torch.Tensor, name)

        def noting(tensor, *arguments, name=name, method=method, **named):
            mode.note(name)
            return method(tensor, *arguments, **named)

        monkeypatch.setattr(torch.Tensor, name, noting)
    return mode


def test_steps_between_log_steps_do_not_wait_for_the_device(make_job, waiting, monkeypatch):
    job = make_job(accumulation=2, log_every_steps=2, checkpoint_every_steps=3)
    monkeypatch.setattr(engine.fit, "Writer", Immediately)
    phase = job.phases[0]
    with allowed(waiting):
        loader = Prepared(phase.loader)
    with waiting:
        state = fit(make_module(dropout=0.5), job._replace(phases=[phase._replace(loader=loader)]))
    assert state.step == 12
    assert waiting.num_allowed > 6


@pytest.mark.parametrize(
    "wait", [lambda loss: loss.item(), lambda loss: loss.isfinite().nonzero(), lambda loss: loss.tolist()]
)
def test_a_step_that_waits_would_be_found(make_job, waiting, wait):
    job = make_job()
    inner = job.loss_fn

    def curious(module, batch):
        output = inner(module, batch)
        wait(output.loss.detach())
        return output

    with allowed(waiting):
        phase = job.phases[0]._replace(loader=Prepared(job.phases[0].loader))
    with pytest.raises(AssertionError, match="waits for the device"), waiting:
        fit(make_module(), job._replace(loss_fn=curious, phases=[phase]))


class allowed:  # noqa: N801
    """Within, all may wait."""

    def __init__(self, mode):
        self._mode = mode

    def __enter__(self):
        self._mode.is_allowed = True

    def __exit__(self, *_):
        self._mode.is_allowed = False


class Immediately:
    """A writer without a thread, in which the methods that are watched would be called at any time."""

    longest_s = 0.0

    def __init__(self, sign):
        pass

    def submit(self, write):
        write()

    def check(self):
        pass

    wait = close = check
