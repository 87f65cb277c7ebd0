/* A program: an artifact's code, loaded for this machine, and its weights, bound to the mapped file. */
#include "core.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

enum { NUM_SLOTS = 64 };

typedef struct {
  llmos_entry run;
  llmos_shapes shapes;
  llmos_guards guards; /* or NULL */
  int32_t num_dims; /* of all outputs */
} llmos_entry_functions;

/* All that one call needs and no other call may touch; kept for the next call. */
typedef struct {
  llmos_context abi; /* first: generated code gets this address */
  const llmos_program* program;
  llmos_arena arena;
  bool poison;
  int32_t failed_dispatch;
  llmos_profile* profile;
  int64_t start_ns;
  int64_t *dims, *true_dims; /* of the outputs: upper bounds, and what the code makes of them */
  DLTensor* tensors;
  TVMFFIAny* arguments;
  llmos_gpu_call* gpu; /* or NULL */
} llmos_call;

struct llmos_program {
  llmos_artifact* artifact;
  const llmos_code* code;
  void* library;
  int descriptor; /* of the code's memory; open as long as the library, which dlopen knows by "/proc/self/fd/<descriptor>" */
  llmos_entry_functions* functions; /* per entry */
  const void** weights;
  llmos_gpu* gpu; /* or NULL: it runs on the CPU */
  llmos_gpu_code* device_code;
  int32_t max_tensors, max_dims;
  atomic_int running;
  _Atomic(llmos_call*) idle[NUM_SLOTS]; /* no lock, so that a fork can't leave one held */
};

/* ---- What generated code calls ---- */

static void* call_arena(llmos_context* context, int64_t num_bytes) {
  llmos_call* self = (llmos_call*)context;
  if (self->gpu) return gpu_call_allocate(self->gpu, num_bytes, self->poison);
  void* memory = arena_alloc(&self->arena, num_bytes);
  if (memory && self->poison) memset(memory, 0xFF, (size_t)num_bytes);
  return memory;
}

static void record(llmos_profile* profile, llmos_profile_record record) {
  if (profile->num_records < profile->capacity) profile->records[profile->num_records] = record;
  ++profile->num_records;
}

static int32_t call_launch(llmos_context* context, llmos_kernel kernel, void* const* buffers, const int64_t* dims, int64_t num_tiles,
                           int64_t scratch_bytes, int32_t dispatch) {
  llmos_call* self = (llmos_call*)context;
  if (dispatch < 0) return pool_launch(kernel, buffers, dims, num_tiles, scratch_bytes);
  int64_t begin = self->profile ? now_ns() : 0;
  int32_t code = pool_launch(kernel, buffers, dims, num_tiles, scratch_bytes);
  if (code) self->failed_dispatch = dispatch;
  if (self->profile) record(self->profile, (llmos_profile_record){dispatch, 0, num_tiles, begin - self->start_ns, now_ns() - begin});
  return code;
}

static void record_launch(void* call, int32_t dispatch, int64_t num_blocks, int64_t begin) {
  llmos_call* self = call;
  record(self->profile, (llmos_profile_record){dispatch, 0, num_blocks, begin - self->start_ns, now_ns() - begin});
}

/* ---- Calls ---- */

static void call_free(llmos_call* self) {
  gpu_call_free(self->gpu);
  arena_free(&self->arena);
  free(self->dims);
  free(self->true_dims);
  free(self->tensors);
  free(self->arguments);
  free(self);
}

static int32_t call_new(const llmos_program* program, llmos_call** result) {
  llmos_call* self = calloc(1, sizeof *self);
  if (!self) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  size_t num_tensors = (size_t)program->max_tensors + 1, num_dims = (size_t)program->max_dims + 1;
  self->abi = (llmos_context){program->weights, call_arena, call_launch, 1, &cpu_device, NULL};
  self->program = program;
  self->dims = calloc(num_dims, sizeof *self->dims);
  self->true_dims = calloc(num_dims, sizeof *self->true_dims);
  self->tensors = calloc(num_tensors, sizeof *self->tensors);
  self->arguments = calloc(num_tensors, sizeof *self->arguments);
  bool ready = self->dims && self->true_dims && self->tensors && self->arguments;
  int32_t code = ready ? LLMOS_OK : fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  if (!code && program->gpu) code = gpu_call_new(program->device_code, &self->gpu);
  if (code) {
    call_free(self);
    return code;
  }
  if (self->gpu) {
    self->abi.device = gpu_call_device(self->gpu);
    self->abi.stream = gpu_call_stream(self->gpu);
  }
  *result = self;
  return LLMOS_OK;
}

