# Everything a newcomer types. Each target builds the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: env demo test coverage format proto docs bench soak fuzz simulate lab-tools clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ztna needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot create $(VENV): install the python3-venv package" >&2; exit 1; }
	@echo "building the environment in $(VENV), once; this takes about a minute" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: env
	@$(BIN)/python -m tools.demo $(ARGS)

# Tests share the cores; ARGS='-n 0' runs them in one process, which --pdb and --durations are better off with.
test: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(BIN)/python -m compileall -q actors tools ztna  # daemons start hundreds of times
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

# Without the end-to-end tests: their daemons are other processes, which would not be measured.
coverage: env
	$(BIN)/coverage run -m pytest -m 'not e2e' $(ARGS)
	$(BIN)/coverage report

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: env
	$(BIN)/python -m tools.generate_protos

docs: env
	$(BIN)/python -m tools.render_actor_map
	$(BIN)/python -m tools.render_configuration
	$(BIN)/python -m tools.render_nat_compatibility

# A million inputs per parser, fewer where each takes a QUIC connection or a search: five hours of processor time in all.
fuzz: env
	$(BIN)/python -m tools.fuzz $(ARGS)

# Whole deployments that seeds decide, on a virtual clock; ARGS='--seeds 5000 --start 500' for others.
simulate: env
	$(BIN)/python -m tools.simulate $(ARGS)

bench: env
	$(BIN)/python -m tools.bench $(ARGS)

# What the NAT lab (docs/natlab.md) and its tests call, from Debian or Ubuntu; needs root.
LAB_COMMANDS := nft ip tc iptables-restore conntrack unshare turnserver turnutils_natdiscovery stun
LAB_PACKAGES := nftables iproute2 iptables conntrack util-linux coturn stun-client

lab-tools:
	@missing=; for command in $(LAB_COMMANDS); do command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	test -z "$$missing" || { \
	  echo "installing what brings:$$missing" >&2; \
	  apt-get update && apt-get install -y --no-install-recommends $(LAB_PACKAGES); \
	}

# Fifteen minutes; ARGS='--minutes 60' for more.
soak: env
	$(BIN)/python -m tools.bench.soak $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
