#!/bin/sh
# Builds the native tests twice, with the address and undefined behaviour sanitizers and with the thread sanitizer, and
# runs them. Needs a compiler, CMake and the sanitizers' libraries; no Node. Builds are kept under build/, so a second
# run compiles only what has changed.
set -eu
cd "$(dirname "$0")/.."

# Old thread sanitizers refuse the address layout of newer kernels: without randomness it is one that they know.
fixed=""
if command -v setarch >/dev/null && setarch "$(uname -m)" -R true 2>/dev/null; then fixed="setarch $(uname -m) -R"; fi

run_with() {
  name=$1
  shift
  folder=build/sanitizer-$name
  cmake -S . -B "$folder" -DSANITIZE="$1" -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
  cmake --build "$folder" --target native_tests --parallel "${JOBS:-2}" >"$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
  }
  for test in thread-pool reading backend-steps kernel-equality; do
    echo "== $name: $test"
    # shellcheck disable=SC2086
    $fixed timeout 300 "$folder/tests/$test"
  done
}

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1
run_with address address,undefined
run_with thread thread
