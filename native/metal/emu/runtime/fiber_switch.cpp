#include "fiber_switch.h"

#include <cstring>

#if defined(__x86_64__)

asm(R"(
.text
.globl moestream_emu_switch
.type moestream_emu_switch,@function
moestream_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size moestream_emu_switch,.-moestream_emu_switch
)");

namespace moestream::emu {

void* fresh_stack(unsigned char* top, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  void** slot = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15});
  *--slot = nullptr;  // where entry would return to
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--slot = nullptr;
  return slot;
}

}  // namespace moestream::emu

#elif defined(__aarch64__)

asm(R"(
.text
.globl moestream_emu_switch
.type moestream_emu_switch,@function
moestream_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size moestream_emu_switch,.-moestream_emu_switch
)");

namespace moestream::emu {

void* fresh_stack(unsigned char* top, void (*entry)()) {
  constexpr std::size_t kFrameBytes = 160;
  constexpr std::size_t kReturnSlot = 11;  // x30
  const std::uintptr_t aligned = reinterpret_cast<std::uintptr_t>(top) & ~std::uintptr_t{15};
  auto* const frame = reinterpret_cast<std::uint64_t*>(aligned - kFrameBytes);
  std::memset(frame, 0, kFrameBytes);
  frame[kReturnSlot] = reinterpret_cast<std::uint64_t>(entry);
  return frame;
}

}  // namespace moestream::emu

#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif
