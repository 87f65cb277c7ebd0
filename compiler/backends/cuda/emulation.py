"""Kernels of a GPU as code for a processor: the second mapping of what threads do together, so that numbers are tested without a GPU.

The LLVM IR stays as it is, thread by thread, with the indices, the shared memory and the fragments of the tensor cores that the GPU would
see; only the intrinsics become calls of functions that a host defines. Such a host runs the threads of a block one after the other, and
switches between them where they wait for each other (tests/cuda/fake_cuda.c).
"""

from __future__ import annotations

import re

PREFIX = "__llmos_emulated_"  # of a kernel's name: void (void** arguments), as cuLaunchKernel takes them

# Intrinsics whose arguments and results are words: what a host defines in their place, in LLVM IR.
WORDS = {
    "llvm.nvvm.read.ptx.sreg.tid.x": "i32 @__llmos_gpu_thread()",
    "llvm.nvvm.read.ptx.sreg.ctaid.x": "i32 @__llmos_gpu_block()",
    "llvm.nvvm.barrier.cta.sync.aligned.all": "void @__llmos_gpu_barrier(i32)",
    "llvm.nvvm.bar.warp.sync": "void @__llmos_gpu_warp_barrier(i32)",
    "llvm.nvvm.shfl.sync.bfly.i32": "i32 @__llmos_gpu_shuffle_xor(i32, i32, i32, i32)",
}

# Products of tensor cores, of 4 words on the left and 2 on the right: the type of the sums, and the host's function.
PRODUCTS = {
    "llvm.nvvm.mma.m16n8k16.row.col.bf16": ("float", "__llmos_gpu_mma_bf16"),
    "llvm.nvvm.mma.m16n8k8.row.col.tf32": ("float", "__llmos_gpu_mma_tf32"),
    "llvm.nvvm.mma.m16n8k32.row.col.u8.s8": ("i32", "__llmos_gpu_mma_u8s8"),
}
LEFT_WORDS, RIGHT_WORDS = 4, 2

FRAGMENTS = {"llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3": "__llmos_gpu_fragment"}  # loads of four words by an address a lane

_DECLARATION = re.compile(r"^declare .*@(llvm\.nvvm\.[\w.]+)\(.*$", re.MULTILINE)
_KERNEL = re.compile(r"^define ptx_kernel void @([\w.$]+)\((.*?)\) ?(?:#\d+ )?\{$", re.MULTILINE)
_TYPE = re.compile(r"^(ptr|i64)\b")


def emulate(text: str) -> str:
    """Return LLVM IR text of kernels without a GPU's intrinsics, each with a function that takes its arguments as a launch gives them.

    Raises KeyError for an intrinsic that has no emulation.
    """
    used = _DECLARATION.findall(text)
    kernels = _KERNEL.findall(text)
    text = _DECLARATION.sub("", text).replace("define ptx_kernel void", "define void")
    parts = []
    for name in dict.fromkeys(used):
        if name in PRODUCTS:
            parts.append(_product(name, *PRODUCTS[name]))
        elif name in FRAGMENTS:
            parts.append(_fragment(name, FRAGMENTS[name]))
        else:
            text = text.replace(f"@{name}(", f"@{_function(WORDS[name])}(")
            parts.append(f"declare {WORDS[name]}")
    return "\n".join(
        [
            text.replace("@llvm.nvvm.mma", "@emulated.mma").replace("@llvm.nvvm.ldmatrix", "@emulated.ldmatrix"),
            *parts,
            *[_launched(*kernel) for kernel in kernels],
            "",
        ]
    )


def _function(declaration: str) -> str:
    return declaration.partition("@")[2].partition("(")[0]


def _launched(name: str, parameters: str) -> str:
    """A function that loads a kernel's arguments and calls it."""
    types = [found[1] for each in parameters.split(",") if (found := _TYPE.match(each.strip()))]
    lines = [f"define void @{PREFIX}{name}(ptr %arguments) {{"]
    for i, kind in enumerate(types):
        lines += [
            f"  %p{i} = getelementptr ptr, ptr %arguments, i64 {i}",
            f"  %q{i} = load ptr, ptr %p{i}",
            f"  %v{i} = load {kind}, ptr %q{i}",
        ]
    passed = ", ".join(f"{kind} %v{i}" for i, kind in enumerate(types))
    return "\n".join([*lines, f"  call void @{name}({passed})", "  ret void", "}"])


def _fragment(name: str, function: str) -> str:
    """A function in the place of an ldmatrix: the words go through memory."""
    result = "{ i32, i32, i32, i32 }"
    lines = [f"define {result} @{name.replace('llvm.nvvm', 'emulated')}(ptr addrspace(3) %row) noinline {{"]
    lines += ["  %out = alloca [4 x i32]", f"  call void @{function}(ptr addrspace(3) %row, ptr %out)"]
    last = "poison"
    for i in range(4):
        lines += [f"  %o{i} = getelementptr i32, ptr %out, i64 {i}", f"  %l{i} = load i32, ptr %o{i}"]
        lines += [f"  %r{i} = insertvalue {result} {last}, i32 %l{i}, {i}"]
        last = f"%r{i}"
    return "\n".join([f"declare void @{function}(ptr addrspace(3), ptr)", *lines, f"  ret {result} {last}", "}"])


def _product(name: str, total: str, function: str) -> str:
    """A function in the place of an mma: operands and result go through memory, as arrays of words."""
    emulated = name.replace("llvm.nvvm.mma", "emulated.mma")
    words = [f"i32 %w{i}" for i in range(LEFT_WORDS + RIGHT_WORDS)]
    sums = [f"{total} %c{i}" for i in range(4)]
    result = f"{{ {total}, {total}, {total}, {total} }}"
    lines = [f"define {result} @{emulated}({', '.join([*words, *sums])}) noinline {{"]
    lines += [f"  %in = alloca [{LEFT_WORDS + RIGHT_WORDS} x i32]", f"  %out = alloca [4 x {total}]"]
    for i in range(LEFT_WORDS + RIGHT_WORDS):
        lines += [f"  %a{i} = getelementptr i32, ptr %in, i64 {i}", f"  store i32 %w{i}, ptr %a{i}"]
    for i in range(4):
        lines += [f"  %o{i} = getelementptr {total}, ptr %out, i64 {i}", f"  store {total} %c{i}, ptr %o{i}"]
    lines += [f"  call void @{function}(ptr %in, ptr %out)"]
    last = "poison"
    for i in range(4):
        lines += [f"  %l{i} = load {total}, ptr %o{i}", f"  %r{i} = insertvalue {result} {last}, {total} %l{i}, {i}"]
        last = f"%r{i}"
    return "\n".join([f"declare void @{function}(ptr, ptr)", *lines, f"  ret {result} {last}", "}"])
