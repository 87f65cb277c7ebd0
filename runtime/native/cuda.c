/* GPUs by CUDA's driver: opened by dlopen, so that the core runs where there is none. One stream and one error word a call; memory comes
 * from the driver's stream-ordered pool, which keeps what calls give back. Copies between the host and the GPU go through pinned memory. */
#include "cuda.h"
#include "core.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { STAGE_BYTES = 4 << 20, LOG_BYTES = 4096, ACCESS_BYTES = 16 /* that a thread moves at a time */ };

struct llmos_gpu {
  atomic_int references;
  CUdevice device;
  CUcontext context;
  int32_t index, major, minor;
  size_t num_bytes;
  char name[128];
};

/* What a program keeps on a GPU: its kernels by their index, and its weights. */
struct llmos_gpu_code {
  llmos_gpu* gpu;
  CUmodule module;
  CUfunction* functions;
  int32_t num_functions;
  CUstream stream; /* that the weights were copied in */
  CUdeviceptr weights;
};

typedef struct llmos_gpu_block {
  struct llmos_gpu_block* next;
  CUdeviceptr memory;
} llmos_gpu_block;

struct llmos_gpu_call {
  llmos_device abi; /* first: generated code gets this address */
  llmos_gpu_code* code;
  CUstream stream;
  CUdeviceptr error;       /* the word that kernels store an error code in */
  llmos_gpu_block* blocks; /* memory of this call */
  uint8_t* pinned;         /* of STAGE_BYTES; the last word is for the error */
  llmos_gpu_launched launched;
  void* told; /* handed to `launched` */
  size_t staged;    /* bytes of the pinned memory that copies of this call may still read */
  bool has_waited;  /* for the default stream, in this call */
  int32_t failure;  /* of the driver, in this call: generated code may pass another code on, or none */
  bool is_running; /* between `gpu_call_begin` and `gpu_call_end`: the GPU is this thread's current one */
};

static llmos_cuda_driver driver;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static bool is_open;

/* ---- The driver ---- */

static int32_t check(CUresult result, const char* what) {
  const char* meaning = NULL;
  if (result == CUDA_SUCCESS) return LLMOS_OK;
  if (driver.error_string(result, &meaning) != CUDA_SUCCESS || !meaning) meaning = "unknown error";
  return fail(result == CUDA_ERROR_OUT_OF_MEMORY ? LLMOS_OUT_OF_MEMORY : LLMOS_ERROR_DEVICE, "the GPU: %s: %s (CUDA error %d)", what, meaning, result);
}

static int32_t find_functions(void* library) {
  static const char* const names[] = {
#define X(name, symbol, arguments) symbol,
      CUDA_FUNCTIONS(X)
#undef X
  };
  void** functions = (void**)&driver;
  for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
    functions[i] = dlsym(library, names[i]);
    if (!functions[i]) return fail(LLMOS_ERROR_DEVICE, "the NVIDIA driver is too old: it has no %s; install one for CUDA 12 or later", names[i]);
  }
  return LLMOS_OK;
}

static int32_t start_driver(void) {
  int version = 0;
  int32_t code = check(driver.driver_version(&version), "its driver has no version");
  if (!code && version < OLDEST_DRIVER) {
    code = fail(LLMOS_ERROR_DEVICE, "the NVIDIA driver is too old: it is for CUDA %d.%d and 12.0 is needed", version / 1000, version % 1000 / 10);
  }
  return code ? code : check(driver.init(0), "it can't be started");
}

static int32_t open_driver(void) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(LLMOS_ERROR_DEVICE, "no NVIDIA driver: libcuda.so.1 can't be loaded on this machine");
  int32_t code = find_functions(library);
  if (!code) code = start_driver();
  is_open = !code;
  if (code) dlclose(library);
  return code;
}

/* ---- A GPU ---- */

static int32_t attribute(const llmos_gpu* gpu, int which, int32_t* value) {
  return check(driver.device_attribute(value, which, gpu->device), "an attribute of it can't be read");
}

static int32_t describe(llmos_gpu* gpu) {
  CUmemoryPool pool;
  uint64_t keep = UINT64_MAX;
  int32_t has_pools = 0;
  int32_t code = check(driver.device_name(gpu->name, sizeof gpu->name, gpu->device), "it has no name");
  if (!code) code = attribute(gpu, CU_MAJOR, &gpu->major);
  if (!code) code = attribute(gpu, CU_MINOR, &gpu->minor);
  if (!code) code = check(driver.device_memory(&gpu->num_bytes, gpu->device), "its memory can't be measured");
  if (!code) code = attribute(gpu, CU_MEMORY_POOLS, &has_pools);
  if (!code && !has_pools) code = fail(LLMOS_ERROR_DEVICE, "the GPU %s has no memory pools: its driver is too old", gpu->name);
  if (!code) code = check(driver.context_retain(&gpu->context, gpu->device), "it can't be used");
  if (!code) code = check(driver.device_pool(&pool, gpu->device), "its memory pool can't be used");
  if (!code) code = check(driver.pool_set(pool, CU_POOL_RELEASE_THRESHOLD, &keep), "its memory pool can't be set");
  return code;
}

