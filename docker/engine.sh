# What the scripts of this folder share; sourced by them and by ./dev. Needs `die`.

# engine_works NAME: whether docker, podman or buildah is here and can work; a docker client without its
# daemon cannot.
engine_works() { command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1; }

# Prints the limits that containers get, one word a line: by default engines raise them beyond what some
# machines let even root raise them to.
engine_limits() {
  local files=16384
  if [ "$(ulimit -Hn)" != unlimited ] && (($(ulimit -Hn) < files)); then files=$(ulimit -Hn); fi
  printf -- '--ulimit\n%s\n' "nofile=$files:$files" nproc=4096:4096
}
