/* llmos: open an artifact and run it, from C, C++ or anything that calls C. Needs nothing but libc.
 *
 *     llmos_artifact* artifact;  llmos_program* program;
 *     if (llmos_artifact_open("m.llmos", &artifact)) { puts(llmos_last_error()); return 1; }
 *     if (llmos_program_open(artifact, -1, LLMOS_TRUST_ALWAYS, &program)) { ... }
 *     llmos_program_shapes(program, 0, inputs, 2, dims);                      // checks the inputs, gives the outputs' sizes
 *     llmos_program_run(program, 0, inputs, 2, outputs, 1, 0, NULL);          // fills outputs that you allocated
 *
 * Every function that returns int32_t gives 0 or an error code; llmos_last_error() then has one readable line, per thread.
 * All functions may be called from any thread, and one program may run on many threads at the same time; only the close of an
 * object must come after all its other uses. After fork() the child makes a thread pool of its own on its first run.
 */
#ifndef LLMOS_LLMOS_H_
#define LLMOS_LLMOS_H_

#include <stddef.h>
#include <stdint.h>

#include <llmos/abi.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLMOS_API __attribute__((visibility("default")))

/* Error codes beside those of abi.h (1 to 4), which a run passes on from the code of the artifact. */
enum {
  LLMOS_ERROR_ARTIFACT = 16, /* truncated, changed, of a later format, or not for this machine */
  LLMOS_ERROR_INPUT = 17,    /* an input or output has the wrong count, dtype, rank or size; the message names it */
  LLMOS_ERROR_STRIDES = 18,  /* an input is right but not dense or not aligned to its element: copy it and try again */
  LLMOS_ERROR_DEVICE = 19    /* no driver, none that is new enough, no such GPU, or a GPU that failed */
};

/* The message of the last error on this thread; valid until its next error. Never NULL. */
LLMOS_API const char* llmos_last_error(void);

/* ---- Artifacts ---------------------------------------------------------------------------------------------------------- */

typedef struct llmos_artifact llmos_artifact;

/* Maps the file and checks all of it: the structure byte for byte, the format version, the SHA-256 of every member. What it does
 * not check is the signature, that is, who made the artifact. The file must not be written to while it is open (replace it by
 * renaming another over it). */
LLMOS_API int32_t llmos_artifact_open(const char* path, llmos_artifact** artifact);

/* Gives up this reference; programs opened from the artifact keep their own. NULL is allowed. */
LLMOS_API void llmos_artifact_close(llmos_artifact* artifact);

/* The bytes of manifest.json, a private copy made before it was checked. */
LLMOS_API const void* llmos_artifact_manifest(const llmos_artifact* artifact, size_t* num_bytes);

/* A member's data in the mapped file, 64-byte aligned, or NULL where there is none of that name. */
LLMOS_API const void* llmos_artifact_member(const llmos_artifact* artifact, const char* name, size_t* num_bytes);

/* The data of a weight, by its index in the manifest, 64-byte aligned, or NULL where there is none. */
LLMOS_API const void* llmos_artifact_weight(const llmos_artifact* artifact, int32_t index, size_t* num_bytes);

/* Hashes every member again, on the thread pool: finds a file or memory that changed after the open. */
LLMOS_API int32_t llmos_artifact_verify(const llmos_artifact* artifact);

/* How many features this machine lacks to run a code member (0: it runs), or -1 where there is no such member. text: of `size` bytes, gets
 * their names with ", " between, cut where there is no room; "a <arch> machine" where the code is for another architecture. */
LLMOS_API int32_t llmos_artifact_missing(const llmos_artifact* artifact, int32_t code, char* text, size_t size);

/* The index of the first code member that this machine can run, or -1. The members come best first. */
LLMOS_API int32_t llmos_artifact_choose(const llmos_artifact* artifact);

/* ---- The machine -------------------------------------------------------------------------------------------------------- */

LLMOS_API const char* llmos_host_arch(void);     /* "x86_64", "aarch64" */
LLMOS_API const char* llmos_host_features(void); /* LLVM's names, with single spaces between, that CPU and system both offer */

/* Threads that share the tiles of a launch, the caller included. At first LLMOS_NUM_THREADS, else the physical cores that this
 * process may use (affinity and control group). There is one pool, shared by all programs of the process. */
LLMOS_API int32_t llmos_num_threads(void);
LLMOS_API int32_t llmos_set_num_threads(int32_t num_threads); /* waits for a running launch; 1 to 1024 */

/* ---- GPUs ----------------------------------------------------------------------------------------------------------------- */

typedef struct llmos_gpu llmos_gpu;

typedef struct {
  const char* name;
  int32_t major, minor; /* compute capability: 9, 0 for sm_90 */
  int64_t num_bytes;    /* of its memory */
} llmos_gpu_info;

/* Opens the NVIDIA GPU of that index by the driver of the machine, which is loaded on first use. Programs that are opened on it keep it. */
LLMOS_API int32_t llmos_gpu_open(int32_t index, llmos_gpu** gpu);
LLMOS_API void llmos_gpu_close(llmos_gpu* gpu);
LLMOS_API int32_t llmos_gpu_describe(const llmos_gpu* gpu, llmos_gpu_info* info);

