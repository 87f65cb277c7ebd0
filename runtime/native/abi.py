"""The numbers of abi.h, llmos.h and core.h. Edit the headers, then run `python -m llmos.compiler.devtools.abi_constants`."""

# What a kernel, a launch and an entry return.
OK = 0
INDEX_OUT_OF_RANGE = 1
OUT_OF_MEMORY = 2
BAD_ARGUMENTS = 3
INTERNAL = 4
SIZE_OUT_OF_RANGE = 5

# What a function of llmos.h may return beside these.
ERROR_ARTIFACT = 16
ERROR_INPUT = 17
ERROR_STRIDES = 18
ERROR_DEVICE = 19

# What an object may rely on.
ABI_VERSION = 3

# Flags of llmos.h.
TRUST_ALWAYS = 1
POISON_ARENA = 1

# Byte offsets in llmos_context.
CONTEXT_WEIGHTS = 0
CONTEXT_ARENA = 8
CONTEXT_LAUNCH = 16
CONTEXT_THREADS = 24
CONTEXT_DEVICE = 32
CONTEXT_STREAM = 40
CONTEXT_BYTES = 48

# Byte offsets in llmos_device.
DEVICE_COPY = 24
DEVICE_SYNCHRONIZE = 32
DEVICE_LAUNCH = 40

# Byte offsets in llmos_grid.
GRID_BLOCKS = 0
GRID_THREADS = 12
GRID_SHARED_BYTES = 24
GRID_DISPATCH = 28
GRID_BYTES = 32

# Byte offsets in DLTensor.
TENSOR_DATA = 0
TENSOR_NDIM = 16
TENSOR_SHAPE = 24
TENSOR_OFFSET = 40
TENSOR_BYTES = 48

# Byte offsets in TVMFFIAny, and its type indices.
ANY_VALUE = 8
ANY_BYTES = 16
TYPE_NONE = 0
TYPE_DLTENSOR_PTR = 7

# Of artifacts.
FORMAT = 5
OLDEST_FORMAT = 1
ALIGNMENT = 64
CHUNK_BYTES = 1048576
MAX_NDIM = 16
MAX_SYMBOLS = 64
