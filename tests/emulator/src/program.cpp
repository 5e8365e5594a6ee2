// Types, special registers, and places in a program as text.
#include "program.h"

#include <cxxabi.h>

#include <cstdlib>

namespace emulator {

int size_of(Type type) {
    switch (type) {
        case Type::b8:
        case Type::u8:
        case Type::s8:
        case Type::e4m3:
        case Type::e5m2:
            return 1;
        case Type::b16:
        case Type::u16:
        case Type::s16:
        case Type::f16:
        case Type::bf16:
        case Type::e4m3x2:
        case Type::e5m2x2:
            return 2;
        case Type::b64:
        case Type::u64:
        case Type::s64:
        case Type::f64:
            return 8;
        case Type::b128:
            return 16;
        default:
            return 4;
    }
}

bool is_signed(Type type) {
    return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64;
}

bool is_floating(Type type) {
    switch (type) {
        case Type::f16:
        case Type::bf16:
        case Type::f32:
        case Type::f64:
        case Type::f16x2:
        case Type::bf16x2:
            return true;
        default:
            return false;
    }
}

Type type_named(const std::string& name) {
    static const std::map<std::string, Type> names = {
        {"pred", Type::pred},    {"b8", Type::b8},     {"b16", Type::b16},     {"b32", Type::b32},
        {"b64", Type::b64},      {"b128", Type::b128}, {"u8", Type::u8},       {"u16", Type::u16},
        {"u32", Type::u32},      {"u64", Type::u64},   {"s8", Type::s8},       {"s16", Type::s16},
        {"s32", Type::s32},      {"s64", Type::s64},   {"f16", Type::f16},     {"bf16", Type::bf16},
        {"f32", Type::f32},      {"f64", Type::f64},   {"f16x2", Type::f16x2}, {"bf16x2", Type::bf16x2},
        {"tf32", Type::tf32},    {"e4m3", Type::e4m3}, {"e5m2", Type::e5m2},   {"e4m3x2", Type::e4m3x2},
        {"e5m2x2", Type::e5m2x2}};
    const auto found = names.find(name);
    return found == names.end() ? Type::none : found->second;
}

const std::map<std::string, Special>& special_registers() {
    static const std::map<std::string, Special> table = {{"%tid.x", Special::tid_x},
                                                         {"%tid.y", Special::tid_y},
                                                         {"%tid.z", Special::tid_z},
                                                         {"%ntid.x", Special::ntid_x},
                                                         {"%ntid.y", Special::ntid_y},
                                                         {"%ntid.z", Special::ntid_z},
                                                         {"%ctaid.x", Special::ctaid_x},
                                                         {"%ctaid.y", Special::ctaid_y},
                                                         {"%ctaid.z", Special::ctaid_z},
                                                         {"%nctaid.x", Special::nctaid_x},
                                                         {"%nctaid.y", Special::nctaid_y},
                                                         {"%nctaid.z", Special::nctaid_z},
                                                         {"%laneid", Special::laneid},
                                                         {"%warpid", Special::warpid},
                                                         {"%nwarpid", Special::nwarpid},
                                                         {"%smid", Special::smid},
                                                         {"%nsmid", Special::nsmid},
                                                         {"%gridid", Special::gridid},
                                                         {"%lanemask_eq", Special::lanemask_eq},
                                                         {"%lanemask_lt", Special::lanemask_lt},
                                                         {"%lanemask_le", Special::lanemask_le},
                                                         {"%lanemask_gt", Special::lanemask_gt},
                                                         {"%lanemask_ge", Special::lanemask_ge},
                                                         {"%clock", Special::clock},
                                                         {"%clock64", Special::clock64},
                                                         {"%globaltimer", Special::clock64},
                                                         {"%globaltimer_lo", Special::clock},
                                                         {"%dynamic_smem_size", Special::dynamic_smem_size},
                                                         {"%total_smem_size", Special::total_smem_size},
                                                         {"%cluster_ctarank", Special::cluster_ctarank},
                                                         {"%cluster_nctarank", Special::cluster_nctarank},
                                                         {"%cluster_ctaid.x", Special::cluster_ctaid_x},
                                                         {"%cluster_ctaid.y", Special::cluster_ctaid_y},
                                                         {"%cluster_ctaid.z", Special::cluster_ctaid_z},
                                                         {"%cluster_nctaid.x", Special::cluster_nctaid_x},
                                                         {"%cluster_nctaid.y", Special::cluster_nctaid_y},
                                                         {"%cluster_nctaid.z", Special::cluster_nctaid_z},
                                                         {"%clusterid.x", Special::clusterid_x},
                                                         {"%clusterid.y", Special::clusterid_y},
                                                         {"%clusterid.z", Special::clusterid_z},
                                                         {"%nclusterid.x", Special::nclusterid_x},
                                                         {"%nclusterid.y", Special::nclusterid_y},
                                                         {"%nclusterid.z", Special::nclusterid_z},
                                                         {"%is_explicit_cluster", Special::is_explicit_cluster}};
    return table;
}

bool is_wide(Special special) {
    return special == Special::clock64 || special == Special::gridid;
}

std::string line_of(const Module& module, int line) {
    std::size_t at = 0;
    for (int n = 1; n < line && at != std::string::npos; ++n) {
        at = module.text.find('\n', at);
        if (at != std::string::npos) ++at;
    }
    if (at == std::string::npos) return "";
    std::string text = module.text.substr(at, module.text.find('\n', at) - at);
    text.erase(0, text.find_first_not_of(" \t"));
    return text;
}

std::string describe(const Module& module, const SourceLine& source) {
    if (source.line == 0) return "";
    const auto name = [&](int file, int line) {
        const auto f = module.files.find(file);
        return (f == module.files.end() ? "file " + std::to_string(file) : f->second) + ":" + std::to_string(line);
    };
    std::string text = name(source.file, source.line);
    if (source.inlined_line) text += ", inlined at " + name(source.inlined_file, source.inlined_line);
    return text;
}

std::string demangled(const std::string& name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    const std::string result = status == 0 && text ? text : name;
    std::free(text);
    return result;
}

}  // namespace emulator