static int32_t take_call(llmos_program* program, llmos_call** result) {
  for (int i = 0; i < NUM_SLOTS; ++i) {
    *result = atomic_load_explicit(&program->idle[i], memory_order_relaxed) ? atomic_exchange(&program->idle[i], NULL) : NULL;
    if (*result) return LLMOS_OK;
  }
  return call_new(program, result);
}

static void give_back(llmos_program* program, llmos_call* self) {
  for (int i = 0; i < NUM_SLOTS; ++i) {
    llmos_call* none = NULL;
    if (atomic_compare_exchange_strong(&program->idle[i], &none, self)) return;
  }
  call_free(self);
}

/* ---- Loading code ---- */

static int32_t make_memfd(const char* name) {
  int descriptor = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
  return descriptor < 0 && errno == EINVAL ? memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING) : descriptor;
}

static bool write_all(int descriptor, const uint8_t* data, size_t size) {
  while (size) {
    ssize_t written = write(descriptor, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

/* Copies the member and hashes the sealed copy: a file that changes under us can't slip other code in. */
static int32_t copy_code(const llmos_artifact* artifact, const llmos_code* code, int* descriptor) {
  char name[64];
  const llmos_listed_member* member = artifact_listed(artifact, code->member);
  snprintf(name, sizeof name, "llmos:%.20s:%.20s", artifact->manifest.name, code->target);
  *descriptor = make_memfd(name);
  if (*descriptor < 0) return fail(LLMOS_ERROR_ARTIFACT, "can't make memory for its code: %s", strerror(errno));
  if (!write_all(*descriptor, member->data, member->num_bytes) ||
      fcntl(*descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
    return fail(LLMOS_OUT_OF_MEMORY, "can't copy its code: %s", strerror(errno));
  }
  if (!member->num_bytes) return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" is empty", code->member);
  const uint8_t* copy = mmap(NULL, member->num_bytes, PROT_READ, MAP_PRIVATE, *descriptor, 0);
  if (copy == MAP_FAILED) return fail(LLMOS_OUT_OF_MEMORY, "can't map its code: %s", strerror(errno));
  bool same = matching_chunks(member, copy, 0, member->num_chunks) == member->num_chunks;
  munmap((void*)copy, member->num_bytes);
  return same ? LLMOS_OK : fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" changed while it was loaded", code->member);
}

static int32_t load_code(llmos_program* program) {
  char path[64];
  int32_t code = copy_code(program->artifact, program->code, &program->descriptor);
  if (code) return code;
  /* A number that was used again would make dlopen return the library that had it before. */
  snprintf(path, sizeof path, "/proc/self/fd/%d", program->descriptor);
  program->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!program->library) return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" can't be loaded: %s", program->code->member, dlerror());
  const int32_t* version = dlsym(program->library, "__llmos_abi_version");
  if (!version || (*version >= 1 && *version <= LLMOS_ABI_VERSION)) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" needs version %d of the ABI and this llmos has %d: install a newer llmos",
              program->code->member, *version, LLMOS_ABI_VERSION);
}

static int32_t bind_entry(llmos_program* program, const llmos_entry_spec* entry, llmos_entry_functions* result) {
  void* run = dlsym(program->library, entry->symbol);
  void* shapes = dlsym(program->library, entry->shapes);
  if (!run || !shapes) {
    return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" has no function \"%s\"", program->code->member, run ? entry->shapes : entry->symbol);
  }
  memcpy(&result->run, &run, sizeof run); /* ISO C knows no cast from an object pointer to a function pointer */
  memcpy(&result->shapes, &shapes, sizeof shapes);
  void* guards = entry->guards ? dlsym(program->library, entry->guards) : NULL;
  if (entry->guards && !guards) return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" has no function \"%s\"", program->code->member, entry->guards);
  memcpy(&result->guards, &guards, sizeof guards);
  int32_t num_tensors = entry->num_inputs + entry->num_outputs;
  for (int32_t i = 0; i < entry->num_outputs; ++i) result->num_dims += entry->outputs[i].info.ndim;
  if (num_tensors > program->max_tensors) program->max_tensors = num_tensors;
  if (result->num_dims > program->max_dims) program->max_dims = result->num_dims;
  return LLMOS_OK;
}

