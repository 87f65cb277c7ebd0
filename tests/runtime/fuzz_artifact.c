/* Mutants of an artifact through the whole reader, mapped as a file is, for a build with sanitizers.
 *
 *     fuzz ARTIFACT SEED CASES      prints how many mutants of each kind were still accepted
 *
 * Most mutants have everything around the change set right again (lengths, offsets, checksums, hashes), so that what lies behind those
 * checks is reached. A sanitizer ends the process at the first fault, an alarm at the first hang, abort() at a mutant that is accepted
 * where it must not be, refused without a readable line, or accepted with parts that don't lie within it.
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The reader builds every header that should be there; the same functions write ours. */
#define zip_parse zip_parse_of_fuzz
#include "zip.c"
#undef zip_parse

enum { MAX_FILE = 1 << 20, MAX_PARTS = 24, SECONDS_A_CASE = 10, DIGEST_TEXT = 64 };

typedef struct {
  uint8_t* data;
  size_t size;
} bytes;

typedef struct {
  char name[MAX_NAME_BYTES + 1];
  bytes data;
} part;

typedef struct {
  part parts[MAX_PARTS];
  int count;
} parts;

static uint64_t seed;

static uint64_t random_below(uint64_t limit) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return limit ? seed % limit : 0;
}

static bytes allocated(size_t size) { return (bytes){malloc(size ? size : 1), size}; }

static bytes copy_of(bytes source) {
  bytes copy = allocated(source.size);
  memcpy(copy.data, source.data, source.size);
  return copy;
}

/* text[at, at + removed) becomes `with`. */
static void splice(bytes* text, size_t at, size_t removed, const void* with, size_t added) {
  bytes out = allocated(text->size - removed + added);
  memcpy(out.data, text->data, at);
  memcpy(out.data + at, with, added);
  memcpy(out.data + at + added, text->data + at + removed, text->size - at - removed);
  free(text->data);
  *text = out;
}

/* ---- Mutations of bytes ---- */

static const uint64_t LIMITS[] = {0,          1,          2,          63,         64,           65,          0x7F,      0x80,
                                  0xFF,       0xFFFF,     0x10000,    0x7FFFFFFF, 0x80000000,   0xFFFFFFFF,  1ull << 32, 1ull << 47,
                                  1ull << 62, 1ull << 63, UINT64_MAX, UINT64_MAX - 63, UINT64_MAX - 7, INT64_MAX, 1u << 20, (1u << 20) + 1};
enum { NUM_LIMITS = sizeof LIMITS / sizeof *LIMITS };

static void mutate_once(bytes* out) {
  static const uint8_t interesting[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '}', '[', ']', ',', ':', '\\', '-', '9', 'e', '*', '('};
  size_t at = random_below(out->size), to = random_below(out->size), length = random_below(out->size - (at > to ? at : to));
  uint64_t number = LIMITS[random_below(NUM_LIMITS)] + random_below(3) - 1;
  size_t width = (size_t)1 << random_below(4);
  if (!out->size) return;
  switch (random_below(7)) {
    case 0: out->data[at] ^= (uint8_t)(1u << random_below(8)); break;
    case 1: out->data[at] = interesting[random_below(sizeof interesting)]; break;
    case 2: memmove(out->data + to, out->data + at, length < 40 ? length : length % 40); break;
    case 3: memset(out->data + at, interesting[random_below(5)], length < 8 ? length : 8); break;
    case 4: memcpy(out->data + at, &number, width < out->size - at ? width : out->size - at); break;
    case 5: splice(out, at, 0, out->data + to, length % 300); break;
    default: out->size = random_below(8) ? out->size : at; break;
  }
}

static void mutate(bytes* out) {
  for (uint64_t edits = 1 + random_below(4); edits; --edits) mutate_once(out);
  bytes exact = copy_of(*out); /* so that the byte behind the last is out of bounds */
  free(out->data);
  *out = exact;
}

/* ---- Mutations of the manifest's text, by token ---- */

