/* The part of CUDA's driver API that the core uses, opened at run time: no header and no library of CUDA's is needed to build. */
#ifndef LLMOS_CUDA_H_
#define LLMOS_CUDA_H_

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx* CUcontext;
typedef struct CUmod* CUmodule;
typedef struct CUfunc* CUfunction;
typedef struct CUstr* CUstream;
typedef struct CUpool* CUmemoryPool;
typedef unsigned long long CUdeviceptr;

enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NO_DEVICE = 100 };
enum { CU_MAJOR = 75, CU_MINOR = 76, CU_SHARED_BYTES_OPTIN = 97, CU_MEMORY_POOLS = 115 };        /* CUdevice_attribute */
enum { CU_MAX_DYNAMIC_SHARED_BYTES = 8 };                                                         /* CUfunction_attribute */
enum { CU_ERROR_LOG = 5, CU_ERROR_LOG_BYTES = 6 };                                                /* CUjit_option */
enum { CU_STREAM_NON_BLOCKING = 1, CU_POOL_RELEASE_THRESHOLD = 4, OLDEST_DRIVER = 12000 };        /* 12.0: the first that reads PTX 8.0 */

/* X(result's name here, symbol of the library, arguments) */
#define CUDA_FUNCTIONS(X)                                                                                                           \
  X(init, "cuInit", (unsigned))                                                                                                     \
  X(driver_version, "cuDriverGetVersion", (int*))                                                                                   \
  X(error_string, "cuGetErrorString", (CUresult, const char**))                                                                     \
  X(device_count, "cuDeviceGetCount", (int*))                                                                                       \
  X(device_get, "cuDeviceGet", (CUdevice*, int))                                                                                    \
  X(device_name, "cuDeviceGetName", (char*, int, CUdevice))                                                                         \
  X(device_attribute, "cuDeviceGetAttribute", (int*, int, CUdevice))                                                                \
  X(device_memory, "cuDeviceTotalMem_v2", (size_t*, CUdevice))                                                                      \
  X(memory_info, "cuMemGetInfo_v2", (size_t*, size_t*))                                                                             \
  X(device_pool, "cuDeviceGetDefaultMemPool", (CUmemoryPool*, CUdevice))                                                            \
  X(pool_set, "cuMemPoolSetAttribute", (CUmemoryPool, int, void*))                                                                  \
  X(context_retain, "cuDevicePrimaryCtxRetain", (CUcontext*, CUdevice))                                                             \
  X(context_release, "cuDevicePrimaryCtxRelease_v2", (CUdevice))                                                                    \
  X(context_push, "cuCtxPushCurrent_v2", (CUcontext))                                                                               \
  X(context_pop, "cuCtxPopCurrent_v2", (CUcontext*))                                                                                \
  X(module_load, "cuModuleLoadDataEx", (CUmodule*, const void*, unsigned, int*, void**))                                            \
  X(module_unload, "cuModuleUnload", (CUmodule))                                                                                    \
  X(module_function, "cuModuleGetFunction", (CUfunction*, CUmodule, const char*))                                                   \
  X(function_set, "cuFuncSetAttribute", (CUfunction, int, int))                                                                     \
  X(stream_create, "cuStreamCreate", (CUstream*, unsigned))                                                                         \
  X(stream_destroy, "cuStreamDestroy_v2", (CUstream))                                                                               \
  X(stream_synchronize, "cuStreamSynchronize", (CUstream))                                                                          \
  X(allocate, "cuMemAllocAsync", (CUdeviceptr*, size_t, CUstream))                                                                  \
  X(release, "cuMemFreeAsync", (CUdeviceptr, CUstream))                                                                             \
  X(allocate_pinned, "cuMemAllocHost_v2", (void**, size_t))                                                                         \
  X(release_pinned, "cuMemFreeHost", (void*))                                                                                       \
  X(copy, "cuMemcpyAsync", (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                                            \
  X(set_bytes, "cuMemsetD8Async", (CUdeviceptr, unsigned char, size_t, CUstream))                                                   \
  X(launch, "cuLaunchKernel", (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**))

typedef struct {
#define X(name, symbol, arguments) CUresult(*name) arguments;
  CUDA_FUNCTIONS(X)
#undef X
} llmos_cuda_driver;

#endif