static int32_t bind(llmos_program* program) {
  const llmos_manifest* manifest = &program->artifact->manifest;
  program->functions = calloc((size_t)manifest->num_entries + 1, sizeof *program->functions);
  program->weights = calloc((size_t)manifest->num_weights + 1, sizeof *program->weights);
  if (!program->functions || !program->weights) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  const void* base = program->artifact->weights;
  int32_t code = program->gpu && manifest->num_weights ? gpu_code_weights(program->device_code, base, program->artifact->weights_bytes, &base) : LLMOS_OK;
  for (int32_t i = 0; i < manifest->num_weights; ++i) program->weights[i] = (const uint8_t*)base + manifest->weights[i].offset;
  for (int32_t i = 0; i < manifest->num_entries && !code; ++i) code = bind_entry(program, manifest->entries + i, program->functions + i);
  return code;
}

/* A private copy of a member, hashed after it was copied, and ended by a NUL; NULL and an error where that can't be. */
static uint8_t* copied_member(const llmos_artifact* artifact, const char* name) {
  const llmos_listed_member* member = artifact_listed(artifact, name);
  uint8_t* copy = malloc(member->num_bytes + 1);
  if (!copy) return fail(LLMOS_OUT_OF_MEMORY, "out of memory"), NULL;
  memcpy(copy, member->data, member->num_bytes);
  copy[member->num_bytes] = 0;
  if (matching_chunks(member, copy, 0, member->num_chunks) == member->num_chunks) return copy;
  free(copy);
  return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" changed while it was loaded", name), NULL;
}

static int32_t load_device_code(llmos_program* program) {
  const char* names = dlsym(program->library, "__llmos_device_kernels");
  if (!names) return fail(LLMOS_ERROR_ARTIFACT, "code member \"%s\" lists no kernels", program->code->member);
  uint8_t* ptx = copied_member(program->artifact, program->code->ptx);
  uint8_t* cubin = ptx && program->code->cubin ? copied_member(program->artifact, program->code->cubin) : NULL;
  int32_t code = LLMOS_ERROR_ARTIFACT;
  if (ptx && (cubin || !program->code->cubin)) code = gpu_code_load(program->gpu, cubin, ptx, names, &program->device_code);
  free(ptx);
  free(cubin);
  return code;
}

static int32_t choose_code(const llmos_artifact* artifact, int32_t index, const llmos_gpu* gpu, const llmos_code** result) {
  char missing[256];
  if (index == -1) index = llmos_artifact_choose_on(artifact, gpu);
  if (index == -1) return fail(LLMOS_ERROR_ARTIFACT, "it has no code for this machine (%s); compile it again with --target native on it", llmos_host_arch());
  if (index < 0 || index >= artifact->manifest.num_code) return fail(LLMOS_BAD_ARGUMENTS, "there is no code member %d", index);
  *result = artifact->manifest.code + index;
  if (llmos_artifact_missing_on(artifact, index, gpu, missing, sizeof missing) == 0) return LLMOS_OK;
  return fail(LLMOS_ERROR_ARTIFACT, "code \"%s\" is not for this machine: it needs %s", (*result)->target, missing);
}

int32_t llmos_program_open(llmos_artifact* artifact, int32_t index, uint32_t flags, llmos_program** result) {
  return llmos_program_open_on(artifact, index, flags, NULL, result);
}

