/* What the files of the core share. Nothing here is visible outside the library (-fvisibility=hidden). */
#ifndef LLMOS_CORE_H_
#define LLMOS_CORE_H_

/* Before any header: memfd_create, affinity, thread names. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <llmos/llmos.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

enum { ALIGNMENT = 64, MAX_NDIM = 16, MAX_SYMBOLS = 64, FORMAT = 5, OLDEST_FORMAT = 1, CHUNK_BYTES = 1 << 20 };

/* ---- error.c: messages, per thread ---- */
int32_t fail(int32_t code, const char* format, ...) __attribute__((format(printf, 2, 3)));
void prefix_error(const char* prefix);

/* ---- memory.c: zones (freed all at once) and arenas (reused call after call) ---- */
typedef struct llmos_zone {
  struct llmos_zone_block* blocks;
} llmos_zone;
void* zone_alloc(llmos_zone* zone, size_t count, size_t size); /* zeroed, 16-byte aligned; NULL: out of memory */
char* zone_string(llmos_zone* zone, const char* text, size_t size);
void zone_free(llmos_zone* zone);

typedef struct llmos_arena {
  struct llmos_arena_block* blocks; /* the newest first; a call that needed several leaves one that holds them all */
  int64_t wanted;             /* bytes the present call has asked for */
} llmos_arena;
void* arena_alloc(llmos_arena* arena, int64_t num_bytes);
void arena_reset(llmos_arena* arena);
bool arena_intact(const llmos_arena* arena);
void arena_free(llmos_arena* arena);

/* ---- sha256.c ---- */
void sha256(const uint8_t* const* data, size_t size, int lanes, uint8_t (*digests)[32]); /* lanes: 1 or 2 messages of one size */
uint32_t crc32_of(const void* data, size_t size);

/* ---- json.c: a document as a flat array of nodes in document order ---- */
typedef enum { JSON_NULL, JSON_BOOL, JSON_INTEGER, JSON_REAL, JSON_STRING, JSON_ARRAY, JSON_OBJECT } llmos_json_type;
typedef struct {
  llmos_json_type type;
  uint32_t count; /* children of an array; pairs of an object */
  uint32_t next;  /* the index of the node after this one and all it holds */
  int64_t integer; /* of a bool: 0 or 1 */
  const char* string; /* NUL-terminated UTF-8 without NULs inside */
} llmos_json_node;
typedef struct {
  llmos_json_node* nodes;
  size_t num_nodes;
  char* strings;
} llmos_json;
int32_t json_parse(const char* text, size_t size, llmos_json* document);
void json_free(llmos_json* document);

/* ---- expression.c: integer expressions of symbols in dims ---- */
typedef struct {
  const char* name;
  int64_t min, max;
} llmos_symbol;
bool evaluate(const char* text, const llmos_symbol* symbols, int32_t num_symbols, const int64_t* values, int64_t* result);

/* ---- manifest.c ---- */
typedef struct {
  int64_t size;           /* -1 where it is not fixed */
  int32_t symbol;         /* or -1 */
  const char* expression; /* the text of a dim that is no number, or NULL */
} llmos_dim;

typedef struct {
  llmos_tensor_info info;
  const llmos_dim* dims;
  bool updated; /* an input whose new value the entry writes where it lies */
} llmos_tensor_spec;

typedef struct {
  const char *name, *symbol, *shapes, *guards; /* guards: NULL where ranges say all */
  const char* const* conditions;               /* what the guards check, for messages */
  int32_t num_inputs, num_outputs, num_conditions;
  const llmos_tensor_spec *inputs, *outputs;
} llmos_entry_spec;

typedef struct {
  const char* name;
  uint64_t offset, num_bytes;
} llmos_weight;

typedef struct {
  const char *target, *arch, *member;
  const char *ptx, *cubin; /* members that a device loads, or NULL */
  const char* const* features;
  int32_t num_features;
} llmos_code;

typedef struct {
  const char* name;
  uint64_t num_bytes;
  int64_t first_chunk, num_chunks; /* chunks are counted through all members */
  const uint8_t (*sha256)[32];
  const uint8_t* data; /* set by artifact.c */
} llmos_listed_member;

typedef struct {
  const char* name;
  int32_t num_symbols, num_entries, num_weights, num_code, num_kernels, num_members;
  const llmos_symbol* symbols;
  const llmos_entry_spec* entries;
  const llmos_weight* weights;
  const llmos_code* code;
  const char* const* kernels;
  llmos_listed_member* members;
} llmos_manifest;
int32_t manifest_parse(const char* text, size_t size, llmos_zone* zone, llmos_manifest* result);

const char* dtype_name(DLDataType dtype, char buffer[32]);
bool dtype_parse(const char* name, DLDataType* dtype);

