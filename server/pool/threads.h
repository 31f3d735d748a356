// What WorkerPool runs on. Thread-safe.
#ifndef GRADCLIP_SERVER_POOL_THREADS_H_
#define GRADCLIP_SERVER_POOL_THREADS_H_

namespace gradclip {

class Threads {
 public:
  Threads() = default;
  virtual ~Threads() = default;
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  virtual int count() const = 0;

  // Calls work(argument) on one of them, soon.
  virtual void Call(void (*work)(void*), void* argument) = 0;
};

}  // namespace gradclip

#endif  // GRADCLIP_SERVER_POOL_THREADS_H_