int32_t llmos_program_open_on(llmos_artifact* artifact, int32_t index, uint32_t flags, llmos_gpu* gpu, llmos_program** result) {
  *result = NULL;
  if (!(flags & LLMOS_TRUST_ALWAYS)) return fail(LLMOS_ERROR_ARTIFACT, "its code is not vouched for: check the signature, then pass LLMOS_TRUST_ALWAYS");
  llmos_program* program = calloc(1, sizeof *program);
  if (!program) return fail(LLMOS_OUT_OF_MEMORY, "out of memory");
  atomic_fetch_add(&artifact->references, 1);
  program->artifact = artifact;
  program->descriptor = -1;
  program->gpu = gpu;
  int32_t code = choose_code(artifact, index, gpu, &program->code);
  if (!code) code = load_code(program);
  if (!code && gpu) code = load_device_code(program);
  if (!code) code = bind(program);
  if (code) {
    llmos_program_close(program);
    return code;
  }
  *result = program;
  return LLMOS_OK;
}

void llmos_program_close(llmos_program* program) {
  if (!program) return;
  for (int i = 0; i < NUM_SLOTS; ++i) {
    llmos_call* idle = atomic_exchange(&program->idle[i], NULL);
    if (idle) call_free(idle);
  }
  gpu_code_free(program->device_code);
  if (program->library) dlclose(program->library);
  if (program->descriptor >= 0) close(program->descriptor);
  free(program->functions);
  free(program->weights);
  llmos_artifact_close(program->artifact);
  free(program);
}

/* ---- What there is to call ---- */

static const llmos_entry_spec* entry_at(const llmos_program* program, int32_t index) {
  const llmos_manifest* manifest = &program->artifact->manifest;
  return index >= 0 && index < manifest->num_entries ? manifest->entries + index : NULL;
}

int32_t llmos_program_entry(const llmos_program* program, const char* name) {
  const llmos_manifest* manifest = &program->artifact->manifest;
  for (int32_t i = 0; i < manifest->num_entries; ++i) {
    if (strcmp(manifest->entries[i].name, name) == 0) return i;
  }
  return -1;
}

int32_t llmos_program_info(const llmos_program* program, int32_t index, llmos_entry_info* info) {
  const llmos_entry_spec* entry = entry_at(program, index);
  if (!entry) return fail(LLMOS_BAD_ARGUMENTS, "there is no entry %d", index);
  *info = (llmos_entry_info){entry->name, entry->num_inputs, entry->num_outputs};
  return LLMOS_OK;
}

int32_t llmos_program_tensor(const llmos_program* program, int32_t index, int32_t position, llmos_tensor_info* info) {
  const llmos_entry_spec* entry = entry_at(program, index);
  if (!entry || position < 0 || position >= entry->num_inputs + entry->num_outputs) {
    return fail(LLMOS_BAD_ARGUMENTS, "there is no tensor %d of entry %d", position, index);
  }
  bool input = position < entry->num_inputs;
  *info = (input ? entry->inputs + position : entry->outputs + (position - entry->num_inputs))->info;
  return LLMOS_OK;
}

int32_t llmos_program_updates(const llmos_program* program, int32_t index, int32_t position) {
  const llmos_entry_spec* entry = entry_at(program, index);
  return entry && position >= 0 && position < entry->num_inputs && entry->inputs[position].updated;
}

/* ---- Running ---- */

int32_t llmos_program_shapes(const llmos_program* program, int32_t index, const DLTensor* const* inputs, int32_t num_inputs,
                             int64_t* dims) {
  int64_t symbols[MAX_SYMBOLS];
  const llmos_entry_spec* entry = entry_at(program, index);
  if (!entry) return fail(LLMOS_BAD_ARGUMENTS, "there is no entry %d", index);
  int32_t code = check_inputs(&program->artifact->manifest, entry, inputs, num_inputs, gpu_index(program->gpu), symbols);
  const llmos_entry_functions* functions = program->functions + index;
  if (!code && functions->guards) code = check_guards(&program->artifact->manifest, entry, symbols, functions->guards(symbols));
  if (code) return code;
  functions->shapes(symbols, dims);
  return check_dims(entry, dims);
}

/* Copies, because the caller's byte_offset must reach generated code as part of data. */
static void set_argument(llmos_call* self, int32_t index, const DLTensor* source) {
  self->tensors[index] = *source;
  self->tensors[index].data = (char*)source->data + source->byte_offset;
  self->tensors[index].byte_offset = 0;
  self->arguments[index] = (TVMFFIAny){.type_index = LLMOS_TYPE_DLTENSOR_PTR, .v_ptr = self->tensors + index};
}