/* ---- zip.c ---- */
typedef struct {
  const char* name;
  const uint8_t* data;
  uint64_t num_bytes;
  uint32_t crc;
} llmos_zip_member;
int32_t zip_parse(const uint8_t* file, uint64_t size, llmos_zone* zone, llmos_zip_member** members, int32_t* num_members);

/* ---- artifact.c ---- */
struct llmos_artifact {
  atomic_int references;
  llmos_zone zone;
  const uint8_t* file;
  size_t file_bytes;
  const char* manifest_text; /* a private copy: what was checked is what is used */
  size_t manifest_bytes;
  llmos_manifest manifest;
  llmos_zip_member* members; /* the manifest, what it lists in its order, and perhaps the signature */
  int32_t num_members;
  const uint8_t* weights; /* the data of weights.safetensors */
  uint64_t weights_bytes;
};
const llmos_listed_member* artifact_listed(const llmos_artifact* artifact, const char* name);
int64_t matching_chunks(const llmos_listed_member* member, const uint8_t* data, int64_t begin, int64_t end);

/* ---- cpu.c ---- */
bool host_has(const char* feature);
bool host_has_arch(const char* arch);
int32_t host_num_cores(void);

/* ---- device.c ---- */
extern llmos_device cpu_device;

/* ---- cuda.c ---- */
typedef struct llmos_gpu_code llmos_gpu_code; /* kernels and weights of a program */
typedef struct llmos_gpu_call llmos_gpu_call; /* stream and memory of a call */
typedef void (*llmos_gpu_launched)(void* told, int32_t dispatch, int64_t num_blocks, int64_t begin_ns);
int32_t gpu_index(const llmos_gpu* gpu); /* -1 for NULL */
bool gpu_runs(const llmos_gpu* gpu, const char* chip);
int32_t gpu_code_load(llmos_gpu* gpu, const void* cubin, const void* ptx, const char* names, llmos_gpu_code** result); /* free it in any case */
int32_t gpu_code_weights(llmos_gpu_code* code, const uint8_t* data, uint64_t num_bytes, const void** base);
void gpu_code_free(llmos_gpu_code* code);
int32_t gpu_call_new(llmos_gpu_code* code, llmos_gpu_call** result); /* free it in any case */
void gpu_call_free(llmos_gpu_call* call);
llmos_device* gpu_call_device(llmos_gpu_call* call);
void* gpu_call_stream(llmos_gpu_call* call);
int32_t gpu_call_begin(llmos_gpu_call* call, llmos_gpu_launched launched, void* told); /* launched: NULL, or told of each when it is done */
void* gpu_call_allocate(llmos_gpu_call* call, int64_t num_bytes, bool poison); /* until the end of the call; NULL: out of memory */
int32_t gpu_call_upload(llmos_gpu_call* call, DLTensor* tensor, size_t num_bytes); /* the tensor's data is the copy then */
int32_t gpu_call_adopt(llmos_gpu_call* call, DLTensor* tensor, size_t num_bytes); /* one of this GPU: as it lies, or a copy that is aligned */
int32_t gpu_call_copy(llmos_gpu_call* call, void* target, const void* source, size_t num_bytes); /* on the GPU, done when it returns */
int32_t gpu_call_download(llmos_gpu_call* call, void* target, const void* source, size_t num_bytes);
int32_t gpu_call_failure(const llmos_gpu_call* call); /* of the driver since the call began, with its message; LLMOS_OK for none */
int32_t gpu_call_finish(llmos_gpu_call* call);
void gpu_call_end(llmos_gpu_call* call, bool has_failed); /* gives the call's memory back; nothing where it has not begun */

/* ---- pool.c ---- */
int32_t pool_launch(llmos_kernel kernel, void* const* buffers, const int64_t* dims, int64_t num_tiles, int64_t scratch_bytes);
int64_t now_ns(void);
uint32_t set_float_mode(uint32_t mode); /* gives the one before; 0x1F80 is the default */

/* ---- check.c: tensors of a call against their specification. gpu: the index of one whose memory is taken too, or -1 ---- */
int32_t check_inputs(const llmos_manifest* manifest, const llmos_entry_spec* entry, const DLTensor* const* inputs, int32_t num_inputs,
                     int32_t gpu, int64_t* symbols);
int32_t check_outputs(const llmos_entry_spec* entry, const DLTensor* const* outputs, int32_t num_outputs, int32_t gpu, const int64_t* dims);
/* Inputs that the entry writes into share memory with no other tensor of the call. */
int32_t check_updated(const llmos_entry_spec* entry, const DLTensor* const* inputs, const DLTensor* const* outputs);
int32_t check_dims(const llmos_entry_spec* entry, const int64_t* dims);
/* broken: the number of a condition that does not hold, or -1. */
int32_t check_guards(const llmos_manifest* manifest, const llmos_entry_spec* entry, const int64_t* symbols, int64_t broken);

#endif
