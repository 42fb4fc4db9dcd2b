#!/usr/bin/env bash
# Proves the README's two commands on machines that have nothing but what the README asks for.
#   tests/fresh/run.sh                        Debian 12, Debian 13, Ubuntu 24.04
#   tests/fresh/run.sh debian-13              one of them
#   tests/fresh/run.sh --quick debian-13      import, one run, one served prediction
# Makes each root with debootstrap, clones HEAD in it, works as an ordinary user and prints a table.
# Needs root and debootstrap; what cannot be had is said in the table. FRESH_ROOTS names the folder
# of the roots (a temporary one); FRESH_KEEP=1 leaves them there, and takes what is there.
set -uo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# How this machine reaches the package index is how a root on it does.
PASSED=(PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CERT UV_DEFAULT_INDEX UV_INDEX_URL UV_INDEX
  UV_PYTHON_INSTALL_MIRROR SSL_CERT_FILE http_proxy https_proxy no_proxy
  HTTP_PROXY HTTPS_PROXY NO_PROXY)
declare -A SUITE=([debian-12]=bookworm [debian-13]=trixie [ubuntu-24.04]=noble)
# Scripts of debootstrap that know the archive; an older one has none of its own for noble.
declare -A SCRIPT=([debian-12]=sid [debian-13]=sid [ubuntu-24.04]=gutsy)
declare -A COMPONENTS=([debian-12]=main [debian-13]=main [ubuntu-24.04]='main,universe')
declare -A KEYRING=([debian-12]=debian [debian-13]=debian [ubuntu-24.04]=ubuntu)
USER_NAME=user

left_out() {
  echo "fresh machines: left out: $*" >&2
  exit 0
}

say() { echo "$(date +%T) $*" >&2; }

# --- A root --------------------------------------------------------------------------------

make_root() { # DISTRIBUTION ROOT LOG
  local name=$1 root=$2 log=$3 keyring=/usr/share/keyrings/${KEYRING[$1]}-archive-keyring.gpg
  [ -e "$root/.made" ] && return 0
  rm -rf "$root"
  [ -r "$keyring" ] || keyring=$(borrowed_keyring "$keyring")
  [ -r "$keyring" ] || { echo "no keyring of ${name%-*}'s archive" && return 1; }
  # No mirror: the script's own.
  debootstrap --variant=minbase --keyring="$keyring" --components="${COMPONENTS[$name]}" \
    "${SUITE[$name]}" "$root" '' \
    "/usr/share/debootstrap/scripts/${SCRIPT[$name]}" >>"$log" 2>&1 </dev/null ||
    { echo 'its archive is not reachable' && return 1; }
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  inside "$root" root 'apt-get update' >>"$log" 2>&1 || { echo 'apt-get update failed' && return 1; }
  inside "$root" root "DEBIAN_FRONTEND=noninteractive $(prerequisites) -y" >>"$log" 2>&1 ||
    { echo "the README's packages cannot be installed" && return 1; }
  trust_as_here "$root"
  inside "$root" root "useradd --create-home $USER_NAME" >>"$log" 2>&1
  touch "$root/.made"
}

borrowed_keyring() { # Debian 13 has the keys of Ubuntu's archive, Debian 12 has not
  local donor=$ROOTS/debian-13
  [ -e "$donor/.made" ] || return 0
  inside "$donor" root 'cd /tmp && apt-get download ubuntu-keyring && dpkg -x ubuntu-keyring_*.deb /' \
    >/dev/null 2>&1
  echo "$donor$1"
}

prerequisites() { # the README's own line
  sed -n 's/^ *sudo \(apt-get install .*\)$/\1/p' "$REPOSITORY/README.md" | head -n 1
}

trust_as_here() { # certificates and settings for the package index
  local file
  for file in "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" /etc/pip.conf /etc/uv/uv.toml; do
    [ -f "$file" ] && mkdir -p "$1$(dirname "$file")" && cp -L "$file" "$1$file"
  done
}

