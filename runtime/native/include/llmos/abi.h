/* The ABI between generated code and the llmos C core: what the shared object inside an artifact relies on.
 *
 * The object has no undefined symbols: everything it needs reaches it through the llmos_context. What an object may expect there is
 * a version of this ABI, LLMOS_ABI_VERSION at most: the int32_t that it exports as "__llmos_abi_version", or 1 where it exports none.
 * Versions only add: fields at the end of llmos_context, error codes behind the last, functions that an object exports. So a core runs
 * the objects of its own version and of all before it, and refuses those of later ones; a compiler exports the lowest that says all.
 *   1: weights, arena, launch, num_threads      2: device, stream      3: kernels of a device, by their index
 *
 * Guarantees of the core to generated code:
 *   - weights: one pointer per manifest weight, in manifest order, 64-byte aligned, read-only;
 *   - arena: every block is 64-byte aligned, distinct from the other blocks of the call, valid until the entry returns, and
 *     not cleared; calls run at the same time never share one;
 *   - launch: returns after every tile has run (or, after an error, once no thread is in a kernel any more); the tiles reach
 *     the kernel as disjoint ranges [begin, end) that cover [0, num_tiles), in any order and on any thread; scratch is at least
 *     scratch_bytes long, 64-byte aligned, private to the thread, not cleared, and never NULL when scratch_bytes > 0; kernels
 *     run in the default floating-point mode (round to nearest, denormals kept); only a kernel of one tile may launch, with
 *     -1 as its dispatch (its time and its errors are those of the dispatch around it) and no more scratch than it has itself;
 *   - outputs whose sizes data decides have the shape that llmos_shapes gives, which is their upper bound, and room for it; the
 *     shape array of an output is writable and private to the call;
 *   - inputs that the manifest marks as updated: writable, and in no memory of another argument; the entry writes their new
 *     values there, and may do so in part before it returns an error;
 *   - inputs and outputs of an entry: dense, row-major, on the CPU, aligned to their element only; dtypes, ranks, static dims
 *     and symbol ranges have been checked against the manifest; byte_offset is 0; data may be NULL only where a dim is 0;
 *     strides may be NULL; the core never gives overlapping outputs unless its caller did.
 * Calls of one entry may run at the same time on several threads: generated code keeps no state of its own.
 */
#ifndef LLMOS_ABI_H_
#define LLMOS_ABI_H_

#include <stdint.h>

/* DLPack's DLTensor and TVM FFI's TVMFFIAny, copied from their specifications; the real headers win where they are there. */
#if !defined(DLPACK_DLPACK_H_) && defined(__has_include)
#if __has_include(<dlpack/dlpack.h>)
#include <dlpack/dlpack.h>
#endif
#endif
#ifndef DLPACK_DLPACK_H_
typedef struct {
  int32_t device_type; /* 1: CPU */
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code; /* 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool */
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides; /* in elements; NULL: dense row-major */
  uint64_t byte_offset;
} DLTensor;
#endif

#ifndef TVM_FFI_C_API_H_
typedef struct {
  int32_t type_index;
  uint32_t zero_padding;
  union {
    int64_t v_int64;
    double v_float64;
    void* v_ptr;
  };
} TVMFFIAny;
#endif

#define LLMOS_TYPE_NONE 0          /* kTVMFFINone */
#define LLMOS_TYPE_DLTENSOR_PTR 7  /* kTVMFFIDLTensorPtr */