static int32_t run_error(const llmos_call* self, const llmos_entry_spec* entry, int32_t code) {
  static const char* const meaning[] = {"", "an index in the data is out of range", "out of memory", "it was given bad arguments",
                                        "an internal error", "a size that the data gives is out of range"};
  const llmos_manifest* manifest = &self->program->artifact->manifest;
  if (code == LLMOS_ERROR_DEVICE) return code; /* with its own message */
  if (self->gpu && gpu_call_failure(self->gpu)) return gpu_call_failure(self->gpu);
  bool known = code > 0 && code <= LLMOS_SIZE_OUT_OF_RANGE;
  const char* where = self->failed_dispatch >= 0 && self->failed_dispatch < manifest->num_kernels ? manifest->kernels[self->failed_dispatch] : NULL;
  return fail(known ? code : LLMOS_INTERNAL, "entry \"%s\": %s (code %d%s%s)", entry->name, known ? meaning[code] : "its code failed", code,
              where ? ", in dispatch " : "", where ? where : "");
}

static size_t bytes_of(const DLTensor* tensor) {
  size_t bytes = (size_t)(tensor->dtype.bits / 8) * tensor->dtype.lanes;
  for (int32_t i = 0; i < tensor->ndim; ++i) bytes *= (size_t)tensor->shape[i];
  return bytes;
}

static bool is_on_gpu(const DLTensor* tensor) { return tensor->device.device_type != 1; }

/* Inputs to the GPU, and memory there for outputs. What is there already stays where it lies. */
static int32_t move_in(llmos_call* self, const llmos_entry_spec* entry) {
  int32_t code = gpu_call_begin(self->gpu, self->profile ? record_launch : NULL, self);
  for (int32_t i = 0; i < entry->num_inputs && !code; ++i) {
    DLTensor* tensor = self->tensors + i;
    code = (is_on_gpu(tensor) ? gpu_call_adopt : gpu_call_upload)(self->gpu, tensor, bytes_of(tensor));
  }
  for (int32_t i = entry->num_inputs; i < entry->num_inputs + entry->num_outputs && !code; ++i) {
    if (is_on_gpu(self->tensors + i)) {
      code = gpu_call_adopt(self->gpu, self->tensors + i, bytes_of(self->tensors + i));
      continue;
    }
    self->tensors[i].data = gpu_call_allocate(self->gpu, (int64_t)bytes_of(self->tensors + i), self->poison);
    self->tensors[i].device = self->abi.device->id;
    if (!self->tensors[i].data) code = LLMOS_OUT_OF_MEMORY;
  }
  return code;
}

/* Outputs and updated inputs from the GPU, once its work is done and went well. */
static int32_t move_out(llmos_call* self, const llmos_entry_spec* entry, const DLTensor* const* inputs, const DLTensor* const* outputs) {
  int32_t code = LLMOS_OK;
  for (int32_t i = 0; i < entry->num_inputs + entry->num_outputs && !code; ++i) {
    bool is_input = i < entry->num_inputs;
    const DLTensor* target = is_input ? inputs[i] : outputs[i - entry->num_inputs];
    if (is_input && !entry->inputs[i].updated) continue;
    void *place = (char*)target->data + target->byte_offset, *made = self->tensors[i].data;
    if (place != made) code = (is_on_gpu(target) ? gpu_call_copy : gpu_call_download)(self->gpu, place, made, bytes_of(self->tensors + i));
  }
  return code;
}

static int32_t run_entry(llmos_call* self, const llmos_entry_spec* entry, const llmos_entry_functions* functions) {
  TVMFFIAny result = {.type_index = LLMOS_TYPE_NONE};
  self->start_ns = self->profile ? now_ns() : 0;
  self->abi.num_threads = llmos_num_threads();
  uint32_t mode = set_float_mode(0x1F80); /* the caller's must not reach results */
  int32_t code = functions->run(&self->abi, self->arguments, entry->num_inputs + entry->num_outputs, &result);
  set_float_mode(mode);
  if (!code && self->gpu) code = gpu_call_finish(self->gpu);
  if (self->profile) self->profile->total_ns = now_ns() - self->start_ns;
  return code ? run_error(self, entry, code) : LLMOS_OK;
}

