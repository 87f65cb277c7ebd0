/* Opening an artifact: map, check every byte, give out members. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 1 << 26 };

/* ---- Hashes, on the pool: a tile is a chunk of 1 MiB ---- */

typedef struct {
  const listed_member* listed;
  const uint8_t* data;
  size_t first_tile;
} hashed_member;

typedef struct {
  const hashed_member* members;
  size_t num_members;
  _Atomic(const char*) wrong; /* a member whose hash does not match */
} hash_job;

static const hashed_member* member_of_tile(const hash_job* job, size_t tile) {
  size_t low = 0, high = job->num_members;
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    *(job->members[middle].first_tile <= tile ? &low : &high) = middle;
  }
  return job->members + low;
}

static int32_t hash_tiles(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  hash_job* job = buffers[0];
  (void)dims, (void)scratch;
  for (int64_t tile = begin; tile < end; ++tile) {
    const hashed_member* member = member_of_tile(job, (size_t)tile);
    size_t chunk = (size_t)tile - member->first_tile;
    uint64_t offset = (uint64_t)chunk * CHUNK_BYTES, rest = member->listed->num_bytes - offset;
    uint8_t digest[32];
    sha256(member->data + offset, rest < CHUNK_BYTES ? rest : CHUNK_BYTES, digest);
    if (memcmp(digest, member->listed->sha256[chunk], sizeof digest) != 0) {
      atomic_store(&job->wrong, member->listed->name);
      return LLMOS_INTERNAL;
    }
  }
  return LLMOS_OK;
}

int32_t llmos_artifact_verify(const llmos_artifact* artifact) {
  const manifest* manifest = &artifact->manifest;
  hashed_member* members = calloc((size_t)manifest->num_members + 1, sizeof *members);
  if (!members) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  hash_job job = {.members = members};
  size_t num_tiles = 0;
  for (int32_t i = 0; i < manifest->num_members; ++i) {
    const listed_member* listed = manifest->members + i;
    if (listed->num_chunks) members[job.num_members++] = (hashed_member){listed, artifact_member(artifact, listed->name)->data, num_tiles};
    num_tiles += listed->num_chunks;
  }
  void* buffers[] = {&job};
  int32_t code = pool_launch(hash_tiles, buffers, NULL, (int64_t)num_tiles, 0);
  free(members);
  if (!code) return LLMOS_OK;
  const char* name = atomic_load(&job.wrong);
  return fail(LLMOS_ERROR_ARTIFACT, "changed: member \"%s\" does not have the hash that the manifest gives", name ? name : "?");
}

/* ---- Members ---- */

const zip_member* artifact_member(const llmos_artifact* artifact, const char* name) {
  for (int32_t i = 0; i < artifact->num_members; ++i) {
    if (strcmp(artifact->members[i].name, name) == 0) return artifact->members + i;
  }
  return NULL;
}

const listed_member* artifact_listed(const llmos_artifact* artifact, const char* name) {
  for (int32_t i = 0; i < artifact->manifest.num_members; ++i) {
    if (strcmp(artifact->manifest.members[i].name, name) == 0) return artifact->manifest.members + i;
  }
  return NULL;
}

/* The manifest comes first, the signature, if any, last; the rest is what the manifest lists, in its order. */
static int32_t check_listed(const llmos_artifact* artifact) {
  const manifest* manifest = &artifact->manifest;
  int32_t last = artifact->num_members - 1, found = 0;
  for (int32_t i = 1; i < artifact->num_members; ++i) {
    const zip_member* member = artifact->members + i;
    if (i == last && strcmp(member->name, "signature") == 0) continue;
    const listed_member* listed = found < manifest->num_members ? manifest->members + found : NULL;
    if (!listed || strcmp(listed->name, member->name) != 0) {
      return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" is not what the manifest lists in its place", member->name);
    }
    if (listed->num_bytes != member->num_bytes) return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" has another size than the manifest says", member->name);
    ++found;
  }
  if (found < manifest->num_members) return fail(LLMOS_ERROR_ARTIFACT, "member \"%s\" is missing", manifest->members[found].name);
  return LLMOS_OK;
}

static int32_t check_code(const llmos_artifact* artifact) {
  for (int32_t i = 0; i < artifact->manifest.num_code; ++i) {
    const char* name = artifact->manifest.code[i].member;
    if (!artifact_listed(artifact, name)) return fail(LLMOS_ERROR_ARTIFACT, "manifest: code member \"%s\" is missing", name);
  }
  return LLMOS_OK;
}

/* Finds the data of weights.safetensors (behind an 8-byte length and a header) and that every weight lies in it. */
static int32_t find_weights(llmos_artifact* artifact) {
  const manifest* manifest = &artifact->manifest;
  const zip_member* member = artifact_member(artifact, "weights.safetensors");
  if (!manifest->num_weights) return LLMOS_OK;
  if (!member || !artifact_listed(artifact, member->name)) return fail(LLMOS_ERROR_ARTIFACT, "member \"weights.safetensors\" is missing");
  uint64_t header = 0;
  for (int i = 7; i >= 0 && member->num_bytes >= 8; --i) header = header << 8 | member->data[i];
  if (member->num_bytes < 8 || header > member->num_bytes - 8 || (header + 8) % ALIGNMENT) {
    return fail(LLMOS_ERROR_ARTIFACT, "weights.safetensors: its header is not valid");
  }
  artifact->weights = member->data + 8 + header;
  artifact->weights_bytes = member->num_bytes - 8 - header;
  for (int32_t i = 0; i < manifest->num_weights; ++i) {
    const weight* weight = manifest->weights + i;
    if (weight->offset > artifact->weights_bytes || weight->num_bytes > artifact->weights_bytes - weight->offset) {
      return fail(LLMOS_ERROR_ARTIFACT, "weight \"%s\" reaches beyond weights.safetensors", weight->name);
    }
  }
  return LLMOS_OK;
}

static int32_t read_manifest(llmos_artifact* artifact) {
  const zip_member* member = artifact->members;
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
  const zip_member* last = artifact->members + artifact->num_members - 1;
  if (strcmp(last->name, "signature") != 0 || crc32_of(last->data, last->num_bytes) == last->crc) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "changed: signature does not have its checksum");
}

static int32_t check_all(llmos_artifact* artifact) {
  zip_member* members;
  int32_t code = zip_parse(artifact->file, artifact->file_bytes, &artifact->zone, &members, &artifact->num_members);
  if (code) return code;
  artifact->members = members;
  if ((code = read_manifest(artifact))) return code;
  if ((code = check_listed(artifact))) return code;
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
  const zip_member* member = artifact_member(artifact, name);
  *num_bytes = member ? member->num_bytes : 0;
  return member ? member->data : NULL;
}

const void* llmos_artifact_weight(const llmos_artifact* artifact, int32_t index, size_t* num_bytes) {
  bool known = index >= 0 && index < artifact->manifest.num_weights;
  *num_bytes = known ? artifact->manifest.weights[index].num_bytes : 0;
  return known ? artifact->weights + artifact->manifest.weights[index].offset : NULL;
}

int32_t llmos_artifact_choose(const llmos_artifact* artifact) {
  const char* missing;
  for (int32_t i = 0; i < artifact->manifest.num_code; ++i) {
    if (host_runs(artifact->manifest.code + i, &missing)) return i;
  }
  return -1;
}
