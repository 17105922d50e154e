// How OpenMP's threads wait for one another. By itself libgomp spins for milliseconds before it sleeps: with as many
// threads as cores and another program on one of them, every thread burns its time slice waiting for one that is not
// running, and two threads are slower than one by a factor of ten. Some tens of microseconds of spinning bridge the
// gaps between parallel regions just as well (figures: docs/kernels.md, "Threads").
//
// libgomp reads its settings when it is loaded, before anything of this program runs but the functions of
// .preinit_array, so the program starts itself once more with the setting. It costs 30 ms. OMP_WAIT_POLICY and
// GOMP_SPINCOUNT, where a user sets them, are left alone.
#include <unistd.h>

#include <cstring>

namespace {

constexpr const char* kSetting = "GOMP_SPINCOUNT=2000";
constexpr int kMaxVariables = 8192;

bool names(const char* variable, const char* name) {
  const std::size_t length = std::strlen(name);
  return std::strncmp(variable, name, length) == 0 && variable[length] == '=';
}

// Nothing of the C++ library is initialised yet: no allocation.
void set_openmp_wait(int, char** arguments, char** environment) {
  int count = 0;
  for (; environment[count] != nullptr; ++count) {
    if (count + 2 > kMaxVariables) return;
    if (names(environment[count], "GOMP_SPINCOUNT") || names(environment[count], "OMP_WAIT_POLICY")) return;
  }
  static char* with_setting[kMaxVariables + 2];
  std::memcpy(with_setting, environment, sizeof(char*) * static_cast<std::size_t>(count));
  with_setting[count] = const_cast<char*>(kSetting);
  execve("/proc/self/exe", arguments, with_setting);
  // Where that is not possible (no /proc), libgomp's own way it is.
}

__attribute__((section(".preinit_array"), used)) void (*before_libraries)(int, char**, char**) = set_openmp_wait;

}  // namespace
