"""Where a fit stands, told in epochs, over phases of unlike length."""

import pytest
from small_fits import make_module, two_phases

from engine.state import TrainState, count_epochs, progress_in_epochs, steps_per_epoch


@pytest.mark.parametrize(
    ("phase", "phase_step", "epochs"), [(0, 0, 0.0), (0, 3, 0.75), (0, 8, 2.0), (1, 0, 2.0), (1, 5, 3.25), (1, 8, 4.0)]
)
def test_epochs_are_counted_over_all_phases(make_job, make_loader, data, phase, phase_step, epochs):
    job = make_job()._replace(phases=two_phases(make_loader, data))
    state = TrainState(make_module(), phase=phase, step=8 * phase + phase_step, phase_step=phase_step)
    assert steps_per_epoch(state, job) == 4
    assert progress_in_epochs(state, job) == epochs
    assert count_epochs(state, job) == int(epochs)


def test_a_phase_has_the_steps_of_its_epochs(make_loader, data):
    phase, _ = two_phases(make_loader, data)
    assert phase.num_steps == 2 * 4
