/* The CPU as a device of the ABI: its memory is the host's, its kernels are launched by address. */
#include "core.h"

#include <stdlib.h>

static void* allocate(llmos_device* device, int64_t num_bytes) {
  (void)device;
  if (num_bytes < 0 || num_bytes > INT64_MAX / 4) return NULL;
  size_t bytes = ((size_t)num_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return aligned_alloc(ALIGNMENT, bytes ? bytes : ALIGNMENT);
}

static void release(llmos_device* device, void* memory) {
  (void)device;
  free(memory);
}

static int32_t copy(llmos_device* device, void* target, const void* source, int64_t num_bytes, void* stream) {
  (void)device, (void)stream;
  if (num_bytes < 0) return LLMOS_BAD_ARGUMENTS;
  if (num_bytes) memmove(target, source, (size_t)num_bytes);
  return LLMOS_OK;
}

static int32_t synchronize(llmos_device* device, void* stream) {
  (void)device, (void)stream;
  return LLMOS_OK; /* nothing is put off */
}

static int32_t launch(llmos_device* device, int32_t kernel, const llmos_grid* grid, void** arguments, void* stream) {
  (void)device, (void)kernel, (void)grid, (void)arguments, (void)stream;
  return LLMOS_BAD_ARGUMENTS; /* llmos_context.launch takes the CPU's kernels */
}

llmos_device cpu_device = {{1, 0}, allocate, release, copy, synchronize, launch};
