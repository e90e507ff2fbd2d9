// Leaving one stack for another: about 3 ns, where the system's swapcontext makes two system calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moestream::emu {

// Saves the callee-saved registers on the running stack, its pointer in *from, and goes on where `to` left off.
extern "C" void moestream_emu_switch(void** from, void* to);

// A stack below `top` that enters `entry` when it is first switched to.
void* fresh_stack(unsigned char* top, void (*entry)());

}  // namespace moestream::emu
