# shellcheck shell=bash
# What scripts/run, scripts/test and .ci/run need on the machine. Sourced, not
# run. Each function checks what is there, says what it installs, installs only
# that, and ends the script with one clear line when it can't. Everything that
# is not a Debian package goes into the repository's ignored .cache/.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$repo/.cache

say() { printf '==> %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# attended COMMAND…: runs it as a job with a process group of its own. A signal that ends the script ends that
# group first, and waits until the command has cleaned up.
attended() {
  local job status=0
  set -m
  "$@" &
  job=$!
  set +m
  # shellcheck disable=SC2064 # the job is this one
  trap "end_job $job 130" INT
  # shellcheck disable=SC2064
  trap "end_job $job 143" TERM
  # shellcheck disable=SC2064
  trap "end_job $job 129" HUP
  wait "$job" || status=$?
  trap - INT TERM HUP
  return "$status"
}

end_job() {
  trap '' INT TERM HUP
  kill -TERM -- "-$1" 2>/dev/null || true
  wait "$1" || true
  exit "$2"
}

# The Rust toolchain that rust-toolchain.toml names. rustup is the user's own.
setup_rust() {
  command -v cargo >/dev/null || [[ ! -x $HOME/.cargo/bin/cargo ]] || PATH=$HOME/.cargo/bin:$PATH
  command -v cargo >/dev/null ||
    die "no Rust toolchain: install rustup (its 'cargo' must be on PATH), then run this again"
  (cd "$repo" && cargo --version >/dev/null) ||
    die "cargo can't provide the toolchain that rust-toolchain.toml names (see above)"
}

# install_packages PACKAGE…: with apt-get, as root or through sudo.
install_packages() {
  (($# == 0)) && return
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "missing packages: $*; install them as root, or install sudo"
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null ||
    die "missing: $* (Debian's names); there is no apt-get here, so install them by hand"
  say "installing Debian packages: $*"
  local log
  log=$(mktemp)
  # The second try is for a package list that has grown stale.
  if ! apt_install "$@" >"$log" 2>&1 &&
    ! { "${as_root[@]}" apt-get update -qq && apt_install "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "apt-get could not install: $*"
  fi
  rm -f "$log"
}

apt_install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "$@" </dev/null
}

# What compiling the workspace takes: a C compiler (zstd, etcd's TLS), and protoc with
# its well-known types (etcd's gRPC messages); with 'tests', also what its tests run: a
# real etcd, and openssl for the certificates that it is tried with.
setup_build() {
  setup_rust
  local missing=()
  command -v cc >/dev/null || missing+=(build-essential)
  command -v protoc >/dev/null || missing+=(protobuf-compiler)
  [[ -n ${PROTOC_INCLUDE:-} || -e /usr/include/google/protobuf/empty.proto ||
    -e /usr/local/include/google/protobuf/empty.proto ]] || missing+=(libprotobuf-dev)
  if [[ ${1:-} == tests ]]; then
    command -v etcd >/dev/null || missing+=(etcd-server)
    command -v openssl >/dev/null || missing+=(openssl)
  fi
  install_packages "${missing[@]}"
}

# Other people's clients, and a JVM for Kafka's tools.
setup_clients() {
  local missing=()
  command -v kcat >/dev/null || missing+=(kcat)
  command -v javac >/dev/null || missing+=(default-jdk-headless)
  command -v mvn >/dev/null || missing+=(maven)
  system_python >/dev/null || missing+=(python3 python3-venv)
  install_packages "${missing[@]}"
  setup_python
  setup_kafka
}

# A cluster on this machine, for the demos and the fault suite: etcd, its command,
# and the network namespaces' tools.
setup_cluster() {
  local missing=()
  command -v etcd >/dev/null || missing+=(etcd-server)
  command -v etcdctl >/dev/null || missing+=(etcd-client)
  command -v ip >/dev/null || missing+=(iproute2)
  install_packages "${missing[@]}"
}

# A library that shows a process another time of day.
setup_faketime() {
  compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || install_packages faketime
}

# The first Python that can make a virtual environment.
system_python() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

# .cache/venv with scripts/requirements.txt, made again when that file changes.
setup_python() {
  local venv=$cache/venv wanted
  wanted=$(sha256sum <"$repo/scripts/requirements.txt")
  if [[ ! -e $venv/.complete || $(<"$venv/.complete") != "$wanted" ]]; then
    say "installing the Python clients into .cache/venv: $(grep -o '^[a-z0-9-]*==[0-9.]*' "$repo/scripts/requirements.txt" | tr '\n' ' ')"
    rm -rf "$venv"
    mkdir -p "$cache"
    "$(system_python)" -m venv "$venv" || die "python3 -m venv failed"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      -r "$repo/scripts/requirements.txt" || die "pip could not install scripts/requirements.txt"
    printf '%s\n' "$wanted" >"$venv/.complete"
  fi
  python=$venv/bin/python
}

# .cache/kafka/*.jar from scripts/kafka/pom.xml, copied again when that changes.
setup_kafka() {
  local kafka=$cache/kafka wanted
  wanted=$(sha256sum <"$repo/scripts/kafka/pom.xml")
  if [[ ! -e $kafka/.complete || $(<"$kafka/.complete") != "$wanted" ]]; then
    say "copying Apache Kafka's tools from Maven into .cache/kafka"
    rm -rf "$kafka"
    mkdir -p "$kafka"
    mvn --quiet --batch-mode -f "$repo/scripts/kafka/pom.xml" dependency:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$kafka" </dev/null ||
      die "maven could not fetch the jars that scripts/kafka/pom.xml names"
    printf '%s\n' "$wanted" >"$kafka/.complete"
  fi
  export YUXI_KAFKA_JARS=$kafka
}
