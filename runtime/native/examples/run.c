/* Runs an entry of an artifact on ones, and prints the beginning of each output and of each input that it updates; no Python, no C++.
 *
 *     cc run.c -I ../include ../_core*.so -Wl,-rpath,.. -o run
 *     ./run minilm.llmos 3 17                       the sizes of the dims that are not fixed, in the order in which the inputs have them
 *     ./run lm.llmos --entry step --times 100 4096  and how long the fastest of so many runs took
 */
#define _POSIX_C_SOURCE 199309L
#include <llmos/llmos.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_TENSORS = 64, MAX_DIMS = 16 };
typedef struct {
  DLTensor tensor;
  int64_t shape[MAX_DIMS];
} buffer;

static void check(int32_t code) {
  if (!code) return;
  fprintf(stderr, "%s\n", llmos_last_error());
  exit(2);
}

/* Memory for a tensor of that shape, every element one (or the one bit pattern, for types that C has no name for). */
static void allocate(buffer* out, const llmos_tensor_info* info) {
  size_t count = 1, size = info->dtype.bits / 8u;
  for (int32_t d = 0; d < info->ndim; ++d) count *= (size_t)out->shape[d];
  char* data = calloc(count ? count : 1, size);
  for (size_t i = 0; data && i < count; ++i) {
    if (info->dtype.code == 2 && size == 4) ((float*)data)[i] = 1.0f;
    else data[i * size] = 1; /* integers and bool, little-endian */
  }
  out->tensor = (DLTensor){data, {1, 0}, info->ndim, info->dtype, out->shape, NULL, 0};
}

static void print(const llmos_tensor_info* info, const buffer* buffer) {
  int64_t count = 1;
  for (int32_t d = 0; d < info->ndim; ++d) count *= buffer->shape[d];
  printf("%s:", info->name);
  for (int32_t k = 0; k < 4 && k < count && info->dtype.code == 2 && info->dtype.bits == 32; ++k) printf(" %g", ((float*)buffer->tensor.data)[k]);
  printf("\n");
}

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static buffer buffers[MAX_TENSORS];
static const DLTensor* tensors[MAX_TENSORS];

/* Runs once, or so many times that the fastest of them says what a run takes. */
static void run(llmos_program* program, int32_t index, const llmos_entry_info* entry, int times) {
  double fastest = 1e300;
  for (int i = 0; i < (times ? times : 1); ++i) {
    double begin = now_ms();
    check(llmos_program_run(program, index, tensors, entry->num_inputs, tensors + entry->num_inputs, entry->num_outputs, 0, NULL));
    double took = now_ms() - begin;
    if (took < fastest) fastest = took;
  }
  if (times) printf("fastest of %d: %.4f ms\n", times, fastest);
}

int main(int argc, char** argv) {
  int64_t dims[MAX_TENSORS * MAX_DIMS], *next_dim = dims;
  llmos_artifact* artifact;
  llmos_program* program;
  llmos_entry_info entry;
  llmos_tensor_info info;
  int32_t argument = 2, index = 0, times = 0;
  const char* name = NULL;
  if (argc < 2) return fprintf(stderr, "usage: run ARTIFACT [--entry NAME] [--times N] [SIZE ...]\n"), 2;
  for (; argument + 1 < argc && strncmp(argv[argument], "--", 2) == 0; argument += 2) {
    if (strcmp(argv[argument], "--entry") == 0) name = argv[argument + 1];
    else times = atoi(argv[argument + 1]);
  }
  check(llmos_artifact_open(argv[1], &artifact));
  check(llmos_program_open(artifact, -1, LLMOS_TRUST_ALWAYS, &program)); /* this program trusts what its user names */
  if (name) index = llmos_program_entry(program, name);
  check(llmos_program_info(program, index, &entry));
  if (entry.num_inputs + entry.num_outputs > MAX_TENSORS) return fprintf(stderr, "too many tensors\n"), 2;
  for (int32_t i = 0; i < entry.num_inputs; ++i) {
    check(llmos_program_tensor(program, index, i, &info));
    for (int32_t d = 0; d < info.ndim; ++d) {
      buffers[i].shape[d] = info.shape[d] >= 0 ? info.shape[d] : argument < argc ? atoll(argv[argument++]) : 1;
    }
    allocate(&buffers[i], &info);
    tensors[i] = &buffers[i].tensor;
  }
  check(llmos_program_shapes(program, index, tensors, entry.num_inputs, dims));
  for (int32_t i = entry.num_inputs; i < entry.num_inputs + entry.num_outputs; ++i) {
    check(llmos_program_tensor(program, index, i, &info));
    memcpy(buffers[i].shape, next_dim, (size_t)info.ndim * sizeof *dims);
    next_dim += info.ndim;
    allocate(&buffers[i], &info);
    tensors[i] = &buffers[i].tensor;
  }
  run(program, index, &entry, times);
  for (int32_t i = 0; i < entry.num_inputs + entry.num_outputs; ++i) {
    check(llmos_program_tensor(program, index, i, &info));
    if (i >= entry.num_inputs || llmos_program_updates(program, index, i)) print(&info, &buffers[i]);
  }
  llmos_program_close(program);
  llmos_artifact_close(artifact);
  return 0;
}
