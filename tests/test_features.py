"""Features over several processes, and a network with a head that was fitted on them through evaluate.py."""

import io

import pytest
import torch
from programs import succeed

from configs.load import config_to_dict, load_config
from engine.bad_samples import BadSampleLog
from engine.build import build_card, resolve_config
from engine.features import compute_features
from engine.final import save_final, score_checkpoint
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import start_runtime
from models.build import build_model
from models.classifiers import FittedLinear, fit_classifier
from models.heads import install_linear
from pipelines.build import Place, build_data, build_evaluation_loader, fingerprint_splits

pytestmark = pytest.mark.slow


@pytest.mark.dist
def test_two_ranks_hold_the_features_that_one_computes_and_read_them_again(tmp_path):
    states = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        words = ("tests/features_of_ranks.py", str(out), str(out / "cache"))
        succeed("torchrun", "--nproc-per-node", str(count), *words)
        states[count] = [torch.load(out / f"rank_{rank}.pt", weights_only=True) for rank in range(count)]
        assert len(list((out / "cache" / "features").iterdir())) == 1
    (alone,) = states[1]
    features, labels, ids = alone["held"][0]
    assert ids.tolist() == list(range(1293))
    assert (features.shape, features.dtype, len(labels)) == ((1293, 256), torch.float64, 1293)
    assert alone["counts"] == [26, 26], "26 batches of 50, and none where they were kept"
    for state in states[2]:
        assert state["key"] == alone["key"]
        assert state["counts"] == [13, 13]
        for held in state["held"]:
            for value, expected in zip(held, alone["held"][0], strict=True):
                assert torch.equal(value, expected)


def test_a_run_whose_head_was_fitted_on_features_is_scored_by_evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = resolve_config(load_config(["--run.num_threads", "1"], prog="", description=""), {})
    runtime = start_runtime("fp32", config.run)
    data = build_data(config, show_progress=False)
    place = Place(runtime.device, runtime.dtype, 0, 1, 1)
    module, head = runtime.place(build_model(config.model, num_classes=10, spec=data.spec, seed=0)), "head.5"
    loaders = {
        split: build_evaluation_loader(config, data, split, place=place, show_progress=False)
        for split in ("train", "val", "test")
    }
    features = compute_features(
        module,
        loaders.pop("train"),
        head=head,
        runtime=runtime,
        beat=lambda: None,
        progress=Progress(num_epochs=0, is_main=False),
    )
    arrays = features.features_ND.numpy(), features.labels_N.numpy()
    fitted = fit_classifier("logistic", *arrays, num_classes=10, cv_folds=3, seed=0)
    assert isinstance(fitted, FittedLinear)
    install_linear(module, head, fitted.weight_KD, fitted.bias_K)
    folder, progress = RunFolder(tmp_path / "run"), Progress(num_epochs=0, is_main=True, stream=io.StringIO())
    folder.path.mkdir()
    folder.save_start(config_to_dict(config), {})
    class_names, fingerprints = data.train.class_names, fingerprint_splits(data)
    card = build_card(config, class_names=class_names, spec=data.spec, fingerprints=fingerprints)
    save_final(module, step=0, card=card, folder=folder, runtime=runtime)
    score_checkpoint(
        module,
        loaders,
        card=card,
        step=0,
        epoch=0,
        tta="none",
        folder=folder,
        runtime=runtime,
        bad_log=BadSampleLog(folder, runtime=runtime, progress=progress),
        progress=progress,
    )
    result = folder.read_result()
    assert result is not None
    assert result["test/top1_frac"] > 0.9
    output = succeed("evaluate.py", "--run", str(folder.path))
    assert f"test/top1_frac {result['test/top1_frac']}" in output
