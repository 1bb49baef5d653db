# Real peers of the scripts beside it, which set what ../tools.sh wants before they source it.
source "$here/../tools.sh"

gosdk_version=v1.8.0
fastmcp_version=4.1.2
npm_servers_version=2026.8.31
inspector_version=2.12.0
ts_v1=@modelcontextprotocol/sdk@1.32.2
ts_v2=@modelcontextprotocol/client@2.4.0

python_with_fastmcp() {
  local venv="$CACHE/fastmcp-$fastmcp_version"
  if [ ! -x "$venv/bin/fastmcp" ]; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "fastmcp==$fastmcp_version" >&2 || die "fastmcp $fastmcp_version does not install from PyPI"
  fi
  echo "$venv/bin/python"
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
