#include "options.h"

#include <cstdlib>
#include <functional>
#include <map>

namespace emulator {
namespace {

using Setter = std::function<void(Options&, const std::string&)>;

template <class T>
Setter number(T Options::* field) {
    return [field](Options& o, const std::string& text) {
        o.*field = static_cast<T>(std::strtoull(text.c_str(), nullptr, 0));
    };
}

Setter text(std::string Options::* field) {
    return [field](Options& o, const std::string& value) { o.*field = value; };
}

const std::map<std::string, Setter>& setters() {
    static const std::map<std::string, Setter> table = {
        {"arch", number(&Options::arch)},
        {"multiprocessors", number(&Options::multiprocessors)},
        {"seed", number(&Options::seed)},
        {"arith_seed", number(&Options::arith_seed)},
        {"check_bounds", number(&Options::check_bounds)},
        {"check_alignment", number(&Options::check_alignment)},
        {"check_races", number(&Options::check_races)},
        {"check_warp_races", number(&Options::check_warp_races)},
        {"check_global", number(&Options::check_global)},
        {"check_order", number(&Options::check_order)},
        {"check_init", number(&Options::check_init)},
        {"check_proxy", number(&Options::check_proxy)},
        {"check_async", number(&Options::check_async)},
        {"check_masks", number(&Options::check_masks)},
        {"check_barriers", number(&Options::check_barriers)},
        {"check_readonly", number(&Options::check_readonly)},
        {"instruction_limit", number(&Options::instruction_limit)},
        {"stall_limit", number(&Options::stall_limit)},
        {"count", number(&Options::count)},
        {"counts_file", text(&Options::counts_file)},
        {"synchronised_file", text(&Options::synchronised_file)},
        {"drop_line", number(&Options::drop_line)},
        {"drop_kernel", text(&Options::drop_kernel)},
        {"timing", number(&Options::timing)},
        {"timing_reuse", number(&Options::timing_reuse)},
        {"timing_registers", number(&Options::timing_registers)},
        {"timing_clusters", number(&Options::timing_clusters)},
        {"fast_mma", number(&Options::fast_mma)},
    };
    return table;
}

void set_from_environment(Options& o, const std::string& name) {
    std::string variable = "PYGPT_EMULATOR_";
    for (char c : name) variable += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    if (const char* value = std::getenv(variable.c_str())) setters().at(name)(o, value);
}

Options from_environment() {
    Options o;
    for (const auto& entry : setters()) set_from_environment(o, entry.first);
    return o;
}

}  // namespace

Options current_options = from_environment();

void refresh_from_environment() {
    for (const auto& entry : setters()) set_from_environment(options(), entry.first);
}

void refresh_tools() {
    for (const char* name : {"count", "counts_file", "synchronised_file", "drop_line", "drop_kernel", "timing",
                             "timing_reuse", "timing_registers", "timing_clusters"})
        set_from_environment(options(), name);
}

bool set_option(const std::string& name, const std::string& value) {
    const auto found = setters().find(name);
    if (found == setters().end()) return false;
    found->second(options(), value);
    return true;
}

}  // namespace emulator
