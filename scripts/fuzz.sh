#!/usr/bin/env bash
# Fuzzes the readers of untrusted files with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer (clang 16).
#
#   scripts/fuzz.sh [--runs N] [--seconds S] [TARGET...]     default: 10 million inputs for each target
#
# Inputs start from tests/fuzz/corpus/TARGET; what is found grows in build-fuzz/found/TARGET. Ends with status 1 at the
# first crash, leak, hang (10 s), or allocation of more than 512 MB; the input is left in build-fuzz/faults. One that
# hung is run again by itself: a machine that stood still meanwhile is no fault, and the count goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=10000000
seconds=0
targets=()
while (($#)); do
  case $1 in
    --runs) runs=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    -*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) targets+=("$1"); shift ;;
  esac
done

[[ -f build-fuzz/build.ninja ]] || cmake --preset fuzz >/dev/null
cmake --build build-fuzz >/dev/null || { cmake --build build-fuzz; exit 1; }
if ((${#targets[@]} == 0)); then
  for source in tests/fuzz/*_fuzzer.cpp; do targets+=("$(basename "$source" _fuzzer.cpp)"); done
fi

inputs_of() { sed -n 's/^stat::number_of_executed_units: *//p' "$1" | tail -n 1; }

mkdir -p build-fuzz/faults
for target in "${targets[@]}"; do
  found=build-fuzz/found/$target
  mkdir -p "$found"
  options=(-max_total_time="$seconds" -max_len=4096 -timeout=10 -malloc_limit_mb=512 -rss_limit_mb=2048
           -artifact_prefix="build-fuzz/faults/$target-" -print_final_stats=1 -reload=0)
  case $target in
    config | safetensors | tokenizer_json | completion_request) options+=(-dict=tests/fuzz/json.dict) ;;
  esac
  log=build-fuzz/$target.log
  inputs=0
  SECONDS=0
  # A leak shows at the end of a run and after inputs that allocate more than they free. At every exception ASan looks
  # through all frames it keeps for uses after return: with 64 KB for each size instead of 1 MB up to 2.6 times as fast.
  export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0:max_uar_stack_size_log=16
  export UBSAN_OPTIONS=print_stacktrace=1
  while ! "build-fuzz/${target}_fuzzer" -runs=$((runs - inputs)) "${options[@]}" \
      "$found" "tests/fuzz/corpus/$target" 2>"$log"; do
    hung=$(sed -n 's/.*Test unit written to \(.*timeout-[0-9a-f]*\)$/\1/p' "$log")
    if [[ -n $hung ]] && "build-fuzz/${target}_fuzzer" -timeout=10 "$hung" >/dev/null 2>&1; then
      echo "fuzz: $target: stood still for 10 s, but not at the input; again" >&2
      rm "$hung"
      inputs=$((inputs + $(inputs_of "$log")))
      continue
    fi
    tail -n 40 "$log" >&2
    echo "fuzz: $target FAILED, see build-fuzz/faults and $log" >&2
    exit 1
  done
  echo "fuzz: $target: $((inputs + $(inputs_of "$log"))) inputs, no fault," \
       "$SECONDS s, $(sed -n 's/^stat::peak_rss_mb: *//p' "$log") MB at most"
done
