#!/usr/bin/env bash
# Fuzzes every fuzz target of the module, one after another, FUZZTIME each (default 1m).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do
  grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | awk '{print $2}' | while read -r target; do
    echo "== $target in $(dirname "$file")"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-1m}" "$(dirname "$file")" </dev/null
  done
done
