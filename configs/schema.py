"""Every option of a run, its meaning, its unit and its default, as frozen dataclasses.

YAML recipe + command line -> `configs.load` -> `Config` -> the `build.py` of each room -> plain arguments.

A field without a default must be given by the recipe. Fields marked `_may_change()` do not change the result of a
run; all others are compared when a run is resumed.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def _may_change(default: Any) -> Any:
    """A field that a resumed run may set differently: it says where or how fast to run, not what."""
    return field(default=default, metadata={"may_change": True})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images to learn from.

    Attributes:
        dataset: digits = scikit-learn's 1,797 handwritten digits, 8x8 pixels, nothing to download; folder = an image
            folder with train/<class>/ and optionally val/<class>/ and test/<class>/; manifest = a table of paths and
            labels; packed = what `python -m tools.pack` made, the fastest to read; one of torchvision's data sets by
            name, such as cifar10 (downloaded when it is not there); or your own torch Dataset as package.module:Name.
        root: Folder that holds train/ (dataset folder); folder that holds train.csv, .tsv or .jsonl and optionally
            val and test likewise, or one such file with a column split (manifest); folder that tools.pack made
            (packed); folder for downloads (torchvision's
            data sets; default ~/.cache/exactvision/datasets).
        args: Arguments of your own Dataset, for example --data.args.folder DIR.
        image_root: Folder that the paths of a manifest start from. Default: the manifest's own.
        path_column: Column of a manifest that holds the paths of the images.
        label_column: Column of a manifest that holds the labels.
        sampling: How often a training image is met: shuffled = once per epoch; balanced = every class equally often;
            weighted = in proportion to the column weight of a manifest, packed or not. An epoch keeps its length.
        class_weights: Factors on that, by class name, for example --data.class_weights.cat 2; all others count 1.
        val_frac: Fraction (0 to below 1) of train set aside as val, the same fraction of each class, where the data
            has no val/ of its own. 0 needs run.select last.
        split_seed: Seed of that split. Runs with different run.seed share their val as long as this stays.
        num_folds: Cross-validation: train is cut into so many parts of equal size, each with its share of every class,
            and val is one of them, in place of val_frac. 0 = it is not. `finetune.py --folds` sets it.
        fold: Which of these parts is val, from 0.
        on_bad_sample: A training image that cannot be read: raise = stop and name it; replace = another image of its
            class takes its place, and bad_samples.jsonl in the run folder says which.
        on_bad_eval_sample: The same in evaluation: raise; exclude = it is not counted, and the number is printed.
        max_bad_frac: Largest part (0 to below 1) of an epoch's images that may be replaced or excluded before the run
            stops.
        verify: Decode every image once before training; what was found is kept in the index. Backend dali always
            does, because its decoder does not report damage.
        rescan: Look at every file again for edits in place. The index of a folder, kept in ~/.cache/exactvision or
            $EXACTVISION_CACHE, otherwise notices files that came, went or were renamed. strategy.name features always
            does, because it keeps what the network made of the files.
    """

    dataset: str
    root: str | None = _may_change(None)
    args: dict[str, Any] = field(default_factory=dict)
    image_root: str | None = _may_change(None)
    path_column: str = "path"
    label_column: str = "label"
    sampling: Literal["shuffled", "balanced", "weighted"] = "shuffled"
    class_weights: dict[str, float] = field(default_factory=dict)
    val_frac: float = 0.1
    split_seed: int = 0
    num_folds: int = 0
    fold: int = 0
    on_bad_sample: Literal["raise", "replace"] = "raise"
    on_bad_eval_sample: Literal["raise", "exclude"] = "raise"
    max_bad_frac: float = 0.01
    verify: bool = _may_change(False)
    rescan: bool = _may_change(False)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What the network sees: the size, channels and normalisation of its input.

    In finetune.py the weights say what they take, but for `fit` and, if it is given, size_px (see weights.input).

    Attributes:
        size_px: Height and width of the input in pixels. Default: the size of the images, if they are all square and
            of one size.
        channels: 1 (grey) or 3 (RGB). Default: 1 if every image is grey, else 3.
        mean: Mean per channel on the scale 0 to 1. Default: measured on train.
        std: Standard deviation per channel on the scale 0 to 1. Default: measured on train.
        interpolation: Filter for resizing, always antialiased.
        fit: How an image that is not square fits: crop = its centre square; squash = all of it, stretched; letterbox =
            all of it in its own shape, with a border of the mean. Training with augment.crop rrc draws its own windows.
        crop_frac: Part (above 0, to 1) of the short side that the centre crop of evaluation keeps.
    """

    size_px: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Literal["crop", "squash", "letterbox"] = "crop"
    crop_frac: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied.

    Attributes:
        crop: none = as in evaluation; pad = shifted at random by up to pad_px, the border filled by reflection;
            rrc = random-resized-crop.
        pad_px: Largest shift of crop pad, in pixels of the input.
        rrc_scale: Smallest and largest part of the image's area that crop rrc takes.
        rrc_ratio: Smallest and largest width / height of the window that crop rrc takes.
        flip: none; random = left-right with probability 1/2; alternating = every other epoch, the first one drawn at
            random for each image (airbench).
        vertical_flip_prob: Probability of an up-down flip, whatever flip does; for images without an up, as those from
            above or of cells.
        repeats: How often each image stands in its global batch, each time varied anew (repeated augmentation). An
            epoch keeps its number of steps and so meets 1 / repeats of the images.
        sizes_px: Image size over time, pairs of (first epoch, size in pixels), for example [[0, 128], [12.5, 160]];
            fractions of an epoch allowed. Default: input.size_px throughout. Evaluation always uses input.size_px.
        mixup_alpha: Mixup of pairs with a weight from Beta(alpha, alpha); 0 = none.
        cutmix_alpha: CutMix of pairs, likewise; with both, mix_switch_prob decides.
        mix_prob: Part of the pairs that are mixed.
        mix_switch_prob: Part of the mixed pairs that take CutMix, where mixup is on too.
        mix_until_epoch: From this epoch on no pair is mixed; fractions allowed. Default: mixed to the end.
        mix_from_images: No pair is mixed where train has fewer images than this; 0 = whatever there are. With few
            images mixing costs more than it gives: BiT takes mixup 0.1 from 20,000 on (Kolesnikov et al., 2020).
        erase_prob: Probability that a box is erased (set to the mean), its place, area and shape drawn at random.
        erase_scale: Smallest and largest part of the area that the box takes.
        erase_ratio: Smallest and largest height / width of the box.
        noise_std: Standard deviation of the Gaussian noise that every image gets, on the scale 0 to 1; 0 = none.
        operations: What is done to pixels after crop and flips, step by step: a list of names, with fields where
            wanted, such as [{randaugment: {n: 2, m: 9}}, {color_jitter: {brightness: 0.4, prob: 0.8}}, equalize].
            Names: randaugment, trivial_augment, color_jitter, affine, brightness, contrast, saturation, hue, rgb_shift,
            grayscale, gaussian_blur, posterize, solarize, equalize, autocontrast, sharpness, invert; their fields are
            in docs/augmentation.md.
        cutout_px: Side of a square that is set to the mean, its centre anywhere (DeVries and Taylor, 2017); 0 = none.
        albumentations: File of your own pipeline as albumentations.save writes it, .yaml, .yml or .json. It gets each
            image after crop and flip and before everything else here, and is seeded for each one.
        albumentations_hash: What the file holds, as 16 letters; found when a run starts. Where it is given, the file
            must hold that pipeline.
    """

    crop: Literal["none", "pad", "rrc"] = "none"
    pad_px: int = 4
    rrc_scale: tuple[float, float] = (0.08, 1.0)
    rrc_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip: Literal["none", "random", "alternating"] = "none"
    vertical_flip_prob: float = 0.0
    repeats: int = 1
    sizes_px: tuple[tuple[float, int], ...] = ()
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    mix_until_epoch: float | None = None
    mix_from_images: int = 0
    erase_prob: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    noise_std: float = 0.0
    operations: tuple[Any, ...] = ()  # configs/operations.py says what may stand in it
    cutout_px: int = 0
    albumentations: str | None = _may_change(None)
    albumentations_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made. The samples, crops and flips are the same whatever is chosen here.

    Attributes:
        backend: resident = all images decoded once, held on the device; threads = decoded by threads as they are
            needed; dali = NVIDIA DALI, on the GPU where there is one; reference = torch DataLoader and torchvision;
            auto = resident where the images fit, else threads, and says why.
        workers: Who does the work of backend threads: threads, or processes where your own code (augment.albumentations
            with transforms written in Python, a Dataset) would keep threads waiting for each other.
        num_threads: Decoding threads of threads and dali. Default: CPU cores per rank.
        num_workers: Worker processes of backend reference and of workers processes. Default: CPU cores per rank, at
            most 8.
        prefetch_batches: Batches that threads and dali prepare ahead; with workers processes, each of them.
        decode: exact = images at their stored size; scaled = with backend threads, JPEGs of train whose window is at
            least twice the result at a half, a quarter or an eighth of it: several times as fast for photographs of
            many megapixels, their pixels different by about 1.3 of 255 on average.
        hw_decoder_load: With backend dali on a GPU that has a JPEG decoder (A100, H100, H200), the part of each batch
            that it takes; the GPU's other cores, and CPU threads, decode the rest. Below 1 it may be faster where
            CPU cores idle; but then an image's place in the batch says who decodes it, and with that its last bits.
        resident_max_gib: Largest data set, decoded, that auto holds on the device, in GiB.
        eval_batch_size_per_rank: Images per batch and rank in evaluation.
    """

    backend: Literal["auto", "threads", "resident", "dali", "reference"] = _may_change("auto")
    workers: Literal["threads", "processes"] = _may_change("threads")
    num_threads: int | None = _may_change(None)
    num_workers: int | None = _may_change(None)
    prefetch_batches: int = _may_change(2)
    decode: Literal["exact", "scaled"] = "exact"
    hw_decoder_load: float = _may_change(1.0)
    resident_max_gib: float = _may_change(4.0)
    eval_batch_size_per_rank: int = 256


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
        name: One of our own, for example simple_cnn; torchvision/NAME or timm/NAME; or your own network as
            package.module:Name. `python -m models.list` lists and searches them. In finetune.py also NAME.TAG of these
            two, which names weights, such as timm/resnet50.a1_in1k; or a run folder, whose network it is then.
        args: Arguments of that model, for example --model.args.norm batch.
        stem: Of torchvision's and timm's networks: default = as published, for photographs; small = the first
            convolution without stride and no first pooling, for images of about 32 pixels.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    stem: Literal["default", "small"] = "default"


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """What fine-tuning starts from (finetune.py): what torchvision or timm publishes of model.name, unless set here.

    Attributes:
        run: Run folder of train.py or finetune.py; its network, its input and the weights that it is judged by.
            `--model.name FOLDER` sets it.
        file: File of weights of the network model.name, .safetensors or .pth.
        partial: Whether layers other than the head may stay as they were drawn, because the weights lack them or have
            another shape. Otherwise such weights are refused, with a list.
        input: Channels, mean, std, interpolation and crop_frac of what the network sees: weights = those that the
            weights were trained with, and section input must not say otherwise; recipe = those of section input.
        head: The last layer: new = drawn for the classes of the data; keep = that of the weights, which must tell as
            many classes apart.
    """

    run: str | None = _may_change(None)
    file: str | None = _may_change(None)
    partial: bool = False
    input: Literal["weights", "recipe"] = "weights"
    head: Literal["new", "keep"] = "new"


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """In what order, and how fast, the parts of a pretrained network are trained (finetune.py).

    Attributes:
        name: auto = by the number of images and how well the network knows their like, and says why; linear = the head
            alone; features = the head alone, on features that are computed once, without augmentation; head_then_all;
            all = everything from the start; gradual = head first, then one stage more at a time, from the last to the
            first; differential = everything, each stage slower than the one after it; scratch = everything, from
            random weights, for comparison.
        head_epochs: Epochs of train.epochs in which head_then_all trains the head alone, and gradual each stage before
            it goes on to the next. The learning rate is constant in these; the schedule is that of the rest.
        all_lr_frac: Learning rate after them in head_then_all, as a fraction of optim.lr.
        stage_decay: Learning rate of each stage in differential and gradual, as a fraction of that of the stage after
            it; the head's is optim.lr. Default: 0.4, or, where optim.layer_decay is set, that, layer by layer.
        frozen_bn: BatchNorm in what is not trained: eval = it normalises by its running statistics, which stay; train
            = by those of the batch, and its running statistics move.
        classifier: What features trains: linear = as strategy linear does, in train.epochs epochs; logistic, svm
            (linear) and knn = scikit-learn's, their strength or number of neighbours chosen by cross-validation.
        cv_folds: Parts of that cross-validation.
        similarity: What auto takes the images for, beside what the weights were trained on: measured = by how well
            their features tell the classes apart; similar or different, if you know.
    """

    name: Literal["auto", "linear", "features", "head_then_all", "all", "gradual", "differential", "scratch"] = "auto"
    head_epochs: int = 1
    all_lr_frac: float = 0.1
    stage_decay: float | None = None
    frozen_bn: Literal["eval", "train"] = "eval"
    classifier: Literal["linear", "logistic", "svm", "knn"] = "linear"
    cv_folds: int = 5
    similarity: Literal["measured", "similar", "different"] = "measured"


OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lars", "muon"]


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters that are trained differently. What is left out is as in `optim`.

    Attributes:
        match: Names of parameters, with * and ? as in file names; one that fits is enough.
        only: all = all of these; vectors = those of one dimension (biases, norms); matrices = those of two and more.
        name: Their optimizer.
        lr: Their peak learning rate.
        weight_decay: Their weight decay.
        momentum: Their momentum.
        nesterov: Their Nesterov momentum.
        betas: Their decay rates.
        until_epoch: The schedule, squeezed into so many epochs; then they are no longer trained. Fractions allowed.
    """

    match: tuple[str, ...] = ("*",)
    only: Literal["all", "vectors", "matrices"] = "all"
    name: OptimizerName | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    betas: tuple[float, float] | None = None
    until_epoch: float | None = None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer.

    Attributes:
        name: sgd, rmsprop, adam, adamw and muon are torch's, lamb and lars timm's. muon (Jordan 2024) takes
            convolutions as matrices; what has one dimension needs a group with another optimizer.
        lr: Peak learning rate, for the global batch; never scaled behind your back.
        weight_decay: Weight decay: added to the gradient (L2) by sgd, rmsprop, adam, lamb and lars, decoupled from
            it by adamw and muon.
        no_decay: What has no weight decay: none = all has; norms = the parameters of normalisation layers;
            norms_and_biases = all parameters of one dimension, too.
        momentum: Momentum of sgd, rmsprop, lars and muon.
        nesterov: Nesterov momentum of sgd, lars and muon.
        alpha: Decay rate of rmsprop's mean of squared gradients.
        betas: Decay rates of the two moments of adam, adamw and lamb.
        eps: Term in the denominator of rmsprop, adam, adamw and lamb.
        trust_coefficient: Of lars, the eta of You et al. (2017).
        ns_steps: Newton-Schulz steps of muon.
        ns_coefficients: Their three coefficients.
        muon_scale: original = muon's lr times the root of rows / columns, where there are more rows; match_adamw =
            times 0.2 and the root of the larger of them, so that an adamw's lr and weight decay will do.
        fix_filter_norm: muon sets the norm of each weight to the root of its number of filters before each step
            (airbench).
        layer_decay: Factor on the learning rate of each layer below the last, the last but one having it once.
        clip_norm: Gradients longer than this, over all parameters together, are shortened to it. Default: never.
        clip_value: Each gradient is clamped to within this of 0. Default: never.
        groups: Parameters that are trained differently, each as {match: [PATTERN], lr: ...}; the first that matches
            counts.
    """

    name: OptimizerName
    lr: float
    weight_decay: float = 0.0
    no_decay: Literal["none", "norms", "norms_and_biases"] = "none"
    momentum: float = 0.0
    nesterov: bool = False
    alpha: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trust_coefficient: float = 0.001
    ns_steps: int = 5
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    muon_scale: Literal["original", "match_adamw"] = "original"
    fix_filter_norm: bool = False
    layer_decay: float = 1.0
    clip_norm: float | None = None
    clip_value: float | None = None
    groups: tuple[GroupConfig, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time, a function of the optimizer step (and, with plateau, of the scores on val).

    Attributes:
        name: constant; step = times gamma every step_epochs; multi_step = times gamma at each of milestones_epochs;
            exponential = times gamma every epoch; linear = straight from lr to final_lr_frac * lr; polynomial = the
            same by (1 - progress) ** power; cosine = half a cosine from lr to final_lr_frac * lr; cosine_restarts =
            such half cosines, one after another; one_cycle = up to lr and down to final_lr_frac * lr, both by half a
            cosine; plateau = times gamma when the loss on val has not fallen for patience_epochs.
        warmup_epochs: Linear warm-up, in epochs; fractions allowed. Not with one_cycle.
        warmup_start_lr_frac: Where the warm-up begins, as a fraction of lr. Default: 1 / steps of the warm-up.
        cooldown_epochs: The last epochs, at the learning rate that the schedule ends with; fractions allowed. Of
            linear, polynomial, cosine and cosine_restarts.
        step_epochs: Epochs between the steps of schedule step.
        milestones_epochs: When multi_step steps down, in epochs; fractions allowed.
        gamma: Factor of each step down.
        final_lr_frac: Where linear, polynomial, cosine, cosine_restarts and one_cycle end, as a fraction of lr.
        power: Of polynomial.
        cycle_epochs: Epochs of the first cosine of cosine_restarts; fractions allowed.
        cycle_mult: How much longer each cosine is than the one before.
        cycle_decay: How much lower each cosine starts than the one before, as a factor.
        start_lr_frac: Where one_cycle begins, as a fraction of lr.
        rise_frac: Part of the steps in which one_cycle rises.
        momentum_range: Highest and lowest momentum (sgd, rmsprop, lars, muon) or first beta (adam, adamw, lamb) of
            one_cycle, which moves against the learning rate, for example (0.95, 0.85). Default: it stays as it is.
        patience_epochs: Epochs without a lower loss on val that plateau waits for.
        threshold_frac: How much lower, as a fraction, a loss must be for plateau to count.
        min_lr_frac: Plateau goes no lower than this fraction of lr.
    """

    name: Literal[
        "constant",
        "step",
        "multi_step",
        "exponential",
        "linear",
        "polynomial",
        "cosine",
        "cosine_restarts",
        "one_cycle",
        "plateau",
    ] = "constant"
    warmup_epochs: float = 0.0
    warmup_start_lr_frac: float | None = None
    cooldown_epochs: float = 0.0
    step_epochs: int = 30
    milestones_epochs: tuple[float, ...] = ()
    gamma: float = 0.1
    final_lr_frac: float = 0.0
    power: float = 2.0
    cycle_epochs: float = 10.0
    cycle_mult: float = 1.0
    cycle_decay: float = 1.0
    start_lr_frac: float = 0.04
    rise_frac: float = 0.3
    momentum_range: tuple[float, float] | None = None
    patience_epochs: int = 10
    threshold_frac: float = 1e-4
    min_lr_frac: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised.

    Attributes:
        name: cross_entropy; bce = binary cross entropy of each class against all others (Wightman et al. 2021), mean
            over images and classes; focal = cross entropy in which images that are already right count less.
        label_smoothing: Part (0 to below 1) of each label that is shared among all classes.
        target_threshold: bce takes labels above it as 1, others as 0, after smoothing and mixing. Default: as they are.
        focal_gamma: How much less: the exponent of focal (Lin et al. 2017).
        balance: For classes of different size: none; inverse = each counts by the inverse of its number of images;
            effective = by the inverse of its effective number (Cui et al. 2019); logit_adjustment = logits are shifted
            by the classes' log frequency in training alone (Menon et al. 2021).
        effective_beta: Of balance effective.
        adjustment_tau: Of balance logit_adjustment, a factor on the shift.
        class_weights: Factors by class name on what their images count, for example --loss.class_weights.cat 2. With
            balance or without, what images count is divided by its mean over the training images.
    """

    name: Literal["cross_entropy", "bce", "focal"] = "cross_entropy"
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    focal_gamma: float = 2.0
    balance: Literal["none", "inverse", "effective", "logit_adjustment"] = "none"
    effective_beta: float = 0.999
    adjustment_tau: float = 1.0
    class_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from other networks, too (Hinton et al. 2015).

    Attributes:
        teachers: Run folders of train.py, or networks with pretrained weights, as torchvision/NAME or timm/NAME. Of
            several, the probabilities are averaged.
        temperature: What logits of both are divided by before they are compared.
        weight: Part (0 to 1) of the loss that the teachers have; the labels have the rest.
        features: Layers whose attention maps are to match, as student's layer: teacher's layer, by the names of modules
            (Zagoruyko and Komodakis 2017), for example --distill.features '{layer3: layer3}'. Of one teacher only.
        features_weight: Factor on that part of the loss; 100 to 1000 are usual.
    """

    teachers: tuple[str, ...] = ()
    temperature: float = 4.0
    weight: float = 0.9
    features: dict[str, str] = field(default_factory=dict)
    features_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Averages of the weights over time, scored beside the weights themselves; a run with one is judged by it.

    Attributes:
        ema_decay: Exponential moving average: part (0 to below 1) that it keeps at each step, such as 0.999; 0 = none.
        ema_warmup: Whether it keeps less at first: at its update t at most (1 + t) / (10 + t).
        ema_every_steps: Optimizer steps between its updates.
        swa_start_epoch: Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the end of this
            epoch, counted from 0, and of each that follows. Default: none.
        swa_lr_frac: Learning rate from there on, as a fraction of lr. Default: the schedule goes on.
        bn_images: Training images by which BatchNorm's statistics of the SWA are measured, whole batches of them.
    """

    ema_decay: float = 0.0
    ema_warmup: bool = True
    ema_every_steps: int = 1
    swa_start_epoch: int | None = None
    swa_lr_frac: float | None = None
    bn_images: int = 10_000


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What makes training faster or smaller, and does not change what is computed but for rounding.

    Attributes:
        compile: torch.compile of the network: none; default = operators are fused; reduce-overhead = and, on a GPU,
            recorded as CUDA graphs; max-autotune = and kernels are tried out, which takes minutes.
        fused: Whether the optimizer updates all parameters in one kernel: on, off, or auto = on a GPU, where torch has
            one.
        gradient_checkpointing: Whether activations within layers are computed again in the backward pass, not kept.
        shard: Whether parameters, gradients and optimizer state are shared out among the processes (FSDP2), for
            networks that do not fit.
    """

    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = _may_change("none")
    fused: Literal["auto", "on", "off"] = _may_change("auto")
    gradient_checkpointing: bool = _may_change(False)
    shard: bool = _may_change(False)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a finished run is scored.

    Attributes:
        tta: Test-time augmentation, at the end alone; the logits of the views are averaged: none; flip = each image and
            its mirror image; flip_shift = and both shifted by a pixel, to the upper left and the lower right, which
            together count as much as the first two (airbench).
    """

    tta: Literal["none", "flip", "flip_shift"] = "none"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in what steps to train.

    Attributes:
        epochs: Passes over train.
        global_batch_size: Images per optimizer step, over all processes and accumulated micro-batches together.
        batch_sizes: Global batch size over time, pairs of (first epoch, images), for example [[0, 256], [20, 512]].
            Default: global_batch_size throughout.
        batch_lr: How the learning rate follows batch_sizes: none; linear = in proportion to global_batch_size; sqrt =
            to its root.
        accumulation: Micro-batches per optimizer step. Default: what the launcher was told, else 1.
        precision: fp32, bf16 or fp16 (mixed), fp64 (everything). Default: what the launcher was told, else fp32.
        sync_bn: Whether BatchNorm takes its statistics over the processes' batches together; on GPUs alone.
        bn_images: Training images, as evaluation sees them, by which BatchNorm's statistics are measured anew when the
            last epoch ends, before val is scored; 0 = they stay. For augment.sizes_px.
        early_stop_epochs: Stop when top-1 on val (ties: the loss) has not improved for so many epochs. Default: never.
    """

    epochs: int
    global_batch_size: int
    batch_sizes: tuple[tuple[int, int], ...] = ()
    batch_lr: Literal["none", "linear", "sqrt"] = "none"
    accumulation: int | None = None
    precision: Literal["fp32", "bf16", "fp16", "fp64"] | None = None
    sync_bn: bool = False
    bn_images: int = 0
    early_stop_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run leaves its files, and how it behaves.

    Attributes:
        out: Run folder. Default: runs/<data>-<model>-<hash of the configuration>, so that the same command finds its
            own folder again.
        seed: Seed of everything random: initial weights, order, augmentation, dropout.
        select: Which checkpoint is scored on test: best = highest val top-1 (ties: lowest val loss), last = the end.
        log_every_steps: Optimizer steps between lines of metrics.
        checkpoint_every_steps: Optimizer steps between checkpoints within an epoch; 0 = at the end of each epoch only.
        checkpoint_every_minutes: Minutes between checkpoints within an epoch; 0 = none by the clock.
        keep_checkpoints: Newest checkpoints to keep, beside the best.
        max_minutes: Minutes after which this start must be over: it saves and ends a little earlier, and the same
            command goes on. Default: no limit, but that of a Slurm job.
        stall_minutes: Minutes without a step of any process after which the program ends, naming the one that hangs;
            0 = never.
        control: Folder in which a file called stop makes the run save and end, and where it leaves the files stopped,
            saved and failed for the script that started it. Default: the run folder, without saved and failed.
        profile: Whether a few steps are traced, into profile/ of the run folder, with a page that says where time goes.
        world_size: Number of processes you mean to start; the run stops if it finds another number.
        num_threads: CPU threads per process. Default: CPU cores / processes on this machine.
        trackers: Where metrics go beside metrics.jsonl, by Accelerate's names: tensorboard, wandb, mlflow, comet_ml,
            aim, clearml, dvclive, swanlab, trackio; [] = nowhere.
    """

    out: str | None = _may_change(None)
    seed: int = 0
    select: Literal["best", "last"] = "best"
    log_every_steps: int = _may_change(10)
    checkpoint_every_steps: int = _may_change(0)
    checkpoint_every_minutes: float = _may_change(15.0)
    keep_checkpoints: int = _may_change(2)
    max_minutes: float | None = _may_change(None)
    stall_minutes: float = _may_change(10.0)
    control: str | None = _may_change(None)
    profile: bool = _may_change(False)
    world_size: int | None = _may_change(None)
    num_threads: int | None = _may_change(None)
    trackers: tuple[str, ...] = _may_change(("tensorboard",))


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    Attributes:
        data: Data, the images to learn from.
        input: Input, what the network sees.
        augment: Augmentation of training images (`python -m tools.show_augment` draws them).
        loader: Loader, how batches are made.
        model: Model, the network.
        weights: Weights, what fine-tuning starts from.
        strategy: Strategy of fine-tuning.
        optim: Optimizer.
        schedule: Schedule of the learning rate.
        loss: Loss, what is minimised.
        distill: Distillation, learning from other networks, too.
        train: Training, how long and in what steps.
        average: Averages of the weights over time.
        evaluation: Evaluation of the finished run.
        speed: Speed and memory.
        run: Run folder and behaviour.
        resume: auto = continue the run in run.out, or start it; never = stop if run.out already holds a run.
        dry_run: Build everything, draw the schedule and the first training batches into the run folder, and train
            nothing; also written --dry-run.
    """

    data: DataConfig
    input: InputSpec = field(default_factory=InputSpec)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: ModelConfig
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optim: OptimConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig
    average: AverageConfig = field(default_factory=AverageConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resume: Literal["auto", "never"] = _may_change("auto")
    dry_run: bool = _may_change(False)
