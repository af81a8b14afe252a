#!/bin/sh
# Installs packages of Debian or Ubuntu:  scripts/system_packages.sh WHY PACKAGE...
#
# It first prints which packages, why, and the command. As root it then runs the command. Otherwise it asks before it
# uses sudo, and where there is no terminal to ask on, it only prints. Exit status 1: nothing was installed.
set -u
why=$1
shift
as_root=
[ "$(id -u)" = 0 ] || as_root="sudo "
install="${as_root}apt-get install -y --no-install-recommends $*"

echo "missing: $*"
echo "  $why"
if ! command -v apt-get >/dev/null; then
  echo "  install it with this system's package manager (there is no apt-get)"
  exit 1
fi
if [ -n "$as_root" ]; then
  if ! command -v sudo >/dev/null; then
    echo "  install it as root: apt-get install $*"
    exit 1
  fi
  if ! [ -t 0 ]; then
    echo "  install it with: sudo apt-get install $*"
    exit 1
  fi
  echo "  command: $install"
  printf '  run this now? [y/N] '
  read -r answer
  case $answer in
    [yY] | [yY][eE][sS]) ;;
    *) exit 1 ;;
  esac
else
  echo "  command: $install"
fi
if ! { ${as_root}apt-get update -qq && $install -qq >/dev/null; }; then
  echo "  that failed; the messages above are apt-get's"
  exit 1
fi
