#!/usr/bin/env bash
# Makes .venv from the lock that fits this machine; `make` calls it before everything else.
#   requirements/setup.sh [STACK]    tfx-1.21 or tfx-1.16; without one it chooses
#   requirements/setup.sh --uv       prints the path of a uv
# Whatever is missing is one line on stderr and exit code 2; the next attempt goes on from there.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

VENV=.venv
OWN_UV=.venv-uv
OWN_CACHE=.venv-cache
OWN_PYTHONS=.venv-python
LOG=.venv.log
UV_VERSION=0.13.8
UV_OLDEST=0.5.0 # knows every option that is used here
# From which glibc on a stack's wheels load, and its Pythons, the best first.
declare -A NAME=([tfx-1.21]='TFX 1.21' [tfx-1.16]='TFX 1.16')
declare -A LIBC=([tfx-1.21]=2.39 [tfx-1.16]=2.28)
declare -A PYTHONS=([tfx-1.21]='3.13 3.12' [tfx-1.16]='3.10 3.11')
STACKS='tfx-1.21 tfx-1.16'

NOTES=() # what was tried for a Python, and how it went
PYTHON='' VERSION='' UV=''

say() { echo "setup: $*" >&2; }

fail() {
  say "$*"
  exit 2
}

lock_of() { # the lock of a stack and a Python
  local own=requirements/$1-py${2/./}.txt
  [ -f "$own" ] && echo "$own" || echo "requirements/$1.txt"
}

at_least() { printf '%s\n%s\n' "$2" "$1" | sort -VC; }

logged() { # runs a command whose words are of interest only where it fails
  "$@" >>"$LOG" 2>&1
}

reason() { # the gist of the log: what a person can mend, else the innermost cause, else an error
  local line words='Temporary failure in name resolution|Name or service not known|Network is unreachable'
  words+='|Connection refused|timed out|certificate verify failed|invalid peer certificate'
  words+='|No space left on device|Permission denied|Read-only file system'
  line=$(grep -oE "($words).*" "$LOG" | tail -n 1)
  [ -n "$line" ] || line=$(sed -nE 's/^[ │├─╰▶]*(Caused by|cause): *//p' "$LOG" | tail -n 1)
  [ -n "$line" ] || line=$(grep -iE '^(error|fatal)' "$LOG" | tail -n 1)
  [ -n "$line" ] || line=$(grep . "$LOG" | tail -n 1)
  line=${line%%\'*}
  echo "${line:-no reason given}"
}

# --- What is there -------------------------------------------------------------------------

read_system() {
  local ID='' ID_LIKE='' PRETTY_NAME=''
  # shellcheck source=/dev/null
  [ -r /etc/os-release ] && . /etc/os-release
  SYSTEM=${PRETTY_NAME:-this system}
  FAMILY=" $ID $ID_LIKE "
  SUDO='sudo '
  [ "$(id -u)" = 0 ] && SUDO=''
  GLIBC=$(getconf GNU_LIBC_VERSION 2>&1) && GLIBC=${GLIBC#glibc } || GLIBC=''
}

archive_python() { # the version of the distribution's own python3, where it is installed
  [ -x /usr/bin/python3 ] || return 0
  /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

packages_command() { # one command that brings what setting up needs [for a Python X.Y]
  local name=python3
  [ -n "${1:-}" ] && [ "$1" != "$(archive_python)" ] && name=python$1
  case "$FAMILY" in
    *' debian '* | *' ubuntu '*) echo "${SUDO}apt-get install g++ $name-dev $name-venv make git" ;;
    *' fedora '* | *' rhel '*) echo "${SUDO}dnf install gcc-c++ $name-devel make git" ;;
    *' suse '*) echo "${SUDO}zypper install gcc-c++ ${name/./}-devel make git" ;;
    *' arch '*) echo "${SUDO}pacman -S --needed gcc python make git" ;;
    *) echo "your package manager with a C++ compiler and the headers of $name" ;;
  esac
}

python_command() { # one command that brings one of these Pythons
  local version
  for version in "$@"; do
    case "$FAMILY" in
      *' debian '* | *' ubuntu '*)
        # Read to its end: pipefail would blame what is cut off.
        if apt-cache show "python$version" 2>&1 | grep -x "Package: python$version" >/dev/null; then
          packages_command "$version"
          return
        fi
        ;;
      *' fedora '*)
        packages_command "$version"
        return
        ;;
    esac
  done
  # Its archive has none, and uv could not download one.
  echo "pyenv install $1"
}

