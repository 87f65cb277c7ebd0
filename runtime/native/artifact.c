/* Opening an artifact: map, check every byte, give out members. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 1 << 26 };

/* ---- Hashes, on the pool: a tile is a chunk of 1 MiB ---- */

/* How many of a member's chunks [begin, end) have their hash, up to the first that does not. Whole chunks are hashed two at a time. */
int64_t matching_chunks(const llmos_listed_member* member, const uint8_t* data, int64_t begin, int64_t end) {
  uint8_t digests[2][32];
  for (int64_t chunk = begin; chunk < end;) {
    uint64_t offset = (uint64_t)chunk * CHUNK_BYTES, rest = member->num_bytes - offset;
    int lanes = end - chunk >= 2 && rest >= 2 * CHUNK_BYTES ? 2 : 1;
    sha256((const uint8_t*[]){data + offset, data + offset + CHUNK_BYTES}, rest < CHUNK_BYTES ? rest : CHUNK_BYTES, lanes, digests);
    for (int l = 0; l < lanes; ++l, ++chunk) {
      if (memcmp(digests[l], member->sha256[chunk], 32) != 0) return chunk - begin;
    }
  }
  return end - begin;
}

/* The last member that begins at this chunk or before it. */
static const llmos_listed_member* member_of_chunk(const llmos_manifest* manifest, int64_t chunk) {
  int32_t low = 0, high = manifest->num_members;
  while (high - low > 1) {
    int32_t middle = low + (high - low) / 2;
    *(manifest->members[middle].first_chunk <= chunk ? &low : &high) = middle;
  }
  return manifest->members + low;
}

static int32_t hash_chunks(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  const llmos_manifest* manifest = buffers[0];
  _Atomic(const char*)* wrong = buffers[1];
  (void)dims, (void)scratch;
  while (begin < end) {
    const llmos_listed_member* member = member_of_chunk(manifest, begin);
    int64_t first = begin - member->first_chunk, last = end - member->first_chunk;
    if (last > member->num_chunks) last = member->num_chunks;
    if (matching_chunks(member, member->data, first, last) < last - first) {
      atomic_store(wrong, member->name);
      return LLMOS_INTERNAL;
    }
    begin += last - first;
  }
  return LLMOS_OK;
}

int32_t llmos_artifact_verify(const llmos_artifact* artifact) {
  const llmos_manifest* manifest = &artifact->manifest;
  const llmos_listed_member* last = manifest->members + manifest->num_members - 1;
  _Atomic(const char*) wrong = "?";
  void* buffers[] = {(void*)manifest, &wrong};
  int32_t code = manifest->num_members ? pool_launch(hash_chunks, buffers, NULL, last->first_chunk + last->num_chunks, 0) : LLMOS_OK;
  if (!code) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "changed: member \"%s\" does not have the hash that the manifest gives", atomic_load(&wrong));
}

/* ---- Members ---- */

const llmos_listed_member* artifact_listed(const llmos_artifact* artifact, const char* name) {
  for (int32_t i = 0; i < artifact->manifest.num_members; ++i) {
    if (strcmp(artifact->manifest.members[i].name, name) == 0) return artifact->manifest.members + i;
  }
  return NULL;
}

static const llmos_zip_member* signature_of(const llmos_artifact* artifact) {
  const llmos_zip_member* last = artifact->members + artifact->num_members - 1;
  return strcmp(last->name, "signature") == 0 ? last : NULL;
}

/* The manifest comes first, then what it lists, in its order, then the signature, if any. */
static int32_t find_members(llmos_artifact* artifact) {
  llmos_manifest* manifest = &artifact->manifest;
  int32_t end = artifact->num_members - (signature_of(artifact) ? 1 : 0);
  for (int32_t i = 0; i < manifest->num_members; ++i) {
    llmos_listed_member* listed = manifest->members + i;
    if (i + 1 >= end) return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" is missing", listed->name);
    const llmos_zip_member* member = artifact->members + i + 1;
    if (strcmp(listed->name, member->name) != 0 || listed->num_bytes != member->num_bytes) {
      return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" is not what the manifest lists in its place: \"%s\" of %llu bytes", member->name,
                  listed->name, (unsigned long long)listed->num_bytes);
    }
    listed->data = member->data;
  }
  if (manifest->num_members + 1 == end) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" is not listed in the manifest", artifact->members[manifest->num_members + 1].name);
}

