#!/usr/bin/env bash
# Make sure that there is a Chromium for the browser tests: `tools/setup_browser.sh`. Installs Debian's or Ubuntu's package
# where it is missing; where that cannot be done it says so and fails.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/s/^# //p' "$0"
    exit
elif (($#)); then
    printf 'browser: expected no argument, but got %s\n' "$1" >&2
    exit 1
fi

for browser in chromium chromium-browser google-chrome; do
    if command -v "$browser" >/dev/null; then exit 0; fi
done

stop() {
    printf 'browser: %s\n' "$*" >&2
    exit 1
}

command -v apt-get >/dev/null || stop "needs chromium on the PATH, and there is no apt-get to install it with. Install Chromium, then try again"
if [[ $(id -u) -eq 0 ]]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    stop "needs chromium on the PATH. Installing it takes root: sudo apt-get install chromium"
fi
echo "browser: installing chromium"
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
    cat "$log" >&2
    stop "apt-get could not install chromium (see above)"
fi
command -v chromium >/dev/null || stop "the package chromium is installed, but there is no chromium on the PATH"
