# Real peers of the scripts beside it, which set what ../tools.sh wants before they source it.
source "$here/../tools.sh"

gosdk_version=v1.8.0
fastmcp_version=4.1.2
npm_servers_version=2026.8.31
inspector_version=2.12.0
ts_v1=@modelcontextprotocol/sdk@1.32.2
ts_v2=@modelcontextprotocol/client@2.4.0
ts_v2_server=@modelcontextprotocol/server@2.4.0
ts_v2_node=@modelcontextprotocol/node@2.1.2

python_with_fastmcp() {
  local venv="$CACHE/fastmcp-$fastmcp_version"
  if [ ! -x "$venv/bin/fastmcp" ]; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "fastmcp==$fastmcp_version" >&2 || die "fastmcp $fastmcp_version does not install from PyPI"
  fi
  echo "$venv/bin/python"
}

# start_pages PORT PORT: the servers whose lists have pages, ts_server.mjs and fastmcp_pages.py.
start_pages() {
  npm_package "$ts_v2_server" "$ts_v2_node" >/dev/null
  start ts-v2-server "$NODE" "$(node_script "$ts_v2_server" "$here/ts_server.mjs")" "$1"
  start fastmcp-pages "$PYTHON" "$here/fastmcp_pages.py" "$2"
}

# pages_targets PORT PORT: them, as ../matrix_test.go is told.
pages_targets() {
  echo "\"ts-v2\": \"mcp: {host: \\\"http://localhost:$1/\\\"}\","
  echo "\"fastmcp pages\": \"mcp: {host: \\\"http://localhost:$2/mcp\\\"}, protocolVersions: [\\\"2025-11-25\\\"]\""
}

# matrix_clients: the clients of ../matrix_test.go, as it is told.
matrix_clients() {
  local v1 v2
  v1="$(node_script "$ts_v1" "$here"/matrix/ts_v1.mjs "$here"/matrix/cells.mjs "$here"/checks.mjs)"
  v2="$(node_script "$ts_v2" "$here"/matrix/ts_v2.mjs "$here"/matrix/cells.mjs "$here"/checks.mjs)"
  cat <<JSON
  "fastmcp": ["$PYTHON", "$here/matrix/fastmcp_client.py"],
  "ts-v1": ["$NODE", "$v1"],
  "ts-v2": ["$NODE", "$v2"]
JSON
}

# node_script PACKAGE@VERSION SCRIPT…: installs the package, puts the scripts where `import` finds it, and prints the first one's path.
node_script() {
  local dir
  dir="$(npm_package "$1")"
  dir="${dir%%/node_modules/*}"
  shift
  cp "$@" "$dir/" || die "cannot write to $dir"
  echo "$dir/$(basename "$1")"
}
