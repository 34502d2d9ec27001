# SPDX-License-Identifier: Apache-2.0
"""Run a static aarch64 Linux executable on any machine, with the unicorn engine.

    python emulate.py EXECUTABLE [ARGUMENTS ...] [--without-dotprod]

Only what a test program needs of Linux: memory, standard output and error, exit. The processor is QEMU's "max"; with
--without-dotprod the program is told (by AT_HWCAP) that it has no dot products. Runs in an environment of its own
(tests/external/environments/aarch64.txt): nothing of ours is imported.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from unicorn import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM, UC_PROT_ALL, Uc, UcError
from unicorn.arm64_const import (
    UC_ARM64_REG_CPACR_EL1,
    UC_ARM64_REG_PC,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
    UC_ARM64_REG_X1,
    UC_ARM64_REG_X2,
    UC_ARM64_REG_X8,
    UC_CPU_ARM64_MAX,
)

PAGE = 4096
BREAK, BREAK_BYTES = 0x2000_0000, 256 << 20
MAPPED, MAPPED_BYTES = 0x4000_0000, 1 << 30
STACK, STACK_BYTES = 0x9000_0000, 16 << 20
LOAD_SEGMENT = 1
AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_ENTRY, AT_HWCAP, AT_RANDOM = 0, 3, 4, 5, 6, 9, 16, 25
# fp, asimd, fphp, asimdhp, and asimddp, as <asm/hwcap.h> numbers them.
HWCAP, HWCAP_DOTPROD = 1 << 0 | 1 << 1 | 1 << 9 | 1 << 10, 1 << 20
ENOSYS, ENOTTY, ENOMEM = 38, 25, 12


class Machine:
    """One process: its memory and what it asked of the kernel."""

    def __init__(self, executable: bytes, arguments: list[str], hwcap: int) -> None:
        self.exit_code: int | None = None
        self._next_mapping = MAPPED
        self._break = BREAK
        self._uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self._uc.ctl_set_cpu_model(UC_CPU_ARM64_MAX)
        self._uc.reg_write(UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point and vectors do not trap
        for start, size in ((BREAK, BREAK_BYTES), (MAPPED, MAPPED_BYTES), (STACK, STACK_BYTES)):
            self._uc.mem_map(start, size, UC_PROT_ALL)
        self._entry = self._load(executable)
        self._start_stack(executable, arguments, hwcap)
        self._uc.hook_add(UC_HOOK_INTR, self._on_interrupt)

    def run(self) -> int:
        """Returns the exit status."""
        try:
            self._uc.emu_start(self._entry, 0)
        except UcError as error:
            print(f"emulate: {error} at {self._uc.reg_read(UC_ARM64_REG_PC):#x}", file=sys.stderr)
            return 139
        return 139 if self.exit_code is None else self.exit_code

    def _load(self, executable: bytes) -> int:
        entry, headers = struct.unpack_from("<QQ", executable, 24)
        size, count = struct.unpack_from("<HH", executable, 54)
        self._headers = count, size, 0
        mapped: set[int] = set()
        for index in range(count):
            kind, _, offset, address, _, in_file, in_memory, _ = struct.unpack_from(
                "<IIQQQQQQ", executable, headers + index * size
            )
            if kind != LOAD_SEGMENT:
                continue
            if offset <= headers < offset + in_file:
                self._headers = count, size, address + headers - offset
            for page in range(address // PAGE, -(-(address + in_memory) // PAGE)):
                if page not in mapped:
                    self._uc.mem_map(page * PAGE, PAGE, UC_PROT_ALL)
                    mapped.add(page)
            self._uc.mem_write(address, executable[offset : offset + in_file])
        return int(entry)

    def _start_stack(self, executable: bytes, arguments: list[str], hwcap: int) -> None:
        top = STACK + STACK_BYTES - PAGE
        pointers = []
        for argument in arguments:
            text = argument.encode() + b"\0"
            top -= len(text)
            self._uc.mem_write(top, text)
            pointers.append(top)
        top = (top - 16) & ~15  # sixteen bytes that AT_RANDOM promises
        count, size, headers = self._headers
        vector = [(AT_PHDR, headers), (AT_PHENT, size), (AT_PHNUM, count), (AT_PAGESZ, PAGE)]
        vector += [(AT_ENTRY, self._entry), (AT_HWCAP, hwcap), (AT_RANDOM, top), (AT_NULL, 0)]
        words = [len(pointers), *pointers, 0, 0, *(number for pair in vector for number in pair)]
        stack = (top - 8 * len(words)) & ~15
        self._uc.mem_write(stack, struct.pack(f"<{len(words)}Q", *words))
        self._uc.reg_write(UC_ARM64_REG_SP, stack)

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        if number != 2:  # not a system call: an instruction that does not exist, or a fault
            print(f"emulate: exception {number} at {uc.reg_read(UC_ARM64_REG_PC):#x}", file=sys.stderr)
            uc.emu_stop()
            return
        a, b, c = (uc.reg_read(register) for register in (UC_ARM64_REG_X0, UC_ARM64_REG_X1, UC_ARM64_REG_X2))
        uc.reg_write(UC_ARM64_REG_X0, self._answer(uc.reg_read(UC_ARM64_REG_X8), a, b, c) & (1 << 64) - 1)

    def _answer(self, call: int, a: int, b: int, c: int) -> int:
        match call:
            case 64:
                return self._write(a, [(b, c)])
            case 66:
                return self._write(a, [struct.unpack("<QQ", self._uc.mem_read(b + 16 * i, 16)) for i in range(c)])
            case 93 | 94:
                self.exit_code = a & 255
                self._uc.emu_stop()
                return 0
            case 214:
                self._break = a if BREAK <= a <= BREAK + BREAK_BYTES else self._break
                return self._break
            case 222:
                start = self._next_mapping
                self._next_mapping += -(-b // PAGE) * PAGE
                return start if self._next_mapping <= MAPPED + MAPPED_BYTES else -ENOMEM
            case 29:
                return -ENOTTY
            case 96 | 178:
                return 1
            case 215 | 226 | 233 | 99 | 134 | 135:  # unmapping, protection, advice, signals
                return 0
        return -ENOSYS

    def _write(self, descriptor: int, parts: list[tuple[int, int]]) -> int:
        stream = sys.stderr if descriptor == 2 else sys.stdout
        for address, size in parts:
            stream.buffer.write(self._uc.mem_read(address, size))
        stream.flush()
        return sum(size for _, size in parts)


def main(arguments: list[str]) -> int:
    """The exit status of the program."""
    words = [word for word in arguments if word != "--without-dotprod"]
    hwcap = HWCAP if len(words) < len(arguments) else HWCAP | HWCAP_DOTPROD
    return Machine(Path(words[0]).read_bytes(), words, hwcap).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
