#!/bin/sh
# Builds libmrm and installs it for C and C++: the shared library with its soname, the static one,
# mrm.h, mrm.hpp, and mrm.pc. What is installed can be moved: mrm.pc knows paths by its prefix.
#
#     PREFIX    where it will live        (default /usr/local)
#     LIBDIR    its libraries             (default $PREFIX/lib)
#     DESTDIR   put in front of all paths (default empty; for packages)
#     PROFILE   cargo profile             (default release)
#     BUILT     a directory that has libmrm.so and libmrm.a already; then nothing is built
set -eu

here=$(cd "$(dirname "$0")" && pwd)
PREFIX=${PREFIX:-/usr/local}
LIBDIR=${LIBDIR:-$PREFIX/lib}
INCLUDEDIR=$PREFIX/include
DESTDIR=${DESTDIR:-}
PROFILE=${PROFILE:-release}
SONAME=libmrm.so.0
# What a static libmrm needs of the system: `rustc --print native-static-libs`.
LIBS_PRIVATE="-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -n 1)
if [ -z "$version" ]; then
    echo "install.sh: $here/../Cargo.toml names no version" >&2
    exit 1
fi
if [ -z "${BUILT:-}" ]; then
    if ! command -v cargo >/dev/null; then
        echo "install.sh: cargo is missing; install Rust 1.88 or newer, from https://rustup.rs" >&2
        exit 1
    fi
    (cd "$here" && cargo build --profile "$PROFILE" --package mrm-ffi)
    folder=$PROFILE
    [ "$PROFILE" = dev ] && folder=debug
    BUILT=${CARGO_TARGET_DIR:-$here/../target}/$folder
fi

lib=$DESTDIR$LIBDIR
include=$DESTDIR$INCLUDEDIR
install -d "$lib/pkgconfig" "$include"
install -m 755 "$BUILT/libmrm.so" "$lib/libmrm.so.$version"
ln -sf "libmrm.so.$version" "$lib/$SONAME"
ln -sf "$SONAME" "$lib/libmrm.so"
install -m 644 "$BUILT/libmrm.a" "$lib/libmrm.a"
install -m 644 "$here/include/mrm.h" "$here/include/mrm.hpp" "$include"
case $LIBDIR in
"$PREFIX"/*) libdir="\${prefix}${LIBDIR#"$PREFIX"}" ;;
*) libdir=$LIBDIR ;;
esac
sed -e "s|@PREFIX@|$PREFIX|" -e "s|@LIBDIR@|$libdir|" \
    -e "s|@VERSION@|$version|" -e "s|@LIBS_PRIVATE@|$LIBS_PRIVATE|" \
    "$here/mrm.pc.in" >"$lib/pkgconfig/mrm.pc"
chmod 644 "$lib/pkgconfig/mrm.pc"

echo "installed libmrm $version under $DESTDIR$PREFIX"
if [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ] && command -v ldconfig >/dev/null; then
    ldconfig
fi