int32_t llmos_gpu_open(int32_t index, llmos_gpu** result) {
  int count = 0;
  *result = NULL;
  pthread_mutex_lock(&opening);
  int32_t code = is_open ? LLMOS_OK : open_driver();
  pthread_mutex_unlock(&opening);
  if (!code) code = check(driver.device_count(&count), "GPUs can't be counted");
  if (code) return code;
  if (index < 0 || index >= count) return fail(LLMOS_ERROR_DEVICE, count ? "there is no GPU %d, only 0 to %d" : "the NVIDIA driver has no GPU", index, count - 1);
  llmos_gpu* gpu = calloc(1, sizeof *gpu);
  if (!gpu) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  atomic_store(&gpu->references, 1);
  gpu->index = index;
  code = check(driver.device_get(&gpu->device, index), "it can't be opened");
  if (!code) code = describe(gpu);
  if (code) {
    llmos_gpu_close(gpu);
    return code;
  }
  *result = gpu;
  return LLMOS_OK;
}

void llmos_gpu_close(llmos_gpu* gpu) {
  if (!gpu || atomic_fetch_sub(&gpu->references, 1) != 1) return;
  if (gpu->context) driver.context_release(gpu->device);
  free(gpu);
}

int32_t llmos_gpu_describe(const llmos_gpu* gpu, llmos_gpu_info* info) {
  *info = (llmos_gpu_info){gpu->name, gpu->major, gpu->minor, (int64_t)gpu->num_bytes};
  return LLMOS_OK;
}

int32_t gpu_index(const llmos_gpu* gpu) { return gpu ? gpu->index : -1; }

/* "sm_80": this chip or a later one, by PTX. "sm_90a": this one alone. */
bool gpu_runs(const llmos_gpu* gpu, const char* chip) {
  int number = 0;
  char last = 0;
  if (sscanf(chip, "sm_%d%c", &number, &last) < 1) return false;
  int own = gpu->major * 10 + gpu->minor;
  return last == 'a' ? own == number : !last && own >= number;
}

/* Makes the GPU this thread's current one, until `leave`: a caller's own choice, such as torch's, comes back then. */
static int32_t enter(const llmos_gpu* gpu) { return check(driver.context_push(gpu->context), "it can't be used"); }

static void leave(void) {
  CUcontext left;
  driver.context_pop(&left);
}

/* ---- Buffers, in the order of the default stream ---- */

int32_t llmos_gpu_allocate(llmos_gpu* gpu, int64_t num_bytes, void** memory) {
  CUdeviceptr made = 0;
  *memory = NULL;
  int32_t code = enter(gpu);
  if (code) return code;
  code = check(driver.allocate(&made, num_bytes > 0 ? (size_t)num_bytes : 1, NULL), "no memory");
  if (!code) *memory = (void*)(uintptr_t)made;
  leave();
  return code;
}

void llmos_gpu_release(llmos_gpu* gpu, void* memory) {
  if (memory && !enter(gpu)) driver.release((CUdeviceptr)(uintptr_t)memory, NULL), leave();
}

int32_t llmos_gpu_copy(llmos_gpu* gpu, void* target, const void* source, int64_t num_bytes) {
  if (num_bytes <= 0) return LLMOS_OK;
  int32_t code = enter(gpu);
  if (code) return code;
  code = check(driver.copy((CUdeviceptr)(uintptr_t)target, (CUdeviceptr)(uintptr_t)source, (size_t)num_bytes, NULL), "a copy failed");
  leave();
  return code;
}

int32_t llmos_gpu_clear(llmos_gpu* gpu, void* memory, int64_t num_bytes) {
  if (num_bytes <= 0) return LLMOS_OK;
  int32_t code = enter(gpu);
  if (code) return code;
  code = check(driver.set_bytes((CUdeviceptr)(uintptr_t)memory, 0, (size_t)num_bytes, NULL), "its memory can't be set");
  leave();
  return code;
}

