# Everything here needs make and Python 3.11 or newer, nothing else; the rest goes into .venv.
PYTHON ?= python3
PORT ?= 8000
RUN := .venv/bin/python
READY := .venv/.ready

# Tests run two files at a time, the longest first; each has one thread, so that they do not wait
# for each other. Progress bars are for people.
TEST := OMP_NUM_THREADS=1 MINISD_PROGRESS=0 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: book test check fast serve lint types bench notebooks

book: $(READY)  ## build the HTML book into _build/html
	.venv/bin/jupyter-book build -W -n --keep-going .

test: $(READY)  ## every test, and every chapter from its first cell to its last
	$(TEST) --nbval-lax tests chapters

check: $(READY)  ## for daily work: the fast tests, and the chapters whose stored run is out of date
	$(TEST) --nbval-lax -m "not slow" tests $$($(RUN) book/notebooks.py --changed)

fast: $(READY)  ## the tests that take seconds; COVER=--cov measures what they reach
	$(TEST) $(COVER) -m "not slow" tests

serve: book  ## open the built book in the browser
	(sleep 1 && $(RUN) -m webbrowser http://127.0.0.1:$(PORT)) &
	$(RUN) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lint: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright

types: $(READY)
	$(RUN) -m basedpyright

bench: $(READY)  ## compare with other implementations; each script prints one table
	for script in $(sort $(wildcard benchmarks/*.py)); do $(RUN) $$script || exit 1; done

notebooks: $(READY)  ## run the chapters, one after the other, and store their outputs
	$(RUN) book/notebooks.py

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("minisd needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
