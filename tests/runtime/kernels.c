/* What a compiled artifact's shared object looks like, written by hand for the tests of the runtime. */
#include <llmos/abi.h>
#include <stddef.h>

#define ENTRY __attribute__((visibility("default")))
enum { BATCH, TOKENS };

static const DLTensor* tensor_at(const TVMFFIAny* args, int32_t index) { return args[index].v_ptr; }

/* main: y[batch, 4] = x[batch, 4] * scale[4] + shift[4]; a tile is a row */
static int32_t scale_rows(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  const float *x = buffers[0], *scale = buffers[1], *shift = buffers[2];
  float* y = buffers[3];
  (void)dims, (void)scratch;
  for (int64_t i = begin * 4; i < end * 4; ++i) y[i] = x[i] * scale[i % 4] + shift[i % 4];
  return LLMOS_OK;
}

ENTRY int __tvm_ffi_main(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)result;
  if (num_args != 2 || args[0].type_index != LLMOS_TYPE_DLTENSOR_PTR) return LLMOS_BAD_ARGUMENTS;
  void* buffers[] = {tensor_at(args, 0)->data, (void*)context->weights[0], (void*)context->weights[1], tensor_at(args, 1)->data};
  return context->launch(context, scale_rows, buffers, NULL, tensor_at(args, 0)->shape[0], 0, 0);
}
ENTRY void __llmos_shapes_main(const int64_t* symbols, int64_t* dims) {
  dims[0] = symbols[BATCH];
  dims[1] = 4;
}

/* pair: total[batch] = a[batch, tokens] summed over tokens with the arena and scratch; last[] = b[2*tokens + 1] at its end */
static int32_t sum_rows(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  const float* a = buffers[0];
  float* partial = scratch;
  if ((uintptr_t)scratch % 64) return LLMOS_INTERNAL;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t t = 0; t < dims[0]; ++t) partial[t] = a[row * dims[0] + t];
    float sum = 0;
    for (int64_t t = 0; t < dims[0]; ++t) sum += partial[t];
    ((float*)buffers[1])[row] = sum;
  }
  return LLMOS_OK;
}

ENTRY int __tvm_ffi_pair(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)num_args, (void)result;
  const DLTensor *a = tensor_at(args, 0), *b = tensor_at(args, 1);
  int64_t batch = a->shape[0], tokens = a->shape[1], dims[] = {tokens};
  float *copy = context->arena(context, batch * tokens * 4), *sums = context->arena(context, batch * 4);
  if (!copy || !sums) return LLMOS_OUT_OF_MEMORY;
  if ((uintptr_t)copy % 64 || (uintptr_t)sums % 64) return LLMOS_INTERNAL;
  for (int64_t i = 0; i < batch * tokens; ++i) copy[i] = ((const float*)a->data)[i];
  void* buffers[] = {copy, sums};
  int32_t code = context->launch(context, sum_rows, buffers, dims, batch, tokens * 4, 1);
  if (code) return code;
  for (int64_t i = 0; i < batch; ++i) ((float*)tensor_at(args, 2)->data)[i] = sums[i];
  *(int64_t*)tensor_at(args, 3)->data = ((const int64_t*)b->data)[2 * tokens];
  return LLMOS_OK;
}
ENTRY void __llmos_shapes_pair(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[BATCH]; }

/* lookup: y[batch] = table (arange(8)) at index[batch], each checked */
static int32_t look_up(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)dims, (void)scratch;
  for (int64_t i = begin; i < end; ++i) {
    int64_t index = ((const int64_t*)buffers[0])[i];
    if (index < 0 || index >= 8) return LLMOS_INDEX_OUT_OF_RANGE;
    ((int64_t*)buffers[1])[i] = index;
  }
  return LLMOS_OK;
}
ENTRY int __tvm_ffi_lookup(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)num_args, (void)result;
  void* buffers[] = {tensor_at(args, 0)->data, tensor_at(args, 1)->data};
  return context->launch(context, look_up, buffers, NULL, tensor_at(args, 0)->shape[0], 0, 2);
}
ENTRY void __llmos_shapes_lookup(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[BATCH]; }

/* uninitialised: y[16] = memory of the arena as it came; greedy: asks for more memory than there is */
ENTRY int __tvm_ffi_uninitialised(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)num_args, (void)result;
  const float* memory = context->arena(context, 64);
  for (int i = 0; i < 16 && memory; ++i) ((float*)tensor_at(args, 0)->data)[i] = memory[i];
  return memory ? LLMOS_OK : LLMOS_OUT_OF_MEMORY;
}
ENTRY void __llmos_shapes_uninitialised(const int64_t* symbols, int64_t* dims) { (void)symbols, dims[0] = 16; }

ENTRY int __tvm_ffi_greedy(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)args, (void)num_args, (void)result;
  return context->arena(context, INT64_MAX / 8) ? LLMOS_OK : LLMOS_OUT_OF_MEMORY;
}
ENTRY void __llmos_shapes_greedy(const int64_t* symbols, int64_t* dims) { (void)symbols, dims[0] = 1; }

