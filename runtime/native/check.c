/* The tensors of a call against the manifest: every message names the tensor and says what was expected and what came. */
#include "core.h"

#include <stdio.h>

enum { CPU = 1, CUDA = 2, UINT = 1, BFLOAT = 4 };

static void append(char text[256], const char* piece) {
  size_t used = strlen(text);
  snprintf(text + used, 256 - used, "%s", piece);
}

/* "[batch, 384]": sizes, or where these are NULL what the manifest says. */
static const char* shape_text(const int64_t* sizes, const llmos_dim* dims, int32_t ndim, char text[256]) {
  char number[32];
  strcpy(text, "[");
  for (int32_t i = 0; i < ndim; ++i) {
    snprintf(number, sizeof number, "%lld", (long long)(sizes ? sizes[i] : dims[i].size));
    append(text, i ? ", " : "");
    append(text, !sizes && dims[i].expression ? dims[i].expression : number);
  }
  append(text, "]");
  return text;
}

static bool same_dtype(DLDataType want, DLDataType have) {
  return have.bits == want.bits && have.lanes == want.lanes && (have.code == want.code || (want.code == BFLOAT && have.code == UINT));
}

static bool is_dense(const DLTensor* tensor) {
  int64_t expected = 1;
  if (!tensor->strides) return true;
  for (int32_t i = tensor->ndim - 1; i >= 0; --i) {
    if (tensor->shape[i] == 0) return true;
  }
  for (int32_t i = tensor->ndim - 1; i >= 0; --i) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != expected) return false;
    if (__builtin_mul_overflow(expected, tensor->shape[i], &expected)) return false;
  }
  return true;
}

static int32_t check_place(const char* role, const llmos_tensor_spec* want, const DLTensor* have, int32_t gpu) {
  if (have->device.device_type == CPU || (have->device.device_type == CUDA && have->device.device_id == gpu)) return LLMOS_OK;
  if (gpu < 0) return fail(LLMOS_ERROR_INPUT, "%s \"%s\": it is not in CPU memory; move it there first", role, want->info.name);
  return fail(LLMOS_ERROR_INPUT, "%s \"%s\": it is neither in CPU memory nor on GPU %d; move it first", role, want->info.name, gpu);
}

/* Dtype, rank and device: what must hold before the sizes can be looked at. gpu: whose memory is taken too, or -1. */
static int32_t check_kind(const char* role, const llmos_tensor_spec* want, const DLTensor* have, int32_t gpu) {
  char expected[256], got[256], name[2][32];
  if (!have) return fail(LLMOS_ERROR_INPUT, "%s \"%s\": it is NULL", role, want->info.name);
  int32_t code = check_place(role, want, have, gpu);
  if (code) return code;
  if (!same_dtype(want->info.dtype, have->dtype)) {
    return fail(LLMOS_ERROR_INPUT, "%s \"%s\": expected dtype %s, got %s", role, want->info.name, dtype_name(want->info.dtype, name[0]),
                dtype_name(have->dtype, name[1]));
  }
  if (have->ndim != want->info.ndim || (have->ndim > 0 && !have->shape)) {
    int32_t shown = have->ndim > 0 && have->ndim <= MAX_NDIM && have->shape ? have->ndim : 0;
    return fail(LLMOS_ERROR_INPUT, "%s \"%s\": expected %d dims %s, got %d %s", role, want->info.name, want->info.ndim,
                shape_text(NULL, want->dims, want->info.ndim, expected), have->ndim, shape_text(have->shape, NULL, shown, got));
  }
  return LLMOS_OK;
}

/* Dense, and aligned to its element (for complex numbers, to their parts). */
static int32_t check_memory(const char* role, const llmos_tensor_spec* want, const DLTensor* have) {
  int64_t elements = 1, bytes, size = have->dtype.bits / 8, unit = want->info.dtype.code == 5 ? size / 2 : size;
  for (int32_t i = 0; i < have->ndim; ++i) {
    if (have->shape[i] < 0 || __builtin_mul_overflow(elements, have->shape[i], &elements)) {
      return fail(LLMOS_ERROR_INPUT, "%s \"%s\": its size is out of bounds", role, want->info.name);
    }
  }
  if (__builtin_mul_overflow(elements, size, &bytes)) return fail(LLMOS_ERROR_INPUT, "%s \"%s\": its size is out of bounds", role, want->info.name);
  if (!have->data && elements) return fail(LLMOS_ERROR_INPUT, "%s \"%s\": its data is NULL", role, want->info.name);
  const char* problem = !is_dense(have) ? "contiguous (row-major)"
                        : ((uintptr_t)have->data + have->byte_offset) % (uintptr_t)unit ? "aligned to its element"
                                                                                          : NULL;
  if (!problem) return LLMOS_OK;
  if (want->updated) return fail(LLMOS_ERROR_INPUT, "%s \"%s\": the call writes into it, so it must be %s", role, want->info.name, problem);
  return fail(LLMOS_ERROR_STRIDES, "%s \"%s\": it is not %s; copy it first", role, want->info.name, problem);
}