int32_t llmos_gpu_free_bytes(llmos_gpu* gpu, int64_t* num_bytes) {
  size_t unused = 0, all = 0;
  int32_t code = enter(gpu);
  if (code) return code;
  code = check(driver.memory_info(&unused, &all), "its memory can't be measured");
  *num_bytes = (int64_t)unused;
  leave();
  return code;
}

int32_t llmos_gpu_synchronize(llmos_gpu* gpu) {
  int32_t code = enter(gpu);
  if (code) return code;
  code = check(driver.stream_synchronize(NULL), "its work failed");
  leave();
  return code;
}

/* ---- Code ---- */

static int32_t load_module(llmos_gpu_code* code, const void* image, const char* what) {
  char log[LOG_BYTES] = "";
  int options[] = {CU_ERROR_LOG, CU_ERROR_LOG_BYTES};
  void* values[] = {log, (void*)(uintptr_t)sizeof log};
  CUresult result = driver.module_load(&code->module, image, 2, options, values);
  log[strcspn(log, "\n")] = '\0';
  return result == CUDA_SUCCESS || !log[0] ? check(result, what) : fail(LLMOS_ERROR_DEVICE, "the GPU: %s: %s", what, log);
}

static int32_t find_kernels(llmos_gpu_code* code, const char* names) {
  for (const char* name = names; *name; name += strlen(name) + 1) ++code->num_functions;
  code->functions = calloc((size_t)code->num_functions + 1, sizeof *code->functions);
  if (!code->functions) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  int32_t most = 0, failed = attribute(code->gpu, CU_SHARED_BYTES_OPTIN, &most);
  for (int32_t i = 0; i < code->num_functions && !failed; ++i, names += strlen(names) + 1) {
    failed = check(driver.module_function(code->functions + i, code->module, names), "a kernel is missing");
    if (!failed) failed = check(driver.function_set(code->functions[i], CU_MAX_DYNAMIC_SHARED_BYTES, most), "a kernel can't have its shared memory");
  }
  return failed;
}

int32_t gpu_code_load(llmos_gpu* gpu, const void* cubin, const void* ptx, const char* names, llmos_gpu_code** result) {
  llmos_gpu_code* code = calloc(1, sizeof *code);
  *result = code;
  if (!code) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  atomic_fetch_add(&gpu->references, 1);
  code->gpu = gpu;
  int32_t failed = enter(gpu);
  if (failed) return failed;
  failed = check(driver.stream_create(&code->stream, CU_STREAM_NON_BLOCKING), "no stream");
  /* A cubin is for one chip: where it doesn't fit, the driver compiles the PTX. */
  if (!failed && (!cubin || load_module(code, cubin, "its code can't be loaded"))) failed = load_module(code, ptx, "its PTX can't be compiled");
  if (!failed) failed = find_kernels(code, names);
  leave();
  return failed;
}

/* Through two halves of pinned memory: one is filled while the other is copied. */
static int32_t upload(CUstream stream, CUdeviceptr target, const uint8_t* data, size_t size, uint8_t* pinned) {
  int32_t code = LLMOS_OK;
  size_t half = STAGE_BYTES / 2, part = 0;
  for (size_t at = 0; at < size && !code; at += half, ++part) {
    size_t bytes = size - at < half ? size - at : half;
    uint8_t* place = pinned + (part & 1) * half;
    if (part >= 2) code = check(driver.stream_synchronize(stream), "a copy failed");
    if (code) break;
    memcpy(place, data + at, bytes);
    code = check(driver.copy(target + at, (CUdeviceptr)(uintptr_t)place, bytes, stream), "a copy failed");
  }
  return code;
}

int32_t gpu_code_weights(llmos_gpu_code* code, const uint8_t* data, uint64_t num_bytes, const void** base) {
  void* pinned = NULL;
  int32_t failed = enter(code->gpu);
  if (failed) return failed;
  failed = check(driver.allocate(&code->weights, num_bytes ? num_bytes : 1, code->stream), "no memory for the weights");
  if (!failed) failed = check(driver.allocate_pinned(&pinned, STAGE_BYTES), "no pinned memory");
  if (!failed) failed = upload(code->stream, code->weights, data, num_bytes, pinned);
  CUresult waited = driver.stream_synchronize(code->stream); /* after a failure too: copies still read the pinned memory */
  if (!failed) failed = check(waited, "the weights can't be copied");
  if (pinned) driver.release_pinned(pinned);
  leave();
  *base = (const void*)(uintptr_t)code->weights;
  return failed;
}

