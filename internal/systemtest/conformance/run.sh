#!/usr/bin/env bash
# The official MCP conformance suite through one proxy with one target, compared with what the same server
# gets when the suite talks to it directly (baseline/). Over the bridge some things are out of reach: for a new client of an old
# server the name that the server gave a question, which the era of sessions does not carry; for an old client of a new server
# tools that ask by a request, which that server refuses. A child has no
# streams to close: it answers once.
#
#   run.sh                 builds Sluice, starts go-sdk's everything-server in both eras behind it, runs all revisions;
#                          over the bridge, the newest one in front of the server with sessions, and 2025-11-25 in front of the
#                          stateless one; then all revisions at one URL, behind which are both; then the client scenarios
#   run.sh URL SPEC        runs one revision against what answers at URL
#   run.sh client SPEC     the client scenarios of SPEC (2025-11-25, 2026-07-28) by go-sdk's everything-client, each with a proxy before the
#                          suite's server. Seven fail one check, resource-parameter-matches-prm: it wants the server's own URL as
#                          `resource`, where a client behind a proxy has to name the proxy. Six extensions fail without a proxy too.
#
# Settings: SCENARIO (one alone), CACHE (tools; default ~/.cache/sluice), OUT (logs and checks; default below CACHE).
# Needs bash, Go, npm. Exit: 0 as the baseline, 1 worse, 2 could not run.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/../../.." && pwd)"
suite_version=0.2.0-alpha.12
gosdk_version=v1.8.0
CACHE="${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}"
mkdir -p "$CACHE"
OUT="${OUT:-$(mktemp -d "$CACHE/conformance-run-XXXXXX")}"
mkdir -p "$OUT"

die() { echo "conformance: $*" >&2; exit 2; }
pids=()
# Ends only what this script started.
cleanup() { for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap cleanup EXIT
trap 'exit 130' INT TERM

source "$here/../tools.sh"

# run URL SPEC [CELL]: one revision, compared with its baseline, of which a cell may have one of its own.
run() {
  local out="$OUT/$2${3:+-$3}" baseline="$here/baseline/server-$suite_version-$2" rc=0
  if [ -n "${3:-}" ] && [ -f "$baseline-$3.tsv" ]; then baseline="$baseline-$3"; fi
  rm -rf "$out"; mkdir -p "$out"
  local args=(server --url "$1" -o "$out/checks" --spec-version "$2" --timeout 30000)
  if [ -n "${SCENARIO:-}" ]; then args+=(--scenario "$SCENARIO"); else args+=(--suite all); fi
  "$NODE" "$SUITE" "${args[@]}" >"$out/suite.log" 2>&1 || rc=$?
  [ -d "$out/checks" ] || { tail -20 "$out/suite.log" >&2; die "the suite ran no scenario at $2 (exit $rc)"; }
  if [ -n "${SCENARIO:-}" ]; then cat "$out/suite.log"; return "$rc"; fi
  "$NODE" "$here/summary.mjs" "$out" "$baseline.tsv" "$2${3:+, $3}"
}

# clients SPEC: the client scenarios.
clients() {
  local out="$OUT/client-$1" rc=0 args=(--requirements "$1")
  rm -rf "$out"; mkdir -p "$out"
  if [ -n "${SCENARIO:-}" ]; then args=(--scenario "$SCENARIO" --spec-version "$1"); fi
  CLIENT="$(go_sdk_binary conformance/everything-client "$gosdk_version")"
  build_sluice
  (cd "$out" && SLUICE="$SLUICE" CLIENT="$CLIENT" OUT="$out" "$NODE" "$SUITE" client --command "$here/client-through.sh" --timeout 30000 "${args[@]}" >suite.log 2>&1) || rc=$?
  if [ -n "${SCENARIO:-}" ]; then cat "$out/suite.log"; return "$rc"; fi
  "$NODE" "$here/summary.mjs" "$out" "$here/baseline/client-$suite_version-$1.tsv" "client, $1"
}

need_node
SUITE="$(npm_package "@modelcontextprotocol/conformance@$suite_version")/dist/index.js"
if [ "${1:-}" = client ] && [ $# -eq 2 ]; then clients "$2"; exit $?; fi
if [ $# -eq 2 ]; then run "$1" "$2"; exit $?; fi
[ $# -eq 0 ] || die "want no arguments, or URL SPEC, or client SPEC"

everything="$(go_sdk_binary conformance/everything-server "$gosdk_version")"
stateful="$(free_port)" stateless="$(free_port)" front_l="$(free_port)" front_m="$(free_port)" front_both="$(free_port)" front_one="$(free_port)"
start stateful "$everything" -http="localhost:$stateful" -stateless=false; listening "$stateful"
start stateless "$everything" -http="localhost:$stateless" -stateless=true; listening "$stateless"
cat >"$OUT/sluice.yaml" <<YAML
binds:
- port: $front_l
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: everything
            mcp: {host: "http://localhost:$stateful/"}
- port: $front_m
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: everything
            mcp: {host: "http://localhost:$stateless/"}
# Both eras at one URL: a target for each.
- port: $front_both
  listeners:
  - routes:
    - matches: [{headers: [{name: MCP-Protocol-Version, value: {exact: 2026-07-28}}]}]
      backends:
      - name: stateless
        mcp: {targets: [{name: everything, mcp: {host: "http://localhost:$stateless/"}}]}
    - backends:
      - name: stateful
        mcp: {targets: [{name: everything, mcp: {host: "http://localhost:$stateful/"}}]}
# Both eras at one URL: a target that speaks both.
- port: $front_one
  listeners:
  - routes:
    - backends:
      - mcp: {targets: [{name: everything, stdio: {cmd: "$everything"}}]}
YAML
build_sluice
start sluice "$SLUICE" up -f "$OUT/sluice.yaml" --data-dir "$OUT/data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0
for port in "$front_l" "$front_m" "$front_both" "$front_one"; do listening "$port"; done

worst=0
run "http://localhost:$front_l/mcp" 2025-06-18 || worst=$?
run "http://localhost:$front_l/mcp" 2025-11-25 || worst=$?
run "http://localhost:$front_m/mcp" 2026-07-28 || worst=$?
run "http://localhost:$front_l/mcp" 2026-07-28 sessions || worst=$? # over the bridge
run "http://localhost:$front_m/mcp" 2025-11-25 stateless || worst=$? # over the bridge
for spec in 2025-06-18 2025-11-25 2026-07-28; do
  run "http://localhost:$front_both/mcp" $spec both || worst=$?
  run "http://localhost:$front_one/mcp" $spec stdio || worst=$?
done
clients 2025-11-25 || worst=$?
clients 2026-07-28 || worst=$?
[ "$worst" = 0 ] || echo "details in $OUT" >&2
exit "$worst"
