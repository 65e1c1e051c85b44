#!/usr/bin/env bash
# Adds this machine's C compiler to an image that has none, so that the Dockerfile's build compiles the module for
# Envoy: add-compiler.sh IMAGE
# Needs: docker with an engine, and gcc. IMAGE is replaced by one with the same name.
set -euo pipefail
image=${1:?which image}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
programs=("$(command -v gcc)" "$(command -v as)" "$(command -v ld)" "$(gcc -print-prog-name=cc1)" "$(gcc -print-prog-name=collect2)")
for name in sha256sum cut mv rm cat; do programs+=("$(command -v "$name")"); done # what tools/module calls
{
  printf '%s\n' "${programs[@]}"
  ldd "${programs[@]}" | awk '/=> \//{print $3}'
  dirname "$(gcc -print-libgcc-file-name)" # with the headers of the compiler, and what each library starts and ends with
  for name in crti.o crtn.o libgcc_s.so.1 libc.so libc.so.6 libc_nonshared.a ld-linux-x86-64.so.2; do gcc -print-file-name="$name"; done
  gcc -E -Wp,-v -x c /dev/null 2>&1 >/dev/null | sed -n 's/^ //p'
} | xargs realpath -s | sort -u >"$dir/files"
# The folders of a merged /usr are links in the image. Only C is needed there.
sed 's#^/##' "$dir/files" | tar -C / --dereference --hard-dereference --transform 's#^\(lib\|lib64\|bin\)/#usr/\1/#' \
  --exclude='*c++*' --exclude=cc1plus --exclude='lto*' --exclude='lib?san.*' -cf "$dir/compiler.tar" -T -
rm "$dir/files"
printf 'FROM %s\nADD compiler.tar /\n' "$image" >"$dir/Dockerfile"
docker build -q -t "$image" "$dir"
