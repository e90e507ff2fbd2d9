// How soon a thread that has little to do runs when it is woken while every core computes.
#pragma once

namespace moestream::io {

// Asks for the calling thread to run as soon as it is woken: its slice of processor time becomes the shortest there is, and
// a thread that asks for less is let in sooner. It gets no larger share, and no right is needed. False where the system
// does not know of it (Linux before 6.12, macOS) or refuses.
bool prefer_prompt_wakeup();

}  // namespace moestream::io
