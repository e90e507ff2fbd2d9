#!/bin/sh
# Compiles the CPU kernels for 64-bit Arm and runs their test in an emulator, where both tools are installed.
# On an Arm machine the ordinary tests cover the same ground.
set -eu
cd "$(dirname "$0")/.."

compiler=${CXX_ARM:-aarch64-linux-gnu-g++}
emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
if ! command -v "$compiler" >/dev/null || [ -z "$emulator" ]; then
  echo "test-neon: skipped, it needs g++-aarch64-linux-gnu and qemu-user-static"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c++20 -O2 -Wall -Wextra -Wshadow -ffp-contract=off -Inative/include -pthread"
for source in native/cpu/*.cpp native/cpu/fast/*.cpp test/native/kernel-equality.cpp; do
  case $source in
    */addon.cpp | *avx*) continue ;;
    */neon.cpp) own="-march=armv8.2-a+dotprod" ;;
    */neon_i8mm.cpp) own="-march=armv8.2-a+dotprod+i8mm" ;;
    *) own="" ;;
  esac
  # shellcheck disable=SC2086
  "$compiler" $flags $own -c "$source" -o "$work/$(basename "$source").o"
done
"$compiler" -static -pthread "$work"/*.o -o "$work/kernel-equality"

# Every set on a processor that has all of them; the older processors must not be given what they lack.
run() {
  "$emulator" -cpu "$1" "$work/kernel-equality" >"$work/said" || { cat "$work/said"; exit 1; }
  echo "$1: $(cat "$work/said")"
  grep -q " sets: $2\$" "$work/said" || { echo "test-neon: expected the sets $2 on $1"; exit 1; }
}
run max "neon-i8mm neon portable"
run cortex-a76 "neon portable"
run cortex-a57 "portable"