#ifdef __cplusplus
extern "C" {
#endif

#define LLMOS_ABI_VERSION 3

/* What a kernel, a launch and an entry return. */
enum {
  LLMOS_OK = 0,
  LLMOS_INDEX_OUT_OF_RANGE = 1,
  LLMOS_OUT_OF_MEMORY = 2,
  LLMOS_BAD_ARGUMENTS = 3,
  LLMOS_INTERNAL = 4,
  LLMOS_SIZE_OUT_OF_RANGE = 5 /* a size that the data gives is not one that the entry can have */
};

/* One dispatch: runs tiles [begin, end). buffers: pointers to dense row-major data. scratch: this thread's. */
typedef int32_t (*llmos_kernel)(void* const* buffers, const int64_t* dims, int64_t begin, int64_t end, void* scratch);

/* How many blocks of how many threads a device runs a kernel in, and the memory that the threads of a block share. */
typedef struct llmos_grid {
  uint32_t blocks[3], threads[3]; /* no blocks: nothing to do */
  uint32_t shared_bytes;
  int32_t dispatch; /* from version 3 on: index into the manifest's kernels, for profiles and messages */
} llmos_grid;

/* Where an entry's tensors are and its kernels run. All but `allocate` and `release` come in the order of their stream: a call may return
 * before it is done, and `synchronize` waits for all that came before. stream: of the device's own kind; NULL is its default one.
 * On the CPU memory is the host's, `copy` is done when it returns, and kernels are launched by llmos_context.launch, not by index. */
typedef struct llmos_device {
  DLDevice id; /* as DLPack counts devices */
  void* (*allocate)(struct llmos_device* device, int64_t num_bytes); /* aligned to 64 bytes at least, not cleared; NULL: out of memory */
  void (*release)(struct llmos_device* device, void* memory);        /* of `allocate`, or NULL */
  int32_t (*copy)(struct llmos_device* device, void* target, const void* source, int64_t num_bytes, void* stream); /* device or host, either way */
  int32_t (*synchronize)(struct llmos_device* device, void* stream);
  /* A kernel by its index among those that the object lists as "__llmos_device_kernels". arguments: addresses of what it takes. The first
   * is the device's to fill in: where a kernel stores an error code, which the call returns once its work is done. */
  int32_t (*launch)(struct llmos_device* device, int32_t kernel, const llmos_grid* grid, void** arguments, void* stream);
} llmos_device;

typedef struct llmos_context {
  const void* const* weights;
  /* Temporaries of this call. NULL: out of memory. */
  void* (*arena)(struct llmos_context* context, int64_t num_bytes);
  /* Fork-join over the pool; the first non-zero code of a kernel, or 0. dispatch: index into the manifest's kernels. */
  int32_t (*launch)(struct llmos_context* context, llmos_kernel kernel, void* const* buffers, const int64_t* dims,
                    int64_t num_tiles, int64_t scratch_bytes, int32_t dispatch);
  int64_t num_threads; /* that a launch may run on, this one included */
  /* From version 2 on. */
  llmos_device* device; /* where this call's tensors are; never NULL */
  void* stream;         /* that its work belongs to */
} llmos_context;

/* An entry, exported as the manifest's "symbol" (TVMFFISafeCallType). args: the inputs, then the outputs, each
 * LLMOS_TYPE_DLTENSOR_PTR. handle: the llmos_context. Where the data decides a size of an output, the entry writes the size
 * that it has into the output's shape, and its elements one after the other at the start of its memory, dense in that shape. */
typedef int (*llmos_entry)(void* handle, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result);

/* Exported as the manifest's "shapes": all dims of all outputs, one after the other, from the symbols in manifest order; upper
 * bounds where a dim depends on what the manifest calls "computed". */
typedef void (*llmos_shapes)(const int64_t* symbols, int64_t* dims);

/* Exported as "__llmos_device_kernels" by objects whose kernels run on a device, from version 3 on: the names that these have in the
 * device's code, each ended by a NUL, and an empty one behind the last. */
typedef char llmos_device_kernels[];

/* Exported as "symbol" of the manifest's "guards", where an entry has them: the number of the first of their conditions that the
 * symbols do not satisfy, or -1. */
typedef int64_t (*llmos_guards)(const int64_t* symbols);

#ifdef __cplusplus
}
#endif
#endif