candidates() { # where a Python X.Y may be, whatever pyenv and .python-version have chosen
  type -ap "python$1" python3 python
  local folder
  for folder in "${PYENV_ROOT:-${HOME:-/}/.pyenv}/versions/$1".* \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-/}/.local/share}/uv/python}/cpython-$1".* \
    "$PWD/$OWN_PYTHONS/cpython-$1".*; do
    [ -x "$folder/bin/python$1" ] && echo "$folder/bin/python$1"
  done
}

PROBE='
import sys, sysconfig
if sys.implementation.name != "cpython" or "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(3)
print(sys.executable, sysconfig.get_path("include"), sep="\n")
'

find_python() { # X.Y: sets PYTHON, to one with headers where there is one
  local candidate answer code headers without=''
  while read -r candidate; do
    answer=$("$candidate" -c "$PROBE" "$1" 2>&1)
    code=$?
    if [ $code = 0 ]; then
      headers=${answer#*$'\n'}
      if [ -f "$headers/Python.h" ]; then
        PYTHON=${answer%%$'\n'*}
        return 0
      fi
      [ -n "$without" ] || without="Python $1 has no headers ($headers/Python.h)"
    elif [ $code != 3 ] && [ "${candidate##*/}" = "python$1" ]; then
      # A shim, say, that stands for nothing in this folder.
      NOTES+=("$candidate does not run (${answer%%$'\n'*})")
    fi
  done < <(candidates "$1")
  [ -z "$without" ] || fail "$without; on $SYSTEM: $(packages_command "$1")"
  return 1
}

check_compiler() { # pyfarmhash comes as a source, with every stack
  local said
  type -P "${CXX:-c++}" >/dev/null ||
    fail "no C++ compiler (${CXX:-c++}); on $SYSTEM: $(packages_command)"
  said=$("${CXX:-c++}" -fsyntax-only -x c++ - <<<'#include <string>' 2>&1) ||
    fail "the C++ compiler does not work (${said##*$'\n'}); on $SYSTEM: $(packages_command)"
}

# --- What has to be fetched ----------------------------------------------------------------

# uv keeps packages and Pythons at home; where nothing can be written there, here.
choose_folders() {
  local cache=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/uv}
  if ! { mkdir -p "$cache" && [ -w "$cache" ]; } 2>>"$LOG"; then
    say "$cache cannot be written: packages are kept in $OWN_CACHE"
    export UV_CACHE_DIR=$PWD/$OWN_CACHE UV_PYTHON_INSTALL_DIR=$PWD/$OWN_PYTHONS
    export PIP_NO_CACHE_DIR=1
  fi
}

uv_runs() { # sets UV to the given one if it is new enough
  local version
  version=$("$1" --version 2>>"$LOG") || return 1
  version=${version#uv } version=${version%% *}
  at_least "$version" $UV_OLDEST || return 1
  UV=$1
}

get_uv() { # sets UV: the user's, or one from the package index
  local python
  uv_runs "$(type -P uv)" && return 0
  uv_runs $OWN_UV/bin/uv && return 0
  for python in "$PYTHON" "$(type -P python3)"; do
    [ -n "$python" ] || continue
    logged "$python" -c 'import ensurepip, venv' || continue
    rm -rf $OWN_UV
    logged "$python" -m venv $OWN_UV || fail "'$python -m venv $OWN_UV' failed: $(reason)"
    logged $OWN_UV/bin/python -m pip install --retries 1 uv==$UV_VERSION ||
      fail "uv cannot be had from the package index: $(reason) (all of it: $LOG)"
    uv_runs $OWN_UV/bin/uv || fail "$OWN_UV/bin/uv does not run: $(reason)"
    return 0
  done
  fail "no uv, and no Python with venv to fetch it; on $SYSTEM: $(packages_command)"
}

download_python() { # X.Y: sets PYTHON
  get_uv
  say "no Python $1 here; uv looks for one to download"
  : >"$LOG"
  if logged "$UV" venv --python-preference only-managed --python "$1" $VENV; then
    PYTHON=$(readlink -f $VENV/bin/python)
    return 0
  fi
  NOTES+=("uv cannot download $1: $(reason)")
  return 1
}

# --- The environment -----------------------------------------------------------------------

stamp() { # what an environment was made from; where scripts lie is written in them
  echo "$1 $2 $({ echo "$PWD" && cat "$(lock_of "$1" "$2")" pyproject.toml setup.py; } | cksum)"
}

is_current() { # [STACK]: whether .venv is complete, as asked for, and of today's files
  local stack version rest
  [ -x $VENV/bin/python ] && [ -s $VENV/.complete ] || return 1
  read -r stack version rest <$VENV/.complete
  [ -z "$1" ] || [ "$1" = "$stack" ] || return 1
  [ "$stack $version $rest" = "$(stamp "$stack" "$version")" ]
}

choose() { # STACK...: sets STACK, VERSION and PYTHON
  local pythons names=()
  for STACK in "$@"; do
    pythons=${PYTHONS[$STACK]}
    names+=("${NAME[$STACK]} needs Python ${pythons// / or }")
    for VERSION in $pythons; do find_python "$VERSION" && return 0; done
    VERSION=${pythons%% *}
    download_python "$VERSION" && return 0
  done
  local IFS=';'
  fail "no suitable Python:${names[*]/#/ };${NOTES[*]/#/ }; on $SYSTEM: $(
    unset IFS
    # shellcheck disable=SC2046 # versions are words
    python_command $(for stack in "$@"; do echo "${PYTHONS[$stack]}"; done)
  )"
}