static int32_t check_code(const llmos_artifact* artifact) {
  for (int32_t i = 0; i < artifact->manifest.num_code; ++i) {
    const llmos_code* code = artifact->manifest.code + i;
    const char* names[] = {code->member, code->ptx, code->cubin};
    for (int n = 0; n < 3; ++n) {
      if (names[n] && !artifact_listed(artifact, names[n])) return fail(LLMOS_ERROR_ARTIFACT, "manifest: code member \"%s\" is missing", names[n]);
    }
  }
  return LLMOS_OK;
}

/* Finds the data of weights.safetensors (behind an 8-byte length and a header) and that every weight lies in it. */
static int32_t find_weights(llmos_artifact* artifact) {
  const llmos_manifest* manifest = &artifact->manifest;
  const llmos_listed_member* member = artifact_listed(artifact, "weights.safetensors");
  if (!manifest->num_weights) return LLMOS_OK;
  if (!member) return fail(LLMOS_ERROR_ARTIFACT, "member \"weights.safetensors\" is missing");
  uint64_t header = 0;
  for (int i = 7; i >= 0 && member->num_bytes >= 8; --i) header = header << 8 | member->data[i];
  if (member->num_bytes < 8 || header > member->num_bytes - 8 || (header + 8) % ALIGNMENT) {
    return fail(LLMOS_ERROR_ARTIFACT, "weights.safetensors: its header is not valid");
  }
  artifact->weights = member->data + 8 + header;
  artifact->weights_bytes = member->num_bytes - 8 - header;
  for (int32_t i = 0; i < manifest->num_weights; ++i) {
    const llmos_weight* weight = manifest->weights + i;
    uint64_t data_bytes = member->num_bytes - 8 - header;
    if (weight->offset > data_bytes || weight->num_bytes > data_bytes - weight->offset) {
      return fail(LLMOS_ERROR_ARTIFACT, "weight \"%s\" reaches beyond weights.safetensors", weight->name);
    }
  }
  return LLMOS_OK;
}

static int32_t read_manifest(llmos_artifact* artifact) {
  const llmos_zip_member* member = artifact->members;
  if (strcmp(member->name, "manifest.json") != 0) return fail(LLMOS_ERROR_ARTIFACT, "not an artifact: its first member is not manifest.json");
  if (member->num_bytes > MAX_MANIFEST_BYTES) return fail(LLMOS_ERROR_ARTIFACT, "manifest: larger than %d bytes", MAX_MANIFEST_BYTES);
  char* copy = zone_string(&artifact->zone, (const char*)member->data, member->num_bytes);
  if (!copy) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  artifact->manifest_text = copy;
  artifact->manifest_bytes = member->num_bytes;
  if (crc32_of(copy, member->num_bytes) != member->crc) return fail(LLMOS_ERROR_ARTIFACT, "changed: manifest.json does not have its checksum");
  return manifest_parse(copy, member->num_bytes, &artifact->zone, &artifact->manifest);
}

static int32_t check_signature_checksum(const llmos_artifact* artifact) {
  const llmos_zip_member* member = signature_of(artifact);
  if (!member || crc32_of(member->data, member->num_bytes) == member->crc) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "changed: signature does not have its checksum");
}

static int32_t check_all(llmos_artifact* artifact) {
  int32_t code = zip_parse(artifact->file, artifact->file_bytes, &artifact->zone, &artifact->members, &artifact->num_members);
  if (code) return code;
  if ((code = read_manifest(artifact))) return code;
  if ((code = find_members(artifact))) return code;
  if ((code = check_code(artifact))) return code;
  if ((code = check_signature_checksum(artifact))) return code;
  if ((code = find_weights(artifact))) return code;
  return llmos_artifact_verify(artifact);
}

/* ---- Open and close ---- */

