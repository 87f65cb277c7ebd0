/* Zones: many small things that live and die with one object. Arenas: the temporaries of a call, kept for the next one. */
#include "core.h"

#include <stdlib.h>
#include <sys/mman.h>

struct llmos_zone_block {
  struct llmos_zone_block* next;
  size_t used, size;
  _Alignas(16) char data[];
};

void* zone_alloc(llmos_zone* zone, size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 4) return NULL;
  bytes = (bytes + 15) / 16 * 16;
  struct llmos_zone_block* block = zone->blocks;
  if (!block || block->size - block->used < bytes) {
    size_t capacity = bytes > 1 << 14 ? bytes : 1 << 14;
    block = calloc(1, sizeof *block + capacity);
    if (!block) return NULL;
    block->size = capacity;
    block->next = zone->blocks;
    zone->blocks = block;
  }
  void* result = block->data + block->used;
  block->used += bytes;
  return result;
}

char* zone_string(llmos_zone* zone, const char* text, size_t size) {
  char* copy = zone_alloc(zone, size + 1, 1);
  if (copy && size) memcpy(copy, text, size);
  return copy;
}

void zone_free(llmos_zone* zone) {
  while (zone->blocks) {
    struct llmos_zone_block* next = zone->blocks->next;
    free(zone->blocks);
    zone->blocks = next;
  }
}

/* ---- Arenas ---- */

enum { HUGE_PAGE = 1 << 21, PAGE = 4096, GUARD_BYTES = 64 };
static const uint8_t GUARD = 0xA5;

struct llmos_arena_block {
  struct llmos_arena_block* next;
  int64_t used, size; /* of data, which GUARD_BYTES follow */
  uint8_t* data;
};

static int64_t mapped_bytes(int64_t size) {
  int64_t unit = size >= HUGE_PAGE ? HUGE_PAGE : PAGE;
  return (size + GUARD_BYTES + unit - 1) / unit * unit;
}

static struct llmos_arena_block* block_new(int64_t size) {
  struct llmos_arena_block* block = malloc(sizeof *block);
  if (!block) return NULL;
  size_t bytes = (size_t)mapped_bytes(size);
  void* data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    free(block);
    return NULL;
  }
  if (bytes >= HUGE_PAGE) madvise(data, bytes, MADV_HUGEPAGE);
  *block = (struct llmos_arena_block){NULL, 0, size, data};
  memset(block->data + size, GUARD, GUARD_BYTES);
  return block;
}

static void blocks_free(struct llmos_arena_block* block) {
  while (block) {
    struct llmos_arena_block* next = block->next;
    munmap(block->data, (size_t)mapped_bytes(block->size));
    free(block);
    block = next;
  }
}

void* arena_alloc(llmos_arena* arena, int64_t num_bytes) {
  if (num_bytes < 0 || num_bytes > INT64_MAX / 4) return NULL;
  int64_t bytes = (num_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  struct llmos_arena_block* block = arena->blocks;
  if (!block || block->size - block->used < bytes) {
    block = block_new(bytes ? bytes : ALIGNMENT);
    if (!block) return NULL;
    block->next = arena->blocks;
    arena->blocks = block;
  }
  void* result = block->data + block->used;
  block->used += bytes;
  arena->wanted += bytes;
  return result;
}

/* After a call that needed several blocks, the next one finds a single block that holds all it wanted. */
void arena_reset(llmos_arena* arena) {
  struct llmos_arena_block* newest = arena->blocks;
  if (newest && newest->next && arena_intact(arena)) {
    struct llmos_arena_block* whole = newest->size >= arena->wanted ? newest : block_new(arena->wanted);
    if (whole) {
      blocks_free(whole == newest ? newest->next : newest);
      whole->next = NULL;
      arena->blocks = whole;
    }
  }
  for (struct llmos_arena_block* block = arena->blocks; block; block = block->next) block->used = 0;
  arena->wanted = 0;
}

bool arena_intact(const llmos_arena* arena) {
  for (const struct llmos_arena_block* block = arena->blocks; block; block = block->next) {
    for (int i = 0; i < GUARD_BYTES; ++i) {
      if (block->data[block->size + i] != GUARD) return false;
    }
  }
  return true;
}

void arena_free(llmos_arena* arena) {
  blocks_free(arena->blocks);
  arena->blocks = NULL;
}
