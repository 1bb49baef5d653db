#!/usr/bin/env bash
# The client that the suite runs for a scenario: go-sdk's everything-client at a proxy of its own, whose only target is the
# suite's server. The suite appends that server's URL, and names the scenario in MCP_CONFORMANCE_SCENARIO.
# Set by run.sh: SLUICE, CLIENT (the programs), NODE, OUT (for the logs).
set -euo pipefail
url="${!#}"
scenario="${MCP_CONFORMANCE_SCENARIO:-one}"
dir="$(mktemp -d "$OUT/proxy-${scenario//\//-}-XXXXXX")"
path="/${url#*://*/}"
case "$url" in *://*/*) ;; *) path="" ;; esac

# Under auth/ the server itself is the protected resource, so the proxy is transparent.
policies="{}"
case "$scenario" in auth/*) policies="{backendAuth: {passthrough: {unverified: true}}}" ;; esac

# Scenarios run side by side, so a port that is free now may be another's in a moment: each claims one, where no system hands out its own.
while :; do
  port=$((20000 + RANDOM % 10000))
  if mkdir "$OUT/port-$port" 2>/dev/null && ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
done
cat >"$dir/sluice.yaml" <<YAML
binds:
- port: $port
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: suite
            mcp: {host: "$url"}
            policies: $policies
YAML
"$SLUICE" up -f "$dir/sluice.yaml" --data-dir "$dir/data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0 >"$dir/sluice.log" 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true' EXIT
for _ in $(seq 1 300); do
  grep -q '^ready ' "$dir/sluice.log" && break
  kill -0 "$pid" 2>/dev/null || { cat "$dir/sluice.log" >&2; exit 1; }
  sleep 0.05
done
rc=0
"$CLIENT" "http://localhost:$port$path" || rc=$?
exit "$rc"
