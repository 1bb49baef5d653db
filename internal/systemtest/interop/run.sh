#!/usr/bin/env bash
# Real clients through one proxy, before two targets at once: `go` (go-sdk's everything-server) and `npm` (the reference
# server-everything, over stdio) for clients of the session era; `go` and `fast` (FastMCP) for those of the stateless era.
#
#   run.sh            all clients
#   run.sh NAME…      some: go fastmcp ts-v1 ts-v2 inspector page pages tasks seeds credentials
#
# `credentials` has what backendAuth sends checked by verifiers that are not ours: signatures by an S3 server (versitygw), clients
# by oidc-provider, token exchange by zitadel/oidc. It is internal/systemtest/issuers_test.go.
# `pages` has every client meet servers whose lists have pages, one of them of the stateless era alone. It is internal/systemtest/pages_test.go.
# `tasks` has tasks of both eras: two FastMCP servers with the extension, and two of the reference server-everything.
# `seeds` runs the examples of internal/systemtest/seeds_test.go with the reference servers from npm, through npx.
#
# Settings: CACHE (tools; default ~/.cache/sluice), OUT (logs). Needs Go, npm, Python >= 3.10 with venv, and Chromium for the page.
# Exit: 0 all pass, 1 some fail, 2 could not run.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/../../.." && pwd)"
CACHE="${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}"
mkdir -p "$CACHE"
OUT="${OUT:-$(mktemp -d "$CACHE/interop-run-XXXXXX")}"
mkdir -p "$OUT"
export OUT

