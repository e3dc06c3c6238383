# Everything a fresh machine needs: Python 3.11 or newer, and make.
#   make train   sets up, then trains on scikit-learn's digits     ARGS="--train.epochs 5" adds options
#   make test    sets up, then runs the tests, on up to 4 cores    ARGS="-k loader" adds options
#   make lint    format, lint, types, import contracts, figures in texts
#   make setup   only makes .venv and installs
#   make kills   the test that kills a run, with fifty kills instead of ten (ten minutes)
#   make recipes STUDY=course DATA=DIR   measures recipes (hours; it goes on where it was stopped); make tables   shows them
#   make levers DATA=DIR   measures every lever of a recipe on CIFAR-10 (hours; it goes on where it was stopped)
#   make transfer DATA=DIR   measures each way of fine-tuning on three classes of CIFAR-10 (hours; it goes on likewise)
#   make gpu DATA=DIR AIRBENCH=CLONE   measures speedruns beside airbench's own, training steps, and ResNet-18, on a GPU
#   make gpu-check DATA=DIR CIFAR=DIR   GPU tests, and DALI's measurements on a folder of photographs, in under ten minutes
#   make dali-cuda120   DALI for drivers before 580 in place of the one that comes with the project; make dali-cuda130   back
#   make study DATA=DIR   times ways of loading a folder of photographs, for docs/loader_study.md (minutes)
#   make operations DATA=DIR   measures on a folder of photographs how near executors are to torchvision (minutes)
#   make loaders DATA=DIR      measures loaders on a folder of JPEG files, ours and others', and shows them (an hour)
PYTHON ?= python3
ARGS ?=
STUDY ?= digits
DATA ?=
AIRBENCH ?=
CIFAR ?=
BIN := .venv/bin

# what DALI brings along, for each version of CUDA; both fill the same folders, so the other's must be gone before
DALI_12 := nvidia-dali-cuda120 nvidia-nvimgcodec-cu12 nvidia-nvjpeg-cu12 nvidia-nvjpeg2k-cu12 nvidia-nvtiff-cu12 nvidia-libnvcomp-cu12
DALI_13 := nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 nvidia-nvjpeg nvidia-nvjpeg2k-cu13 nvidia-nvtiff-cu13 nvidia-libnvcomp-cu13

.PHONY: setup train test lint kills recipes levers transfer gpu gpu-check dali-cuda120 dali-cuda130 operations loaders study tables

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} found, 3.11 or newer needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup
	$(BIN)/accelerate launch train.py $(ARGS)

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.publish --check

kills: setup
	EXACTVISION_KILLS=50 $(BIN)/python -m pytest tests/test_kill.py --capture=no $(ARGS)

recipes: setup
	$(BIN)/python -m benchmarks.recipes $(STUDY) $(if $(DATA),--data $(DATA)) $(ARGS)

levers: setup
	for study in levers single_levers distill; do \
		$(BIN)/python -m benchmarks.recipes $$study --data $(DATA) $(ARGS) || exit; \
	done
	$(BIN)/python -m benchmarks.publish

transfer: setup
	for study in transfer_source transfer_rates transfer transfer_features; do \
		$(BIN)/python -m benchmarks.recipes $$study --data $(DATA) $(ARGS) || exit; \
	done
	$(BIN)/python -m benchmarks.publish

gpu: setup
	for target in 94 96; do \
		$(BIN)/python -m benchmarks.speedrun $$target --data $(DATA) $(if $(AIRBENCH),--airbench $(AIRBENCH)) || exit; \
	done
	$(BIN)/python -m benchmarks.throughput --models resnet50
	$(BIN)/python -m benchmarks.recipes gpu --data $(DATA) $(ARGS)

gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check --images $(DATA) --cifar $(CIFAR) $(ARGS)

dali-cuda120 dali-cuda130: setup
	$(BIN)/python -m pip uninstall --yes --quiet $(DALI_12) $(DALI_13)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt nvidia-$@

operations: setup
	$(BIN)/python -m benchmarks.operations --images $(DATA) $(ARGS)

loaders: setup
	for job in imagenet packed_400 packed_original packed_raw; do \
		$(BIN)/python -m benchmarks.loader $$job --images $(DATA) $(ARGS) || exit; \
	done
	$(BIN)/python -m benchmarks.publish

study: setup
	$(BIN)/python -m tools.loader_study --config configs/cifar10/simple_cnn_bn_dropout_aug.yaml --data.root $(DATA) \
		--input.size_px 224 --augment.crop rrc --train.global_batch_size 64 \
		--out docs/figures/loader_study.png $(ARGS) > benchmarks/results/loader_study.txt
	$(BIN)/python -m benchmarks.publish

tables: setup
	$(BIN)/python -m benchmarks.publish