static const char* const REPLACEMENTS[] = {
    "0", "1", "-1", "-0", "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "18446744073709551615", "1e3", "1.5", "1e999", "null", "true", "[]", "{}", "\"\"", "\"batch\"", "\"2*batch + 1\"",
    "\"((((((((batch\"", "\"batch*batch*batch*batch*batch*batch*batch*batch\"", "\"9223372036854775807*2\"", "\"../../x\"", "\"manifest.json\"",
    "\"signature\"", "\"weights.safetensors\"", "\"\\u0000\"", "\"\\ud800\"", "\"\\n\"", "\"%s%n\"", "[[[[[[[[]]]]]]]]", "64", "128", "1048577"};
enum { NUM_REPLACEMENTS = sizeof REPLACEMENTS / sizeof *REPLACEMENTS };

static bool is_end(uint8_t c) { return c == ',' || c == ':' || c == '{' || c == '}' || c == '[' || c == ']'; }

/* A string, number or word of the text, from a random place on. */
static bool find_token(bytes text, size_t* at, size_t* length) {
  size_t start = random_below(text.size), end;
  while (start < text.size && (is_end(text.data[start]) || text.data[start] == ' ')) ++start;
  while (start > 0 && !is_end(text.data[start - 1])) --start;
  for (end = start; end < text.size && !is_end(text.data[end]);) ++end;
  *at = start, *length = end - start;
  return end > start;
}

/* A value with all it holds, by its brackets. */
static bool find_group(bytes text, size_t* at, size_t* length) {
  size_t start = random_below(text.size), end;
  int depth = 0;
  while (start > 0 && text.data[start] != '{' && text.data[start] != '[') --start;
  for (end = start; end < text.size; ++end) {
    depth += text.data[end] == '{' || text.data[end] == '[';
    depth -= text.data[end] == '}' || text.data[end] == ']';
    if (!depth) break;
  }
  *at = start, *length = end + 1 - start;
  return end < text.size && end > start;
}

static void mutate_manifest(bytes* text) {
  size_t at, length, other, other_length;
  const char* with = REPLACEMENTS[random_below(NUM_REPLACEMENTS)];
  for (uint64_t edits = 1 + random_below(2); edits && text->size; --edits) {
    bool token = random_below(3), found = token ? find_token(*text, &at, &length) : find_group(*text, &at, &length);
    if (!found) continue;
    switch (random_below(5)) {
      case 0: /* another of the text's own */
        if (!(token ? find_token(*text, &other, &other_length) : find_group(*text, &other, &other_length))) break;
        bytes own = allocated(other_length);
        memcpy(own.data, text->data + other, other_length);
        splice(text, at, length, own.data, other_length);
        free(own.data);
        break;
      case 1: { /* twice */
        bytes twice = allocated(length + 1);
        memcpy(twice.data + 1, text->data + at, length);
        twice.data[0] = ',';
        splice(text, at + length, 0, twice.data, twice.size);
        free(twice.data);
        break;
      }
      case 2: splice(text, at, length, "", 0); break;
      default: splice(text, at, length, with, strlen(with)); break;
    }
  }
}

/* ---- Files of parts ---- */

static bytes packed(const parts* all) {
  bytes out = allocated(MAX_FILE * 4);
  size_t at = 0;
  uint64_t offsets[MAX_PARTS];
  llmos_zip_member members[MAX_PARTS];
  for (int i = 0; i < all->count; ++i) {
    bytes data = all->parts[i].data;
    members[i] = (llmos_zip_member){all->parts[i].name, data.data, data.size, crc32_of(data.data, data.size)};
    offsets[i] = at;
    llmos_zip_header local = local_header(members + i, at);
    memcpy(out.data + at, local.bytes, local.size);
    memcpy(out.data + at + local.size, data.data, data.size);
    at += local.size + data.size;
  }
  uint64_t directory = at;
  for (int i = 0; i < all->count; ++i) {
    llmos_zip_header central = central_header(members + i, offsets[i]);
    memcpy(out.data + at, central.bytes, central.size);
    at += central.size;
  }
  llmos_zip_header ends = end_records((uint64_t)all->count, directory, at - directory);
  memcpy(out.data + at, ends.bytes, ends.size);
  out.size = at + ends.size;
  return out;
}

static void free_parts(parts* all) {
  for (int i = 0; i < all->count; ++i) free(all->parts[i].data.data);
}

static parts copy_parts(const parts* all) {
  parts copy = *all;
  for (int i = 0; i < copy.count; ++i) copy.parts[i].data = copy_of(all->parts[i].data);
  return copy;
}