void gpu_code_free(llmos_gpu_code* code) {
  if (!code) return;
  if (code->gpu->context && !enter(code->gpu)) {
    if (code->weights) driver.release(code->weights, code->stream);
    if (code->stream) driver.stream_synchronize(code->stream), driver.stream_destroy(code->stream);
    if (code->module) driver.module_unload(code->module);
    leave();
  }
  free(code->functions);
  llmos_gpu_close(code->gpu);
  free(code);
}

/* ---- What generated code calls ---- */

static int32_t noted(llmos_gpu_call* self, int32_t code) {
  if (code && !self->failure) self->failure = code;
  return code;
}

static void* allocate(llmos_device* device, int64_t num_bytes) { return gpu_call_allocate((llmos_gpu_call*)device, num_bytes, false); }

static void release(llmos_device* device, void* memory) { (void)device, (void)memory; /* at the end of the call */ }

static int32_t copy(llmos_device* device, void* target, const void* source, int64_t num_bytes, void* stream) {
  if (num_bytes <= 0) return num_bytes ? LLMOS_BAD_ARGUMENTS : LLMOS_OK;
  CUresult copied = driver.copy((CUdeviceptr)(uintptr_t)target, (CUdeviceptr)(uintptr_t)source, (size_t)num_bytes, stream);
  return noted((llmos_gpu_call*)device, check(copied, "a copy failed"));
}

static int32_t synchronize(llmos_device* device, void* stream) {
  return noted((llmos_gpu_call*)device, check(driver.stream_synchronize(stream), "its work failed"));
}

static int32_t launch(llmos_device* device, int32_t kernel, const llmos_grid* grid, void** arguments, void* stream) {
  llmos_gpu_call* self = (llmos_gpu_call*)device;
  const uint32_t *blocks = grid->blocks, *threads = grid->threads;
  if (kernel < 0 || kernel >= self->code->num_functions) return LLMOS_BAD_ARGUMENTS;
  if (!blocks[0] || !blocks[1] || !blocks[2]) return LLMOS_OK;
  arguments[0] = &self->error;
  int64_t begin = self->launched ? now_ns() : 0;
  int32_t code = check(driver.launch(self->code->functions[kernel], blocks[0], blocks[1], blocks[2], threads[0], threads[1], threads[2],
                                     grid->shared_bytes, stream, arguments, NULL), "a kernel can't be started");
  if (!code && self->launched) {
    code = synchronize(device, stream);
    self->launched(self->told, grid->dispatch, (int64_t)blocks[0] * blocks[1] * blocks[2], begin);
  }
  return noted(self, code);
}

/* ---- Calls ---- */

int32_t gpu_call_new(llmos_gpu_code* code, llmos_gpu_call** result) {
  llmos_gpu_call* self = calloc(1, sizeof *self);
  *result = self;
  if (!self) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  self->abi = (llmos_device){{2, code->gpu->index}, allocate, release, copy, synchronize, launch};
  self->code = code;
  int32_t failed = enter(code->gpu);
  if (failed) return failed;
  failed = check(driver.stream_create(&self->stream, CU_STREAM_NON_BLOCKING), "no stream");
  if (!failed) failed = check(driver.allocate(&self->error, sizeof(int32_t), self->stream), "no memory");
  if (!failed) failed = check(driver.allocate_pinned((void**)&self->pinned, STAGE_BYTES), "no pinned memory");
  leave();
  return failed;
}

void gpu_call_free(llmos_gpu_call* self) {
  if (!self) return;
  if (!enter(self->code->gpu)) {
    if (self->error) driver.release(self->error, self->stream);
    if (self->stream) driver.stream_synchronize(self->stream), driver.stream_destroy(self->stream);
    if (self->pinned) driver.release_pinned(self->pinned);
    leave();
  }
  free(self);
}

llmos_device* gpu_call_device(llmos_gpu_call* self) { return &self->abi; }

void* gpu_call_stream(llmos_gpu_call* self) { return self->stream; }

int32_t gpu_call_begin(llmos_gpu_call* self, llmos_gpu_launched launched, void* told) {
  self->launched = launched;
  self->told = told;
  int32_t code = enter(self->code->gpu);
  if (code) return code;
  self->is_running = true;
  self->has_waited = false;
  self->staged = 0; /* the call before has waited for its copies */
  self->failure = LLMOS_OK;
  return check(driver.set_bytes(self->error, 0, sizeof(int32_t), self->stream), "its memory can't be set");
}

