# What compiles for Apple silicon on any host; sourced by mac-clippy and mac-cargo.
#
# Rustup has a standard library for the target to install. Where Debian has a newer compiler with its
# source, as Debian 12 has for its web browsers, the library is built from that, once, in about a
# minute, and kept in the user's cache: cargo does not look into it, so that its place names the
# compiler that made it.
# shellcheck shell=bash
readonly TARGET=aarch64-apple-darwin
# The oldest compiler that builds this.
readonly OLDEST=1.95
readonly CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/slicer-mac"
# The oldest macOS that programs run on.
readonly OLDEST_MACOS=13.0
SDK=$(cd "$(dirname "${BASH_SOURCE[0]}")/sdk" && pwd)
readonly SDK
# Whose compiler is used, `rustup`'s or `debian`'s, and what compiles C and links, when it is there.
origin='' c_compiler='' linker=''

has_target() {
	[ -d "$(rustc --print sysroot)/lib/rustlib/$TARGET/lib" ]
}

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Fetches the lists of what there is to install, at most once.
refreshed=
refresh_lists() {
	[ -z "$refreshed" ] || return 0
	refreshed=yes
	as_root apt-get update -qq </dev/null
}

rustc_is_new_enough() {
	local version
	version=$(apt-cache policy rustc-web 2>/dev/null | sed -n 's/^ *Candidate: //p')
	[ -n "$version" ] && [ "$version" != '(none)' ] && dpkg --compare-versions "$version" ge "$OLDEST"
}

# Whether Debian's compiler is installed, or can be, in a version that is new enough.
debian_has_it() {
	command -v apt-get >/dev/null || return 1
	# A fresh machine has no lists, or old ones.
	rustc_is_new_enough || { refresh_lists && rustc_is_new_enough; }
}

install_packages() {
	local package missing=()
	for package; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] \
			|| missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	echo "Installing ${missing[*]}"
	local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq
		--no-install-recommends "${missing[@]}")
	as_root "${install[@]}" </dev/null >/dev/null 2>&1 && return 0
	# What the lists name may be gone from the mirror.
	refresh_lists
	as_root "${install[@]}" </dev/null >/dev/null
}

# Builds the standard library by the compiler in /usr/bin into $1, which appears when it is whole.
build_std() {
	local out=$1 work
	[ ! -d "$out" ] || return 0
	echo "Building the standard library for $TARGET"
	mkdir -p "$CACHE"
	work=$(mktemp -d "$CACHE/build.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$work/src"
	: >"$work/src/lib.rs"
	# Its panic_abort has to be built to abort, or targets that do refuse it.
	cat >"$work/Cargo.toml" <<-TOML
		cargo-features = ["profile-rustflags"]
		[package]
		name = "empty"
		version = "0.0.0"
		edition = "2021"
		[workspace]
		[profile.release.package.panic_abort]
		rustflags = ["-Cpanic=abort"]
	TOML
	# With bitcode, which link-time optimisation takes.
	(cd "$work" && RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_STRIP=false RUSTFLAGS=-Cembed-bitcode=yes \
		/usr/bin/cargo build --quiet --release --target "$TARGET" --target-dir "$work/target" \
		-Z build-std=std,panic_abort,panic_unwind,proc_macro,test)
	mkdir -p "$work/sysroot/lib/rustlib/$TARGET/lib"
	cp "$work/target/$TARGET/release/deps/"lib*.rlib "$work/sysroot/lib/rustlib/$TARGET/lib/"
	rm -f "$work/sysroot/lib/rustlib/$TARGET/lib/"libempty-*
	# Another one that runs at the same time may have been first.
	mv -T "$work/sysroot" "$out" 2>/dev/null || [ -d "$out" ]
	rm -rf "$work"
	trap - EXIT
}

# Chooses a compiler, gets its standard library for the target, and a C compiler and a linker. Both
# scripts set all of it up alike, so that cargo builds nothing twice for them.
set_up() {
	local flags='' llvm host sysroot
	if ! has_target && ! debian_has_it && command -v rustup >/dev/null; then
		rustup target add "$TARGET"
	fi
	if has_target; then
		origin=rustup
		host=$(rustc -vV | sed -n 's/^host: //p')
		linker=$(rustc --print sysroot)/lib/rustlib/$host/bin/gcc-ld/ld64.lld
		c_compiler=$(command -v clang || true)
	elif debian_has_it; then
		origin=debian
		install_packages rustc-web cargo-web rust-web-clippy rust-web-src
		# In front, so that cargo, rustc and clippy are of one version.
		export PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc
		# Of the compiler's own version of LLVM, the most of which has come with it.
		llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
		install_packages "clang-$llvm" "lld-$llvm"
		linker=/usr/bin/ld64.lld-$llvm
		c_compiler=/usr/bin/clang-$llvm
		sysroot="$CACHE/std-$({ rustc -vV; echo bitcode; } | sha256sum | cut -c1-12)"
		build_std "$sysroot"
		flags="--sysroot $sysroot "
	else
		echo "There is no standard library for $TARGET: run \`rustup target add $TARGET\`" >&2
		exit 1
	fi
	export SDKROOT="$SDK" MACOSX_DEPLOYMENT_TARGET="$OLDEST_MACOS"
	# The only C there is, ring's, needs no header of a system's.
	export CC_aarch64_apple_darwin="${c_compiler:-clang}" AR_aarch64_apple_darwin=ar
	export CFLAGS_aarch64_apple_darwin="-nostdlibinc -isystem $SDK/usr/include -DRING_CORE_NOSTDLIBINC=1"
	export CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER="$linker"
	# The linker strips, for which the compiler would need objcopy.
	flags+="-Clinker-flavor=ld64.lld -Clink-arg=--error-limit=0 -Clink-arg=-S -Clink-arg=-x"
	flags+=" -Clink-arg=-no_exported_symbols"
	export CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_STRIP=none
}
