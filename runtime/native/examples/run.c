/* Runs an artifact's first entry on ones and prints the beginning of each output; no Python, no C++.
 *
 *     cc run.c -I ../include ../_core*.so -Wl,-rpath,.. -o run
 *     ./run minilm.llmos 3 17          the sizes of the dims that are not fixed, in the order in which the inputs have them
 */
#include <llmos/llmos.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

int main(int argc, char** argv) {
  static buffer buffers[MAX_TENSORS];
  const DLTensor* tensors[MAX_TENSORS];
  int64_t dims[MAX_TENSORS * MAX_DIMS], *next_dim = dims;
  llmos_artifact* artifact;
  llmos_program* program;
  llmos_entry_info entry;
  llmos_tensor_info info;
  if (argc < 2) return fprintf(stderr, "usage: run ARTIFACT [SIZE ...]\n"), 2;
  check(llmos_artifact_open(argv[1], &artifact));
  check(llmos_program_open(artifact, -1, LLMOS_TRUST_ALWAYS, &program)); /* this program trusts what its user names */
  check(llmos_program_info(program, 0, &entry));
  if (entry.num_inputs + entry.num_outputs > MAX_TENSORS) return fprintf(stderr, "too many tensors\n"), 2;
  for (int32_t i = 0, argument = 2; i < entry.num_inputs; ++i) {
    check(llmos_program_tensor(program, 0, i, &info));
    for (int32_t d = 0; d < info.ndim; ++d) {
      buffers[i].shape[d] = info.shape[d] >= 0 ? info.shape[d] : argument < argc ? atoll(argv[argument++]) : 1;
    }
    allocate(&buffers[i], &info);
    tensors[i] = &buffers[i].tensor;
  }
  check(llmos_program_shapes(program, 0, tensors, entry.num_inputs, dims));
  for (int32_t i = entry.num_inputs; i < entry.num_inputs + entry.num_outputs; ++i) {
    check(llmos_program_tensor(program, 0, i, &info));
    memcpy(buffers[i].shape, next_dim, (size_t)info.ndim * sizeof *dims);
    next_dim += info.ndim;
    allocate(&buffers[i], &info);
    tensors[i] = &buffers[i].tensor;
  }
  check(llmos_program_run(program, 0, tensors, entry.num_inputs, tensors + entry.num_inputs, entry.num_outputs, 0, NULL));
  for (int32_t i = entry.num_inputs; i < entry.num_inputs + entry.num_outputs; ++i) {
    check(llmos_program_tensor(program, 0, i, &info));
    printf("%s:", info.name);
    for (int32_t k = 0; k < 4 && info.dtype.code == 2 && info.dtype.bits == 32; ++k) printf(" %g", ((float*)buffers[i].tensor.data)[k]);
    printf("\n");
  }
  llmos_program_close(program);
  llmos_artifact_close(artifact);
  return 0;
}
