// Every opcode the emulator knows. An opcode that is not here, or a form that its function does not accept, is an error
// that names it (ProgramError), never a guess. README.md says how to add one.
#include <unordered_map>

#include "instructions.h"

namespace emulator {

Bind bind_of(const std::string& opcode) {
    static const std::unordered_map<std::string, Bind> table = {
        // Arithmetic
        {"add", bind_add},
        {"sub", bind_sub},
        {"addc", bind_addc},
        {"subc", bind_subc},
        {"mul", bind_mul},
        {"mad", bind_mad},
        {"madc", bind_madc},
        {"fma", bind_mad},
        {"div", bind_div},
        {"rem", bind_rem},
        {"min", bind_min},
        {"max", bind_max},
        {"neg", bind_neg},
        {"abs", bind_abs},
        {"sad", bind_sad},
        {"dp4a", bind_dot_product},
        {"dp2a", bind_dot_product},
        {"copysign", bind_copysign},
        {"sqrt", bind_sqrt},
        {"rsqrt", bind_rsqrt},
        {"rcp", bind_rcp},
        {"ex2", bind_ex2},
        {"lg2", bind_lg2},
        {"sin", bind_sin},
        {"cos", bind_cos},
        {"tanh", bind_tanh},
        // Logic and bits
        {"and", bind_and},
        {"or", bind_or},
        {"xor", bind_xor},
        {"not", bind_not},
        {"cnot", bind_cnot},
        {"lop3", bind_lop3},
        {"shl", bind_shl},
        {"shr", bind_shr},
        {"shf", bind_shf},
        {"prmt", bind_prmt},
        {"bfe", bind_bfe},
        {"bfi", bind_bfi},
        {"popc", bind_popc},
        {"clz", bind_clz},
        {"brev", bind_brev},
        {"bfind", bind_bfind},
        // Comparison, selection, moves, conversion
        {"setp", bind_setp},
        {"set", bind_setp},
        {"selp", bind_selp},
        {"slct", bind_slct},
        {"mov", bind_mov},
        {"cvt", bind_cvt},
        // Memory
        {"ld", bind_ld},
        {"ldu", bind_ld},
        {"st", bind_st},
        {"atom", bind_atom},
        {"red", bind_red},
        {"cvta", bind_cvta},
        {"isspacep", bind_isspacep},
        {"mapa", bind_mapa},
        {"getctarank", bind_getctarank},
        // Asynchronous copies: cp.async, cp.async.bulk, cp.reduce.async.bulk
        {"cp", bind_cp},
        // Lanes of a warp
        {"shfl", bind_shfl},
        {"vote", bind_vote},
        {"match", bind_match},
        {"redux", bind_redux},
        {"activemask", bind_activemask},
        {"elect", bind_elect},
        // Barriers and fences
        {"bar", bind_bar},
        {"barrier", bind_bar},
        {"mbarrier", bind_mbarrier},
        {"fence", bind_fence},
        {"membar", bind_fence},
        // Matrices
        {"ldmatrix", bind_ldmatrix},
        {"stmatrix", bind_stmatrix},
        {"movmatrix", bind_movmatrix},
        {"mma", bind_mma},
        {"wgmma", bind_wgmma},
        // Control
        {"bra", bind_bra},
        {"call", bind_call},
        {"ret", bind_ret},
        {"exit", bind_exit},
        {"trap", bind_trap},
        // Without effect on results
        {"brkpt", bind_nothing},
        {"nanosleep", bind_nothing},
        {"prefetch", bind_nothing},
        {"prefetchu", bind_nothing},
        {"setmaxnreg", bind_setmaxnreg},
        {"griddepcontrol", bind_griddepcontrol},
        {"pmevent", bind_nothing},
    };
    const auto found = table.find(opcode);
    return found == table.end() ? nullptr : found->second;
}

}  // namespace emulator