make_environment() { # STACK or nothing
  local wanted=$1 kept='' stacks='' stack lock
  [ "$(uname -sm)" = 'Linux x86_64' ] ||
    fail "TFX has wheels for Linux on x86_64 only; this is $(uname -sm)"
  for stack in ${wanted:-$STACKS}; do
    [ -n "$GLIBC" ] && at_least "$GLIBC" "${LIBC[$stack]}" && stacks+=" $stack"
  done
  stack=${wanted:-${STACKS##* }}
  [ -n "$stacks" ] ||
    fail "${NAME[$stack]} needs glibc ${LIBC[$stack]} or newer, $SYSTEM has ${GLIBC:-none}"
  check_compiler
  # shellcheck disable=SC2086 # stacks are words
  choose $stacks
  get_uv
  lock=$(lock_of "$STACK" "$VERSION")
  say "${NAME[$STACK]} on Python $VERSION, from $lock (once; about two minutes)"
  [ -f $VENV/.complete ] && read -r kept <$VENV/.complete
  case "$kept" in "$STACK $VERSION "*) rm -f $VENV/.complete ;; *) kept='' ;; esac
  if [ -z "$kept" ] || [ ! -x $VENV/bin/python ]; then
    rm -rf $VENV || fail "the unfinished $VENV cannot be removed"
    logged "$UV" venv --python "$PYTHON" $VENV || fail "no $VENV from $PYTHON: $(reason)"
  fi
  : >"$LOG"
  logged "$UV" pip sync --compile-bytecode --python $VENV/bin/python --require-hashes "$lock" ||
    fail "$lock cannot be installed: $(reason) (all of it: $LOG)"
  logged "$UV" pip install --python $VENV/bin/python --no-deps --no-build-isolation --editable . ||
    fail "the project cannot be installed: $(reason) (all of it: $LOG)"
  stamp "$STACK" "$VERSION" >$VENV/.complete || fail "$VENV/.complete cannot be written"
  rm -f "$LOG"
}

main() {
  local wanted=${1:-}
  case " $STACKS --uv  " in *" $wanted "*) ;; *) fail "unknown STACK '$wanted'; known: ${STACKS// /, }" ;; esac
  is_current "$wanted" && return 0
  read_system
  [ -w . ] || fail "$PWD cannot be written"
  # `make run` and `make test` in two terminals: one sets up, the other waits.
  exec 9<requirements
  if ! flock --nonblock 9; then
    say 'another setup of this folder is under way; waiting for it'
    flock 9
    is_current "$wanted" && return 0
  fi
  : >"$LOG"
  choose_folders
  if [ "$wanted" = --uv ]; then
    get_uv
    echo "$UV"
    return 0
  fi
  # Without a STACK the one that was asked for before stays.
  if [ -z "$wanted" ] && [ -f $VENV/.complete ]; then read -r wanted _ <$VENV/.complete; fi
  make_environment "$wanted"
}

# Read whole before it is run: a pull may change this file meanwhile.
{ main "$@"; exit; }
