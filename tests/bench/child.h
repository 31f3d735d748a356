// A program run beside the benchmark, with pipes to its standard input and from its standard
// output. It is killed when the object, or the thread that started it, ends. Not thread-safe.
#ifndef GRADCLIP_TESTS_BENCH_CHILD_H_
#define GRADCLIP_TESTS_BENCH_CHILD_H_

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace gradclip::bench {

class Child {
 public:
  // program: a path, or a name to find in PATH. Its standard error goes to the file `errors`.
  static absl::StatusOr<std::unique_ptr<Child>> Start(const std::string& program,
                                                      const std::vector<std::string>& arguments,
                                                      const std::string& errors);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // The next line of its standard output, without the newline. UNAVAILABLE with the end of `errors`
  // where it has ended.
  absl::StatusOr<std::string> ReadLine();
  absl::Status WriteLine(const std::string& line);

  // A field of /proc/PID/status that is given in kB, such as "VmHWM" (the most that was ever
  // resident) or "VmRSS", in bytes.
  absl::StatusOr<uint64_t> MemoryBytes(const std::string& field) const;

  // The processors' time that it has taken so far, to 10 ms, as the system counts.
  absl::StatusOr<double> CpuSeconds() const;

  pid_t pid() const { return pid_; }

 private:
  using File = std::unique_ptr<FILE, int (*)(FILE*)>;
  Child(std::string program, std::string errors, pid_t pid, int in, int out);

  const std::string program_;
  const std::string errors_;
  const pid_t pid_;
  File in_;
  File out_;
};

}  // namespace gradclip::bench

#endif  // GRADCLIP_TESTS_BENCH_CHILD_H_
