# The entry points. `make run` and `make test` are all that a newcomer needs: both install what is missing (with apt when root;
# otherwise they print the command that installs it, and stop), build into .venv and do nothing twice.

PYTHON ?= python3
PYTEST_ARGS ?=
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 2 ? 0 : 2)))
BENCH_ARGS ?=
PREFIX ?= /opt/samplicator
ifeq ($(origin CC),default)
CC := gcc
endif

# Python keeps what it has compiled: else each of the daemons that the tests start compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

V := .venv
BIN := $(CURDIR)/$(V)/bin
STAMPS := $(V)/stamps
LOG := build/build.log

# ---- what a change of which file rebuilds

SOURCES := $(shell find fastpath -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h' -o -name '*.c')
INSIDE_SOURCES := $(wildcard tests/ext/*.pyx tests/ext/*.pxd)
PYTHON_SOURCES := $(shell find pysrc -name '*.py' -o -name '*.pyi' -o -name 'py.typed')

# ---- Debian packages of the tests; those of the build are found out by trying (see `build-needs`)

TEST_PACKAGES = openssl softflowd nfdump pmacct tshark tcpreplay prometheus nftables ethtool iproute2 conntrack tcpdump procps curl \
	systemd man-db groff mandoc libcap2-bin util-linux clang bird2 \
	systemd-container mmdebstrap zsh fish tmux openssl libusrsctp2 $(DEB_PACKAGES)
# Those that only `make verify-deploy` needs.
VERIFY_PACKAGES := lintian buildah podman runc chromium fonts-dejavu-core
# And `make verify-sctp`: a guest, whose kernel has SCTP.
GUEST_PACKAGES := qemu-system-x86 busybox-static cpio

.PHONY: all run build install install-shared uninstall deb image dist test verify-deploy verify-sctp lint asan fuzz tools bench clean build-needs test-needs announce
.DELETE_ON_ERROR:

all: build

# ---- run

run: announce build
	@echo "Running the demo for ten seconds: a relay, four exporters and two receivers on loopback"
	@$(BIN)/samplicator demo

announce:
	@[ -e $(STAMPS)/ext ] || echo "Building into $(V) first: packages, then the datapath. This takes about a minute."

# ---- build

build: $(STAMPS)/ext

# Packages of the build, by what is found to be missing; a wrong Python version is said, not repaired.
define find_build_needs
missing=; \
command -v $(PYTHON) >/dev/null || missing="$$missing python3"; \
command -v $(CC) >/dev/null || missing="$$missing gcc"; \
printf '#include <stdio.h>\n#include <linux/udp.h>\n' | $(CC) -E - >/dev/null 2>&1 || missing="$$missing libc6-dev"; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
$(PYTHON) -c 'import os, sysconfig as s; os.stat(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null || \
	missing="$$missing python3-dev"
endef

# Installs $$missing with apt when that is possible; otherwise says what to install and stops. Test daemons are not started.
define install_missing
if [ -n "$$missing" ]; then \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Packages are missing. Install them (Debian names), then run make again:" >&2; \
		echo "    sudo apt-get install -y --no-install-recommends$$missing" >&2; exit 1; \
	fi; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; fi; \
	echo "Installing:$$missing (log: build/apt.log)"; mkdir -p build; \
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; } \
		>build/apt.log 2>&1 || { cat build/apt.log; exit 1; }; \
fi
endef

build-needs:
	@$(find_build_needs); $(install_missing)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with PYTHON=python3.x" >&2; exit 1; }

$(V)/bin/python: | build-needs
	$(PYTHON) -m venv $(V)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip

$(STAMPS)/build-tools: pyproject.toml | $(V)/bin/python
	@mkdir -p $(STAMPS)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		>$(STAMPS)/build-requirements
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/build-requirements
	@touch $@

# The compiled module is built here, apart from pip, so that its whole log is kept: the loop runs without the GIL, and a line
# that would take it back, or any other warning, ends the build. $(1) is SAMPLICATOR_INSIDE.
define compile
@mkdir -p build
@rm -rf build/cython
@echo "Compiling the datapath (log: $(LOG))"
@SAMPLICATOR_INSIDE=$(1) $(BIN)/python setup.py build_ext --inplace >$(LOG) 2>&1 || { cat $(LOG); exit 1; }
@! grep -nEi 'performance hint|warning: ' $(LOG) || { rm -rf build/cython; echo "The build log has hints or warnings." >&2; exit 1; }
endef

# The tests' build has their probe extension too; it counts as the ordinary build as well.
EXT := $(STAMPS)/ext$(if $(filter test verify-deploy lint asan fuzz,$(MAKECMDGOALS)),-inside)

$(STAMPS)/ext: $(SOURCES) setup.py pyproject.toml $(STAMPS)/build-tools
	$(call compile,0)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(STAMPS)/ext-inside: $(SOURCES) $(INSIDE_SOURCES) setup.py pyproject.toml $(STAMPS)/build-tools
	$(call compile,1)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $(STAMPS)/ext $@

# ---- install: the program into PREFIX, unit, sysctl drop-in, man pages and (if there is none) a first configuration

# By sed: make asks before the recipe runs, and a fresh machine has no Python then.
COMMANDS := $(shell sed -n '/^\[project.scripts\]/,/^$$/s/^\([a-z][a-z-]*\) = .*/\1/p' pyproject.toml)
UNITS := samplicator.service samplicator@.service
UNIT_FOLDER := /etc/systemd/system
SYSCTL := /etc/sysctl.d/60-samplicator.conf
# What `make install` puts below /usr/local/share and the Debian package below /usr/share: manuals and completions, as FROM:TO
SHARE := /usr/local/share
SHARED := $(foreach page,$(wildcard deploy/man/*.[0-9]),$(page):man/man$(subst .,,$(suffix $(page)))/$(notdir $(page))) \
	$(foreach file,$(wildcard deploy/completions/bash/*),$(file):bash-completion/completions/$(notdir $(file))) \
	$(foreach file,$(wildcard deploy/completions/zsh/*),$(file):zsh/$(if $(filter /usr/share,$(SHARE)),vendor-completions,site-functions)/$(notdir $(file))) \
	$(foreach file,$(wildcard deploy/completions/fish/*),$(file):fish/vendor_completions.d/$(notdir $(file)))

# $(1): the target. What it writes belongs to root.
define need_root
[ "$$(id -u)" = 0 ] || { echo "make $(1) writes to $(PREFIX), /etc and /usr/local: run it as root (sudo make $(1))" >&2; exit 1; }
endef

install:
	@$(call need_root,install)
	@[ -e $(PREFIX)/pyvenv.cfg ] || [ -z "$$(ls -A $(PREFIX) 2>/dev/null)" ] || \
		{ echo "PREFIX=$(PREFIX) has other files in it; name a folder of its own, as PREFIX=/opt/samplicator" >&2; exit 1; }
	@$(MAKE) --no-print-directory build-needs
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/python -m pip install -q --disable-pip-version-check .
	for name in $(COMMANDS); do ln -sf $(PREFIX)/bin/$$name /usr/local/bin/$$name; done
	@$(MAKE) --no-print-directory install-shared
	for unit in $(UNITS); do \
		sed 's,/opt/samplicator/,$(PREFIX)/,' deploy/systemd/$$unit >$(UNIT_FOLDER)/$$unit && chmod 644 $(UNIT_FOLDER)/$$unit || exit 1; \
	done
	install -D -m 644 deploy/systemd/60-samplicator.conf $(SYSCTL)
	[ -e /etc/samplicator/samplicator.toml ] || install -D -m 644 -t /etc/samplicator deploy/samplicator.toml
	@sysctl -q -p $(SYSCTL) || echo "The limits of $(SYSCTL) could not be set now; they hold from the next boot on." >&2
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	if systemctl -q is-active samplicator 2>/dev/null; then \
		echo "samplicator is installed, but the old code still runs. To change over: systemctl restart samplicator"; \
	else \
		echo "samplicator is installed. Edit /etc/samplicator/samplicator.toml, then: systemctl enable --now samplicator"; \
	fi

install-shared:
	for pair in $(SHARED); do install -D -m 644 $${pair%%:*} $(DESTDIR)$(SHARE)/$${pair#*:} || exit 1; done

# The configuration stays: it is the operator's.
uninstall:
	@$(call need_root,uninstall)
	@if [ -d /run/systemd/system ]; then \
		systemctl -q disable --now samplicator $$(systemctl list-units --all --plain --no-legend 'samplicator@*' | cut -d ' ' -f 1) \
			2>/dev/null || true; \
	fi
	rm -f $(addprefix $(UNIT_FOLDER)/,$(UNITS)) $(SYSCTL)
	for name in $(COMMANDS); do \
		[ "$$(readlink /usr/local/bin/$$name)" != $(PREFIX)/bin/$$name ] || rm -f /usr/local/bin/$$name; \
	done
	for pair in $(SHARED); do rm -f $(SHARE)/$${pair#*:}; done
	[ ! -e $(PREFIX)/bin/samplicator ] || [ ! -e $(PREFIX)/pyvenv.cfg ] || rm -rf $(PREFIX)
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "samplicator is removed. Its configuration is left in /etc/samplicator."

# ---- sdist and wheel for a package index, in dist/. The same sources give the same bytes, wherever they are: the time in both is
# SOURCE_DATE_EPOCH, or that of the last commit. Wheels of other releases of Python: cibuildwheel (pyproject.toml).

EPOCH = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --pretty=%ct 2>/dev/null || stat -c %Y pyproject.toml))

$(STAMPS)/dist-tools: $(STAMPS)/build-tools
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dist"], \
		sep="\n")' >$(STAMPS)/dist-requirements
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/dist-requirements
	@touch $@

# The sdist is packed again, because setuptools writes times and owners of this machine into it; the wheel is built from it.
# LDSHARED: an interpreter outside of the system's folders would put its own folder into the library path.
dist: $(STAMPS)/dist-tools
	@rm -rf build/dist dist/*.whl dist/*.tar.gz && mkdir -p build/dist dist
	$(BIN)/python -m build --no-isolation --sdist -o build/dist . >build/dist/sdist.log 2>&1 || { cat build/dist/sdist.log; exit 1; }
	@cd build/dist && tar -xzf samplicator-*.tar.gz && rm samplicator-*.tar.gz && tree=$$(echo samplicator-*) && \
		tar --sort=name --mtime=@$(EPOCH) --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --format=gnu -cf - $$tree \
		| gzip -n9 >$(CURDIR)/dist/$$tree.tar.gz
	@echo "Compiling the wheel (log: build/dist/wheel.log)"
	@cd build/dist/samplicator-* && SOURCE_DATE_EPOCH=$(EPOCH) LDSHARED="$(CC) -shared" \
		$(BIN)/python -m build --no-isolation --wheel -o .. . >../wheel.log 2>&1 || { cat $(CURDIR)/build/dist/wheel.log; exit 1; }
	SOURCE_DATE_EPOCH=$(EPOCH) PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --strip -w dist build/dist/*.whl
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/validate-pyproject pyproject.toml
	@ls -l dist/*.whl dist/*.tar.gz

# ---- the container image (deploy/docker), by the first of these that is installed

IMAGE_BUILDER ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell command -v $(name)),$(name))))
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= samplicator:$(VERSION)
IMAGE_ARGS ?=

image:
	@[ -n "$(IMAGE_BUILDER)" ] || { echo "make image needs docker, podman or buildah" >&2; exit 1; }
	$(IMAGE_BUILDER) build -f deploy/docker/Dockerfile --build-arg REVISION=$$(git rev-parse HEAD) --build-arg VERSION=$(VERSION) \
		$(IMAGE_ARGS) -t $(IMAGE) .

# ---- the Debian package: dist/samplicator-relay_VERSION_ARCH.deb, for the release of Debian it is made on (deploy/debian)

DEB_PACKAGES := debhelper build-essential chrpath python3 python3-dev python3-venv
DEB_PYTHON := /usr/bin/python3
# The version; another than that of deploy/debian/changelog, for trying upgrades.
DEB_VERSION :=
DEB_TREE := build/deb/tree
# The compiled module of this tree, if it was made for Debian's Python: then the package need not compile it again.
COMPILED = pysrc/samplicator/_fastpath$(shell $(DEB_PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

deb:
	@$(call find_packages,$(DEB_PACKAGES)); $(install_missing)
	@$(MAKE) --no-print-directory build
	@rm -rf build/deb && mkdir -p $(DEB_TREE) dist
	@# sources only, with their times: what was compiled from them is then known to be fresh
	@tar -c --exclude='*.so' --exclude='*.pyc' --exclude=__pycache__ --exclude='*.egg-info' --exclude='*.c' \
		fastpath pysrc deploy setup.py pyproject.toml MANIFEST.in Makefile README.md LICENSE CHANGELOG.md ARCHITECTURE.md \
		CONTRIBUTING.md | tar -x -C $(DEB_TREE)
	@cp -r deploy/debian $(DEB_TREE)/debian
	@if [ -e $(COMPILED) ]; then mkdir $(DEB_TREE)/prebuilt && cp -p $(COMPILED) $(DEB_TREE)/prebuilt/ && cp -r build/cython $(DEB_TREE)/prebuilt/; fi
	@[ -z "$(DEB_VERSION)" ] || sed -i '1s/(.*)/($(DEB_VERSION))/' $(DEB_TREE)/debian/changelog
	@echo "Making the package (log: build/deb/log)"
	@cd $(DEB_TREE) && dpkg-buildpackage --build=binary --unsigned-changes >../log 2>&1 || { tail -n 50 ../log; exit 1; }
	@mv build/deb/*.deb dist/ && rm -rf $(DEB_TREE) && ls -1 dist/*.deb

# ---- test

# Of the Debian packages $(1), those that are not installed yet.
define find_packages
missing=; \
for package in $(1); do \
	[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || missing="$$missing $$package"; \
done
endef

# libFuzzer comes apart from the compiler, in a package that is named by the compiler's release.
define find_fuzz_needs
missing=; package=libclang-rt-$$(clang -dumpversion 2>/dev/null | cut -d. -f1)-dev; \
[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || missing=" $$package"
endef

test-needs: build-needs
	@$(call find_packages,$(TEST_PACKAGES)); $(install_missing)
	@$(find_fuzz_needs); $(install_missing)

$(STAMPS)/test-tools: pyproject.toml | $(EXT)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[test]'
	@touch $@

# Two processes side by side where there are two CPUs, or as many as TEST_PROCESSES says; 0: none but pytest's own. `nproc` counts
# the CPUs that this process may use. Tests that must have the machine to themselves wait for it (tests/support/turns.py).
PYTEST = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder

# Lint first, but the tests run whatever it says: one run tells everything, and its last lines are pytest's.
test: test-needs $(EXT) $(STAMPS)/test-tools tools
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(if $(ASAN),$(MAKE) --no-print-directory asan || status=1;) \
	$(PYTEST) $(PYTEST_ARGS) || status=1; \
	exit $$status

# What takes too long for every run (the mark deploy_heavy): whole machines, several releases of Debian, a cluster.
$(STAMPS)/browser-tools: $(STAMPS)/test-tools
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["browser"], \
		sep="\n")' >$(STAMPS)/browser-requirements
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(STAMPS)/browser-requirements
	@touch $@

verify-deploy: test-needs $(EXT) $(STAMPS)/browser-tools tools
	@$(call find_packages,$(VERIFY_PACKAGES)); $(install_missing)
	$(BIN)/python -m pytest -m deploy_heavy tests/deploy tests/system $(PYTEST_ARGS)

# The scenarios of SCTP, here and with the kernel's SCTP, in a guest that runs Debian's kernel: this host's may have none. Nothing of the host changes.
GUEST := build/guest
GUEST_TESTS ?= tests/system/test_sctp.py tests/system/test_sctp_kernel.py tests/system/test_sctp_relay.py tests/control/test_gateway_sctp.py

$(GUEST)/boot:
	@$(call find_packages,$(GUEST_PACKAGES)); $(install_missing)
	@rm -rf $(GUEST) && mkdir -p $(GUEST)/deb
	@name=$$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1); \
	echo "Getting $$name for the guest (log: $(GUEST)/log)"; \
	cd $(GUEST)/deb && apt-get download "$$name" >../log 2>&1 && dpkg-deb -x *.deb .. || { cat ../log; exit 1; }

verify-sctp: test-needs $(EXT) $(STAMPS)/test-tools tools $(GUEST)/boot
	$(BIN)/python -m pytest -m "" tests/system/test_sctp.py $(PYTEST_ARGS)
	@cd tests && SCTP_BACKEND=kernel $(BIN)/python -m support.guest $(CURDIR)/$(GUEST) -- \
		$(BIN)/python -m pytest --rootdir $(CURDIR) -c $(CURDIR)/pyproject.toml -p no:cacheprovider -m "" $(addprefix $(CURDIR)/,$(GUEST_TESTS)) $(PYTEST_ARGS)

lint: $(EXT) $(STAMPS)/test-tools
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/mypy || status=1; \
	PATH=$(BIN):$$PATH $(BIN)/cython-lint fastpath tests/ext || status=1; \
	$(BIN)/codespell || status=1; \
	[ $$status = 0 ] || echo "make lint: failed" >&2; \
	exit $$status

# ---- the suites that touch memory, under ASan and UBSan, in a build of its own

ASAN_LIB := build/asan/lib
ASAN_PRELOAD = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)

$(STAMPS)/asan: $(SOURCES) $(INSIDE_SOURCES) $(PYTHON_SOURCES) setup.py pyproject.toml $(EXT) $(STAMPS)/test-tools
	@mkdir -p build
	@rm -rf build/asan build/cython-asan
	@echo "Compiling the datapath with ASan and UBSan (log: build/asan.log)"
	@SAMPLICATOR_SANITIZE=1 SAMPLICATOR_INSIDE=1 $(BIN)/python setup.py -q build --build-base build/asan --build-lib $(ASAN_LIB) \
		>build/asan.log 2>&1 || { cat build/asan.log; exit 1; }
	@touch $@

# A small quarantine: freed memory that is kept for finding its users would look like a leak to the tests that bound memory.
ASAN_ENV = LD_PRELOAD="$(ASAN_PRELOAD)" PYTHONPATH=$(CURDIR)/$(ASAN_LIB) PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:quarantine_size_mb=4 UBSAN_OPTIONS=print_stacktrace=1

asan: test-needs $(STAMPS)/asan tools
	@$(ASAN_ENV) $(BIN)/python -c 'from samplicator import _fastpath as f, _inside as p; assert "asan" in f.__file__ and "asan" in p.__file__'
	$(ASAN_ENV) $(PYTEST) -p no:cacheprovider tests/unit tests/engine $(PYTEST_ARGS)
	$(ASAN_ENV) $(BIN)/python tests/fuzz/daemon_fuzz.py

# Half an hour: inputs through the flow stage (libFuzzer, needs clang), datagrams through the daemon; both under ASan and UBSan.
FUZZ_COUNT ?= 10000000

fuzz: test-needs $(STAMPS)/asan tools
	$(BIN)/python tests/fuzz/flow_fuzz.py --runs $(FUZZ_COUNT)
	$(ASAN_ENV) $(BIN)/python tests/fuzz/daemon_fuzz.py --count $(FUZZ_COUNT)

# ---- traffic tools (C) and benchmarks

tools:
	@$(MAKE) --no-print-directory -s -C bench/tools OUT=$(CURDIR)/build/tools CC=$(CC)

bench: build tools
	$(BIN)/python bench/run $(BENCH_ARGS)

clean:
	rm -rf build dist $(STAMPS) pysrc/*.egg-info pysrc/samplicator/*.so