static parts read_parts(const llmos_artifact* artifact) {
  parts all = {.count = artifact->num_members};
  if (all.count > MAX_PARTS) abort();
  for (int i = 0; i < all.count; ++i) {
    const llmos_zip_member* member = artifact->members + i;
    strcpy(all.parts[i].name, member->name);
    all.parts[i].data = copy_of((bytes){(uint8_t*)member->data, member->num_bytes});
  }
  return all;
}

static void replace_text(bytes* text, const char* old, const char* with, size_t after) {
  const uint8_t* found = text->size > after ? memmem(text->data + after, text->size - after, old, strlen(old)) : NULL;
  if (found) splice(text, (size_t)(found - text->data), strlen(old), with, strlen(with));
}

static const char* hex_of(bytes data, char text[DIGEST_TEXT + 1]) {
  uint8_t digest[1][32];
  sha256((const uint8_t*[]){data.data}, data.size, 1, digest);
  for (int i = 0; i < 32; ++i) snprintf(text + 2 * i, 3, "%02x", digest[0][i]);
  return text;
}

/* A member is another one, and the manifest (the first part) says so: its hash and, where it lists the member, its size. */
static void set_data(parts* all, int index, bytes data) {
  char old[DIGEST_TEXT + 1], now[DIGEST_TEXT + 1], before[64], after[64];
  bytes* manifest = &all->parts[0].data;
  const uint8_t* members = memmem(manifest->data, manifest->size, "\"members\":", 10);
  const uint8_t* hash = memmem(manifest->data, manifest->size, hex_of(all->parts[index].data, old), DIGEST_TEXT);
  snprintf(before, sizeof before, "\"num_bytes\":%zu,\"sha256\":[\"%.8s", all->parts[index].data.size, old);
  snprintf(after, sizeof after, "\"num_bytes\":%zu,\"sha256\":[\"%.8s", data.size, hex_of(data, now));
  if (members && hash) {
    replace_text(manifest, before, after, (size_t)(members - manifest->data));
    char tail[DIGEST_TEXT + 1];
    snprintf(tail, sizeof tail, "%.8s%s", now, old + 8);
    replace_text(manifest, tail, now, 0);
  }
  free(all->parts[index].data.data);
  all->parts[index].data = data;
}

static void mutate_parts(parts* all) {
  int a = (int)random_below((uint64_t)all->count), b = (int)random_below((uint64_t)all->count);
  part kept = all->parts[a];
  bytes data;
  switch (random_below(8)) {
    case 0: /* a member twice */
      if (all->count == MAX_PARTS) break;
      all->parts[all->count] = kept;
      all->parts[all->count++].data = copy_of(kept.data);
      break;
    case 1: /* one is missing */
      free(kept.data.data);
      memmove(all->parts + a, all->parts + a + 1, (size_t)(--all->count - a) * sizeof(part));
      break;
    case 2: all->parts[a] = all->parts[b], all->parts[b] = kept; break;
    case 3: memmove(all->parts[a].name, all->parts[b].name, sizeof kept.name); break;
    case 4: memset(all->parts[a].name, "x/.\xFF"[random_below(4)], random_below(MAX_NAME_BYTES) + 1); break;
    default: /* other data, with a hash that is right */
      data = copy_of(kept.data);
      if (random_below(3)) mutate(&data);
      else data.size = random_below(data.size + 1);
      if (!a) free(kept.data.data), all->parts[0].data = data;
      else set_data(all, a, data);
  }
}

/* ---- What an accepted file must hold to ---- */

static volatile uint64_t sink;

static void touch(const uint8_t* data, size_t size, const llmos_artifact* artifact) {
  if (size && (data < artifact->file || size > artifact->file_bytes || (size_t)(data - artifact->file) > artifact->file_bytes - size)) abort();
  if (size) sink += data[0] + data[size - 1];
}

