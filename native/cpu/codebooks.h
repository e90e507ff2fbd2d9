// The codebooks of the IQ formats: constants that the file format publishes.
//
// An entry's values are three or eight different ones, so codebooks.cpp keeps 16 bits per entry (5 KB in all) and the
// compiler unpacks them. They unpack to floats: 4 to 32 KB per format, which a core's first cache holds, and a lookup
// needs no conversion.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moestream::cpu {

template <std::size_t kEntries, std::size_t kValues>
using Grid = std::array<std::array<float, kValues>, kEntries>;

extern const Grid<256, 8> kGridIq2Xxs;
extern const Grid<512, 8> kGridIq2Xs;
extern const Grid<1024, 8> kGridIq2S;
extern const Grid<256, 4> kGridIq3Xxs;
extern const Grid<512, 4> kGridIq3S;

// The values of 4-bit codes: IQ4_NL and IQ4_XS, and twice those of MXFP4.
inline constexpr std::array<std::int8_t, 16> kValuesIq4{-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::array<std::int8_t, 16> kValuesMxfp4{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace moestream::cpu