inside() { # ROOT USER COMMAND: in namespaces of its own, which take the mounts along when they go
  local root=$1 user=$2 home=/home/$2 name settings=()
  [ "$user" = root ] && home=/root
  for name in "${PASSED[@]}"; do [ -n "${!name:-}" ] && settings+=("$name=${!name}"); done
  # shellcheck disable=SC2016 # for the inner shell
  unshare --mount --pid --fork --kill-child --propagation private bash -c '
    root=$1 user=$2 command=$3
    shift 3
    mount -t proc proc "$root/proc" && mount --rbind /sys "$root/sys" &&
      mount --rbind /dev "$root/dev" && mount -t tmpfs tmpfs "$root/tmp" || exit 1
    exec chroot --userspec="$user:$user" "$root" env -i "$@" sh -c "cd && $command"
  ' fresh "$root" "$user" "$3" "HOME=$home" "USER=$user" LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${settings[@]}" </dev/null
}

# --- What is proved on it ------------------------------------------------------------------

clone() { # ROOT
  git -C "$REPOSITORY" bundle create --quiet "$1/home/$USER_NAME/project.bundle" HEAD
  inside "$1" $USER_NAME 'rm -rf project && git -c init.defaultBranch=main -c advice.detachedHead=false clone --quiet project.bundle project'
}

timed() { # ROOT LOG COMMAND: sets SECONDS_TAKEN
  local start=$SECONDS code
  inside "$1" $USER_NAME "cd project && $3" >"$2" 2>&1
  code=$?
  SECONDS_TAKEN=$((SECONDS - start))
  return $code
}

prove() { # DISTRIBUTION: a row of the table
  local name=$1 root=$ROOTS/$1 log=$ROOTS/$1 why glibc stack=none version=none ok=1
  local run='' tests='' summary='' result=failed
  say "$name: making a root"
  why=$(make_root "$name" "$root" "$log.root.log") ||
    { row "$name" - - - - - - "not tried: $why" && return 0; }
  glibc=$(inside "$root" root 'getconf GNU_LIBC_VERSION') glibc=${glibc#glibc }
  clone "$root"
  say "$name: $RUN"
  timed "$root" "$log.run.log" "$RUN" || ok=0
  if [ $ok = 1 ]; then
    run=$SECONDS_TAKEN
    say "$name: $TEST"
    timed "$root" "$log.test.log" "$TEST" && result=passed
    tests=$SECONDS_TAKEN
  fi
  if [ -f "$root/home/$USER_NAME/project/.venv/.complete" ]; then
    read -r stack version _ <"$root/home/$USER_NAME/project/.venv/.complete"
  fi
  [ -z "$tests" ] || summary=$(grep -oE '[0-9]+ (passed|failed).*' "$log.test.log" | tail -n 1)
  row "$name" "$glibc" "$version" "$stack" "${run:--}" "${tests:--}" "${summary:--}" "$result"
  [ $result = passed ]
}

row() { printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$@" >>"$TABLE"; }

main() {
  local failed=0 name
  RUN='make run' TEST='make test'
  if [ "${1:-}" = --quick ]; then
    shift
    RUN="make run ARGS='--model simple --set trainer.epochs=15 --set trainer.batch_size=64'"
    TEST=tests/fresh/serve_one.sh
  fi
  [ $# -gt 0 ] || set -- debian-12 debian-13 ubuntu-24.04
  [ "$(id -u)" = 0 ] || left_out 'root is needed to make roots'
  command -v debootstrap >/dev/null || left_out 'debootstrap is not installed'
  unshare --mount --pid --fork true || left_out 'namespaces cannot be made here'
  [ -n "$(prerequisites)" ] || { echo 'the README names no packages' >&2 && exit 2; }
  ROOTS=${FRESH_ROOTS:-$(mktemp -d /var/tmp/mnist-ae-fresh.XXXXXX)}
  mkdir -p "$ROOTS"
  TABLE=$ROOTS/table.md
  row distribution glibc Python stack "\`make run\`, s" "\`make test\`, s" tests result >"$TABLE"
  row --- --- --- --- --- --- --- --- >>"$TABLE"
  for name in "$@"; do
    [ -n "${SUITE[$name]:-}" ] || { echo "no distribution '$name'; known: ${!SUITE[*]}" >&2 && exit 2; }
    prove "$name" || failed=1
  done
  cat "$TABLE"
  [ $failed = 0 ] || echo "logs: $ROOTS" >&2
  [ -n "${FRESH_KEEP:-}" ] || [ $failed = 1 ] || rm -rf "$ROOTS"
  return $failed
}

# Read whole before it is run: a pull may change this file meanwhile.
{ main "$@"; exit; }
