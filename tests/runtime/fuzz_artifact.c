/* Mutations of an artifact through every reader of the core, in buffers of their exact size, for a build with sanitizers.
 *
 *     fuzz ARTIFACT SEED CASES      prints how many mutants were still accepted; a sanitizer ends the process at the first fault
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t seed;

static uint64_t random_below(uint64_t limit) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return limit ? seed % limit : 0;
}

typedef struct {
  uint8_t* data;
  size_t size;
} bytes;

/* A few random edits: bits, bytes of interest, copied ranges, cut ends. */
static bytes mutate(const uint8_t* data, size_t size) {
  static const uint8_t interesting[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '}', '[', ']', ',', ':', '\\', '-', '9', 'e', '*', '('};
  bytes out = {malloc(size ? size : 1), size};
  memcpy(out.data, data, size);
  for (uint64_t edits = 1 + random_below(4); edits; --edits) {
    size_t at = random_below(size), to = random_below(size), length = random_below(size - (at > to ? at : to));
    switch (random_below(5)) {
      case 0: out.data[at] ^= (uint8_t)(1u << random_below(8)); break;
      case 1: out.data[at] = interesting[random_below(sizeof interesting)]; break;
      case 2: memmove(out.data + to, out.data + at, length < 40 ? length : length % 40); break;
      case 3: memset(out.data + at, interesting[random_below(5)], length < 8 ? length : 8); break;
      default: out.size = random_below(8) ? out.size : at; break;
    }
  }
  uint8_t* exact = malloc(out.size ? out.size : 1);
  memcpy(exact, out.data, out.size);
  free(out.data);
  out.data = exact;
  return out;
}

static bool opens(bytes file) {
  char path[64];
  int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  llmos_artifact* artifact = NULL;
  bool ok = write(descriptor, file.data, file.size) == (ssize_t)file.size && llmos_artifact_open(path, &artifact) == 0;
  llmos_artifact_close(artifact);
  close(descriptor);
  if (!ok && (!*llmos_last_error() || strchr(llmos_last_error(), '\n'))) abort();
  return ok;
}

static bool zip_accepts(bytes file) {
  zone zone = {0};
  zip_member* members;
  int32_t count;
  bool ok = zip_parse(file.data, file.size, &zone, &members, &count) == 0;
  zone_free(&zone);
  return ok;
}

static bool manifest_accepts(bytes text) {
  zone zone = {0};
  manifest manifest = {0};
  bool ok = manifest_parse((const char*)text.data, text.size, &zone, &manifest) == 0;
  zone_free(&zone);
  return ok;
}

/* The whole reader on a changed manifest whose checksums are right, so that what comes after the checksum is reached. */
static bool opens_with_manifest(bytes file, size_t at, size_t size) {
  bytes text = mutate(file.data + at, size), copy = {malloc(file.size), file.size};
  memcpy(copy.data, file.data, file.size);
  memcpy(copy.data + at, text.data, text.size);
  uint32_t crc = crc32_of(copy.data + at, size);
  uint64_t directory;
  memcpy(&directory, file.data + file.size - 98 + 48, 8);
  memcpy(copy.data + 14, &crc, 4);
  memcpy(copy.data + directory + 16, &crc, 4);
  bool ok = opens(copy);
  free(text.data);
  free(copy.data);
  return ok;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  FILE* stream = fopen(argv[1], "rb");
  bytes file = {malloc(1 << 20), 0};
  file.size = fread(file.data, 1, 1 << 20, stream);
  fclose(stream);
  seed = strtoull(argv[2], NULL, 10) * 2654435761u + 1;
  long cases = strtol(argv[3], NULL, 10), opened = 0, zips = 0, manifests = 0, changed = 0;
  uint16_t name_bytes, extra_bytes;
  uint64_t manifest_bytes;
  memcpy(&name_bytes, file.data + 26, 2), memcpy(&extra_bytes, file.data + 28, 2);
  memcpy(&manifest_bytes, file.data + 30 + name_bytes + 4, 8);
  size_t at = 30u + name_bytes + extra_bytes;
  if (!opens(file)) return fprintf(stderr, "the artifact itself: %s\n", llmos_last_error()), 1;
  for (long i = 0; i < cases; ++i) {
    bytes mutant = mutate(file.data, file.size), text = mutate(file.data + at, manifest_bytes);
    zips += zip_accepts(mutant);
    opened += opens(mutant) && (mutant.size != file.size || memcmp(mutant.data, file.data, file.size) != 0);
    manifests += manifest_accepts(text);
    changed += opens_with_manifest(file, at, manifest_bytes);
    free(mutant.data);
    free(text.data);
  }
  free(file.data);
  printf("opened %ld, zips %ld, manifests %ld, with changed manifests %ld\n", opened, zips, manifests, changed);
  return 0;
}
