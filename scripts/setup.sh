# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: installs what is missing (Debian or Ubuntu packages; as root, or with sudo).
# Nothing is installed where everything is there already, so that the scripts also run where they may not install.

# install_missing PACKAGE...: apt-get install those that are not installed.
install_missing() {
  local missing=() package
  for package in "$@"; do
    dpkg-query --show --showformat='${Status}\n' "$package" 2>/dev/null | grep -q "install ok installed" || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "installing: ${missing[*]}"
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  if ! command -v apt-get >/dev/null || { [ ${#as_root[@]} -gt 0 ] && ! command -v sudo >/dev/null; }; then
    echo "they cannot be installed from here: that takes Debian or Ubuntu, and root or sudo" >&2
    exit 1
  fi
  # By env, since sudo does not pass the caller's variables on.
  if ! "${as_root[@]}" apt-get update -qq ||
    ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "apt-get could not install ${missing[*]}: is there a network? With these packages installed nothing is fetched" >&2
    exit 1
  fi
}

# sanitizer_runtime: the package of clang's sanitizer runtimes, where it is one of its own (Debian 12 and later).
sanitizer_runtime() {
  local version
  version=$(clang++ -dumpversion | cut -d. -f1)
  if apt-cache show "libclang-rt-$version-dev" >/dev/null 2>&1; then
    echo "libclang-rt-$version-dev"
  fi
}

# What examples need, and what tests need beyond that. Build tools count by command, so that others than Debian's will do.
examples_packages=(libeigen3-dev nlohmann-json3-dev libpcre2-dev)
tests_packages=(doctest-dev libbenchmark-dev)
command -v g++ >/dev/null || examples_packages+=(g++)
command -v cmake >/dev/null || examples_packages+=(cmake)
command -v ninja >/dev/null || examples_packages+=(ninja-build)
command -v clang++ >/dev/null || tests_packages+=(clang)
command -v clang-format >/dev/null || tests_packages+=(clang-format)
command -v python3 >/dev/null || tests_packages+=(python3)
python3 -c "import ensurepip" 2>/dev/null || tests_packages+=(python3-venv)
command -v clang-tidy >/dev/null || tests_packages+=(clang-tidy)