void* gpu_call_allocate(llmos_gpu_call* self, int64_t num_bytes, bool poison) {
  llmos_gpu_block* block = num_bytes < 0 ? NULL : malloc(sizeof *block);
  size_t bytes = num_bytes ? (size_t)num_bytes : 1;
  if (!block) return NULL;
  char what[64];
  snprintf(what, sizeof what, "no memory for %zu bytes", bytes);
  if (noted(self, check(driver.allocate(&block->memory, bytes, self->stream), what))) {
    free(block);
    return NULL;
  }
  block->next = self->blocks;
  self->blocks = block;
  if (poison) noted(self, check(driver.set_bytes(block->memory, 0xFF, bytes, self->stream), "its memory can't be set"));
  return (void*)(uintptr_t)block->memory;
}

/* A copy from pageable memory would wait for all earlier work. Small tensors lie in the pinned memory one behind the other; where it is
 * full, and for a large one, which takes it in parts, the copies before are waited for. */
int32_t gpu_call_upload(llmos_gpu_call* self, DLTensor* tensor, size_t num_bytes) {
  int32_t code = LLMOS_OK;
  void* memory = gpu_call_allocate(self, (int64_t)num_bytes, false);
  if (!memory) return LLMOS_OUT_OF_MEMORY;
  if (num_bytes > STAGE_BYTES - self->staged) {
    code = check(driver.stream_synchronize(self->stream), "a copy failed");
    self->staged = 0;
  }
  if (!code && num_bytes > STAGE_BYTES) {
    code = upload(self->stream, (CUdeviceptr)(uintptr_t)memory, tensor->data, num_bytes, self->pinned);
    self->staged = STAGE_BYTES;
  } else if (!code && num_bytes) {
    uint8_t* place = self->pinned + self->staged;
    memcpy(place, tensor->data, num_bytes);
    code = check(driver.copy((CUdeviceptr)(uintptr_t)memory, (CUdeviceptr)(uintptr_t)place, num_bytes, self->stream), "a copy failed");
    self->staged += num_bytes;
  }
  tensor->data = memory;
  tensor->device = self->abi.id;
  return code;
}

/* Its producer may have written it in the default stream, as DLPack has it where no other stream is named. */
int32_t gpu_call_adopt(llmos_gpu_call* self, DLTensor* tensor, size_t num_bytes) {
  int32_t code = self->has_waited ? LLMOS_OK : check(driver.stream_synchronize(NULL), "what an input is made by failed");
  self->has_waited = true;
  if (code || (uintptr_t)tensor->data % ACCESS_BYTES == 0) return code;
  void* memory = gpu_call_allocate(self, (int64_t)num_bytes, false);
  if (!memory) return LLMOS_OUT_OF_MEMORY;
  code = copy(&self->abi, memory, tensor->data, (int64_t)num_bytes, self->stream);
  tensor->data = memory;
  return code;
}

int32_t gpu_call_copy(llmos_gpu_call* self, void* target, const void* source, size_t num_bytes) {
  int32_t code = copy(&self->abi, target, source, (int64_t)num_bytes, self->stream);
  return code ? code : synchronize(&self->abi, self->stream);
}

int32_t gpu_call_download(llmos_gpu_call* self, void* target, const void* source, size_t num_bytes) {
  int32_t code = LLMOS_OK;
  for (size_t at = 0; at < num_bytes && !code; at += STAGE_BYTES) {
    size_t bytes = num_bytes - at < STAGE_BYTES ? num_bytes - at : STAGE_BYTES;
    code = check(driver.copy((CUdeviceptr)(uintptr_t)self->pinned, (CUdeviceptr)(uintptr_t)source + at, bytes, self->stream), "a copy failed");
    if (!code) code = check(driver.stream_synchronize(self->stream), "its work failed");
    if (!code) memcpy((uint8_t*)target + at, self->pinned, bytes);
  }
  return code;
}

int32_t gpu_call_failure(const llmos_gpu_call* self) { return self->failure; }

/* Waits for the call's work. The code that a kernel stored, or that of a failure. */
int32_t gpu_call_finish(llmos_gpu_call* self) {
  int32_t stored = 0;
  if (self->failure) return self->failure;
  int32_t code = gpu_call_download(self, &stored, (const void*)(uintptr_t)self->error, sizeof stored);
  return code ? code : stored;
}

/* A call that failed may have left work behind, which reads and writes what its caller owns: it is waited for. */
void gpu_call_end(llmos_gpu_call* self, bool has_failed) {
  if (!self->is_running) return;
  self->is_running = false;
  if (has_failed) driver.stream_synchronize(self->stream);
  for (llmos_gpu_block* block = self->blocks; block;) {
    llmos_gpu_block* next = block->next;
    driver.release(block->memory, self->stream);
    free(block);
    block = next;
  }
  self->blocks = NULL;
  leave();
}