/* Memory of a GPU, not cleared. Copies run in call order, between the GPU and the host in any direction; llmos_gpu_synchronize waits. */
LLMOS_API int32_t llmos_gpu_allocate(llmos_gpu* gpu, int64_t num_bytes, void** memory);
LLMOS_API void llmos_gpu_release(llmos_gpu* gpu, void* memory);
LLMOS_API int32_t llmos_gpu_copy(llmos_gpu* gpu, void* target, const void* source, int64_t num_bytes);
LLMOS_API int32_t llmos_gpu_clear(llmos_gpu* gpu, void* memory, int64_t num_bytes); /* in call order, too */
LLMOS_API int32_t llmos_gpu_synchronize(llmos_gpu* gpu);
LLMOS_API int32_t llmos_gpu_free_bytes(llmos_gpu* gpu, int64_t* num_bytes); /* that nothing uses yet */

/* As llmos_artifact_missing and llmos_artifact_choose, of what a GPU runs; with NULL of what the CPU does. */
LLMOS_API int32_t llmos_artifact_missing_on(const llmos_artifact* artifact, int32_t code, const llmos_gpu* gpu, char* text, size_t size);
LLMOS_API int32_t llmos_artifact_choose_on(const llmos_artifact* artifact, const llmos_gpu* gpu);

/* ---- Programs ----------------------------------------------------------------------------------------------------------- */

typedef struct llmos_program llmos_program;

/* The caller vouches for the code: it has checked the signature, or made the artifact itself. Native code can do anything that
 * the process can; this core checks that the code is whole, not whose it is, so it runs none without this flag. */
enum { LLMOS_TRUST_ALWAYS = 1 };

/* Loads the code member of that index (-1: llmos_artifact_choose) and binds the weights to the mapped file. What is loaded is a
 * sealed copy, hashed after it was copied. Keeps the artifact open. */
LLMOS_API int32_t llmos_program_open(llmos_artifact* artifact, int32_t code, uint32_t flags, llmos_program** program);

/* The same on a GPU: kernels and weights are copied there, and each run copies its inputs and outputs. NULL: on the CPU. */
LLMOS_API int32_t llmos_program_open_on(llmos_artifact* artifact, int32_t code, uint32_t flags, llmos_gpu* gpu, llmos_program** program);
LLMOS_API void llmos_program_close(llmos_program* program);

/* The index of an entry by its name ("main"), or -1. */
LLMOS_API int32_t llmos_program_entry(const llmos_program* program, const char* name);

typedef struct {
  const char* name;
  int32_t num_inputs, num_outputs;
} llmos_entry_info;

typedef struct {
  const char* name;
  DLDataType dtype;
  int32_t ndim;
  const int64_t* shape; /* -1 where the size is not fixed */
} llmos_tensor_info;

/* Names live as long as the program. Positions count the inputs, then the outputs. */
LLMOS_API int32_t llmos_program_info(const llmos_program* program, int32_t entry, llmos_entry_info* info);
LLMOS_API int32_t llmos_program_tensor(const llmos_program* program, int32_t entry, int32_t position, llmos_tensor_info* info);

/* Whether a run writes into an input: its new value is where it was, and it must be contiguous, aligned to its element, and share
 * memory with no other tensor of the run. Two runs must not be given it at the same time. 1, or 0 also where there is no such input. */
LLMOS_API int32_t llmos_program_updates(const llmos_program* program, int32_t entry, int32_t position);

/* Checks every input (dtype, rank, sizes, symbols consistent and in range, CPU, dense, aligned to its element) and writes all dims
 * of all outputs, one after the other: upper bounds where data decides a size. A bfloat16 tensor may also come as uint16. A complex64 or
 * complex128 tensor is DLPack's kDLComplex: its elements are real and imaginary part, one beside the other, and its dims don't count the two. */
LLMOS_API int32_t llmos_program_shapes(const llmos_program* program, int32_t entry, const DLTensor* const* inputs,
                                       int32_t num_inputs, int64_t* dims);

/* One record per launch: which dispatch, how many tiles, when (ns from the start of the run) and for how long. */
typedef struct {
  int32_t dispatch;
  int32_t reserved;
  int64_t num_tiles;
  int64_t start_ns;
  int64_t duration_ns;
} llmos_profile_record;

typedef struct {
  llmos_profile_record* records; /* of the caller, `capacity` of them */
  int64_t capacity;
  int64_t num_records; /* set by the run: how many launches there were, also beyond capacity */
  int64_t total_ns;    /* set by the run */
} llmos_profile;

/* For tests: fill the memory that the arena hands out with 0xFF (NaN, -1), so that code that reads what it did not write shows. */
enum { LLMOS_POISON_ARENA = 1 };

/* Runs an entry on the calling thread and the pool. Checks the inputs again, and the outputs against their shapes. flags: 0 or
 * LLMOS_POISON_ARENA; profile: NULL or where to put the records. After an error the outputs hold nothing of use; an input that the
 * run updates (llmos_program_updates) is as it was where the error is LLMOS_ERROR_INPUT, and may have been written in part otherwise.
 * Where data decides a size, the output's `shape` array is lowered in place to the sizes that it has; its elements lie dense in
 * that shape at the start of its memory. Set it to the bounds again before the next run. */
LLMOS_API int32_t llmos_program_run(llmos_program* program, int32_t entry, const DLTensor* const* inputs, int32_t num_inputs,
                                    const DLTensor* const* outputs, int32_t num_outputs, uint32_t flags,
                                    llmos_profile* profile);

/* Between runs: no run is under way, and no run wrote past its arena. LLMOS_INTERNAL tells what is wrong. */
LLMOS_API int32_t llmos_program_check(llmos_program* program);

#ifdef __cplusplus
}
#endif
#endif