static int32_t map_file(const char* path, llmos_artifact* artifact) {
  struct stat status;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return fail(LLMOS_ERROR_ARTIFACT, "can't open it: %s", strerror(errno));
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
    close(descriptor);
    return fail(LLMOS_ERROR_ARTIFACT, S_ISREG(status.st_mode) ? "not an artifact: it is empty" : "not an artifact: it is no regular file");
  }
  void* file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (file == MAP_FAILED) return fail(LLMOS_ERROR_ARTIFACT, "can't map it: %s", strerror(errno));
  madvise(file, (size_t)status.st_size, MADV_WILLNEED);
  artifact->file = file;
  artifact->file_bytes = (size_t)status.st_size;
  return LLMOS_OK;
}

int32_t llmos_artifact_open(const char* path, llmos_artifact** result) {
  llmos_artifact* artifact = calloc(1, sizeof *artifact);
  *result = NULL;
  if (!artifact) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  atomic_store(&artifact->references, 1);
  int32_t code = map_file(path, artifact);
  if (!code) code = check_all(artifact);
  if (code) {
    prefix_error(path);
    llmos_artifact_close(artifact);
    return code;
  }
  *result = artifact;
  return LLMOS_OK;
}

void llmos_artifact_close(llmos_artifact* artifact) {
  if (!artifact || atomic_fetch_sub(&artifact->references, 1) != 1) return;
  if (artifact->file) munmap((void*)artifact->file, artifact->file_bytes);
  zone_free(&artifact->zone);
  free(artifact);
}

const void* llmos_artifact_manifest(const llmos_artifact* artifact, size_t* num_bytes) {
  *num_bytes = artifact->manifest_bytes;
  return artifact->manifest_text;
}

const void* llmos_artifact_member(const llmos_artifact* artifact, const char* name, size_t* num_bytes) {
  for (int32_t i = 0; i < artifact->num_members; ++i) {
    const llmos_zip_member* member = artifact->members + i;
    *num_bytes = member->num_bytes;
    if (strcmp(member->name, name) == 0) return member->data;
  }
  *num_bytes = 0;
  return NULL;
}

const void* llmos_artifact_weight(const llmos_artifact* artifact, int32_t index, size_t* num_bytes) {
  bool known = index >= 0 && index < artifact->manifest.num_weights;
  *num_bytes = known ? artifact->manifest.weights[index].num_bytes : 0;
  return known ? artifact->weights + artifact->manifest.weights[index].offset : NULL;
}

/* Which code runs is decided here and nowhere else: in the manifest's order, by what each says that it needs. */
int32_t llmos_artifact_missing_on(const llmos_artifact* artifact, int32_t index, const llmos_gpu* gpu, char* text, size_t size) {
  if (size) *text = '\0';
  if (index < 0 || index >= artifact->manifest.num_code) return -1;
  const llmos_code* code = artifact->manifest.code + index;
  if (gpu && !code->ptx) return snprintf(text, size, "kernels for a GPU") > 0;
  size_t used = 0;
  int32_t count = 0;
  bool other = !host_has_arch(code->arch);
  for (int32_t i = other ? -1 : 0; i < (other ? 0 : code->num_features); ++i) {
    const char* needed = i < 0 ? code->arch : code->features[i];
    if (i >= 0 && (host_has(needed) || (gpu && gpu_runs(gpu, needed)))) continue;
    int written = snprintf(text + used, size - used, i < 0 ? "a %s machine" : count ? ", %s" : "%s", needed);
    if (written > 0) used = used + (size_t)written < size ? used + (size_t)written : size ? size - 1 : 0;
    ++count;
  }
  return count;
}

int32_t llmos_artifact_missing(const llmos_artifact* artifact, int32_t index, char* text, size_t size) {
  return llmos_artifact_missing_on(artifact, index, NULL, text, size);
}

int32_t llmos_artifact_choose_on(const llmos_artifact* artifact, const llmos_gpu* gpu) {
  for (int32_t i = 0; i < artifact->manifest.num_code; ++i) {
    if (llmos_artifact_missing_on(artifact, i, gpu, NULL, 0) == 0) return i;
  }
  return -1;
}

int32_t llmos_artifact_choose(const llmos_artifact* artifact) { return llmos_artifact_choose_on(artifact, NULL); }
