# `make demo` runs the whole line on a phantom; `make test` checks it. Both need only Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed
# make prints each command before it runs it: the recipes below are the commands to learn from.
export PATH := $(abspath $(VENV)/bin):$(PATH)

.PHONY: demo demo-folds-0-2-4 demo-folds-1-3 study rehearsal test test-all fuzz offline test-gpu test-lowest lint clean

demo: $(READY)
	python -m src.phantom --output data/phantom --patients 100 --test-patients 10 --matrix 128 --seed 0
	python prepare_data.py --input data/phantom --output data/prepared --size 72
	python -m src.data.folds --labels data/phantom/train.csv --series data/phantom/train_series_meta.csv --output data/phantom/folds.csv
	python train_voco.py --config configs/voco/demo.yaml --data data/prepared --output runs/voco/demo
	$(MAKE) --no-print-directory -j 2 demo-folds-0-2-4 demo-folds-1-3
	python score.py --oof runs/cls/demo/oof.csv --labels data/phantom/train.csv --folds data/phantom/folds.csv
	python infer.py --input data/phantom --models runs/cls/demo --sample data/phantom/sample_submission.csv --output submission.csv
	python score.py --submission submission.csv --labels data/phantom/test_labels.csv --prior-labels data/phantom/train.csv

# Two commands at a time train different folds of one run, here on one core each; with GPUs, one command for each.
demo-folds-0-2-4 demo-folds-1-3: export OMP_NUM_THREADS := 1
demo-folds-0-2-4 demo-folds-1-3: demo-folds-%:
	python train_cls.py --config configs/cls/demo.yaml --data data/prepared --labels data/phantom/train.csv --folds data/phantom/folds.csv --image-labels data/phantom/image_level_labels.csv --encoder runs/voco/demo/encoder.safetensors --output runs/cls/demo --fold $(subst -, ,$*)

# What pre-training, unlabelled scans and each feature of the classifier are worth. Hours on two cores; it continues where it stopped.
study: $(READY)
	python benchmarks/presets_study.py --work data/study --jobs 2 --json data/study/presets.json
	python benchmarks/transfer_study.py --work data/study --jobs 2 --json data/study/transfer.json
	python benchmarks/segmentation_study.py --work data/seg_study --jobs 2 --json data/seg_study/segmentation.json
	python benchmarks/classifier_study.py --work data/cls_study --jobs 2 --json data/cls_study/classifier.json
	python benchmarks/competition_study.py --work data/competition --jobs 2

# README's recipe at the competition's counts, with tiny images and networks: an hour on two cores at most. TABLES: the competition's CSV.
TABLES ?= data/rsna
rehearsal: $(READY)
	python benchmarks/rehearsal.py --tables $(TABLES) --work data/rehearsal

test: $(READY)
	python -m pytest -n 2 --dist loadfile -m 'not slow and not fuzz and not offline and not gpu'

# What `make test` leaves out as well: torchrun, killed runs, trainings of studies.
test-all: $(READY)
	python -m pytest -n 2 --dist loadfile

# Damaged DICOM files of every kind in every transfer syntax: under a minute on two cores.
fuzz: $(READY)
	python -m pytest -m fuzz -s tests/prepare/test_damaged_files.py

# The notebook for Kaggle on a phantom, with paths, packages and network as they are there: Linux, some minutes.
# It needs a package registry for the wheels; what cannot be tested here is a failure.
offline: $(READY)
	KIT_SKIPS=fail python -m pytest -m offline -s tests/submit/test_offline.py tests/submit/test_packages.py

# The same scripts on a GPU, in each precision, with too little memory: minutes. Without a GPU it fails.
test-gpu: $(READY)
	KIT_DEVICE=gpu python -m pytest -n 2 -m gpu tests

# The lowest versions that requirements.txt admits, in an environment of their own: are its bounds true?
test-lowest: .venv-lowest/.installed
	KIT_VERSIONS=lowest .venv-lowest/bin/python -m pytest -n 2 --dist loadfile

.venv-lowest/.installed: requirements.txt $(READY)
	uv venv --quiet --clear --seed .venv-lowest
	uv pip compile --quiet --resolution lowest-direct --python .venv-lowest requirements.txt -o .venv-lowest/lowest.txt
	uv pip install --quiet --python .venv-lowest -r .venv-lowest/lowest.txt
	touch $@

lint: $(READY)
	ruff check .
	ruff format --check .

clean:
	rm -rf data runs submission.csv report.csv

$(READY): requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $@
