# make demo   set everything up, run the quickstart on a simulated REGARDS
# make lab    open the notebooks in JupyterLab
# make test   set everything up, pass the tests
# make bench  measure rate, latency and growth beside other clients
# make faults kill the broker, the network and the process while events arrive, and count losses
# make docs   build the site into build/docs: executed notebooks, API, any warning an error
#
# The paths are relative, so that the clone may lie in a folder with spaces.

# Images of containers often set it; then each Python process compiles all that it imports from source.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo lab test bench faults lint docs clean

demo: .venv/demo.ready
	@sh scripts/need.sh rabbitmq-server
	@$(BIN)/python -m regards_nb.demo

lab: .venv/demo.ready
	@sh scripts/need.sh rabbitmq-server
	@$(BIN)/python -m jupyterlab notebooks/01_quickstart.ipynb

# The three wait for the network most of their time. Whether RabbitMQ is there is known to the package.
test:
	@sh scripts/rabbitmq4.sh & rabbitmq4=$$!; \
	sh scripts/need.sh postgresql pgbouncer chromium-headless-shell libatomic1 \
		nginx-light apache2-bin haproxy squid varnish & others=$$!; \
	$(MAKE) --no-print-directory .venv/test.ready && wait $$others && \
	sh scripts/need.sh rabbitmq-server && wait $$rabbitmq4
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

bench: .venv/bench.ready
	@sh scripts/need.sh rabbitmq-server
	$(BIN)/python benchmarks/pipeline.py --write docs/performance.md

faults: .venv/test.ready
	@sh scripts/need.sh rabbitmq-server postgresql
	$(BIN)/python benchmarks/faults.py --write docs/faults.md

lint: .venv/test.ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: .venv/docs.ready
	@sh scripts/need.sh rabbitmq-server
	$(BIN)/python docs/build.py
	@echo "Open build/docs/index.html"

clean:
	rm -rf .venv build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/%.ready: pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh $(PYTHON) $*
	@touch $@
