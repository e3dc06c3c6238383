"""The study of transfer: seven classes of CIFAR-10 are learnt, then the other three from few images, in several ways.

SOURCE, trained once on seven/ -> each of METHODS, at each of EPOCHS' numbers of images, at each of SEEDS -> ARMS
                               -> each of RATES_TRIED, on images of a seed that is none of these          -> TRIALS
                               -> the head on images, and on features of them, without augmentation       -> KEPT

A seed draws the training images and everything random in the run. benchmarks/transfer_data.py makes the folders,
benchmarks/recipes.py runs the cells, benchmarks/publish_transfer.py shows what they gave.
"""

from benchmarks.cells import Cell, run_name

# The network of airbench with 32, 64 and 128 channels, and not that of speedrun94: there logits are multiplied by 1/256
# instead of 1/9, so its last layer would take a learning rate (256 / 9)**2 = 809 times as high, which goes neither with
# one rate for all layers nor with a weight decay of 0.0005. Labels are not smoothed: features would forget for it what
# tells new classes apart (Kornblith et al., "Why do better losses lead to less transferable features?", NeurIPS 2021).
SOURCE = Cell(
    "configs/cifar10/airbench.yaml",
    "--model.args.widths [32,64,128] --train.epochs 10 --loss.label_smoothing 0 --data.root %WORK%/seven",
    0,
)
METHODS = {
    "scratch": "--strategy.name scratch",
    "features and SVM": "--strategy.name features --strategy.classifier svm",
    "linear": "--strategy.name linear",
    "head_then_all": "--strategy.name head_then_all",
    "all": "--strategy.name all",
    "differential": "--strategy.name differential",
}
AGAINST = "scratch"
EPOCHS = {50: 60, 200: 30, 1000: 15}  # by training images per class; of all methods
SEEDS = range(5)

# Learning rates, of the head where layers differ. The SVM has none: its strength is found by cross-validation.
RATES_TRIED = {
    "scratch": (0.1, 0.3, 1.0),
    "linear": (0.3, 1.0, 3.0, 10.0),
    "head_then_all": (0.1, 0.3, 1.0),
    "all": (0.03, 0.1, 0.3),
    "differential": (0.1, 0.3, 1.0),
}
# Those that the study takes: of each method the best on val (1,000 other training images of each class) at 200 images
# per class, with a seed that is none of SEEDS; of equals the lowest. A test holds them against the rows.
RATES = {"scratch": 0.3, "linear": 3.0, "head_then_all": 0.3, "all": 0.03, "differential": 0.3}
_TRIAL_SEED, _TRIAL_IMAGES = 9, 200

SUBSETS = [(num_images, seed) for num_images in EPOCHS for seed in SEEDS]
TRIAL_SUBSETS = [(_TRIAL_IMAGES, _TRIAL_SEED)]
_RECIPE = "configs/finetune/cifar10_three.yaml"
_HEAD_FRAC = 0.2  # of the epochs, in which head_then_all trains the head alone


def changes(method: str, *, num_images: int, lr: float | None, folder: str = "three") -> str:
    """What is changed in the recipe for a method.

    Args:
        method: One of METHODS.
        num_images: Training images per class, one of EPOCHS.
        lr: Learning rate; None of what has none.
        folder: What its data is called; `trial` has a val.
    """
    epochs = EPOCHS[num_images]
    words = [f"--data.root %WORK%/{folder}_{num_images}_%SEED% --train.epochs {epochs}", METHODS[method]]
    words += [f"--strategy.head_epochs {round(_HEAD_FRAC * epochs)}"] if method == "head_then_all" else []
    words += [f"--optim.lr {lr:g}"] if lr is not None else []
    return " ".join([*words, f"--model.name %RUNS%/{run_name('transfer_source', SOURCE)}"])


# (recipe, what is changed in it) -> what it is
ARMS = {
    (_RECIPE, changes(method, num_images=num_images, lr=RATES.get(method))): (method, num_images)
    for num_images in EPOCHS
    for method in METHODS
}
TRIALS = {
    (_RECIPE, changes(method, num_images=_TRIAL_IMAGES, lr=lr, folder="trial")): (method, lr)
    for method, rates in RATES_TRIED.items()
    for lr in rates
}
_ON_FEATURES = "--strategy.name features --strategy.classifier linear"
KEPT_IMAGES = 3 * 1000
_SAME_IMAGES = "--augment.crop none --augment.flip none"  # in each epoch, as features are
KEPT = {
    (
        _RECIPE,
        changes("linear", num_images=1000, lr=RATES["linear"]).replace(METHODS["linear"], way) + f" {_SAME_IMAGES}",
    ): name
    for name, way in (("images", METHODS["linear"]), ("features", _ON_FEATURES))
}
STUDY = [Cell(recipe, overrides, seed) for seed in SEEDS for recipe, overrides in ARMS]
KEPT_STUDY = [Cell(recipe, overrides, seed) for seed in SEEDS for recipe, overrides in KEPT]
TRIAL_STUDY = [Cell(recipe, overrides, _TRIAL_SEED) for recipe, overrides in TRIALS]
