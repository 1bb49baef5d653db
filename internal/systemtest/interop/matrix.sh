#!/usr/bin/env bash
# The matrix: every client, at every revision or era that it can be pinned to, with every target; through one proxy, then through two
# of which each request takes the other one; the same with servers whose lists have pages; then what becomes of calls when one proxy is killed.
# A row for each cell; a cell that is not as testdata/matrix.golden (pages.golden, inflight.golden) has it fails. The tests are ../matrix_test.go,
# ../pages_test.go and ../killed_test.go; this script installs and starts the peers.
#
#   matrix.sh              all
#   matrix.sh -update      rewrite the golden files
#   matrix.sh -run RE      some: e.g. TestMatrix/round-robin
#
# Settings: CACHE (tools; default ~/.cache/sluice), OUT (logs). Needs Go, npm, and Python >= 3.10 with venv.
# Exit: 0 all as expected, 1 some differ, 2 could not run.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/../../.." && pwd)"
CACHE="${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}"
mkdir -p "$CACHE"
OUT="${OUT:-$(mktemp -d "$CACHE/matrix-run-XXXXXX")}"
mkdir -p "$OUT"
export OUT

die() { echo "matrix: $*" >&2; exit 2; }
pids=()
# Ends only what this script started.
cleanup() { for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap cleanup EXIT
trap 'exit 130' INT TERM
source "$here/peers.sh"

need_node
PYTHON="$(python_with_fastmcp)"
everything_go="$(go_sdk_binary conformance/everything-server "$gosdk_version")"
everything_npm="$(npm_package "@modelcontextprotocol/server-everything@$npm_servers_version")/dist/index.js"
memory_npm="$(npm_package "@modelcontextprotocol/server-memory@$npm_servers_version")/dist/index.js"
INSPECTOR="$(npm_package "@modelcontextprotocol/inspector@$inspector_version")"
export INSPECTOR
script_inspector="$(node_script "@modelcontextprotocol/inspector@$inspector_version" "$here"/matrix/inspector.mjs "$here"/matrix/cells.mjs "$here"/checks.mjs)"

stateful="$(free_port)" stateless="$(free_port)" fast="$(free_port)" streamable="$(free_port)" sse="$(free_port)" strict="$(free_port)" pages="$(free_port)"
start go-stateful "$everything_go" -http="localhost:$stateful" -stateless=false
start go-stateless "$everything_go" -http="localhost:$stateless" -stateless=true
start fastmcp-server "$PYTHON" "$here/fastmcp_server.py" "$fast"
start everything-http env PORT="$streamable" "$NODE" "$everything_npm" streamableHttp
start everything-sse env PORT="$sse" "$NODE" "$everything_npm" sse
start_pages "$strict" "$pages"
for port in "$stateful" "$stateless" "$fast" "$streamable" "$sse" "$strict" "$pages"; do listening "$port"; done

# What runs where, for the tests; see peersOf in ../matrix_test.go.
cat >"$OUT/peers.json" <<JSON
{"targets": {
  "go stateful": "mcp: {host: \"http://localhost:$stateful/\"}",
  "go stateless": "mcp: {host: \"http://localhost:$stateless/\"}",
  "everything http": "mcp: {host: \"http://localhost:$streamable/mcp\"}",
  "everything sse": "sse: {host: \"http://localhost:$sse/sse\"}",
  "everything stdio": "stdio: {cmd: \"$NODE\", args: [\"$everything_npm\", stdio]}",
  "memory stdio": "stdio: {cmd: \"$NODE\", args: [\"$memory_npm\"], env: {MEMORY_FILE_PATH: \"$OUT/memory.jsonl\"}}",
  "fastmcp": "mcp: {host: \"http://localhost:$fast/mcp\"}",
$(pages_targets "$strict" "$pages")
 },
 "clients": {
$(matrix_clients),
  "inspector": ["$NODE", "$script_inspector"]
 }}
JSON
args=(-run '^(TestMatrix|TestPages|TestProxyKilled)$')
for a in "$@"; do [ "$a" = -run ] && args=(); done
cd "$repo"
SLUICE_MATRIX="$OUT/peers.json" go test -count=1 -timeout 20m -v "${args[@]}" ./internal/systemtest/ "$@" || { echo "matrix: logs in $OUT" >&2; exit 1; }
