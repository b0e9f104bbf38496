# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := -m pytest -n auto --dist worksteal

# Everything but what takes minutes, a network, a GPU or a browser; `make test` leaves the sweeps out besides
WITH_SWEEPS := not slow and not notebook and not network and not gpu and not docs

# What other versions are tried on: all but the lab, the sweeps, and what is about this project's own files
CORE = $(filter-out $(addprefix tests/test_,lab_% every_% networks% docs_% notebooks% tree% gpu%),$(wildcard tests/test_*.py))
# What another backend is tried on
BACKEND_CORE := $(addprefix tests/test_,backbones.py graph.py freezing.py heads.py compiling.py callbacks.py training.py \
	training_rate_search.py training_steps.py training_distribution.py features_device.py)

.PHONY: help quickstart test test-sweeps test-notebooks test-colab test-oldest test-nightly test-all test-jax test-torch test-ray test-hub test-gpu notebooks docs docs-test tree lint format clean

help:
	@echo "make quickstart   install into $(VENV) and train a real classifier (runs/quickstart)"
	@echo "make test         install what tests need and run the linter and the tests"
	@echo "make test-sweeps  the further cases of the tests that take longest"
	@echo "make test-notebooks   run every notebook at its FAST size"
	@echo "make test-colab   the core's tests and the notebooks with the versions that Google Colab has"
	@echo "make test-oldest  the core's tests with the oldest version of everything that setup.cfg allows"
	@echo "make test-nightly the core's tests on the Keras of last night"
	@echo "make test-all     all of these, with the slow sweeps and the notebooks at full size"
	@echo "make test-jax     models and training on the JAX backend"
	@echo "make test-torch   the same on the PyTorch backend, in an environment of gigabytes"
	@echo "make test-ray     extraction by Ray, and stores on an S3 server of this machine"
	@echo "make test-hub     backbones of KerasHub, tiny and random"
	@echo "make test-gpu     on a GPU: the same outputs and the same training as plain Keras"
	@echo "make notebooks    run the notebooks at full size and keep their outputs (ONLY=\"01 02\" for some)"
	@echo "make docs         build the documentation site (docs/_build/html)"
	@echo "make docs-test    open every page of it, and that of a run, in a headless Chromium"
	@echo "make tree         draw the package's tree from its code (docs/images/tree.svg)"
	@echo "make format       let ruff format the code"

# Of the flower photographs where they are or can be downloaded, else of ELPV's solar cells; its first line says which
quickstart: $(VENV)/.demo
	$(BIN)/python -m kerastl train demo --image-size 160 --out runs/quickstart --overwrite

test: lint $(VENV)/.types
	$(BIN)/python $(PYTEST)

test-sweeps: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "sweep and $(WITH_SWEEPS)"

test-notebooks: $(VENV)/.test
	$(BIN)/python $(PYTEST) tests/test_notebooks.py -m "notebook and not slow"

# Each in an environment of its own, made by the rule for $(VENV)-%; tests/constraints/ has the versions
test-colab: $(VENV)-colab/.test
	$(VENV)-colab/bin/python $(PYTEST) -m "$(WITH_SWEEPS)" $(CORE)
	$(VENV)-colab/bin/python $(PYTEST) tests/test_notebooks.py -m "notebook and not slow"

test-oldest: $(VENV)-oldest/.test
	$(VENV)-oldest/bin/python $(PYTEST) -m "$(WITH_SWEEPS)" $(CORE)

# Both packages hold the folder keras/: one goes before the other comes
test-nightly: $(VENV)-nightly/.test
	$(VENV)-nightly/bin/python -m pip uninstall --quiet --yes keras
	$(VENV)-nightly/bin/python -m pip install --quiet --disable-pip-version-check --pre --no-deps --force-reinstall keras-nightly
	$(VENV)-nightly/bin/python $(PYTEST) -m "$(WITH_SWEEPS)" $(CORE)

test-all: lint $(VENV)/.types
	HYPOTHESIS_PROFILE=default $(BIN)/python $(PYTEST) -m "not network and not gpu and not docs"

test-jax: $(VENV)/.jax
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "$(WITH_SWEEPS)" $(BACKEND_CORE)

test-torch: $(VENV)-torch/.test
	$(VENV)-torch/bin/python -m pip install --quiet --disable-pip-version-check torch
	KERAS_BACKEND=torch $(VENV)-torch/bin/python -m pytest -m "$(WITH_SWEEPS)" $(BACKEND_CORE)

test-ray: $(VENV)-ray/.test
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check -e ".[ray]" "moto[server]" s3fs
	$(VENV)-ray/bin/python -m pytest tests/test_features_remote.py tests/test_features_ray.py -m "slow or not slow"

test-hub: $(VENV)-hub/.test
	$(VENV)-hub/bin/python -m pip install --quiet --disable-pip-version-check -e ".[hub]"
	$(VENV)-hub/bin/python -m pytest tests/test_hub.py

# The backend is what KERAS_BACKEND says; the tests hide the GPU unless told otherwise
test-gpu: $(VENV)/.test
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest tests/test_gpu.py -m gpu -rs

# With KERASTL_FAST=1 at the FAST size, keeping nothing
notebooks: $(VENV)/.test
	$(BIN)/python notebooks/tools.py run $(if $(filter 1,$(KERASTL_FAST)),,--keep) $(ONLY)

# Always from nothing: what was built before would hide warnings, and pages that are gone
docs: $(VENV)/.docs
	rm -rf docs/_build
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

docs-test: docs $(VENV)/.test
	$(BIN)/python -m pytest tests/test_docs_site.py tests/test_evaluation_run_page.py -m docs -rs

tree: $(VENV)/bin/python
	$(BIN)/python docs/draw_tree.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kerastl needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.types $(VENV)/.docs: $(VENV)/.%: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

$(VENV)-%/.test: setup.cfg pyproject.toml $(wildcard tests/constraints/*.txt)
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix --constraint ,$(wildcard tests/constraints/$*.txt)) -e ".[test]"
	@touch $@

$(VENV)/.jax: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check jax
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info docs/_build docs/notebooks
