// ex2, rcp and their like, whose results the manual only bounds. With arith_seed 0 they are rounded correctly; with any
// other seed each result is off by an amount within the documented bound, which depends on seed, function and argument
// only: code whose bits agree only because two approximations happen to agree will not pass every seed.
#pragma once
#include "numbers.h"

namespace emulator {

enum class Approximate { ex2, lg2, rcp, sqrt, rsqrt, sin, cos, tanh };

float approximate(Approximate function, float x);
double approximate64(Approximate function, double x);  // rcp.approx.ftz.f64, rsqrt.approx.f64: 20 bits
float approximate_quotient(float a, float b);          // div.approx, div.full: 2 ulp

}  // namespace emulator