static void use(const llmos_artifact* artifact) {
  size_t size;
  const llmos_manifest* manifest = &artifact->manifest;
  for (int32_t i = 0; i < artifact->num_members; ++i) touch(artifact->members[i].data, artifact->members[i].num_bytes, artifact);
  for (int32_t i = 0; i < manifest->num_weights; ++i) {
    const uint8_t* data = llmos_artifact_weight(artifact, i, &size);
    if ((uintptr_t)data % ALIGNMENT) abort();
    touch(data, size, artifact);
  }
  for (int32_t i = 0; i < manifest->num_code; ++i) {
    if (!artifact_listed(artifact, manifest->code[i].member)) abort();
  }
  for (int32_t i = 0; i < manifest->num_symbols; ++i) {
    if (manifest->symbols[i].min < 0 || manifest->symbols[i].max < manifest->symbols[i].min) abort();
  }
  sink += (uint64_t)llmos_artifact_choose(artifact);
}

static bool opens(bytes file) {
  char path[64];
  int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  llmos_artifact* artifact = NULL;
  alarm(SECONDS_A_CASE);
  bool ok = write(descriptor, file.data, file.size) == (ssize_t)file.size && llmos_artifact_open(path, &artifact) == 0;
  if (ok) use(artifact);
  llmos_artifact_close(artifact);
  close(descriptor);
  if (!ok && (!*llmos_last_error() || strchr(llmos_last_error(), '\n'))) abort();
  return ok;
}

/* In a buffer of its exact size, where one byte too far is seen. */
static bool zip_accepts(bytes file) {
  llmos_zone zone = {0};
  llmos_zip_member* members;
  int32_t count;
  bool ok = zip_parse(file.data, file.size, &zone, &members, &count) == 0;
  zone_free(&zone);
  return ok;
}

static bool manifest_accepts(bytes text) {
  llmos_zone zone = {0};
  llmos_manifest manifest = {0};
  bool ok = manifest_parse((const char*)text.data, text.size, &zone, &manifest) == 0;
  zone_free(&zone);
  return ok;
}

/* ---- One case of each kind ---- */

static bool same(bytes a, bytes b) { return a.size == b.size && memcmp(a.data, b.data, a.size) == 0; }

/* Any change of the bytes alone: no checksum fits it, so it is refused. */
static long raw_case(bytes file) {
  bytes mutant = copy_of(file);
  mutate(&mutant);
  bool zip = zip_accepts(mutant), accepted = opens(mutant);
  if (accepted && !same(mutant, file)) abort();
  free(mutant.data);
  return zip;
}

static long manifest_case(const parts* all) {
  parts mutant = copy_parts(all);
  bytes* text = &mutant.parts[0].data;
  if (random_below(4)) mutate_manifest(text);
  else mutate(text);
  bytes exact = copy_of(*text);
  bool parsed = manifest_accepts(exact);
  bytes file = packed(&mutant);
  if (opens(file) && !parsed) abort();
  free(file.data);
  free(exact.data);
  free_parts(&mutant);
  return parsed;
}

static long parts_case(const parts* all) {
  parts mutant = copy_parts(all);
  for (uint64_t edits = 1 + random_below(2); edits && mutant.count > 1; --edits) mutate_parts(&mutant);
  bytes file = packed(&mutant);
  bool accepted = opens(file);
  free(file.data);
  free_parts(&mutant);
  return accepted;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  FILE* stream = fopen(argv[1], "rb");
  if (!stream) return 2;
  bytes file = allocated(MAX_FILE);
  file.size = fread(file.data, 1, MAX_FILE, stream);
  fclose(stream);
  seed = strtoull(argv[2], NULL, 10) * 2654435761u + 1;
  long cases = strtol(argv[3], NULL, 10), zips = 0, manifests = 0, changed = 0;
  llmos_artifact* artifact;
  if (llmos_artifact_open(argv[1], &artifact)) return fprintf(stderr, "the artifact itself: %s\n", llmos_last_error()), 1;
  parts all = read_parts(artifact);
  llmos_artifact_close(artifact);
  bytes again = packed(&all);
  if (!same(again, file)) return fprintf(stderr, "packing the parts again gives another file\n"), 1;
  for (long i = 0; i < cases; ++i) {
    switch (i % 4) {
      case 0: zips += raw_case(file); break;
      case 1: changed += parts_case(&all); break;
      default: manifests += manifest_case(&all); break;
    }
  }
  free(again.data);
  free(file.data);
  free_parts(&all);
  printf("accepted: zips %ld, parts %ld, manifests %ld\n", zips, changed, manifests);
  return 0;
}
