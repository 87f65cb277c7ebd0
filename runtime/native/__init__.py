"""The C core (thread pool, artifact checks, runs) and its ctypes binding.

`include/llmos/abi.h` is what compiled code relies on and `include/llmos/llmos.h` is the API for C, C++ and Rust; both say what is
guaranteed. The core needs libc alone. setup.py builds it as `_core*.so` beside this file; by hand:
`cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -Iinclude *.c -lpthread -ldl -Wl,-z,nodelete -o _core.so`.
"""