/* overrun: writes past the end of its arena, and sleep: keeps all threads busy for x[0] million turns */
ENTRY int __tvm_ffi_overrun(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)args, (void)num_args, (void)result;
  volatile char* memory = context->arena(context, 64);
  memory[64] = 1;
  return LLMOS_OK;
}
ENTRY void __llmos_shapes_overrun(const int64_t* symbols, int64_t* dims) { (void)symbols, dims[0] = 1; }

static int32_t turn(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)scratch;
  for (int64_t i = begin; i < end; ++i) {
    for (volatile int64_t k = 0; k < dims[0] * 1000; ++k) {
    }
    ((int64_t*)buffers[0])[i] = i;
  }
  return LLMOS_OK;
}
ENTRY int __tvm_ffi_slow(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)num_args, (void)result;
  void* buffers[] = {tensor_at(args, 1)->data};
  return context->launch(context, turn, buffers, tensor_at(args, 0)->data, 64, 0, 3);
}
ENTRY void __llmos_shapes_slow(const int64_t* symbols, int64_t* dims) { (void)symbols, dims[0] = 64; }

/* echo: y = x in bfloat16, and add: y[batch] = a[batch] + b[batch] on one tile (the least work there is) */
ENTRY int __tvm_ffi_echo(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  (void)handle, (void)num_args, (void)result;
  for (int64_t i = 0; i < tensor_at(args, 0)->shape[0]; ++i) {
    ((uint16_t*)tensor_at(args, 1)->data)[i] = ((const uint16_t*)tensor_at(args, 0)->data)[i];
  }
  return LLMOS_OK;
}
ENTRY void __llmos_shapes_echo(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[BATCH]; }

static int32_t add_all(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)begin, (void)end, (void)scratch;
  const float *a = buffers[0], *b = buffers[1];
  for (int64_t i = 0; i < dims[0]; ++i) ((float*)buffers[2])[i] = a[i] + b[i];
  return LLMOS_OK;
}
ENTRY int __tvm_ffi_add(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)num_args, (void)result;
  void* buffers[] = {tensor_at(args, 0)->data, tensor_at(args, 1)->data, tensor_at(args, 2)->data};
  return context->launch(context, add_all, buffers, tensor_at(args, 0)->shape, 1, 0, 4);
}
ENTRY void __llmos_shapes_add(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[BATCH]; }

/* write: table[index[i], :] = row[4] where the table lies, in order; what comes before an index outside has been written by then */
static int32_t write_rows(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch) {
  (void)begin, (void)end, (void)scratch;
  for (int64_t i = 0; i < dims[1]; ++i) {
    int64_t index = ((const int64_t*)buffers[1])[i];
    if (index < 0 || index >= dims[0]) return LLMOS_INDEX_OUT_OF_RANGE;
    for (int64_t k = 0; k < 4; ++k) ((float*)buffers[0])[index * 4 + k] = ((const float*)buffers[2])[k];
  }
  return LLMOS_OK;
}
ENTRY int __tvm_ffi_write(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  (void)result;
  if (num_args != 3) return LLMOS_BAD_ARGUMENTS;
  void* buffers[] = {tensor_at(args, 0)->data, tensor_at(args, 1)->data, tensor_at(args, 2)->data};
  int64_t dims[] = {tensor_at(args, 0)->shape[0], tensor_at(args, 1)->shape[0]};
  return context->launch(context, write_rows, buffers, dims, 1, 0, 5);
}
ENTRY void __llmos_shapes_write(const int64_t* symbols, int64_t* dims) { (void)symbols, (void)dims; }

/* device: y[batch] = x[batch], through memory of the device; this object relies on the second version of the ABI */
__attribute__((visibility("default"))) const int32_t __llmos_abi_version = 2;

ENTRY int __tvm_ffi_device(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result) {
  llmos_context* context = handle;
  llmos_device* device = context->device;
  (void)num_args, (void)result;
  int64_t num_bytes = tensor_at(args, 0)->shape[0] * 4;
  llmos_grid grid = {{1, 1, 1}, {32, 1, 1}, 0, 0};
  void* memory = device->allocate(device, num_bytes);
  if (!memory || (uintptr_t)memory % 64) return LLMOS_OUT_OF_MEMORY;
  int32_t code = device->copy(device, memory, tensor_at(args, 0)->data, num_bytes, context->stream);
  if (!code) code = device->synchronize(device, context->stream);
  if (!code) code = device->copy(device, tensor_at(args, 1)->data, memory, num_bytes, context->stream);
  device->release(device, memory);
  if (device->id.device_type != 1 || device->launch(device, 0, &grid, NULL, context->stream) != LLMOS_BAD_ARGUMENTS) return LLMOS_INTERNAL;
  return code;
}
ENTRY void __llmos_shapes_device(const int64_t* symbols, int64_t* dims) { dims[0] = symbols[BATCH]; }
