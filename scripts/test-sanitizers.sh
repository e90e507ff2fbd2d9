#!/bin/sh
# Builds the native tests twice, with the address and undefined behaviour sanitizers and with the thread sanitizer, and
# runs them: the rooms alone, then the Metal backend on the emulated GPU, where clang 19 is there to build that. Needs a
# compiler, CMake and the sanitizers' libraries; no Node. Builds are kept under build/, so a second run compiles only what
# has changed.
set -eu
cd "$(dirname "$0")/.."

# Old thread sanitizers refuse the address layout of newer kernels: without randomness it is one that they know.
fixed=""
if command -v setarch >/dev/null && setarch "$(uname -m)" -R true 2>/dev/null; then fixed="setarch $(uname -m) -R"; fi

# NAME SANITIZERS TARGETS [CMake options]: builds into build/sanitizer-NAME
build() {
  folder=build/sanitizer-$1
  sanitizers=$2
  targets=$3
  shift 3
  cmake -S . -B "$folder" -DSANITIZE="$sanitizers" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/$folder/tests" "$@" >/dev/null
  # shellcheck disable=SC2086
  cmake --build "$folder" --target $targets --parallel "${JOBS:-2}" >"$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
  }
}

run_rooms() {
  build "$1" "$2" native_tests
  for test in thread-pool reading backend-steps kernel-equality; do
    echo "== $1: $test"
    # shellcheck disable=SC2086
    $fixed timeout 300 "build/sanitizer-$1/tests/$test"
  done
}

# The host, the fake Metal and the kernels in one program; and the host code that is wrong on purpose, in which the fake
# must find the mistake before a sanitizer does.
run_metal() {
  CC=clang-19 CXX=clang++-19 build "metal-$1" "$2" "metal_steps metal_misuse" -DMOESTREAM_METAL_EMULATOR=ON
  programs=build/sanitizer-metal-$1/tests
  echo "== metal-$1: metal-steps"
  # shellcheck disable=SC2086
  $fixed timeout 1200 "$programs/metal_steps"
  for mistake in $("$programs/metal_misuse"); do
    # It ends as mistakes end, and the shell says so; what counts is who found it.
    # shellcheck disable=SC2086
    found=$( ($fixed timeout 60 "$programs/metal_misuse" "$mistake" || true) 2>&1)
    case "$found" in
      *Sanitizer*)
        echo "== metal-$1: the planted mistake $mistake"
        echo "$found"
        exit 1
        ;;
    esac
  done
  echo "metal-misuse: nothing that the fake did not find first"
}

# A fiber's stack is not the thread's, so the detector of uses after a return would make one more for every lane.
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1
run_rooms address address,undefined
run_rooms thread thread
if command -v clang++-19 >/dev/null; then
  run_metal address address,undefined
  run_metal thread thread
else
  echo "skipped: the Metal backend on the emulated GPU, which needs clang 19"
fi
