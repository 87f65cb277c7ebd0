"""The C core (thread pool, artifact checks, runs) and its ctypes binding.

`include/llmos/abi.h` is the ABI of compiled code and `include/llmos/llmos.h` the API for C, C++ and Rust; both document their guarantees.
The core needs only libc. setup.py builds it as `_core*.so` in this folder; to build it manually:
`cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Iinclude *.c -lpthread -ldl -Wl,-z,nodelete -o _core.so`.
"""