static int32_t wrong_size(const llmos_tensor_spec* want, int32_t d, int64_t expected, const DLTensor* have) {
  char text[256];
  return fail(LLMOS_ERROR_INPUT, "input \"%s\": dim %d must be %lld, got %lld (shape %s)", want->info.name, d, (long long)expected,
              (long long)have->shape[d], shape_text(have->shape, NULL, have->ndim, text));
}

typedef struct {
  const llmos_manifest* manifest;
  const llmos_entry_spec* entry;
  const DLTensor* const* inputs;
  int64_t* symbols;                /* -1: not bound yet */
  int32_t gpu;
  int16_t bound_by[MAX_SYMBOLS];   /* the input that gave a symbol its size, for messages */
} llmos_binding;

static int32_t bind_symbol(llmos_binding* in, int32_t input, int32_t d) {
  const llmos_tensor_spec* want = in->entry->inputs + input;
  int32_t index = want->dims[d].symbol;
  const llmos_symbol* symbol = in->manifest->symbols + index;
  int64_t size = in->inputs[input]->shape[d], bound = in->symbols[index];
  if (bound >= 0 && bound != size) {
    return fail(LLMOS_ERROR_INPUT, "input \"%s\": dim %d (%s) is %lld, but input \"%s\" has %s = %lld", want->info.name, d, symbol->name,
                (long long)size, in->entry->inputs[in->bound_by[index]].info.name, symbol->name, (long long)bound);
  }
  if (size < symbol->min || size > symbol->max) {
    return fail(LLMOS_ERROR_INPUT, "input \"%s\": dim %d (%s) is %lld, outside its range of %lld to %lld", want->info.name, d, symbol->name,
                (long long)size, (long long)symbol->min, (long long)symbol->max);
  }
  if (bound < 0) in->bound_by[index] = (int16_t)input;
  in->symbols[index] = size;
  return LLMOS_OK;
}

static int32_t bind_input(llmos_binding* in, int32_t input) {
  const llmos_tensor_spec* want = in->entry->inputs + input;
  const DLTensor* have = in->inputs[input];
  int32_t code = check_kind("input", want, have, in->gpu);
  for (int32_t d = 0; d < want->info.ndim && !code; ++d) {
    if (want->dims[d].symbol >= 0) {
      code = bind_symbol(in, input, d);
    } else if (want->dims[d].size >= 0 && want->dims[d].size != have->shape[d]) {
      code = wrong_size(want, d, want->dims[d].size, have);
    }
  }
  return code;
}

/* Dims that are expressions, once all symbols have their sizes. */
static int32_t check_expressions(const llmos_binding* in, int32_t input) {
  const llmos_tensor_spec* want = in->entry->inputs + input;
  for (int32_t d = 0; d < want->info.ndim; ++d) {
    int64_t expected;
    if (!want->dims[d].expression || want->dims[d].symbol >= 0) continue;
    if (!evaluate(want->dims[d].expression, in->manifest->symbols, in->manifest->num_symbols, in->symbols, &expected)) {
      return fail(LLMOS_ERROR_INPUT, "input \"%s\": dim %d (%s) has no value for these sizes", want->info.name, d, want->dims[d].expression);
    }
    if (expected != in->inputs[input]->shape[d]) return wrong_size(want, d, expected, in->inputs[input]);
  }
  return LLMOS_OK;
}

int32_t check_inputs(const llmos_manifest* manifest, const llmos_entry_spec* entry, const DLTensor* const* inputs, int32_t num_inputs,
                     int32_t gpu, int64_t* symbols) {
  llmos_binding in = {.manifest = manifest, .entry = entry, .inputs = inputs, .symbols = symbols, .gpu = gpu};
  int32_t code = LLMOS_OK;
  if (num_inputs != entry->num_inputs) {
    return fail(LLMOS_ERROR_INPUT, "entry \"%s\": expected %d inputs, got %d", entry->name, entry->num_inputs, num_inputs);
  }
  for (int32_t i = 0; i < manifest->num_symbols; ++i) symbols[i] = -1;
  for (int32_t i = 0; i < num_inputs && !code; ++i) code = bind_input(&in, i);
  for (int32_t i = 0; i < manifest->num_symbols; ++i) {
    if (symbols[i] < 0) symbols[i] = manifest->symbols[i].min; /* of other entries only */
  }
  for (int32_t i = 0; i < num_inputs && !code; ++i) code = check_expressions(&in, i);
  for (int32_t i = 0; i < num_inputs && !code; ++i) code = check_memory("input", entry->inputs + i, inputs[i]);
  return code;
}