die() { echo "interop: $*" >&2; exit 2; }
pids=()
# Ends only what this script started.
cleanup() { for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap cleanup EXIT
trap 'exit 130' INT TERM
source "$here/peers.sh"

versitygw_version=v1.8.0
oidc_provider_version=9.13.3
zitadel_version=v3.52.0
inspector_page_version=1.0.3 # the last whose page connects from the browser itself

need_node
PYTHON="$(python_with_fastmcp)"
everything_go="$(go_sdk_binary conformance/everything-server "$gosdk_version")"
everything_npm="$(npm_package @modelcontextprotocol/server-everything@$npm_servers_version)/dist/index.js"

stateful="$(free_port)" stateless="$(free_port)" fast="$(free_port)" front_l="$(free_port)" front_m="$(free_port)"
start go-stateful "$everything_go" -http="localhost:$stateful" -stateless=false
start go-stateless "$everything_go" -http="localhost:$stateless" -stateless=true
start fastmcp-server "$PYTHON" "$here/fastmcp_server.py" "$fast"
listening "$stateful"; listening "$stateless"; listening "$fast"
cat >"$OUT/sluice.yaml" <<YAML
binds:
- port: $front_l
  listeners:
  - routes:
    - policies:
        # The inspector's page asks from its own origin.
        cors: {allowOrigins: ["*"]}
      backends:
      - mcp:
          targets:
          - name: go
            mcp: {host: "http://localhost:$stateful/"}
          - name: npm
            stdio: {cmd: "$NODE", args: ["$everything_npm", stdio]}
- port: $front_m
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: go
            mcp: {host: "http://localhost:$stateless/"}
          - name: fast
            mcp: {host: "http://localhost:$fast/mcp"}
YAML
build_sluice
start sluice "$SLUICE" up -f "$OUT/sluice.yaml" --data-dir "$OUT/data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0
listening "$front_l"; listening "$front_m"
export SESSION_URL="http://localhost:$front_l/mcp" STATELESS_URL="http://localhost:$front_m/mcp"

# node_client SCRIPT PACKAGE@VERSION
node_client() { "$NODE" "$(node_script "$2" "$here/$1" "$here/checks.mjs")"; }

client_go() { (cd "$repo" && go run ./internal/systemtest/interop/goclient); }
client_fastmcp() { "$PYTHON" "$here/fastmcp_client.py"; }
client_ts-v1() { node_client ts_v1.mjs "$ts_v1"; }
client_ts-v2() { node_client ts_v2.mjs "$ts_v2"; }
client_inspector() {
  INSPECTOR="$(npm_package "@modelcontextprotocol/inspector@$inspector_version")" "$NODE" "$here/inspector.mjs"
}
client_page() {
  command -v chromium >/dev/null || die "the inspector's page needs chromium (Debian: apt-get install chromium)"
  INSPECTOR="$(npm_package "@modelcontextprotocol/inspector@$inspector_page_version")" PORT="$(free_port)" node_client page.mjs playwright-core@1.64.1
}

client_pages() {
  local strict pages streamable port
  strict="$(free_port)" pages="$(free_port)" streamable="$(free_port)"
  start_pages "$strict" "$pages"
  start everything-http env PORT="$streamable" "$NODE" "$everything_npm" streamableHttp
  for port in "$strict" "$pages" "$streamable"; do listening "$port"; done
  cat >"$OUT/peers.json" <<JSON
{"targets": {"everything http": "mcp: {host: \"http://localhost:$streamable/mcp\"}", $(pages_targets "$strict" "$pages")}, "clients": {$(matrix_clients)}}
JSON
  (cd "$repo" && SLUICE_MATRIX="$OUT/peers.json" go test -count=1 -v -run TestPages/one-proxy ./internal/systemtest/ | sed 's/^ *--- PASS/ok&/'; exit "${PIPESTATUS[0]}")
}

client_tasks() {
  local venv="$CACHE/fastmcp-tasks-$fastmcp_version" i
  if [ ! -d "$venv/lib" ] || ! "$venv/bin/python" -c 'import fastmcp_tasks' 2>/dev/null; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "fastmcp[tasks]==$fastmcp_version" >&2 || die "fastmcp[tasks] $fastmcp_version does not install from PyPI"
  fi
  local ports=(); for i in 1 2 3 4 5 6; do ports+=("$(free_port)"); done
  for i in 0 1; do
    start "tasks-fastmcp-$i" "$venv/bin/python" "$here/tasks_server.py" "${ports[i]}"
    PORT="${ports[i + 2]}" start "tasks-everything-$i" "$NODE" "$everything_npm" streamableHttp
  done
  cat >"$OUT/tasks.yaml" <<YAML
binds:
- port: ${ports[4]}
  listeners: [{routes: [{backends: [{mcp: {targets: [{name: one, mcp: {host: "http://localhost:${ports[0]}/mcp"}}, {name: two, mcp: {host: "http://localhost:${ports[1]}/mcp"}}]}}]}]}]
- port: ${ports[5]}
  listeners: [{routes: [{backends: [{mcp: {targets: [{name: one, mcp: {host: "http://localhost:${ports[2]}/mcp"}}, {name: two, mcp: {host: "http://localhost:${ports[3]}/mcp"}}]}}]}]}]
YAML
  start sluice-tasks "$SLUICE" up -f "$OUT/tasks.yaml" --data-dir "$OUT/tasks-data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0
  for i in 0 1 2 3 4 5; do listening "${ports[i]}"; done
  STATELESS_URL="http://localhost:${ports[4]}/mcp" "$venv/bin/python" "$here/tasks_client.py" &&
    SESSION_URL="http://localhost:${ports[5]}/mcp" node_client tasks_v1.mjs @modelcontextprotocol/sdk@1.32.2
}

client_seeds() { (cd "$repo" && SLUICE_NPM=1 go test -count=1 -v -run TestSeed ./internal/systemtest/ | sed 's/^ *--- PASS/ok&/'; exit "${PIPESTATUS[0]}"); }

# go_program MODULE/PACKAGE@VERSION NAME: installs it once and prints its path.
go_program() {
  local dir="$CACHE/go/$(echo "$1" | tr '/@' '__')"
  [ -x "$dir/$2" ] || (cd "$CACHE" && GOFLAGS= GOBIN="$dir" go install "$1" >&2) || die "$1 does not install"
  echo "$dir/$2"
}

client_credentials() {
  local s3 oidc op provider
  s3="$(free_port)" oidc="$(free_port)" op="$(free_port)"
  mkdir -p "$OUT/s3/mcp" "$OUT/of-s3"
  start versitygw "$(go_program "github.com/versity/versitygw/cmd/versitygw@$versitygw_version" versitygw)" --port "127.0.0.1:$s3" \
    --access AKINTEROP --secret secret-interop --region eu-west-1 posix --sidecar "$OUT/of-s3" "$OUT/s3"
  provider="$(npm_package "oidc-provider@$oidc_provider_version")"
  provider="${provider%%/node_modules/*}"
  cp "$here/oidc_provider.mjs" "$provider/"
  start oidc-provider "$NODE" "$provider/oidc_provider.mjs" "$oidc" "$OUT/oidc-key.json"
  PORT="$op" start zitadel-op "$(go_program "github.com/zitadel/oidc/v3/example/server@$zitadel_version" server)"
  listening "$s3"; listening "$oidc"; listening "$op"
  (cd "$repo" && SLUICE_S3="http://127.0.0.1:$s3" SLUICE_OIDC="http://localhost:$oidc" SLUICE_OIDC_KEY="$OUT/oidc-key.json" SLUICE_OP="http://localhost:$op" \
    go test -count=1 -v -run 'TestSignaturesAtS3|TestClientsAtOidcProvider|TestExchangeAtIssuer' ./internal/systemtest/ | sed 's/^ *--- PASS/ok&/; s/^ *--- SKIP/FAIL&/'; exit "${PIPESTATUS[0]}")
}

[ $# -gt 0 ] || set -- go fastmcp ts-v1 ts-v2 inspector page pages tasks seeds credentials
passed=0 failed=0
for client in "$@"; do
  if "client_$client" >"$OUT/$client.log" 2>&1; then
    passed=$((passed + 1)); echo "ok    $client: $(grep -c '^ok' "$OUT/$client.log") checks"
  else
    failed=$((failed + 1)); echo "FAIL  $client:"; tail -25 "$OUT/$client.log"
  fi
done
echo "interop: $passed clients passed, $failed failed (logs in $OUT)"
[ "$failed" = 0 ]