/* Outputs get shapes of the call's own, which the code may lower: a caller's arrays change only once all went well. */
static void set_outputs(llmos_call* self, const llmos_entry_spec* entry, const DLTensor* const* outputs) {
  int64_t* dims = self->true_dims;
  for (int32_t i = 0; i < entry->num_outputs; dims += entry->outputs[i].info.ndim, ++i) {
    set_argument(self, entry->num_inputs + i, outputs[i]);
    self->tensors[entry->num_inputs + i].shape = dims;
  }
}

static int32_t hand_over_dims(const llmos_call* self, const llmos_entry_spec* entry, const DLTensor* const* outputs) {
  const int64_t *most = self->dims, *dims = self->true_dims;
  for (int32_t i = 0; i < entry->num_outputs; ++i) {
    for (int32_t d = 0; d < entry->outputs[i].info.ndim; ++d, ++dims, ++most) {
      if (*dims == *most) continue;
      if (*dims < 0 || *dims > *most) return fail(LLMOS_INTERNAL, "output \"%s\": the artifact's code gives size %lld for dim %d", entry->outputs[i].info.name, (long long)*dims, d);
      outputs[i]->shape[d] = *dims;
    }
  }
  return LLMOS_OK;
}

static int32_t run_call(llmos_call* self, int32_t index, const DLTensor* const* inputs, const DLTensor* const* outputs,
                        int32_t num_outputs) {
  const llmos_entry_spec* entry = entry_at(self->program, index);
  int32_t code = llmos_program_shapes(self->program, index, inputs, entry->num_inputs, self->dims);
  if (!code) code = check_outputs(entry, outputs, num_outputs, gpu_index(self->program->gpu), self->dims);
  if (!code) code = check_updated(entry, inputs, outputs);
  if (code) return code;
  for (int32_t i = 0; i < entry->num_inputs; ++i) set_argument(self, i, inputs[i]);
  memcpy(self->true_dims, self->dims, (size_t)self->program->functions[index].num_dims * sizeof *self->dims);
  set_outputs(self, entry, outputs);
  if (self->gpu && (code = move_in(self, entry))) return run_error(self, entry, code);
  code = run_entry(self, entry, self->program->functions + index);
  if (!code && self->gpu && (code = move_out(self, entry, inputs, outputs))) return run_error(self, entry, code);
  return code ? code : hand_over_dims(self, entry, outputs);
}

int32_t llmos_program_run(llmos_program* program, int32_t index, const DLTensor* const* inputs, int32_t num_inputs,
                          const DLTensor* const* outputs, int32_t num_outputs, uint32_t flags, llmos_profile* profile) {
  const llmos_entry_spec* entry = entry_at(program, index);
  if (!entry) return fail(LLMOS_BAD_ARGUMENTS, "there is no entry %d", index);
  if (num_inputs != entry->num_inputs) {
    return fail(LLMOS_ERROR_INPUT, "entry \"%s\": expected %d inputs, got %d", entry->name, entry->num_inputs, num_inputs);
  }
  llmos_call* self;
  int32_t code = take_call(program, &self);
  if (code) return code;
  atomic_fetch_add(&program->running, 1);
  self->poison = flags & LLMOS_POISON_ARENA;
  self->failed_dispatch = -1;
  self->profile = profile;
  if (profile) profile->num_records = profile->total_ns = 0;
  code = run_call(self, index, inputs, outputs, num_outputs);
  arena_reset(&self->arena);
  if (self->gpu) gpu_call_end(self->gpu, code != LLMOS_OK);
  atomic_fetch_sub(&program->running, 1);
  give_back(program, self);
  return code;
}

int32_t llmos_program_check(llmos_program* program) {
  if (atomic_load(&program->running)) return fail(LLMOS_INTERNAL, "a run is under way");
  for (int i = 0; i < NUM_SLOTS; ++i) {
    llmos_call* idle = atomic_exchange(&program->idle[i], NULL);
    if (!idle) continue;
    bool intact = arena_intact(&idle->arena);
    give_back(program, idle);
    if (!intact) return fail(LLMOS_INTERNAL, "a run wrote past the end of its arena");
  }
  return LLMOS_OK;
}