/* The bytes of a tensor that was checked. */
static uint64_t bytes_of(const DLTensor* tensor) {
  uint64_t bytes = tensor->dtype.bits / 8;
  for (int32_t i = 0; i < tensor->ndim; ++i) bytes *= (uint64_t)tensor->shape[i];
  return bytes;
}

static bool overlap(const DLTensor* a, const DLTensor* b) {
  uintptr_t first = (uintptr_t)a->data + a->byte_offset, second = (uintptr_t)b->data + b->byte_offset;
  uint64_t first_bytes = bytes_of(a), second_bytes = bytes_of(b);
  return first_bytes && second_bytes && first < second + second_bytes && second < first + first_bytes;
}

int32_t check_updated(const llmos_entry_spec* entry, const DLTensor* const* inputs, const DLTensor* const* outputs) {
  for (int32_t i = 0; i < entry->num_inputs; ++i) {
    for (int32_t j = 0; j < entry->num_inputs + entry->num_outputs && entry->inputs[i].updated; ++j) {
      bool input = j < entry->num_inputs;
      if (j == i || !overlap(inputs[i], input ? inputs[j] : outputs[j - entry->num_inputs])) continue;
      return fail(LLMOS_ERROR_INPUT, "input \"%s\": the call writes into it, so it can't share memory with %s \"%s\"", entry->inputs[i].info.name,
                  input ? "input" : "output", (input ? entry->inputs + j : entry->outputs + (j - entry->num_inputs))->info.name);
    }
  }
  return LLMOS_OK;
}

int32_t check_dims(const llmos_entry_spec* entry, const int64_t* dims) {
  for (int32_t i = 0; i < entry->num_outputs; ++i) {
    const llmos_tensor_spec* want = entry->outputs + i;
    int64_t bytes = want->info.dtype.bits / 8;
    for (int32_t d = 0; d < want->info.ndim; ++d, ++dims) {
      if (*dims < 0 || (want->dims[d].size >= 0 && want->dims[d].size != *dims) || __builtin_mul_overflow(bytes, *dims, &bytes)) {
        return fail(LLMOS_INTERNAL, "output \"%s\": the artifact's code gives size %lld for dim %d", want->info.name, (long long)*dims, d);
      }
    }
  }
  return LLMOS_OK;
}

int32_t check_outputs(const llmos_entry_spec* entry, const DLTensor* const* outputs, int32_t num_outputs, int32_t gpu, const int64_t* dims) {
  char expected[256], got[256];
  if (num_outputs != entry->num_outputs) {
    return fail(LLMOS_ERROR_INPUT, "entry \"%s\": expected %d outputs, got %d", entry->name, entry->num_outputs, num_outputs);
  }
  for (int32_t i = 0; i < num_outputs; dims += entry->outputs[i].info.ndim, ++i) {
    const llmos_tensor_spec* want = entry->outputs + i;
    int32_t code = check_kind("output", want, outputs[i], gpu);
    if (!code && want->info.ndim && memcmp(outputs[i]->shape, dims, (size_t)want->info.ndim * sizeof *dims) != 0) {
      return fail(LLMOS_ERROR_INPUT, "output \"%s\": expected shape %s, got %s", want->info.name, shape_text(dims, NULL, want->info.ndim, expected),
                  shape_text(outputs[i]->shape, NULL, want->info.ndim, got));
    }
    if (!code) code = check_memory("output", want, outputs[i]);
    if (code) return code;
  }
  return LLMOS_OK;
}

static bool is_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

static bool mentions(const char* text, const char* name) {
  size_t length = strlen(name);
  for (const char* at = strstr(text, name); at; at = strstr(at + 1, name)) {
    if ((at == text || !is_name(at[-1])) && !is_name(at[length])) return true;
  }
  return false;
}

int32_t check_guards(const llmos_manifest* manifest, const llmos_entry_spec* entry, const int64_t* symbols, int64_t broken) {
  char sizes[256] = "", one[128];
  if (broken < 0) return LLMOS_OK;
  const char* text = broken < entry->num_conditions ? entry->conditions[broken] : "a condition of the model";
  for (int32_t i = 0; i < manifest->num_symbols; ++i) {
    if (!mentions(text, manifest->symbols[i].name)) continue;
    snprintf(one, sizeof one, "%s%s = %lld", *sizes ? ", " : "", manifest->symbols[i].name, (long long)symbols[i]);
    append(sizes, one);
  }
  return fail(LLMOS_ERROR_INPUT, "entry \"%s\": the model needs %s, got %s", entry->name, text, sizes);
}
